"""A real PACS sends a study to us, and what we make of it is in that PACS as we made it."""

import hashlib
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pytest
from node import Reading, data_set, protocols
from numpy.typing import NDArray
from orthanc_server import DICOMWEB, Orthanc
from pydicom import Dataset, dcmread
from pydicom.dataset import FileDataset
from pydicom.uid import (
    Comprehensive3DSRStorage,
    EnhancedSRStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    SegmentationStorage,
)

import model
from dicom_node.demo import sample
from dicom_node.ledger.records import Result

pytestmark = [pytest.mark.orthanc, pytest.mark.slow]

SHAPE = (18, 36, 32)  # JPEG 2000 needs 32 x 32, the protocols 16 slices
SPACING_MM = (2.5, 1.25, 1.5)
SAGITTAL = np.array([(1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0)]).T
MR: dict[str, Any] = {"modality": "MR", "body_part": "BRAIN", "description": "T1 SAG"}
PIXELS = "7FE00010"
CLASSES = {
    "seg": SegmentationStorage,
    "measurements": Comprehensive3DSRStorage,
    "draft": EnhancedSRStorage,
}


@pytest.fixture(scope="module")
def lamed(checkpoint: Path) -> model.LaMed:
    return model.load(checkpoint)


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    # Our AE may store because it is known, as at a site.
    settings = {"DicomAlwaysAllowStore": False}
    folder = tmp_path_factory.mktemp("orthanc")
    with Orthanc(folder, plugins=[DICOMWEB], settings=settings) as started:
        yield started


def ct(seed: int, **options: Any) -> list[Dataset]:
    return sample.series(shape=SHAPE, spacing_mm=SPACING_MM, seed=seed, **options)


def hold(orthanc: Orthanc, instances: Sequence[Dataset], folder: Path) -> str:
    """Put a series into the PACS; return its study's UID."""
    orthanc.upload(sample.write(instances, folder))
    return str(instances[0].StudyInstanceUID)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def read(file: bytes) -> FileDataset:
    return dcmread(BytesIO(file))


# --- one study there and back -------------------------------------------------------------------


@dataclass(frozen=True)
class Trip:
    """One chest CT that was sent, read and answered."""

    sent: list[Dataset]
    before: dict[str, bytes]  # what the PACS held when it sent
    after: dict[str, bytes]
    results: dict[str, Result]

    @property
    def study_uid(self) -> str:
        return str(self.sent[0].StudyInstanceUID)

    def came(self, label: str) -> FileDataset:
        return read(self.after[self.results[label].sop_uid])


@pytest.fixture(scope="module")
def trip(
    tmp_path_factory: pytest.TempPathFactory, lamed: model.LaMed, orthanc: Orthanc
) -> Iterator[Trip]:
    folder = tmp_path_factory.mktemp("trip")
    sent = ct(seed=1)
    study_uid = hold(orthanc, sent, folder / "ct")
    before = orthanc.files(study_uid)
    with Reading(folder / "node", lamed, orthanc) as node:
        results = {each.label: each for each in node.read(orthanc, study_uid)}
        yield Trip(sent, before, orthanc.files(study_uid), results)


def test_three_objects_come_back_and_the_images_are_as_they_were(trip: Trip) -> None:
    assert set(trip.after) - set(trip.before) == {each.sop_uid for each in trip.results.values()}
    assert {uid: trip.after[uid] for uid in trip.before} == trip.before
    assert len(trip.before) == len(trip.sent)
    assert {label: trip.came(label).SOPClassUID for label in trip.results} == CLASSES


def test_what_the_pacs_holds_is_what_was_made_byte_for_byte(trip: Trip) -> None:
    for result in trip.results.values():
        made, held = result.path.read_bytes(), trip.after[result.sop_uid]
        assert sha256(made) == result.sha256
        assert sha256(data_set(held)) == sha256(data_set(made))
        assert read(held).file_meta.TransferSyntaxUID == ExplicitVRLittleEndian


def test_dicomweb_gives_the_same_bytes(trip: Trip, orthanc: Orthanc) -> None:
    for result in trip.results.values():
        series = f"/dicom-web/studies/{trip.study_uid}/series/{result.series_uid}"
        (part,) = orthanc.retrieve(f"{series}/instances/{result.sop_uid}")
        assert sha256(data_set(part)) == sha256(data_set(result.path.read_bytes()))
        assert orthanc.retrieve(series) == [part]


