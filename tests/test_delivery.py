import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import drafts
import pytest
from desk import until
from pydicom import dcmread

from dicom_node import text_drop
from dicom_node.config import Config, Destination
from dicom_node.delivery import delivery
from dicom_node.demo import sample
from dicom_node.errors import BadInput
from dicom_node.instance import Instance
from dicom_node.jobs import Jobs
from dicom_node.ledger import Delivery, Ledger, Result
from dicom_node.scp import Scp
from dicom_node.scu import backoff
from dicom_node.spool import Announced, Spool

CLASSES = ("seg", "measurements", "draft")


@dataclass(frozen=True)
class Pacs:
    """A real storage SCP that plays the PACS, and what it has in its ledger."""

    address: Destination
    ledger: Ledger

    def stored(self, kind: str = "instance.stored") -> list[str]:
        return [str(each.data["sop_uid"]) for each in self.ledger.events() if each.kind == kind]


@contextmanager
def pacs(folder: Path, title: str = "PACS", spool: type[Spool] = Spool) -> Iterator[Pacs]:
    config = Config(ae_title=title, dicom_port=0, data_dir=folder / title)
    with Ledger(config.ledger_path) as ledger:
        room = 1 << 30 if spool is Full else 1
        with Scp(config, spool(config.spool_dir, ledger, minimum_free_mb=room), ledger) as scp:
            yield Pacs(Destination(title, "127.0.0.1", scp.port), ledger)


class Full(Spool):
    """A PACS without room: it wants no association."""


class Stopping(Spool):
    """A PACS during whose first store the node is told to stop."""

    stop = threading.Event()

    def store(self, dataset: bytes, announced: Announced) -> Instance:
        self.stop.set()
        return super().store(dataset, announced)


@contextmanager
def silent() -> Iterator[Destination]:
    """Listen and never answer, as a PACS that hangs."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        yield Destination(f"SILENT{port}", "127.0.0.1", port)


def dead(title: str = "DEAD") -> Destination:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return Destination(title, "127.0.0.1", listening.getsockname()[1])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A real SEG and two real SR."""
    folder = tmp_path_factory.mktemp("made")
    return sample.write(list(drafts.encoded().values()), folder)


@pytest.fixture
def finish(ledger: Ledger, made: list[Path]) -> Callable[..., str]:
    """Let a job be done, its results on their way to destinations; return its key."""
    done: list[str] = []

    def finished(
        *destinations: Destination | str,
        paths: Sequence[Path] = (),
        plan: Mapping[str, Sequence[str]] | None = None,
        held: Mapping[str, str] | None = None,
    ) -> str:
        number = len(done) + 1
        ledger.record_instance(
            Instance(
                study_uid=f"1.2.{number}",
                series_uid="1",
                sop_uid=f"1.{number}",
                sop_class_uid="1",
                transfer_syntax_uid="1",
                path=Path(f"/{number}.dcm"),
                sha256="",
                size=1,
                received_at=datetime.now(UTC),
            )
        )
        jobs = Jobs(ledger)
        jobs.enqueue(f"1.2.{number}", "ct_chest", ["1"], model_digest="0f", series=[])
        job = jobs.claim("worker", 60)
        assert job is not None
        results = [
            Result(
                job.id,
                label,
                "1",
                f"2.{number}.{label}",
                "1",
                path,
                "",
                (held or {}).get(label, ""),
            )
            for label, path in zip(CLASSES, paths or made, strict=True)
        ]
        plan = plan or {str(each): CLASSES for each in destinations}
        jobs.complete(job.id, "worker", results, plan, {})
        done.append(job.id)
        return job.id

    return finished


def only(ledger: Ledger, job_id: str) -> Delivery:
    (found,) = ledger.deliveries(job_id)
    return found


def events(ledger: Ledger, kind: str) -> list[dict[str, object]]:
    return [each.data for each in ledger.events() if each.kind == kind]


def study_of(ledger: Ledger, job_id: str) -> tuple[str, str]:
    job = ledger.job(job_id)
    study = ledger.study(job.study_uid) if job else None
    assert study is not None
    return study.state, study.reason


@contextmanager
def running(ledger: Ledger, config: Config) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=delivery.run, args=(ledger, config, stop))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()


# --- there --------------------------------------------------------------------------------------


