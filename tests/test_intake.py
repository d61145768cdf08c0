import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from desk import HOUR_S, held, receive, until
from pydicom import Dataset
from pydicom.uid import XRayRadiationDoseSRStorage

from dicom_node import intake as intake_module
from dicom_node import serve
from dicom_node.config import Config
from dicom_node.demo import sample
from dicom_node.errors import OutOfResources, Unavailable
from dicom_node.intake import Intake
from dicom_node.jobs import Job, Jobs, State
from dicom_node.ledger import Ledger, Study
from dicom_node.ledger import ledger as ledger_module
from dicom_node.routing import Rule
from dicom_node.spool import Spool

RULES = serve.rules(serve.protocols(Config()))
SHAPE = (17, 8, 8)  # one slice more than a protocol needs
Take = Callable[..., Intake]


@pytest.fixture
def take(ledger: Ledger) -> Take:
    def make(rules: Sequence[Rule] = RULES, **options: Any) -> Intake:
        known = {"model_digest": "0f", "fallback": "", "quiet_s": HOUR_S, "open_limit_s": HOUR_S}
        return Intake(ledger, Jobs(ledger), rules, **known | options)

    return make


def ct(**options: Any) -> list[Dataset]:
    """Make a series of one instance: what is stored is seen onto the disk, and that takes time."""
    return [sample.enhanced(shape=SHAPE, **options)]


def slices(**options: Any) -> list[Dataset]:
    return sample.series(shape=SHAPE, **options)


def ask(ledger: Ledger, study_uid: str) -> None:
    assert ledger.request_completion(study_uid)


def study(ledger: Ledger, study_uid: str) -> Study:
    found = ledger.study(study_uid)
    assert found is not None
    return found


def job(ledger: Ledger, study_uid: str) -> Job:
    (found,) = ledger.jobs(study_uid)
    return found


def events(ledger: Ledger, kind: str) -> list[dict[str, Any]]:
    return [each.data for each in ledger.events() if each.kind == kind]


# --- when a study is complete -------------------------------------------------------------------


def test_a_study_that_is_still_growing_is_left_alone(
    ledger: Ledger, spool: Spool, take: Take
) -> None:
    uid = receive(spool, ct())
    assert take().step() == 0
    assert (study(ledger, uid).state, ledger.jobs(uid)) == ("receiving", [])


@pytest.mark.parametrize(
    ("why", "options"), [("quiet", {"quiet_s": 0.05}), ("limit", {"open_limit_s": 0.05})]
)
def test_a_study_is_complete_when_it_is_quiet_or_open_for_too_long(
    ledger: Ledger, spool: Spool, take: Take, why: str, options: dict[str, float]
) -> None:
    uid = receive(spool, ct())
    time.sleep(0.06)
    assert take(**options).step() == 1
    (told,) = events(ledger, "study.complete")
    assert (told["why"], told["instances"]) == (why, 1)
    assert 0 <= told["quiet_s"] <= told["open_s"] < 60
    assert study(ledger, uid).state == "queued"


def test_a_study_is_complete_when_somebody_asks(ledger: Ledger, spool: Spool, take: Take) -> None:
    uid, other = receive(spool, ct()), receive(spool, ct(seed=1))
    ask(ledger, uid)
    assert take().step() == 1
    assert [each["why"] for each in events(ledger, "study.complete")] == ["request"]
    assert (study(ledger, uid).state, study(ledger, other).state) == ("queued", "receiving")
    assert take().step() == 0


# --- what becomes of it -------------------------------------------------------------------------


def test_a_job_has_the_images_of_the_chosen_series_and_the_reason_of_every_one(
    ledger: Ledger, spool: Spool, take: Take
) -> None:
    chosen = slices(study_uid="1.2.3", description="Thorax 5mm")
    scout = ct(study_uid="1.2.3", description="Thorax Scout")
    dose = ct(study_uid="1.2.3", description="Dose")
    dose[0].SOPClassUID = dose[0].file_meta.MediaStorageSOPClassUID = XRayRadiationDoseSRStorage
    uid = receive(spool, [*scout, *dose, *chosen])
    ask(ledger, uid)
    take().step()
    made = job(ledger, uid)
    assert (made.protocol, made.state) == ("ct_chest", State.QUEUED)
    assert set(made.sop_uids) == {str(each.SOPInstanceUID) for each in chosen}
    reasons = {each["series_uid"]: (each["chosen"], each["reason"]) for each in made.series}
    assert reasons[chosen[0].SeriesInstanceUID][0]
    assert reasons[scout[0].SeriesInstanceUID] == (False, "a localizer (scout)")
    assert "not a CT or MR image" in reasons[dose[0].SeriesInstanceUID][1]
    (routed,) = events(ledger, "study.routed")
    assert routed["series"] == list(made.series)
    assert routed["series_uid"] == chosen[0].SeriesInstanceUID
    assert "Body Part Examined is 'CHEST'" in routed["reason"]


