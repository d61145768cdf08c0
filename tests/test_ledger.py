import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from sqlite3 import IntegrityError

import pytest

from dicom_node.errors import LedgerBroken, Mismatch, OutOfResources, Unavailable
from dicom_node.instance import Instance
from dicom_node.jobs import Jobs
from dicom_node.ledger import Ledger, Result
from dicom_node.ledger import ledger as ledger_module

STUDY = "1.2.3"
PEER = "PACS@127.0.0.1:104"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "deep" / "ledger.sqlite") as opened:
        yield opened


def instance(number: int = 1, *, study: str = STUDY, at: datetime | None = None) -> Instance:
    return Instance(
        study_uid=study,
        series_uid=f"{study}.1",
        sop_uid=f"{study}.1.{number}",
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        path=Path(f"/spool/{study}/{number}.dcm"),
        sha256="0" * 64,
        size=100,
        received_at=at or datetime.now(UTC),
        patient_id="P1",
        patient_name="SYNTHETIC^ONE",
        accession_number="A%1",
        modality="CT",
    )


def job_with_results(ledger: Ledger, *peers: str) -> str:
    ledger.record_instance(instance())
    jobs = Jobs(ledger)
    job = jobs.enqueue(STUDY, "ct_chest", [instance().sop_uid], model_digest="m", series=[])
    assert jobs.claim("w", 60)
    result = Result(job.id, "seg", "1.2", "9.9", "9.8", Path("/results/seg.dcm"), "1" * 64)
    jobs.complete(
        job.id, "w", [result], dict.fromkeys(peers, ("seg",)), {"model": {"name": "tiny"}}
    )
    return job.id


def test_an_instance_opens_its_study(ledger: Ledger) -> None:
    ledger.record_instance(instance())
    study = ledger.study(STUDY)
    assert study is not None
    assert (study.state, study.instance_count, study.modalities) == ("receiving", 1, ("CT",))
    assert ledger.instance(STUDY, "1.2.3.1.1") == ledger.instances(STUDY)[0]
    assert [each.kind for each in ledger.events()] == ["study.opened", "instance.stored"]


def test_a_later_version_of_an_instance_is_the_current_one(ledger: Ledger) -> None:
    ledger.record_instance(instance())
    later = replace(instance(), path=Path("/spool/other.dcm"), sha256="2" * 64)
    ledger.record_instance(later, kind="instance.superseded")
    assert [each.sha256 for each in ledger.instances(STUDY)] == ["2" * 64]
    assert len(ledger.paths()) == 2


def test_a_quiet_study_and_an_endless_one_and_a_wanted_one_are_complete(ledger: Ledger) -> None:
    now = datetime.now(UTC)
    ledger.record_instance(instance(study="1.1", at=now - timedelta(seconds=31)))
    ledger.record_instance(instance(study="1.2", at=now - timedelta(seconds=7200)))
    ledger.record_instance(instance(2, study="1.2", at=now))
    ledger.record_instance(instance(study="1.3", at=now))
    ledger.record_instance(instance(study="1.4", at=now))
    assert ledger.request_completion("1.4")
    assert not ledger.request_completion("7.7")
    complete = {each.study_uid for each in ledger.quiet_studies(30, 3600, now)}
    assert complete == {"1.1", "1.2", "1.4"}


def test_late_images_open_a_study_again(ledger: Ledger) -> None:
    job_with_results(ledger)
    assert ledger.study(STUDY).state == "done"
    ledger.record_instance(instance(2))
    assert ledger.study(STUDY).state == "receiving"
    assert "study.reopened" in [each.kind for each in ledger.events(study_uid=STUDY)]


def test_a_study_comes_to_no_state_that_does_not_follow(ledger: Ledger) -> None:
    ledger.record_instance(instance())
    with pytest.raises(Mismatch, match="receiving cannot become processing"):
        ledger.set_study_state(STUDY, "processing")


def test_a_study_is_done_when_every_destination_has_its_results(ledger: Ledger) -> None:
    job = job_with_results(ledger, PEER, "B@host:1")
    first, second = ledger.due_deliveries()
    ledger.record_delivery(first.id, "sent")
    assert ledger.study(STUDY).state == "delivering"
    ledger.record_delivery(
        second.id, "pending", detail="refused", next_at=datetime.now(UTC) + timedelta(hours=1)
    )
    assert ledger.due_deliveries() == []
    ledger.record_delivery(second.id, "failed", detail="refused")
    study = ledger.study(STUDY)
    assert (study.state, "B@host:1: refused" in study.reason) == ("failed", True)
    assert [(each.state, each.attempts) for each in ledger.deliveries(job)] == [
        ("sent", 1),
        ("failed", 2),
    ]


