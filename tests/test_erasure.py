import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import audit_schema
import pytest
from commands import lamed_node, served, short_protocols, tamper, until
from keeping import MODEL, Node, Stopped, killed_at

from dicom_node import retention, text_drop
from dicom_node.audit import relay
from dicom_node.config import Config
from dicom_node.errors import BadInput, LedgerBroken, Unavailable
from dicom_node.jobs import Jobs
from dicom_node.ledger import Ledger, chain
from dicom_node.retention import erasure

WHO = ("SYNTHETIC^ERASE", "SYNTHETIC", "PID-0815", "ACC-4711", "1.2.77.")
OTHER = {"PatientID": "PID-9", "PatientName": "OTHER^ONE", "AccessionNumber": "ACC-9"}
STUDY = "1.2.77.1"
EMPTIED = "UPDATE events SET data = '{\"erased\":true}', salt = ''"
UNTOLD = "was emptied, and no later event tells of it"


@pytest.fixture
def node(config: Config) -> Iterator[Node]:
    with Node(config) as made:
        yield made


def erase(node: Node, *studies: str, by: str = "test") -> list[erasure.Erased]:
    return erasure.erase(node.ledger, node.config, studies or (STUDY,), by=by, reason="art. 17")


def remains(folder: Path, words: tuple[str, ...] = WHO) -> list[tuple[str, str]]:
    """Search every file and every name below a folder."""
    found = []
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        for word in words:
            encoded = (word.encode(), word.encode("utf-16-le"))
            if word in str(path.relative_to(folder)) or any(each in content for each in encoded):
                found.append((str(path.relative_to(folder)), word))
    return found


def test_nothing_of_the_person_is_left_in_any_byte_of_the_data_folder(node: Node) -> None:
    node.delivered(STUDY)
    node.delivered("1.2.88.1", **OTHER)
    node.ledger.event("spool.unreadable", path=f"/spool/{STUDY}/x.dcm", reason="PID-0815 is odd")
    assert {word for _, word in remains(node.config.data_dir)} == set(WHO)
    (told,) = erase(node)
    assert remains(node.config.data_dir) == []
    assert (told.files, told.pseudonym[:7]) == (4, "erased-")
    other = ("OTHER^ONE", "PID-9", "1.2.88.1.1.1")
    assert {word for _, word in remains(node.config.data_dir, other)} == set(other)
    assert len(node.ledger.instances("1.2.88.1")) == 2


def test_the_chain_holds_and_the_head_that_was_noted_is_still_there(node: Node) -> None:
    node.delivered(STUDY)
    head = node.ledger.head()
    assert node.ledger.verify(head) == head[0]
    (told,) = erase(node)
    assert node.ledger.verify(head) == node.ledger.head()[0]
    events = node.ledger.events(study_uid=told.pseudonym)
    assert [each.kind for each in events][-3:] == [
        "erasure.begun",
        "study.erased",
        "ledger.scrubbed",
    ]
    emptied = [each for each in events if each.data == {"erased": True}]
    assert len(emptied) == told.events > 5
    said = next(each.data for each in events if each.kind == "study.erased")
    assert (said["by"], said["reason"], said["instances"]) == ("test", "art. 17", 2)


def test_what_stays_tells_what_the_node_did(node: Node) -> None:
    job = node.delivered(STUDY)
    (told,) = erase(node)
    assert node.ledger.study(STUDY) is None
    study, kept = node.ledger.study(told.pseudonym), node.ledger.job(job)
    assert study
    assert kept
    assert (study.state, study.patient_name, study.study_date) == ("erased", "", "")
    assert kept.summary == {"model": MODEL}
    (sent,) = node.ledger.deliveries(job)
    assert (sent.destination, sent.state, sent.detail) == ("PACS@127.0.0.1:104", "delivered", "")
    assert retention.plan(node.ledger, node.config, datetime.now(UTC) + timedelta(days=900)) == (
        [],
        {},
    )


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        ("UPDATE events SET data = '{\"n\":1}' WHERE seq = 2", "event 2 was changed"),
        ("UPDATE events SET at = 'x' WHERE seq = 2", "event 2 was changed"),
        ("UPDATE events SET study_uid = 'x' WHERE seq = 2", "was erased by event .* was changed"),
        (f"{EMPTIED} WHERE kind = 'ledger.scrubbed'", UNTOLD),
        (f"{EMPTIED} WHERE kind = 'study.erased'", UNTOLD),
    ],
)
def test_an_erasure_is_no_cover_for_other_changes(node: Node, attack: str, message: str) -> None:
    node.delivered(STUDY)
    erase(node)
    tamper(node.ledger.path, attack)
    with pytest.raises(LedgerBroken, match=message):
        node.ledger.verify()