def test_a_pacs_gets_the_objects_as_they_were_made_and_the_seg_first(
    ledger: Ledger, config: Config, finish: Callable[..., str], made: list[Path], tmp_path: Path
) -> None:
    with pacs(tmp_path) as peer:
        job_id = finish(peer.address)
        assert delivery.deliver(ledger, config, only(ledger, job_id))
        assert peer.stored() == [str(dcmread(path).SOPInstanceUID) for path in made]
        assert dcmread(made[0]).Modality == "SEG"
        kept = peer.ledger.instances(str(dcmread(made[0]).StudyInstanceUID))
        assert [dcmread(each.path) for each in kept] == [dcmread(path) for path in made]
        accepted = events(peer.ledger, "association.accepted")
    assert [each["calling_ae"] for each in accepted] == [config.ae_title]
    sent = only(ledger, job_id)
    assert (sent.state, sent.attempts, sent.detail) == (
        "sent-unproven",
        1,
        "3 instances stored; the peer offers no proof of it",
    )
    assert study_of(ledger, job_id) == ("done", "")
    assert [each["destination"] for each in events(ledger, "delivery.sent")] == [str(peer.address)]
    assert ledger.due_deliveries() == []


def test_every_destination_gets_its_own(
    ledger: Ledger, config: Config, finish: Callable[..., str], tmp_path: Path
) -> None:
    with pacs(tmp_path, "ONE") as one, pacs(tmp_path, "TWO") as two, running(ledger, config):
        job_id = finish(one.address, two.address)
        until(lambda: study_of(ledger, job_id)[0] == "done")
        assert len(one.stored()) == len(two.stored()) == len(CLASSES)