def test_what_has_ended_stays_as_it_ended(ledger: Ledger) -> None:
    job = job_with_results(ledger, PEER)
    (delivery,) = ledger.due_deliveries()
    ledger.record_delivery(delivery.id, "sent")
    head = ledger.head()
    ledger.record_delivery(delivery.id, "failed", detail="a second courier")
    assert [each.state for each in ledger.deliveries(job)] == ["sent"]
    assert (ledger.study(STUDY).state, ledger.head()) == ("done", head)


def test_a_study_without_destinations_is_done_with_its_results(ledger: Ledger) -> None:
    job_with_results(ledger)
    assert ledger.study(STUDY).state == "done"


def test_an_earlier_delivery_does_not_end_a_study_that_has_a_newer_job(ledger: Ledger) -> None:
    job_with_results(ledger, PEER)
    ledger.record_instance(instance(2))
    sop_uids = [each.sop_uid for each in ledger.instances(STUDY)]
    Jobs(ledger).enqueue(STUDY, "ct_chest", sop_uids, model_digest="m", series=[])
    ledger.record_delivery(ledger.due_deliveries()[0].id, "failed", detail="refused")
    assert ledger.study(STUDY).state == "queued"


def test_times_come_back_as_utc_to_the_microsecond(ledger: Ledger) -> None:
    local = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=timezone(timedelta(hours=3)))
    ledger.record_instance(instance(at=local))
    study = ledger.study(STUDY)
    assert study.first_at == study.last_at == local
    assert study.first_at.tzinfo == UTC
    earlier = local - timedelta(seconds=5)  # stored by a slower thread
    ledger.record_instance(instance(2, at=earlier))
    assert (ledger.study(STUDY).last_at, ledger.study(STUDY).arrivals) == (local, 2)


def test_a_study_names_its_modalities_and_counts_current_instances(ledger: Ledger) -> None:
    ledger.record_instance(instance())
    ledger.record_instance(replace(instance(2), modality="SR"))
    ledger.record_instance(replace(instance(), path=Path("/spool/new.dcm")))
    ledger.record_instance(instance(study="7.7"))
    study = ledger.study(STUDY)
    assert (study.modalities, study.instance_count, study.arrivals) == (("CT", "SR"), 2, 3)
    newest, older = ledger.studies()
    assert (newest.study_uid, older.study_uid) == ("7.7", STUDY)


def test_search_takes_wildcards_for_what_they_are(ledger: Ledger) -> None:
    ledger.record_instance(instance())
    assert [each.study_uid for each in ledger.studies(text="A%1")] == [STUDY]
    assert ledger.studies(text="A_1") == []
    assert ledger.study_counts() == {"receiving": 1}


def test_the_database_refuses_to_change_or_remove_an_event(ledger: Ledger) -> None:
    ledger.event("a")
    with sqlite3.connect(ledger.path) as raw:
        again = (
            "REPLACE INTO events SELECT seq, at, 'b', null, null, data, previous, digest, '', ''"
        )
        for verb in (
            "UPDATE events SET kind = 'b'",
            "DELETE FROM events",
            f"{again} FROM events",
        ):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                raw.execute(verb)
    raw.close()


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        ("UPDATE events SET kind = 'x' WHERE seq = 3", "event 3 was changed"),
        ("UPDATE events SET data = '{\"n\":9}' WHERE seq = 2", "event 2 was changed"),
        ("DELETE FROM events WHERE seq = 3", "event 3 is missing"),
        ("UPDATE events SET previous = digest WHERE seq = 4", "event 4 does not follow"),
        ("UPDATE events SET digest = previous WHERE seq = 5", "event 5 was changed"),
        ("UPDATE events SET at = null WHERE seq = 1", "event 1 was changed"),
        ("DELETE FROM events WHERE seq = 1", "event 1 is missing"),
        ("UPDATE events SET seq = 9 WHERE seq = 5", "event 5 is missing"),
        ("UPDATE events SET job_id = 'x' WHERE seq IN (2, 4)", "event 2 was changed"),
    ],
)
def test_verify_finds_what_was_changed_past_the_triggers(
    ledger: Ledger, attack: str, message: str
) -> None:
    for number in range(5):
        ledger.event("a", n=number)
    assert ledger.verify() == 5
    tamper(ledger.path, attack)
    with pytest.raises(LedgerBroken, match=message):
        ledger.verify()


def test_verify_finds_a_cut_off_end_with_the_head_noted(ledger: Ledger) -> None:
    for number in range(5):
        ledger.event("a", n=number)
    head = ledger.head()
    assert ledger.verify(head) == 5
    tamper(ledger.path, "DELETE FROM events WHERE seq = 5")
    assert ledger.verify() == 4
    with pytest.raises(LedgerBroken, match="end at 4"):
        ledger.verify(head)


def test_verify_finds_a_chain_forged_anew_with_the_head_noted(
    ledger: Ledger, tmp_path: Path
) -> None:
    ledger.event("told")
    with Ledger(tmp_path / "forged.sqlite") as forged:
        forged.event("untold")
        assert forged.verify() == 1
        with pytest.raises(LedgerBroken, match="event 1 is not the one"):
            forged.verify(ledger.head())


