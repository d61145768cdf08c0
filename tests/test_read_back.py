"""What a radiologist sends back is linked to its draft, and is no new study to read."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import drafts
import highdicom as hd
import httpx
import numpy as np
import pytest
from desk import HOUR_S, receive
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid

from dicom_node import qa, read_back
from dicom_node.intake import Intake
from dicom_node.jobs import Jobs
from dicom_node.ledger import Ledger, Result, Review
from dicom_node.routing import Rule
from dicom_node.spool import Spool
from sr_templates import reading_back

RULES = [Rule("ct_chest", "CT", ("CHEST",), ("CHEST",), 5)]


class Read:
    """A study that has been read: its images, and real objects of its draft."""

    def __init__(self, ledger: Ledger, spool: Spool, folder: Path) -> None:
        self.ledger, self.spool = ledger, spool
        images = drafts.series()
        self.study_uid = receive(spool, images)
        self.jobs = Jobs(ledger)
        self.intake = Intake(ledger, self.jobs, RULES, "0f", "", HOUR_S, HOUR_S)
        self.settle()
        job = self.jobs.claim("w", 60)
        assert job is not None
        self.job_id, self.made = job.id, drafts.encoded(instances=images, job_id=job.id)
        folder.mkdir()
        rows = []
        for label, ds in self.made.items():
            ds.save_as(folder / f"{label}.dcm", enforce_file_format=True)
            uids = (str(ds.SOPClassUID), str(ds.SOPInstanceUID), str(ds.SeriesInstanceUID))
            rows.append(Result(job.id, label, *uids, folder / f"{label}.dcm", ""))
        self.jobs.complete(job.id, "w", rows, {}, {})

    def settle(self) -> None:
        self.ledger.request_completion(self.study_uid)
        self.intake.step()

    def send(self, *answers: Dataset) -> list[Review]:
        """Receive what comes back, let the node do what it does, and tell what it thinks of it."""
        receive(self.spool, answers)
        self.settle()
        read_back.step(self.ledger)
        return self.ledger.reviews(self.study_uid)

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [each.data for each in self.ledger.events() if each.kind == kind]

    @property
    def state(self) -> str:
        study = self.ledger.study(self.study_uid)
        assert study is not None
        return study.state


@pytest.fixture
def read(ledger: Ledger, spool: Spool, tmp_path: Path) -> Read:
    return Read(ledger, spool, tmp_path / "made")


def copy(ds: Dataset) -> Dataset:
    """Make another instance of another series of it, as another application would."""
    file = BytesIO()
    ds.save_as(file, enforce_file_format=True)
    file.seek(0)
    made = dcmread(file)
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    made.SeriesInstanceUID = generate_uid()
    return made


def final(draft: Dataset, *, verified: bool = True) -> Dataset:
    """A radiologist's report of the study, that does not speak of ours."""
    made = copy(draft)
    for keyword in (
        "CurrentRequestedProcedureEvidenceSequence",
        "PertinentOtherEvidenceSequence",
        "ContributingEquipmentSequence",
    ):
        if keyword in made:
            delattr(made, keyword)
    made.SeriesDescription, made.PreliminaryFlag = "Final report", "FINAL"
    if verified:
        made.VerificationFlag = "VERIFIED"
        observer = Dataset()
        observer.VerifyingObserverName = "Curie^Marie"
        made.VerifyingObserverSequence = [observer]
    return made


def replacing(made: Dataset, draft: Dataset) -> Dataset:
    study, series, instance = Dataset(), Dataset(), Dataset()
    instance.ReferencedSOPClassUID = draft.SOPClassUID
    instance.ReferencedSOPInstanceUID = draft.SOPInstanceUID
    series.SeriesInstanceUID, series.ReferencedSOPSequence = draft.SeriesInstanceUID, [instance]
    study.StudyInstanceUID, study.ReferencedSeriesSequence = draft.StudyInstanceUID, [series]
    made.PredecessorDocumentsSequence = [study]
    return made