def test_dicomweb_metadata_is_every_attribute_but_the_pixels(trip: Trip, orthanc: Orthanc) -> None:
    for result in trip.results.values():
        made = dcmread(result.path)
        series = f"/dicom-web/studies/{trip.study_uid}/series/{result.series_uid}"
        (told,) = orthanc.get(f"{series}/instances/{result.sop_uid}/metadata")
        # Of the pixels it tells the address (PS3.18 F.2.6).
        assert ("BulkDataURI" in told.pop(PIXELS, {})) == ("PixelData" in made)
        plain = {tag: each for tag, each in made.to_json_dict().items() if tag != PIXELS}
        assert told == {tag: full(each) for tag, each in plain.items()}


def test_a_search_lists_each_result_as_a_draft_in_a_series_of_its_own(
    trip: Trip, orthanc: Orthanc
) -> None:
    described = "0008103E"
    answer = orthanc.http.get(
        f"/dicom-web/studies/{trip.study_uid}/series", params={"includefield": described}
    ).json()
    listed = {value(each, "0020000E"): each for each in answer}
    ours = {each.series_uid: each.label for each in trip.results.values()}
    assert set(listed) == {*ours, str(trip.sent[0].SeriesInstanceUID)}
    assert len(ours) == len(CLASSES)
    for uid, each in listed.items():
        assert value(each, described).startswith("AI DRAFT") == (uid in ours)
        assert value(each, "00201209") == (1 if uid in ours else len(trip.sent))
        kind = "SEG" if ours.get(uid) == "seg" else "SR"
        assert value(each, "00080060") == (kind if uid in ours else "CT")


def test_the_masks_lie_on_the_slices_that_the_pacs_holds(trip: Trip) -> None:
    images = {uid: read(file) for uid, file in trip.before.items()}
    seg = trip.came("seg")
    assert_in_place(seg, images)
    assert {segment.SegmentAlgorithmType for segment in seg.SegmentSequence} == {"AUTOMATIC"}


def test_the_masks_are_those_that_the_model_gave(trip: Trip, lamed: model.LaMed) -> None:
    ordered = sorted(trip.sent, key=lambda each: float(each.ImagePositionPatient[2]))
    # Axial, foot to head, as the model wants it: nothing is left to turn.
    voxels = np.stack([each.pixel_array - 1024.0 for each in ordered]).astype(np.float32)
    chest = protocols()["ct_chest"]
    asked = [model.Question(each.text, id=each.id) for each in chest.targets]
    answers = lamed.read(voxels, asked, window=chest.window)
    given = np.logical_or.reduce([each.masks[0].restore() > 0 for each in answers])
    places = [str(each.SOPInstanceUID) for each in ordered]
    assert np.array_equal(drawn(trip.came("seg"), places), given)
    assert 0 < given.sum() < given.size


def test_the_masks_are_the_same_for_another_reader(trip: Trip) -> None:
    made = hd.seg.segread(trip.results["seg"].path)
    held = hd.seg.segread(BytesIO(trip.after[trip.results["seg"].sop_uid]))
    assert held.number_of_segments == made.number_of_segments > 1
    for number in held.segment_numbers:
        ours, theirs = (
            each.get_volume(segment_numbers=[number], combine_segments=True)
            for each in (made, held)
        )
        assert ours.geometry_equal(theirs)
        assert np.array_equal(ours.array, theirs.array)
        assert theirs.array.any()


def test_the_reports_are_the_same_trees_and_point_at_what_is_there(trip: Trip) -> None:
    measured, draft = trip.came("measurements"), trip.came("draft")
    for label, came in (("measurements", measured), ("draft", draft)):
        made = dcmread(trip.results[label].path)
        assert came.ContentSequence == made.ContentSequence
        flags = (came.CompletionFlag, came.VerificationFlag, came.PreliminaryFlag)
        assert flags == ("COMPLETE", "UNVERIFIED", "PRELIMINARY")
        assert template(came) == {"measurements": "1500", "draft": "2000"}[label]
        assert pointers(came) <= set(trip.after)
    assert trip.results["seg"].sop_uid in pointers(measured) & pointers(draft)


def test_validators_say_of_what_came_what_they_say_of_what_was_made(
    trip: Trip, tool: Callable[[str], str], tmp_path: Path
) -> None:
    paths = []
    for uid, file in trip.after.items():
        paths.append(tmp_path / f"{uid}.dcm")
        paths[-1].write_bytes(file)
    for result in trip.results.values():
        code, verdict = judged(tool("dciodvfy"), tmp_path / f"{result.sop_uid}.dcm")
        assert (code, verdict) == judged(tool("dciodvfy"), result.path)
        assert code == 0
        assert not [line for line in verdict if line.startswith("Error")]
    code, verdict = judged(tool("dcentvfy"), *paths)
    # Its table has the Accession Number of an Enhanced SR in another module than PS3.3 C.7.2.1.
    said = [line for line in verdict if "<AccessionNumber> IE <" not in line]
    assert (code, said) == (0, [])
    assert {str(read(file).AccessionNumber) for file in trip.after.values()} == {
        trip.sent[0].AccessionNumber
    }