def test_the_database_refuses_to_change_an_event_also_after_an_erasure(node: Node) -> None:
    node.delivered(STUDY)
    erase(node)
    with closing(sqlite3.connect(node.ledger.path)) as raw:
        for verb in ("UPDATE events SET data = ''", "DELETE FROM events"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                raw.execute(verb)


def as_earlier(path: Path) -> None:
    """Write the chain as versions before 2 did: the digest is over what stands there."""
    rows: list[tuple[Any, ...]] = []
    with closing(sqlite3.connect(path)) as raw, raw:
        found = raw.execute("SELECT seq, at, kind, study_uid, job_id, data FROM events").fetchall()
        previous = chain.GENESIS
        for row in found:
            digest = chain._digest(
                previous, dict(zip(chain.EARLIER, row, strict=True)), chain.EARLIER
            )
            rows.append((previous, digest, row[0]))
            previous = digest
        raw.execute("DROP TRIGGER events_refuse_update")
        raw.executemany(
            "UPDATE events SET previous = ?, digest = ?, salt = NULL, commitment = NULL"
            " WHERE seq = ?",
            rows,
        )


def test_events_of_an_earlier_version_verify_and_can_be_erased(node: Node) -> None:
    node.delivered(STUDY)
    as_earlier(node.ledger.path)
    node.restart()
    head = node.ledger.head()
    assert node.ledger.verify(head) == head[0]
    node.ledger.event("after")
    erase(node)
    assert node.ledger.verify(head) == node.ledger.head()[0]
    assert remains(node.config.data_dir) == []
    tamper(node.ledger.path, "UPDATE events SET kind = 'x' WHERE seq = 2")
    with pytest.raises(LedgerBroken, match=r"was erased by event .* was changed"):
        node.ledger.verify()


def test_a_ledger_of_an_earlier_version_gets_the_columns_of_this_one(node: Node) -> None:
    node.delivered(STUDY)
    as_earlier(node.ledger.path)
    node.ledger.close()
    with closing(sqlite3.connect(node.ledger.path)) as raw, raw:
        for table, column in (
            ("events", "salt"),
            ("events", "commitment"),
            ("instances", "expired_at"),
            ("jobs", "expired_at"),
            ("studies", "expired_at"),
        ):
            raw.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        for table in ("holds", "removals", "cursors"):
            raw.execute(f"DROP TABLE {table}")
    with Ledger(node.ledger.path) as ledger:
        assert ledger.verify() == ledger.head()[0]
        ledger.event("after")
        assert ledger.verify() == ledger.head()[0]


def test_a_held_study_cannot_be_erased_and_none_of_the_others_is(node: Node) -> None:
    node.delivered(STUDY)
    node.delivered("1.2.77.2")
    node.hold("1.2.77.2")
    with pytest.raises(BadInput, match=r"1\.2\.77\.2 is on hold since .* by test: a lawsuit"):
        erase(node, STUDY, "1.2.77.2")
    assert len(node.ledger.instances(STUDY)) == 2
    with pytest.raises(BadInput, match="no study is known"):
        erase(node, "9.9")


def test_a_study_that_is_being_read_is_not_erased(node: Node) -> None:
    node.receive(STUDY)
    node.enqueue(STUDY)
    assert Jobs(node.ledger).claim("w", 60)
    with pytest.raises(Unavailable, match="is being read at this moment"):
        erase(node)


def test_what_waits_to_be_read_or_sent_is_called_off(node: Node) -> None:
    node.delivered(STUDY, state="pending")
    node.receive("1.2.77.2")
    node.enqueue("1.2.77.2")
    erase(node, STUDY, "1.2.77.2")
    assert node.ledger.due_deliveries(datetime.now(UTC) + timedelta(days=9)) == []
    assert Jobs(node.ledger).claim("w", 60) is None
    assert node.ledger.verify() == node.ledger.head()[0]


def test_a_patient_is_erased_with_all_studies_and_no_other_patient(node: Node) -> None:
    node.delivered(STUDY)
    node.delivered("1.2.77.2")
    node.delivered("1.2.88.1", **OTHER)
    found = erasure.of_patient(node.ledger, "PID-0815")
    assert found == [STUDY, "1.2.77.2"]
    assert len(erase(node, *found)) == 2
    assert remains(node.config.data_dir) == []
    with pytest.raises(BadInput, match="no study is known of patient PID-0815"):
        erasure.of_patient(node.ledger, "PID-0815")


def test_another_study_of_the_same_patient_stays_as_it_is(node: Node) -> None:
    node.delivered(STUDY)
    job = node.delivered("1.2.88.1")
    node.ledger.event("study.expected", study_uid="1.2.88.1", of="SYNTHETIC^ERASE PID-0815")
    before = node.ledger.events(study_uid="1.2.88.1"), node.ledger.job(job)
    erase(node)
    assert (node.ledger.events(study_uid="1.2.88.1"), node.ledger.job(job)) == before
    study = node.ledger.study("1.2.88.1")
    assert study
    assert (study.patient_name, study.accession_number) == ("SYNTHETIC^ERASE", "ACC-4711")
    assert remains(node.config.data_dir, (STUDY,)) == []


def test_the_same_number_of_another_issuer_is_another_patient(node: Node) -> None:
    node.delivered(STUDY, IssuerOfPatientID="EAST")
    node.delivered("1.2.88.1", IssuerOfPatientID="WEST")
    assert erasure.of_patient(node.ledger, "PID-0815", "EAST") == [STUDY]
    with pytest.raises(BadInput, match="PID-0815 of NORTH"):
        erasure.of_patient(node.ledger, "PID-0815", "NORTH")
    node.sweep(datetime.now(UTC) + timedelta(days=31))
    with pytest.raises(BadInput, match=r"the images of .* are gone"):
        erasure.of_patient(node.ledger, "PID-0815", "EAST")


def test_a_draft_that_no_ris_has_fetched_goes_too(node: Node, tmp_path: Path) -> None:
    drop = tmp_path / "ris"
    drop.mkdir()
    job = node.delivered(STUDY, destination=f"text:{drop}")
    (drop / text_drop.name("ACC-4711", job)).write_text("Thorax of SYNTHETIC^ERASE")
    (drop / "foreign.txt").write_text("of somebody else")
    (told,) = erase(node)
    assert [each.name for each in drop.iterdir()] == ["foreign.txt"]
    assert told.unreached == ()


def test_a_folder_of_drafts_that_is_away_is_named(node: Node, tmp_path: Path) -> None:
    node.delivered(STUDY, destination=f"text:{tmp_path}/share")
    (told,) = erase(node)
    assert told.unreached == (f"{tmp_path}/share",)
    (said,) = [each.data for each in node.ledger.events() if each.kind == "study.erased"]
    assert said["unreached"] == [f"{tmp_path}/share"]


def test_what_a_late_worker_writes_afterwards_goes_too(node: Node) -> None:
    job = node.delivered(STUDY)
    erase(node)
    folder = node.config.results_dir / job
    folder.mkdir()
    (folder / "draft.dcm").write_text("SYNTHETIC^ERASE")
    node.sweep()
    assert remains(node.config.data_dir) == []
    assert "retention.stray" in [each.kind for each in node.ledger.events()]


def test_audit_messages_that_are_kept_as_files_lose_whose_they_are(node: Node) -> None:
    kept = replace(node.config, audit_store=True)
    node.delivered(STUDY)
    node.delivered("1.2.88.1", **OTHER)
    node.delivered("1.2.99.1")
    node.ledger.event("study.complete", study_uid=STUDY)
    (place,) = relay.places(kept)
    while relay.step(node.ledger, kept, place):
        pass
    assert remains(kept.audit_dir)
    (told,) = erase(node)
    assert remains(kept.audit_dir, (STUDY,)) == []
    text = "".join(each.read_text() for each in kept.audit_dir.glob("*.log"))
    assert told.pseudonym in text
    assert "PID-9" in text
    assert "PID-0815" in text  # of the other study, which stays
    erase(node, "1.2.99.1")
    assert remains(node.config.data_dir) == []
    for each in kept.audit_dir.glob("*.log"):
        for line in each.read_bytes().splitlines():
            audit_schema.check(line)


STEPS = ["begun", "results", "images", "rows", "scrub", "forget"]


@pytest.mark.parametrize("step", STEPS)
def test_a_crash_anywhere_leaves_what_the_next_start_finishes(
    node: Node, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.delivered(STUDY)
    head = node.ledger.head()

    def stop(*_: Any, **__: Any) -> None:
        raise Stopped

    place, name = {
        "begun": (erasure, "_finish"),
        "results": (erasure, "_remove_drafts"),
        "images": (erasure, "_remove_images"),
        "rows": (erasure.traces, "remove"),
        "scrub": (Ledger, "scrub"),
        "forget": (erasure.removals, "forget"),
    }[step]
    with monkeypatch.context() as patched:
        patched.setattr(place, name, stop)
        with pytest.raises(Stopped):
            erase(node)
    assert node.ledger.verify(head) > head[0]
    node.restart()
    assert remains(node.config.data_dir) == []
    kinds = [each.kind for each in node.ledger.events()]
    assert (kinds.count("study.erased"), kinds.count("ledger.scrubbed")) == (1, 1)
    assert retention.resume(node.ledger, node.config) == 0
    assert node.ledger.verify(head) == len(kinds)


@pytest.mark.parametrize(
    "place",
    [
        "dicom_node.retention.erasure._finish",
        "dicom_node.retention.erasure._remove_images",
        "dicom_node.ledger.traces.remove",
        "dicom_node.ledger.chain.erase",
        "dicom_node.ledger.Ledger.scrub",
        "dicom_node.ledger.removals.forget",
    ],
)
def test_a_process_that_is_killed_leaves_what_the_next_one_finishes(node: Node, place: str) -> None:
    node.delivered(STUDY)
    head = node.ledger.head()
    killed_at(place, node, f"erasure.erase(node.ledger, config, ['{STUDY}'], by='test')")
    node.restart()
    assert remains(node.config.data_dir) == []
    kinds = [each.kind for each in node.ledger.events()]
    assert (kinds.count("study.erased"), kinds.count("ledger.scrubbed")) == (1, 1)
    assert node.ledger.verify(head) == len(kinds)


def test_a_node_in_service_is_not_disturbed(node: Node, tmp_path: Path, checkpoint: Path) -> None:
    node.delivered(STUDY)
    settings: dict[str, object] = {
        "data_dir": node.config.data_dir,
        "dicom_port": 0,
        "checkpoint": checkpoint,
    }
    settings |= {"protocols": short_protocols(tmp_path / "protocols"), "quiet_s": 0.5}
    with served(tmp_path / "log", "--only", "scp", **settings) as up:
        done = lamed_node("erase", STUDY, "--yes", data_dir=node.config.data_dir)
        assert (done.code, done.err) == (0, "")
        assert remains(node.config.data_dir) == []
        node.receive("1.2.88.1", **OTHER)
        until(lambda: node.ledger.jobs("1.2.88.1"))
        assert up.end() == 0
    assert node.ledger.verify() == node.ledger.head()[0]


def test_an_erased_study_may_come_again_as_a_new_one(node: Node) -> None:
    node.delivered(STUDY)
    erase(node)
    node.receive(STUDY)
    assert len(node.ledger.instances(STUDY)) == 2
    erase(node)
    assert remains(node.config.data_dir) == []
    assert node.ledger.verify() == node.ledger.head()[0]


def test_a_short_number_takes_nothing_from_others(node: Node) -> None:
    node.delivered("1.2.88.1", **OTHER)
    node.ledger.event("delivery.odd", detail="7 instances stored, as PID-99 said")
    node.delivered(STUDY, PatientID="7")
    erase(node)
    (odd,) = [each for each in node.ledger.events() if each.kind == "delivery.odd"]
    assert odd.data == {"detail": "7 instances stored, as PID-99 said"}


def test_columns_that_are_added_later_to_rows_that_stay_are_emptied(node: Node) -> None:
    job = node.delivered(STUDY)
    node.delivered("1.2.88.1", **OTHER)
    with node.ledger.transaction() as transaction:
        transaction.connection.exec_driver_sql(
            "UPDATE jobs SET worker = 'read ' || study_uid, reason = 'of ' || study_uid"
        )
    erase(node)
    assert remains(node.config.data_dir) == []
    kept = node.ledger.job(job)
    assert kept
    assert (kept.worker, kept.protocol) == ("", "ct_chest")
    assert [each.worker for each in node.ledger.jobs("1.2.88.1")] == ["read 1.2.88.1"]


def test_rows_of_tables_that_are_added_later_are_not_forgotten(node: Node) -> None:
    from sqlalchemy import Column, Integer, String, Table

    from dicom_node.ledger import tables

    later = Table(
        "later", tables.METADATA, Column("id", Integer, primary_key=True), Column("it", String)
    )
    try:
        with node.ledger.transaction() as transaction:
            tables.create(transaction.connection)
            for told in (json.dumps({"uid": f"{STUDY}.1.1"}), "of 1.2.88.1"):
                transaction.connection.execute(later.insert().values(it=told))
        node.delivered(STUDY)
        erase(node)
        with node.ledger.reading() as connection:
            assert [row.it for row in connection.execute(later.select())] == ["of 1.2.88.1"]
    finally:
        tables.METADATA.remove(later)