def edited(seg: Dataset, sources: Sequence[Dataset], **options: Any) -> Dataset:
    """Our first segment without its lowest slice, as somebody else writes a SEG."""
    own = hd.seg.Segmentation.from_dataset(copy(seg))
    volume = own.get_volume(segment_numbers=[1], combine_segments=False)
    mask = np.asarray(volume.array)[..., 0] > 0
    mask[np.flatnonzero(mask.any(axis=(1, 2)))[0]] = False
    description = hd.seg.SegmentDescription(
        1,
        own.SegmentSequence[0].SegmentLabel.upper(),
        hd.sr.CodedConcept("91723000", "SCT", "Anatomical Structure"),
        hd.sr.CodedConcept("39607008", "SCT", "Lung"),
        hd.seg.SegmentAlgorithmTypeValues.MANUAL,
    )
    return hd.seg.Segmentation(
        source_images=sources,
        pixel_array=volume.with_array(mask.astype(np.uint8)),
        segmentation_type=options.pop("kind", "BINARY"),
        segment_descriptions=[description],
        series_instance_uid=generate_uid(),
        series_number=7,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="Someone",
        manufacturer_model_name="Editor",
        software_versions="1",
        device_serial_number="1",
        **options,
    )


# --- which draft --------------------------------------------------------------------------------


def test_a_final_report_of_the_study_answers_its_draft(read: Read) -> None:
    (review,) = read.send(final(read.made["draft"]))
    assert (review.state, review.link, review.job_id) == ("linked", "study", read.job_id)
    assert review.draft_uid == read.made["draft"].SOPInstanceUID
    told = review.detail
    assert (told["verification"], told["verified_by"]) == ("VERIFIED", "Curie^Marie")
    assert "Findings" in told["text"]
    (event,) = read.events("draft.answered")
    assert (event["link"], event["draft"]) == ("study", review.draft_uid)
    assert "text" not in event


def test_a_report_that_replaces_the_draft_says_so_itself(read: Read) -> None:
    made = replacing(copy(read.made["draft"]), read.made["draft"])
    (review,) = read.send(made)
    assert (review.link, review.draft_uid) == ("predecessor", read.made["draft"].SOPInstanceUID)


def test_a_report_that_cites_our_outlines_answers_them_even_if_it_is_preliminary(
    read: Read,
) -> None:
    (review,) = read.send(copy(read.made["draft"]))
    assert (review.link, review.draft_uid) == ("evidence", read.made["seg"].SOPInstanceUID)


def test_what_neither_speaks_of_ours_nor_is_final_is_nobodys_answer(read: Read) -> None:
    other = final(read.made["draft"], verified=False)
    other.PreliminaryFlag = "PRELIMINARY"
    (review,) = read.send(other)
    assert (review.state, review.job_id) == ("unrelated", None)
    assert "neither names our draft" in review.detail["reason"]
    assert read.events("draft.answered") == []