def test_each_result_is_sent_once_however_often_the_ledger_is_asked(
    ledger: Ledger,
    config: Config,
    finish: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(delivery, "POLL_S", 0.001)
    with pacs(tmp_path) as peer:
        jobs = [finish(peer.address) for _ in range(6)]
        with running(ledger, config):
            until(lambda: all(only(ledger, each).state == "sent-unproven" for each in jobs))
        # The same three objects each time: stored once, known from then on.
        assert len(peer.stored()) == len(CLASSES)
        assert len(peer.stored("instance.duplicate")) == 5 * len(CLASSES)
    assert [only(ledger, each).attempts for each in jobs] == [1] * 6


# --- not there ----------------------------------------------------------------------------------


def test_the_longest_wait_doubles_up_to_an_hour_and_the_jitter_is_full(
    ledger: Ledger, config: Config, finish: Callable[..., str]
) -> None:
    config = replace(config, delivery_backoff_s=5)
    job_id = finish(dead())
    shares = []
    for attempt in range(1, 25):
        start = datetime.now(UTC)
        assert not delivery.deliver(ledger, config, only(ledger, job_id))
        waited = only(ledger, job_id)
        assert (waited.state, waited.attempts) == ("pending", attempt)
        planned = min(3600, 5 * 2 ** (attempt - 1))
        wait_s = (waited.next_at - start).total_seconds()
        assert 0 <= wait_s <= planned + 5
        shares.append(wait_s / planned)
    late = shares[8:]  # of an hour: what the attempt itself takes is nothing
    assert min(late) < 0.5 < max(late)
    assert max(late) - min(late) > 0.3
    assert ledger.due_deliveries(datetime.now(UTC) + timedelta(hours=1, seconds=5))
    assert "DEAD@127.0.0.1" in only(ledger, job_id).detail
    assert "cannot be reached" in only(ledger, job_id).detail


def test_the_defaults_outlast_a_weekend() -> None:
    config = Config()
    waits = [
        min(backoff.LONGEST_WAIT_S, config.delivery_backoff_s * 2**number)
        for number in range(config.delivery_attempts - 1)
    ]
    assert sum(waits) / 2 > 2.5 * 24 * 3600  # full jitter: half of it, on the average


def test_the_last_attempt_ends_in_failed_with_the_reason(
    ledger: Ledger, config: Config, finish: Callable[..., str]
) -> None:
    config = replace(config, delivery_attempts=2)
    job_id = finish(dead())
    for _ in range(2):
        assert not delivery.deliver(ledger, config, only(ledger, job_id))
    ended = only(ledger, job_id)
    assert (ended.state, ended.attempts) == ("failed", 2)
    assert "cannot be reached" in ended.detail
    assert [each["attempt"] for each in events(ledger, "delivery.retry")] == [1]
    assert [each["detail"] for each in events(ledger, "delivery.failed")] == [ended.detail]
    state, reason = study_of(ledger, job_id)
    assert state == "failed"
    assert reason == f"not delivered to {ended.destination}: {ended.detail}"
    assert ledger.due_deliveries(datetime.max.replace(tzinfo=UTC)) == []


def test_a_pacs_that_refuses_is_quoted(
    ledger: Ledger, config: Config, finish: Callable[..., str], tmp_path: Path
) -> None:
    with pacs(tmp_path, "FULL", Full) as full, pacs(tmp_path) as peer:
        stranger = replace(peer.address, ae_title="STRANGER")
        for address, told in ((full.address, "Temporary congestion"), (stranger, "Called AE")):
            job_id = finish(address)
            assert not delivery.deliver(ledger, config, only(ledger, job_id))
            assert told in only(ledger, job_id).detail
            assert study_of(ledger, job_id)[0] == "delivering"
        assert peer.stored() == full.stored() == []


def test_a_pacs_that_is_up_again_gets_everything(
    ledger: Ledger, config: Config, finish: Callable[..., str], tmp_path: Path
) -> None:
    config = replace(config, delivery_backoff_s=0.05)
    with pacs(tmp_path) as peer:
        address = peer.address
    job_id = finish(address)
    with running(ledger, config):
        until(lambda: events(ledger, "delivery.retry"))
        again = Config(
            ae_title="PACS", dicom_port=address.port, data_dir=tmp_path / "again", minimum_free_mb=1
        )
        with Ledger(again.ledger_path) as kept:
            with Scp(again, Spool(again.spool_dir, kept, minimum_free_mb=1), kept):
                until(lambda: study_of(ledger, job_id) == ("done", ""))
            assert [each.kind for each in kept.events()].count("instance.stored") == len(CLASSES)


def test_dead_and_silent_destinations_delay_no_other(
    ledger: Ledger, config: Config, finish: Callable[..., str], tmp_path: Path
) -> None:
    """More of them than the processor has cores, and all of them before the good one."""
    config = replace(config, network_timeout_s=4)
    with ExitStack() as stack:
        hanging = [stack.enter_context(silent()) for _ in range(8)]
        peer = stack.enter_context(pacs(tmp_path, "Z_LAST"))
        blocked = finish(*hanging, dead())
        job_id = finish(peer.address)
        with running(ledger, config):
            until(lambda: events(ledger, "delivery.sent"))
            told = {str(each["destination"])[:6] for each in events(ledger, "delivery.retry")}
            assert told <= {"DEAD@1"}
            until(lambda: len({e["destination"] for e in events(ledger, "delivery.retry")}) == 9)
        assert study_of(ledger, job_id)[0] == "done"
        assert {each.state for each in ledger.deliveries(blocked)} == {"pending"}
        details = [each.detail for each in ledger.deliveries(blocked)]
        assert sum("did not answer as a DICOM node in 4 s" in each for each in details) == 8


def test_a_result_that_is_gone_is_said_and_sent_when_it_is_back(
    ledger: Ledger, config: Config, finish: Callable[..., str], made: list[Path], tmp_path: Path
) -> None:
    moved = tmp_path / "moved.dcm"
    with pacs(tmp_path) as peer:
        job_id = finish(peer.address, paths=[*made[:2], moved])
        assert not delivery.deliver(ledger, config, only(ledger, job_id))
        assert str(moved) in only(ledger, job_id).detail
        assert peer.stored() == []
        moved.write_bytes(b"not what was made")
        assert not delivery.deliver(ledger, config, only(ledger, job_id))
        assert "is no DICOM file" in only(ledger, job_id).detail
        moved.write_bytes(made[2].read_bytes())
        assert delivery.deliver(ledger, config, only(ledger, job_id))
        assert len(peer.stored()) == len(CLASSES)


def test_told_to_stop_it_finishes_the_delivery_under_way_and_begins_no_other(
    ledger: Ledger, config: Config, finish: Callable[..., str], tmp_path: Path
) -> None:
    Stopping.stop.clear()
    with pacs(tmp_path, "PACS", Stopping) as peer:
        first, second = finish(peer.address), finish(peer.address)
        delivery.run(ledger, config, Stopping.stop)
        assert len(peer.stored()) == len(CLASSES)
        assert only(ledger, first).state == "sent-unproven"
        waiting = only(ledger, second)
        assert (waiting.state, waiting.attempts) == ("pending", 0)
        with running(ledger, config):
            until(lambda: only(ledger, second).state == "sent-unproven")


def test_an_address_that_no_setting_would_take_ends_in_failed_and_stops_no_other(
    ledger: Ledger, config: Config, finish: Callable[..., str], tmp_path: Path
) -> None:
    config = replace(config, delivery_attempts=1)
    with pacs(tmp_path) as peer:
        job_id = finish(peer.address, "nowhere")
        with running(ledger, config):
            until(lambda: events(ledger, "delivery.sent") and events(ledger, "delivery.failed"))
    assert study_of(ledger, job_id)[0] == "failed"
    assert "AET@HOST:PORT/PROFILE, not 'nowhere'" in study_of(ledger, job_id)[1]


# --- to whom what -------------------------------------------------------------------------------


def test_each_destination_gets_what_it_can_show(
    ledger: Ledger, config: Config, finish: Callable[..., str], made: list[Path], tmp_path: Path
) -> None:
    with pacs(tmp_path) as peer:
        words = replace(peer.address, profile="legacy-pacs")
        job_id = finish(words, plan={str(words): ["draft"]})
        assert delivery.deliver(ledger, config, only(ledger, job_id))
        assert peer.stored() == [str(dcmread(made[2]).SOPInstanceUID)]
    assert only(ledger, job_id).detail.startswith("1 instances stored;")


def test_what_is_held_stays_here_until_somebody_lets_it_go(
    ledger: Ledger, config: Config, finish: Callable[..., str], made: list[Path], tmp_path: Path
) -> None:
    uids = [str(dcmread(path).SOPInstanceUID) for path in made]
    with pacs(tmp_path) as peer:
        job_id = finish(peer.address, held={"seg": "not as wanted\nError - x", "draft": "too"})
        assert events(ledger, "result.held")[0]["reason"] == "not as wanted\nError - x"
        assert [each.label for each in ledger.held()] == ["seg", "draft"]
        assert delivery.deliver(ledger, config, only(ledger, job_id))
        assert peer.stored() == [uids[1]]
        assert only(ledger, job_id).detail.startswith("1 instances stored, 2 held;")
        assert study_of(ledger, job_id) == ("done", "held, not sent: seg, draft")
        for each in ledger.held():
            assert ledger.release(each.sop_uid, by="me").label == each.label
        assert (study_of(ledger, job_id)[0], ledger.held()) == ("delivering", [])
        assert delivery.deliver(ledger, config, only(ledger, job_id))
        assert set(peer.stored()) == set(uids)
    assert study_of(ledger, job_id) == ("done", "")
    assert [each["by"] for each in events(ledger, "result.released")] == ["me", "me"]
    with pytest.raises(BadInput, match=r"it is not held: 2\.1\.seg"):
        ledger.release("2.1.seg")
    with pytest.raises(BadInput, match="no result is known as 7"):
        ledger.release("7")
    assert ledger.verify()


def test_a_job_all_of_whose_objects_are_held_sends_nothing(
    ledger: Ledger, config: Config, finish: Callable[..., str]
) -> None:
    job_id = finish(dead(), held=dict.fromkeys(CLASSES, "wrong"))
    assert not delivery.deliver(ledger, config, only(ledger, job_id))
    assert (only(ledger, job_id).state, ledger.due_deliveries()) == ("held", [])
    assert study_of(ledger, job_id) == ("done", "held, not sent: seg, measurements, draft")
    ledger.release("2.1.draft")
    assert only(ledger, job_id).state == "pending"


def test_a_ris_gets_the_draft_as_a_text_once_its_folder_is_there(
    ledger: Ledger, config: Config, finish: Callable[..., str], made: list[Path], tmp_path: Path
) -> None:
    made[2].with_name("report.txt").write_text("AI DRAFT", encoding="utf-8")
    share = tmp_path / "share"
    job_id = finish(plan={f"text:{share}": ["draft"]})
    assert not delivery.deliver(ledger, config, only(ledger, job_id))
    assert f"cannot put the report into {share}: No such file" in only(ledger, job_id).detail
    share.mkdir()
    assert delivery.deliver(ledger, config, only(ledger, job_id))
    (written,) = share.iterdir()
    assert written.name == f"1.2.1_{job_id}.txt"
    assert written.read_text(encoding="utf-8") == "AI DRAFT"
    assert text_drop.name("../A 1/\\ß", "0f") == "_A_1__0f.txt"