def test_a_refusal_is_kept_in_the_study_the_job_and_the_event(
    ledger: Ledger, spool: Spool, take: Take
) -> None:
    uid = receive(spool, ct(description="Knie links", body_part="KNEE"))
    ask(ledger, uid)
    assert take().step() == 1
    made = job(ledger, uid)
    assert made.state == State.REJECTED
    assert "no protocol is for its region: Body Part Examined 'KNEE'" in made.reason
    assert [each["chosen"] for each in made.series] == [False]
    assert "KNEE" in made.series[0]["reason"]
    assert [each["reason"] for each in events(ledger, "job.rejected")] == [made.reason]
    assert (study(ledger, uid).state, study(ledger, uid).reason) == ("rejected", made.reason)
    assert len(ledger.instances(uid)) == 1
    assert all(each.path.is_file() for each in ledger.instances(uid))


def test_the_fallback_is_the_site_s(ledger: Ledger, spool: Spool, take: Take) -> None:
    uid = receive(spool, ct(description="1.0", body_part=""))
    ask(ledger, uid)
    take(fallback="ct_abdomen").step()
    assert job(ledger, uid).protocol == "ct_abdomen"


def test_the_same_images_for_the_same_model_are_asked_once(
    ledger: Ledger, spool: Spool, take: Take
) -> None:
    uid = receive(spool, ct(study_uid="1.2.3"))
    for number, digest in enumerate(("0f", "0f", "aa")):
        # A scout alone is new; the series that is read is as before.
        receive(spool, ct(study_uid=uid, description=f"Scout {number}"))
        ask(ledger, uid)
        take(model_digest=digest).step()
    assert len(events(ledger, "job.known")) == 1
    first, second = ledger.jobs(uid)
    assert (first.state, second.state) == (State.REJECTED, State.QUEUED)
    assert first.reason == f"superseded by job {second.id}"


# --- while it is looked at ----------------------------------------------------------------------


class Meanwhile(tuple[Rule, ...]):
    """Rules that let something happen the first time that routing reads them."""

    __slots__ = ()
    happens: Callable[[], object] = staticmethod(lambda: None)

    def __iter__(self) -> Iterator[Rule]:
        happens, Meanwhile.happens = Meanwhile.happens, staticmethod(lambda: None)
        happens()
        return super().__iter__()


def test_an_image_that_comes_during_routing_keeps_the_study_open(
    ledger: Ledger, spool: Spool, take: Take
) -> None:
    *first, late = slices()
    uid = receive(spool, first)
    ask(ledger, uid)
    Meanwhile.happens = staticmethod(lambda: receive(spool, [late]))
    assert take(Meanwhile(RULES)).step() == 1
    assert (study(ledger, uid).state, job(ledger, uid).state) == ("receiving", State.QUEUED)
    ask(ledger, uid)
    assert take().step() == 1
    assert study(ledger, uid).state == "queued"
    waiting = [each for each in ledger.jobs(uid) if each.state == State.QUEUED]
    assert [len(each.sop_uids) for each in waiting] == [SHAPE[0]]


def test_a_late_image_during_a_refusal_keeps_the_study_open(
    ledger: Ledger, spool: Spool, take: Take
) -> None:
    knee = ct(study_uid="1.2.3", body_part="KNEE", description="Knie")
    uid = receive(spool, knee)
    ask(ledger, uid)
    chest = ct(study_uid="1.2.3", seed=1)
    Meanwhile.happens = staticmethod(lambda: receive(spool, chest))
    take(Meanwhile(RULES)).step()
    assert study(ledger, uid).state == "receiving"
    ask(ledger, uid)
    take().step()
    assert [each.state for each in ledger.jobs(uid)] == [State.REJECTED, State.QUEUED]