def test_a_report_that_was_there_before_the_draft_is_not_its_answer(
    read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    early = datetime.now(UTC) - timedelta(hours=1)
    receive(read.spool, [final(read.made["draft"])])
    before = [replace(each, at=early) for each in read.ledger.waiting_reviews()]
    monkeypatch.setattr(read.ledger, "waiting_reviews", lambda: before)
    read_back.step(read.ledger)
    (review,) = read.ledger.reviews(read.study_uid)
    assert review.state == "unrelated"


# --- what it is not -----------------------------------------------------------------------------


def test_an_answer_is_no_new_image_and_starts_no_job(read: Read) -> None:
    study = read.ledger.study(read.study_uid)
    assert study is not None
    read.send(final(read.made["draft"]), copy(read.made["seg"]))
    assert (read.state, len(read.jobs.for_study(read.study_uid))) == ("done", 1)
    assert read.events("study.reopened") == []
    after = read.ledger.study(read.study_uid)
    assert after is not None
    assert after.arrivals == study.arrivals
    receive(read.spool, [*drafts.series()[:1]])
    assert read.state == "done", "an image that is known is not late"


def test_our_own_objects_that_come_home_are_not_taken_for_somebody_elses(read: Read) -> None:
    moved = copy(read.made["draft"])
    moved.SeriesInstanceUID = read.made["draft"].SeriesInstanceUID
    assert read.send(*read.made.values(), moved) == []
    assert (read.state, read.events("study.reopened")) == ("done", [])


def test_it_is_looked_at_once_however_often_it_is_sent(read: Read) -> None:
    report = final(read.made["draft"])
    for _ in range(3):
        read.send(report)
    assert len(read.events("draft.answered")) == 1
    (review,) = read.ledger.reviews(read.study_uid)
    read.ledger.record_review(review, "unread", detail={})
    assert read.ledger.reviews(read.study_uid) == [review]


def test_an_answer_waits_until_the_study_is_read(ledger: Ledger, spool: Spool) -> None:
    images = drafts.series()
    receive(spool, [*images, final(drafts.encoded(instances=images)["draft"])])
    assert read_back.step(ledger) == 0
    ledger.set_study_state(str(images[0].StudyInstanceUID), "rejected", "no reason")
    assert read_back.step(ledger) == 1
    (review,) = ledger.reviews(str(images[0].StudyInstanceUID))
    assert (review.state, review.detail["reason"]) == ("unrelated", read_back.NO_DRAFT)


def test_what_cannot_be_read_is_told_and_stops_no_other(read: Read) -> None:
    receive(read.spool, [final(read.made["draft"]), final(read.made["draft"])])
    read.ledger.waiting_reviews()[0].path.unlink()
    assert read_back.step(read.ledger) == 2
    first, second = read.ledger.reviews(read.study_uid)
    assert (first.state, second.state) == ("unread", "linked")
    assert "No such file" in first.detail["reason"]


# --- outlines -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_an_edited_segmentation_is_compared_with_ours(read: Read, kind: str) -> None:
    sources, _ = drafts.stack(drafts.series())
    answer = edited(read.made["seg"], sources, kind=kind)
    (review,) = read.send(answer)
    assert (review.link, review.draft_uid) == ("study", read.made["seg"].SOPInstanceUID)
    own = hd.seg.Segmentation.from_dataset(dcmread(read.ledger.results(read.job_id)[0].path))
    volume = own.get_volume(segment_numbers=[1], combine_segments=False)
    whole = int(volume.array.sum())
    lost = int(volume.array[np.flatnonzero(volume.array.any(axis=(1, 2, 3)))[0]].sum())
    label = str(own.SegmentSequence[0].SegmentLabel)
    expected = 2 * (whole - lost) / (2 * whole - lost)
    assert review.detail["dice"] == {label: pytest.approx(expected, abs=1e-4)}
    assert 0 < expected < 1
    assert len(review.detail["removed"]) == len(own.SegmentSequence) - 1
    assert review.detail["added"] == []


def test_a_copy_of_ours_is_the_same_voxel_for_voxel(read: Read) -> None:
    comparison = reading_back.compare(
        dcmread(read.ledger.results(read.job_id)[0].path), copy(read.made["seg"])
    )
    assert set(comparison.dice.values()) == {1.0}
    assert (comparison.removed, comparison.added, comparison.reason) == ((), (), "")


def test_outlines_of_another_place_are_not_compared(read: Read) -> None:
    other = copy(read.made["seg"])
    other.FrameOfReferenceUID = generate_uid()
    (review,) = read.send(other)
    assert review.detail["reason"] == "it has another frame of reference"
    assert review.detail["dice"] == {}
    moved = copy(read.made["seg"])
    shared = moved.SharedFunctionalGroupsSequence[0]
    shared.PixelMeasuresSequence[0].PixelSpacing = [0.7, 0.7]
    comparison = reading_back.compare(read.made["seg"], moved)
    assert comparison.reason.startswith("it cannot be laid on our grid")


# --- where one sees it --------------------------------------------------------------------------


@pytest.fixture
def page(read: Read, tmp_path: Path) -> Iterator[httpx.Client]:
    app = qa.create_app(read.ledger, results_dir=tmp_path, api_token="t")
    with qa.Server(app, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.port}"
        with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
            link = qa.login_link(read.ledger, url)
            client.post("/login", data={"token": link.partition("token=")[2]})
            yield client


def test_the_page_of_the_study_shows_what_came_back(read: Read, page: httpx.Client) -> None:
    report = final(read.made["draft"])
    report.SeriesDescription = "Final <b>report</b>"
    sources, _ = drafts.stack(drafts.series())
    read.send(report, edited(read.made["seg"], sources))
    shown = page.get(f"/studies/{read.study_uid}").text
    assert "What came back" in shown
    assert "Final &lt;b&gt;report&lt;/b&gt;" in shown
    assert "VERIFIED by Curie, Marie" in shown
    assert "Linked since it is of the same study and came later:" in shown
    assert "Dice against the draft" in shown
    assert "<td>removed</td>" in shown