def tamper(path: Path, statement: str) -> None:
    raw = sqlite3.connect(path)
    raw.execute("PRAGMA ignore_check_constraints = 1")
    raw.execute("PRAGMA writable_schema = 1")
    raw.execute("UPDATE sqlite_schema SET sql = replace(sql, 'NOT NULL', '')")
    raw.commit()
    raw.close()
    raw = sqlite3.connect(path)
    for verb in ("update", "delete"):
        raw.execute(f"DROP TRIGGER events_refuse_{verb}")
    raw.execute(statement)
    raw.commit()
    raw.close()


def test_what_fails_in_a_transaction_leaves_nothing(ledger: Ledger) -> None:
    ledger.record_instance(instance())
    before = ledger.head()
    with pytest.raises(IntegrityError), ledger.transaction() as transaction:  # noqa: PT012
        transaction.event("half")
        transaction.record_instance(instance())
    assert ledger.head() == before


def test_a_full_disk_writes_nothing_and_says_so(ledger: Ledger) -> None:
    ledger.record_instance(instance())
    with ledger.transaction() as transaction:
        pages = transaction.connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        transaction.connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    before, text = ledger.head(), "x" * 100_000
    with pytest.raises(OutOfResources, match="full"):
        ledger.event("long", text=text)
    assert ledger.head() == before
    assert ledger.verify() == before[0]


def test_a_ledger_that_another_holds_for_too_long_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "BUSY_S", 0.1)
    with Ledger(tmp_path / "ledger.sqlite") as opened:
        holder = sqlite3.connect(opened.path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable, match="locked"):
            opened.event("a")
        holder.close()
        opened.event("b")
        assert opened.verify() == 1


def test_what_is_committed_is_synchronized_to_the_disk(ledger: Ledger) -> None:
    with ledger.transaction() as transaction:
        for pragma, value in (("synchronous", 2), ("foreign_keys", 1), ("journal_mode", "wal")):
            found = transaction.connection.exec_driver_sql(f"PRAGMA {pragma}").scalar_one()
            assert found == value, pragma


def _write_events(path: Path, name: str) -> None:
    with Ledger(path) as ledger:
        for number in range(50):
            ledger.event("parallel", writer=name, n=number)


def test_several_processes_write_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_events, args=(path, str(n))) for n in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    with Ledger(path) as ledger:
        assert ledger.verify() == 200
        told = {(each.data["writer"], each.data["n"]) for each in ledger.events()}
        assert told == {(str(name), number) for name in range(4) for number in range(50)}


def test_a_killed_writer_leaves_a_whole_chain(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    code = (
        "import sys, pathlib\nfrom dicom_node.ledger import Ledger\n"
        "ledger = Ledger(pathlib.Path(sys.argv[1]))\nwhile True: ledger.event('a')"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(path)])
    with Ledger(path) as ledger:
        while ledger.head()[0] < 20:
            time.sleep(0.01)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        assert ledger.verify() >= 20
        ledger.event("after")


def test_a_token_is_good_once_and_its_digest_is_all_that_is_kept(ledger: Ledger) -> None:
    token = ledger.issue_token("login", lifetime_s=60)
    assert not ledger.redeem_token("other", token)
    assert ledger.token_is_good("login", token)
    assert ledger.redeem_token("login", token)
    assert not ledger.redeem_token("login", token)
    assert token.encode() not in ledger.path.read_bytes()
    assert not ledger.redeem_token("login", ledger.issue_token("login", lifetime_s=-1))


def test_a_ledger_that_cannot_be_made_says_where(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match="ledger"):
        Ledger(tmp_path / "file" / "ledger.sqlite")


def test_a_file_that_is_no_ledger_is_said_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"no database " * 1000)
    with pytest.raises(Unavailable) as caught:
        Ledger(path)
    assert str(caught.value) == f"cannot open the ledger {path}: file is not a database"


@pytest.mark.parametrize("table", ["studies", "events"])
def test_a_ledger_that_cannot_be_read_is_unavailable(ledger: Ledger, table: str) -> None:
    with sqlite3.connect(ledger.path) as database:
        database.execute(f"ALTER TABLE {table} RENAME TO away")
    database.close()
    reads = {"studies": [ledger.studies], "events": [ledger.events, ledger.head, ledger.verify]}
    for read in reads[table]:
        with pytest.raises(Unavailable, match=f"cannot be used: no such table: {table}"):
            read()


def test_a_ledger_of_an_earlier_version_gets_the_columns_that_it_lacks(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        job_id = job_with_results(ledger, "A@host:1")
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as database:
        database.execute("ALTER TABLE deliveries DROP COLUMN labels")
        database.commit()
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        (found,) = ledger.deliveries(job_id)
        assert (found.destination, found.labels) == ("A@host:1", ())
        ledger.record_delivery(found.id, "sent")
        assert ledger.deliveries(job_id)[0].state == "sent"