def test_a_study_that_trips_has_failed_and_stops_no_other(
    ledger: Ledger, spool: Spool, take: Take
) -> None:
    uids = [receive(spool, ct(seed=seed)) for seed in (0, 1)]
    for uid in uids:
        ask(ledger, uid)

    def trip() -> None:
        raise RuntimeError("over its own feet")

    Meanwhile.happens = staticmethod(trip)
    assert take(Meanwhile(RULES)).step() == 2
    states = sorted(study(ledger, uid).state for uid in uids)
    assert states == ["failed", "queued"]
    (failed,) = [uid for uid in uids if study(ledger, uid).state == "failed"]
    told = "cannot be routed: RuntimeError: over its own feet"
    assert study(ledger, failed).reason == told
    assert [each["reason"] for each in events(ledger, "intake.error")] == [told]
    receive(spool, ct(study_uid=failed, seed=2))
    ask(ledger, failed)
    take().step()
    assert study(ledger, failed).state == "queued"


def test_what_is_unavailable_for_a_moment_fails_no_study(
    ledger: Ledger, spool: Spool, take: Take
) -> None:
    uid = receive(spool, ct())
    ask(ledger, uid)

    def busy() -> None:
        raise Unavailable("for a moment")

    Meanwhile.happens = staticmethod(busy)
    with pytest.raises(Unavailable, match="for a moment"):
        take(Meanwhile(RULES)).step()
    assert study(ledger, uid).state == "receiving"
    assert take().step() == 1
    assert study(ledger, uid).state == "queued"


def test_a_file_that_is_gone_costs_its_series_alone(
    ledger: Ledger, spool: Spool, take: Take
) -> None:
    broken = ct(study_uid="1.2.3", description="Thorax 1mm")
    uid = receive(spool, [*broken, *ct(study_uid="1.2.3", description="Thorax 5mm")])
    lost = ledger.instance(uid, str(broken[0].SOPInstanceUID))
    assert lost is not None
    lost.path.unlink()
    ask(ledger, uid)
    take().step()
    reasons = {each["series_uid"]: each["reason"] for each in job(ledger, uid).series}
    assert "cannot be read: FileNotFoundError" in reasons[broken[0].SeriesInstanceUID]


# --- a ledger that cannot be written ------------------------------------------------------------


def test_a_ledger_that_is_held_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "BUSY_S", 0.05)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        spool = Spool(tmp_path / "spool", ledger, minimum_free_mb=1)
        intake = Intake(ledger, Jobs(ledger), RULES, "0f", "", HOUR_S, HOUR_S)
        uid = receive(spool, ct())
        ask(ledger, uid)
        with held(ledger.path), pytest.raises(Unavailable, match="locked"):
            intake.step()
        assert study(ledger, uid).state == "receiving"
        assert intake.step() == 1
        assert job(ledger, uid).state == State.QUEUED


def test_a_full_disk_loses_nothing(ledger: Ledger, spool: Spool, take: Take) -> None:
    uid = receive(spool, ct())
    ask(ledger, uid)
    with ledger.transaction() as transaction:
        pages = transaction.connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        transaction.connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    with suppress(OutOfResources):
        while True:
            ledger.event("filler", text="x" * 100)
    with pytest.raises(OutOfResources, match="full"):
        take().step()
    assert (study(ledger, uid).state, ledger.jobs(uid)) == ("receiving", [])
    with ledger.transaction() as transaction:
        transaction.connection.exec_driver_sql("PRAGMA max_page_count = 100000")
    assert take().step() == 1
    assert job(ledger, uid).state == State.QUEUED


def test_the_loop_outlives_a_ledger_that_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ledger_module, "BUSY_S", 0.05)
    monkeypatch.setattr(intake_module, "RETRY_S", 0.05)
    stop = threading.Event()
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        spool = Spool(tmp_path / "spool", ledger, minimum_free_mb=1)
        uid = receive(spool, ct())
        ask(ledger, uid)
        intake = Intake(ledger, Jobs(ledger), RULES, "0f", "", HOUR_S, HOUR_S)
        with held(ledger.path):
            thread = threading.Thread(target=intake.run, args=(stop,))
            thread.start()
            until(lambda: "intake.error" in caplog.messages)
            assert study(ledger, uid).state == "receiving"
        until(lambda: study(ledger, uid).state == "queued")
        stop.set()
        thread.join(5)
        assert not thread.is_alive()