# --- other studies ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: [sample.enhanced(shape=SHAPE, spacing_mm=SPACING_MM, seed=2)],
        lambda: ct(seed=3, transfer_syntax=JPEG2000Lossless),
        lambda: ct(seed=4, transfer_syntax=RLELossless),
        lambda: ct(seed=5, directions=SAGITTAL, **MR),
    ],
    ids=["multi-frame", "JPEG 2000", "RLE", "sagittal MR"],
)
def test_every_kind_of_study_comes_back_in_place(
    make: Callable[[], list[Dataset]], orthanc: Orthanc, lamed: model.LaMed, tmp_path: Path
) -> None:
    sent = make()
    study_uid = hold(orthanc, sent, tmp_path / "sent")
    before = orthanc.files(study_uid)
    with Reading(tmp_path / "node", lamed, orthanc) as node:
        results = node.read(orthanc, study_uid)
        received = node.ledger.instances(study_uid)
    for each in received:
        assert each.transfer_syntax_uid == sent[0].file_meta.TransferSyntaxUID
        assert data_set(each.path.read_bytes()) == data_set(before[each.sop_uid])
    after = orthanc.files(study_uid)
    assert {uid: after.pop(uid) for uid in before} == before
    assert set(after) == {each.sop_uid for each in results}
    for each in results:
        assert data_set(after[each.sop_uid]) == data_set(each.path.read_bytes())
    assert [each.label for each in results] == list(CLASSES)
    images = {uid: read(file) for uid, file in before.items()}
    assert_in_place(read(after[results[0].sop_uid]), images)


# --- how it is held against each other ----------------------------------------------------------


def judged(program: str, *paths: Path) -> tuple[int, list[str]]:
    done = subprocess.run([program, *paths], capture_output=True, text=True, check=False)
    return done.returncode, (done.stdout + done.stderr).splitlines()


def template(report: Dataset) -> str:
    return str(report.ContentTemplateSequence[0].TemplateIdentifier)


def pointers(instance: Dataset) -> set[str]:
    """Collect every SOP Instance UID that an object refers to."""
    return {
        str(element.value)
        for element in instance.iterall()
        if element.keyword == "ReferencedSOPInstanceUID"
    }


def flat(image: Dataset, frame_number: int) -> Dataset:
    """Give the plane of one frame of a multi-frame image as a classic image would have it."""
    plane = Dataset()
    own = image.PerFrameFunctionalGroupsSequence[frame_number - 1]
    for group in (image.SharedFunctionalGroupsSequence[0], own):
        for macro in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence"):
            if macro in group:
                plane.update(group[macro][0])
    return plane


def value(attributes: dict[str, Any], tag: str) -> Any:
    (single,) = attributes[tag]["Value"]
    return single


def full(element: dict[str, Any]) -> dict[str, Any]:
    """Leave out the value of an empty sequence, as PS3.18 F.2.5 wants it; pydicom gives []."""
    return {name: each for name, each in element.items() if each != []}


def drawn(seg: Dataset, places: Sequence[str]) -> NDArray[np.bool_]:
    """Lay the frames of all segments over each other, by the image that each refers to."""
    mask = np.zeros((len(places), seg.Rows, seg.Columns), bool)
    for frame, group in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True):
        (source,) = group.DerivationImageSequence[0].SourceImageSequence
        mask[places.index(source.ReferencedSOPInstanceUID)] |= frame != 0
    return mask


def assert_in_place(seg: Dataset, images: dict[str, FileDataset]) -> None:
    """Hold each frame against the image that it refers to: one place, one way, one size."""
    shared = seg.SharedFunctionalGroupsSequence[0]
    turned = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    (spacing,) = shared.PixelMeasuresSequence
    assert len(seg.PerFrameFunctionalGroupsSequence) == seg.NumberOfFrames > SHAPE[0] / 2
    for group in seg.PerFrameFunctionalGroupsSequence:
        (source,) = group.DerivationImageSequence[0].SourceImageSequence
        image = images[source.ReferencedSOPInstanceUID]
        place, plane = group.PlanePositionSequence[0].ImagePositionPatient, image
        if "PerFrameFunctionalGroupsSequence" in image:
            plane = flat(image, source.ReferencedFrameNumber)
        assert np.allclose(place, plane.ImagePositionPatient, atol=1e-3)
        assert np.allclose(turned, plane.ImageOrientationPatient, atol=1e-6)
        assert np.allclose(spacing.PixelSpacing, plane.PixelSpacing, atol=1e-6)
        assert (seg.Rows, seg.Columns) == (image.Rows, image.Columns)
        assert seg.FrameOfReferenceUID == image.FrameOfReferenceUID
