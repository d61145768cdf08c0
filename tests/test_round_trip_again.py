"""A study that comes twice or late, and a PACS that is down or does not want us."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from node import Reading
from orthanc_server import Orthanc, eventually
from pydicom import Dataset, dcmread

import model
from dicom_node.demo import sample

pytestmark = [pytest.mark.orthanc, pytest.mark.slow]

SHAPE = (16, 24, 24)


@pytest.fixture(scope="module")
def lamed(checkpoint: Path) -> model.LaMed:
    return model.load(checkpoint)


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    # Our AE may store because it is known, as at a site.
    settings = {"DicomAlwaysAllowStore": False}
    with Orthanc(tmp_path_factory.mktemp("orthanc"), settings=settings) as started:
        yield started


@pytest.fixture
def node(tmp_path: Path, lamed: model.LaMed, orthanc: Orthanc) -> Iterator[Reading]:
    with Reading(tmp_path / "node", lamed, orthanc) as started:
        yield started


def ct(seed: int, **options: Any) -> list[Dataset]:
    return sample.series(**{"shape": SHAPE, "seed": seed} | options)


def hold(orthanc: Orthanc, instances: list[Dataset], folder: Path) -> str:
    """Put a series into the PACS; return its study's UID."""
    orthanc.upload(sample.write(instances, folder))
    return str(instances[0].StudyInstanceUID)


# --- again, and more ----------------------------------------------------------------------------


def test_a_study_that_is_sent_again_with_its_drafts_makes_no_twins(
    orthanc: Orthanc, node: Reading, tmp_path: Path
) -> None:
    study_uid = hold(orthanc, ct(seed=6), tmp_path / "sent")
    results = node.read(orthanc, study_uid)
    first, held = node.job(study_uid), orthanc.files(study_uid)
    orthanc.send(study_uid, node.config.dicom_port)
    # The images are known and the drafts are ours: nothing is there to be read.
    assert node.intake.step() == 0
    assert node.job(study_uid).id == first.id
    assert not node.worker.step()
    assert node.ledger.reviews(study_uid) == []
    assert node.ledger.due_deliveries() == []
    assert node.state(study_uid) == ("done", "")
    assert orthanc.files(study_uid) == held
    assert node.kinds("instance.duplicate") == SHAPE[0]
    # The drafts came with it: they are kept, and nobody reads them.
    received = {each.sop_uid for each in node.ledger.instances(study_uid)}
    assert {each.sop_uid for each in results} < received == set(held)


def test_a_node_that_lost_its_ledger_makes_no_twins(
    orthanc: Orthanc, lamed: model.LaMed, tmp_path: Path
) -> None:
    study_uid = hold(orthanc, ct(seed=7), tmp_path / "sent")
    held = []
    for name in ("first", "second"):
        with Reading(tmp_path / name, lamed, orthanc) as node:
            results = node.read(orthanc, study_uid)
        held.append(orthanc.files(study_uid))
    assert set(held[0]) == set(held[1])
    assert len(held[0]) == SHAPE[0] + len(results) > SHAPE[0]


def test_a_late_series_opens_the_study_again_and_gives_a_new_job(
    orthanc: Orthanc, node: Reading, tmp_path: Path
) -> None:
    study_uid = hold(orthanc, ct(seed=8), tmp_path / "sent")
    first = node.read(orthanc, study_uid)
    before, job = orthanc.files(study_uid), node.job(study_uid)
    # More slices: it is the better one.
    late = ct(seed=9, shape=(20, *SHAPE[1:]), study_uid=study_uid)
    hold(orthanc, late, tmp_path / "late")
    second = node.read(orthanc, study_uid)
    assert node.kinds("study.reopened") == 1
    assert node.job(study_uid).id != job.id
    assert set(node.job(study_uid).sop_uids) == {str(each.SOPInstanceUID) for each in late}
    after = orthanc.files(study_uid)
    assert before.items() < after.items()
    added = {str(each.SOPInstanceUID) for each in late} | {each.sop_uid for each in second}
    assert set(after) - set(before) == added
    series = {each.series_uid for each in [*first, *second]}
    assert len(series) == len(first) + len(second) > 1
    # The new ones speak of the late images, and of nothing before but the report they replace.
    spoken_of = {
        element.value
        for each in second
        for element in dcmread(each.path).iterall()
        if element.keyword == "ReferencedSOPInstanceUID"
    }
    assert spoken_of
    assert spoken_of - added == {each.sop_uid for each in first if each.label == "draft"}


# --- the bad ways -------------------------------------------------------------------------------


def test_a_pacs_that_is_down_gets_its_results_when_it_is_up_again(
    lamed: model.LaMed, tmp_path: Path
) -> None:
    with Orthanc(tmp_path / "orthanc") as pacs:
        study_uid = hold(pacs, ct(seed=10), tmp_path / "sent")
        with Reading(tmp_path / "node", lamed, pacs, quiet_s=1) as node:
            pacs.send(study_uid, node.config.dicom_port)
            # Down before the reading begins: a slow end must not take the results yet.
            pacs.stop()
            with node.at_work():
                eventually(lambda: node.kinds("delivery.retry"), 60)
                assert node.state(study_uid)[0] == "delivering"
                (waiting,) = node.ledger.deliveries(node.job(study_uid).id)
                assert "cannot be reached: Connection refused" in waiting.detail
                pacs.start()
                eventually(lambda: node.state(study_uid) == ("done", ""), 60)
            results = node.ledger.results(node.job(study_uid).id)
            assert {each.sop_uid for each in results} < set(pacs.files(study_uid))
            assert node.ledger.verify() == len(node.ledger.events())


@pytest.mark.parametrize(
    ("called", "options", "said"),
    [
        ("SOMEBODY", {}, "rejected the association: Called AE title not recognised"),
        ("ORTHANC", {"AllowStore": False}, "hung up"),
    ],
    ids=["called AE title", "calling AE title"],
)
def test_a_pacs_that_refuses_is_quoted_in_the_ledger(
    called: str,
    options: dict[str, bool],
    said: str,
    orthanc: Orthanc,
    lamed: model.LaMed,
    tmp_path: Path,
) -> None:
    study_uid = hold(orthanc, ct(seed=11), tmp_path / "sent")
    held = orthanc.files(study_uid)
    to = orthanc.address.replace("ORTHANC", called)
    with Reading(tmp_path / "node", lamed, orthanc, to=to, delivery_attempts=2) as node:
        job = node.take(orthanc, study_uid)
        orthanc.know(node.config.dicom_port, **options)
        assert node.worker.step()
        for _ in range(2):
            eventually(node.ledger.due_deliveries)
            assert not node.deliver()
        state, reason = node.state(study_uid)
        assert (state, said in reason) == ("failed", True), reason
        (given_up,) = node.ledger.deliveries(job.id)
        assert (given_up.state, given_up.attempts) == ("failed", 2)
        told = [each for each in node.ledger.events() if each.kind.startswith("delivery.")]
        assert [each.kind for each in told] == ["delivery.retry", "delivery.failed"]
        assert all(said in each.data["detail"] for each in told), told
    assert orthanc.files(study_uid) == held
