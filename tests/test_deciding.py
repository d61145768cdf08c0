"""Rules at work: a study comes in, is complete when its rule says so, and becomes its jobs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest
from desk import HOUR_S, PACS, PROTOCOLS, Desk, receive
from pydicom import Dataset
from pydicom.uid import XRayRadiationDoseSRStorage

import model
from dicom_node import intake as intake_module
from dicom_node import serve
from dicom_node.config import Config
from dicom_node.demo import sample
from dicom_node.intake import Intake
from dicom_node.jobs import Jobs, State
from dicom_node.ledger import Ledger
from dicom_node.routing import rules
from dicom_node.spool import Spool
from dicom_node.ways_in import expectations
from model.checkpoint import load

SHAPE = (17, 8, 8)
CT = "when = 'Modality == \"CT\"'\n"
Take = Callable[..., Intake]


@pytest.fixture
def take(ledger: Ledger, tmp_path: Path) -> Take:
    def make(text: str = "", **options: Any) -> Intake:
        book = None
        if text:
            path = tmp_path / "rules.toml"
            path.write_text(text)
            book = rules.read(path, list(PROTOCOLS), [PACS])
        known = {"model_digest": "0f", "fallback": "", "quiet_s": HOUR_S, "open_limit_s": HOUR_S}
        return Intake(ledger, Jobs(ledger), serve.rules(PROTOCOLS), book=book, **known | options)

    return make


@pytest.fixture
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_module, "GRACE_S", 0.0)


def ct(**options: Any) -> list[Dataset]:
    return [sample.enhanced(shape=SHAPE, **options)]


def state(ledger: Ledger, uid: str) -> str:
    found = ledger.study(uid)
    assert found is not None
    return found.state


def told(ledger: Ledger, kind: str) -> list[dict[str, Any]]:
    return [each.data for each in ledger.events() if each.kind == kind]


def ask(ledger: Ledger, uid: str) -> None:
    assert ledger.request_completion(uid)


# --- when ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_grace")
def test_a_rule_may_be_less_patient_than_the_settings(
    ledger: Ledger, spool: Spool, take: Take
) -> None:
    chest = receive(spool, ct())
    brain = receive(spool, ct(modality="MR", body_part="BRAIN", description="T1", seed=1))
    text = f"[[rules]]\nname='ct'\n{CT}quiet_s = 0.05\n[[rules]]\nname='mr'\nwhen='Modality'\n"
    intake = take(text)
    while not intake.step():
        pass
    assert (state(ledger, chest), state(ledger, brain)) == ("queued", "receiving")
    assert [each["why"] for each in told(ledger, "study.complete")] == ["quiet"]


def test_a_rule_may_be_more_patient_than_the_settings(
    ledger: Ledger, spool: Spool, take: Take
) -> None:
    chest = receive(spool, ct())
    assert take(f"[[rules]]\nname='ct'\n{CT}quiet_s = 3600\n", quiet_s=0.0).step() == 0
    assert state(ledger, chest) == "receiving"
    assert take("[[rules]]\nname='mr'\nwhen='Modality == \"MR\"'\n", quiet_s=0.0).step() == 1


@pytest.mark.usefixtures("no_grace")
def test_a_study_is_complete_as_soon_as_all_of_it_is_there(
    ledger: Ledger, spool: Spool, take: Take
) -> None:
    uid = receive(spool, ct(study_uid="1.2.3"))
    expectations.note(ledger, uid, "C-FIND", instances=2)
    # However quiet it is: one is missing.
    assert take(quiet_s=0.0).step() == 0
    receive(spool, ct(study_uid="1.2.3", seed=1))
    assert take().step() == 1
    (complete,) = told(ledger, "study.complete")
    assert (complete["why"], complete["expected"], complete["missing"]) == ("expected", 2, 0)
    (said,) = told(ledger, "study.expected")
    assert (said["instances"], said["source"]) == (2, "C-FIND")


def test_a_short_while_is_waited_for_more_than_was_expected(
    ledger: Ledger, spool: Spool, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid = receive(spool, ct())
    expectations.note(ledger, uid, "MPPS", instances=1)
    monkeypatch.setattr(intake_module, "GRACE_S", HOUR_S)
    assert take().step() == 0
    monkeypatch.setattr(intake_module, "GRACE_S", 0.0)
    assert take().step() == 1


def test_a_study_of_which_images_are_missing_is_read_in_the_end_and_says_so(
    ledger: Ledger, spool: Spool, take: Take
) -> None:
    uid = receive(spool, ct())
    expectations.note(ledger, uid, "IAN", instances=3)
    assert take(open_limit_s=0.0).step() == 1
    (complete,) = told(ledger, "study.complete")
    assert (complete["why"], complete["expected"], complete["missing"]) == ("limit", 3, 2)
    (job,) = ledger.jobs(uid)
    assert job.series[0]["reason"].endswith("incomplete: 2 of 3 instances are missing")
    assert "incomplete: 2 of 3" in told(ledger, "study.routed")[0]["reason"]
    assert job.caveat == "INCOMPLETE: 2 of 3 instances are missing."


@pytest.mark.usefixtures("no_grace")
def test_the_images_may_say_how_many_they_are(spool: Spool, take: Take) -> None:
    text = f"[[rules]]\nname='ct'\n{CT}expected = 'ImagesInAcquisition'\n"
    for seed in (0, 1):
        (made,) = ct(study_uid="1.2.3", seed=seed)
        made.ImagesInAcquisition = 2
        assert take(text).step() == 0
        receive(spool, [made])
    assert take(text).step() == 1


@pytest.mark.usefixtures("no_grace")

# --- what becomes of it -------------------------------------------------------------------------


def test_every_rule_every_series_and_every_choice_is_in_the_ledger(
    ledger: Ledger, spool: Spool, take: Take
) -> None:
    text = (
        "[[rules]]\nname='sr'\nwhen='Modality == \"SR\"'\naction='ignore'\n"
        "[[rules]]\nname='mr'\nwhen='Modality == \"MR\"'\n"
        f"[[rules]]\nname='both'\n{CT}protocol='each'\npriority='urgent'\ndestinations='PACS'\n"
    )
    chest = ct(study_uid="1.2.3", description="Thorax")
    abdomen = ct(study_uid="1.2.3", description="Abdomen", body_part="ABDOMEN", seed=1)
    dose = ct(study_uid="1.2.3", description="Dose", seed=2)
    dose[0].SOPClassUID = dose[0].file_meta.MediaStorageSOPClassUID = XRayRadiationDoseSRStorage
    dose[0].Modality = "SR"
    uid = receive(spool, [*chest, *abdomen, *dose])
    ask(ledger, uid)
    assert take(text).step() == 1
    jobs = {each.protocol: each for each in ledger.jobs(uid)}
    assert {name: each.sop_uids for name, each in jobs.items()} == {
        "ct_abdomen": (abdomen[0].SOPInstanceUID,),
        "ct_chest": (chest[0].SOPInstanceUID,),
    }
    for job in jobs.values():
        assert (job.priority, job.rule, job.destinations) == ("urgent", "both", (str(PACS),))
        assert job.state == State.QUEUED
        reasons = {each["series_uid"]: each for each in job.series}
        assert len(reasons) == 3
        assert reasons[dose[0].SeriesInstanceUID]["reason"] == "ignored by rule 'sr'"
        assert sum(each["chosen"] for each in job.series) == 1
        assert any((each.get("score") or 0) > 50 for each in job.series)
    (decided,) = told(ledger, "study.rules")
    assert [(each["rule"], each["fits"]) for each in decided["rules"]] == [
        ("sr", True),
        ("mr", False),
        ("both", True),
    ]
    assert {each["protocol"] for each in told(ledger, "study.routed")} == set(jobs)
    assert ledger.verify()


def test_a_study_that_is_ignored_is_done_and_one_that_is_refused_rejected(
    ledger: Ledger, spool: Spool, take: Take
) -> None:
    uid = receive(spool, ct())
    ask(ledger, uid)
    assert take(f"[[rules]]\nname='not ours'\n{CT}action='ignore'\n").step() == 1
    assert (state(ledger, uid), ledger.jobs(uid)) == ("done", [])
    assert told(ledger, "study.ignored")[0]["reason"] == "ignored by rule 'not ours'"
    other = receive(spool, ct(seed=1))
    ask(ledger, other)
    assert take(f"[[rules]]\nname='ask'\n{CT}action='refuse'\n").step() == 1
    assert state(ledger, other) == "rejected"
    assert ledger.jobs(other)[0].reason == "rule 'ask' refuses it"


# --- to the end ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lamed(checkpoint: Path) -> model.LaMed:
    return load(checkpoint, "cpu")


def test_results_go_where_the_rule_says(
    config: Config, ledger: Ledger, spool: Spool, lamed: model.LaMed, take: Take
) -> None:
    other = replace(PACS, ae_title="VIEWER")
    desk = Desk(replace(config, destinations=(PACS, other)), ledger, spool, lamed)
    desk.study_uid = receive(spool, ct())
    ask(ledger, desk.study_uid)
    take(f"[[rules]]\nname='ct'\n{CT}protocol='ct_chest'\ndestinations='PACS'\n").step()
    assert desk.worker().step()
    assert [each.destination for each in ledger.deliveries(desk.job.id)] == [str(PACS)]


def test_late_images_make_a_new_draft_that_names_the_one_before(
    config: Config, ledger: Ledger, spool: Spool, lamed: model.LaMed
) -> None:
    desk = Desk(replace(config, destinations=(PACS,)), ledger, spool, lamed)
    whole = sample.series(shape=(18, 8, 8), study_uid="1.2.3")
    first = desk.receive(whole[:17])
    assert desk.worker().step()
    (delivery,) = ledger.deliveries(first.id)
    ledger.record_delivery(delivery.id, "sent")
    before = desk.results()
    assert state(ledger, "1.2.3") == "done"
    second = desk.receive(whole[17:])
    assert [each["reason"] for each in told(ledger, "study.reopened")] == ["late images"]
    assert (second.id != first.id, len(second.sop_uids)) == (True, 18)
    assert desk.worker().step()
    draft = pydicom.dcmread(desk.results()["draft"].path)
    (study,) = draft.PredecessorDocumentsSequence
    (series,) = study.ReferencedSeriesSequence
    (document,) = series.ReferencedSOPSequence
    assert study.StudyInstanceUID == "1.2.3"
    assert document.ReferencedSOPInstanceUID == before["draft"].sop_uid
    assert document.ReferencedSOPInstanceUID != draft.SOPInstanceUID
