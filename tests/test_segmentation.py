import gzip
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset

from sr_templates import Finding, TemplateError, as_text, encode
from tests.drafts import (
    ALGORITHM,
    CREATED_AT,
    JOB,
    PROTOCOLS,
    box,
    encoded,
    findings,
    series,
    stack,
)

SEGIMAGE2ITKIMAGE = Path(sys.executable).parent / "segimage2itkimage"
CHEST = PROTOCOLS["ct_chest"]
TARGETS = CHEST.targets
OBLIQUE = np.linalg.qr(np.array([[0.1, 0.2, 1], [0.15, 1, -0.2], [1, -0.1, 0.1]]))[0]
# Columns: where the slices, the rows and the columns go, in patient directions (LPS).
DIRECTIONS = {
    "head first": [[0, 0, 1], [0, 1, 0], [1, 0, 0]],
    "feet first": [[0, 0, 1], [0, 1, 0], [-1, 0, 0]],
    "mirrored": [[0, 0, -1], [0, -1, 0], [1, 0, 0]],
    "coronal": [[0, 0, 1], [1, 0, 0], [0, -1, 0]],
    "sagittal": [[1, 0, 0], [0, 0, 1], [0, -1, 0]],
    "oblique": OBLIQUE.tolist(),
}


def made(answers: list[Finding], sources: list[Dataset]) -> dict[str, Dataset]:
    return encode(CHEST, sources, answers, ALGORITHM, job_id=JOB, image=None, created_at=CREATED_AT)


def segment(seg: Dataset, number: int, grid: hd.Volume, path: Path) -> NDArray[np.bool_]:
    """Return one segment as another program reads it: from the file, on the grid of `grid`."""
    seg.save_as(path, enforce_file_format=True)
    read = hd.seg.segread(path).get_volume(segment_numbers=[number], combine_segments=True)
    matched: NDArray[np.bool_] = read.match_geometry(grid).array != 0
    return matched


@pytest.mark.parametrize("name", DIRECTIONS)
def test_masks_read_back_bit_for_bit_where_they_were(name: str, tmp_path: Path) -> None:
    sources, volume = stack(series(directions=DIRECTIONS[name]))
    answers = findings(CHEST, volume)
    seg = made(answers, sources)["seg"]
    masks = [each.mask for each in answers if each.mask is not None]
    assert len(seg.SegmentSequence) == len(masks) == 5
    for number, mask in enumerate(masks, 1):
        assert np.array_equal(segment(seg, number, volume, tmp_path / "s.dcm"), mask.array != 0)


def places(indices: NDArray[np.int_], axes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return patient coordinates of voxels, rounded to 0.01 mm and sorted."""
    found = np.round(np.c_[indices, np.ones(len(indices))] @ axes.T, 2) + 0.0
    ordered: NDArray[np.float64] = found[np.lexsort(found.T)]
    return ordered


def nrrd(path: Path) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """Read what dcmqi writes: voxels by (x, y, z), and the 3x4 matrix to patient coordinates."""
    head, _, body = path.read_bytes().partition(b"\n\n")
    fields = dict(line.split(": ", 1) for line in head.decode().splitlines() if ": " in line)
    sizes = [int(each) for each in fields["sizes"].split()]
    vectors = re.findall(r"\(([^)]*)\)", fields["space directions"] + fields["space origin"])
    assert (fields["space"], fields["type"]) == ("left-posterior-superior", "short")
    voxels = np.frombuffer(gzip.decompress(body), "<i2").reshape(sizes, order="F")
    return voxels, np.array([each.split(",") for each in vectors], float).T


@pytest.mark.parametrize("name", DIRECTIONS)
def test_an_independent_reader_finds_the_masks_at_the_same_places(
    name: str, tmp_path: Path
) -> None:
    sources, volume = stack(series(directions=DIRECTIONS[name]))
    answers = findings(CHEST, volume)
    made(answers, sources)["seg"].save_as(tmp_path / "seg.dcm", enforce_file_format=True)
    command = [SEGIMAGE2ITKIMAGE, "--inputDICOM", tmp_path / "seg.dcm", "--outputType", "nrrd"]
    subprocess.run([*command, "--outputDirectory", tmp_path], check=True, capture_output=True)
    masks = [each.mask for each in answers if each.mask is not None]
    for number, mask in enumerate(masks, 1):
        voxels, axes = nrrd(tmp_path / f"{number}.nrrd")
        found = places(np.argwhere(voxels), axes)
        assert np.allclose(found, places(np.argwhere(mask.array), volume.affine[:3]), atol=0.02)


def test_each_frame_refers_to_the_image_at_its_own_place() -> None:
    sources, volume = stack(series())
    seg = made(findings(CHEST, volume), sources)["seg"]
    places = {each.SOPInstanceUID: each.ImagePositionPatient for each in sources}
    assert seg.NumberOfFrames == len(seg.PerFrameFunctionalGroupsSequence) > 5
    for frame in seg.PerFrameFunctionalGroupsSequence:
        (derivation,) = frame.DerivationImageSequence
        (source,) = derivation.SourceImageSequence
        place = frame.PlanePositionSequence[0].ImagePositionPatient
        assert np.allclose(place, places[source.ReferencedSOPInstanceUID])


def test_the_seg_shares_study_series_and_frame_of_reference_with_the_source() -> None:
    sources, _ = stack(series())
    seg = encoded()["seg"]
    source = sources[0]
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "AccessionNumber"):
        assert seg[keyword].value == source[keyword].value
    (referenced,) = seg.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == source.SeriesInstanceUID
    named = {each.ReferencedSOPInstanceUID for each in referenced.ReferencedInstanceSequence}
    assert named == {each.SOPInstanceUID for each in sources}


def test_the_seg_is_binary_and_automatic_and_calls_itself_a_draft() -> None:
    seg = encoded()["seg"]
    assert (seg.SegmentationType, seg.BitsAllocated, seg.SegmentsOverlap) == ("BINARY", 1, "NO")
    assert seg.ContentLabel == "AI_DRAFT"
    assert seg.ContentDescription.startswith("AI DRAFT - NOT FOR DIAGNOSTIC USE")
    for item, question in zip(seg.SegmentSequence, TARGETS, strict=True):
        assert item.SegmentAlgorithmType == "AUTOMATIC"
        assert item.SegmentDescription.startswith("AI DRAFT")
        assert item.SegmentLabel == question.target.label
        assert item.TrackingUID.startswith("2.25.")
        assert item.TrackingID.startswith(question.target.label)
        assert len(item.RecommendedDisplayCIELabValue) == 3


def test_left_and_right_are_the_sides_that_the_protocol_names() -> None:
    sides = {}
    for item in encoded()["seg"].SegmentSequence:
        (kind,) = item.SegmentedPropertyTypeCodeSequence
        side = kind.get("SegmentedPropertyTypeModifierCodeSequence")
        sides[item.SegmentLabel] = (kind.CodeMeaning, side[0].CodeValue if side else None)
    assert sides["Left lung"] == ("Lung", "7771000")
    assert sides["Right lung"] == ("Lung", "24028007")
    assert sides["Heart"] == ("Heart", None)


def test_a_region_is_written_where_the_target_has_one() -> None:
    sources, volume = stack(series())
    target = replace(TARGETS[0].target, region=CHEST.region)
    question = replace(TARGETS[0], target=target)
    protocol = replace(CHEST, questions=(question,))
    answer = Finding(question, "", box(volume, 0, 5))
    seg = encode(
        protocol, sources, [answer], ALGORITHM, job_id=JOB, image=None, created_at=CREATED_AT
    )["seg"]
    (item,) = seg.SegmentSequence
    assert item.AnatomicRegionSequence[0].CodeMeaning == "Chest"


def test_where_masks_meet_the_more_confident_one_wins(tmp_path: Path) -> None:
    sources, volume = stack(series())
    wide = volume.with_array(np.ones(volume.spatial_shape, bool))
    small = box(volume, 2, 5)
    first, second, third, *_ = TARGETS
    answers = [
        Finding(first, "", wide, confidence=None),
        Finding(second, "", small, confidence=0.2),
        Finding(third, "", wide.with_array(volume.array > 0), confidence=0.9),
    ]
    seg = made(answers, sources)["seg"]
    parts = [segment(seg, number, volume, tmp_path / "s.dcm") for number in (1, 2, 3)]
    assert np.array_equal(parts[2], volume.array > 0)
    assert np.array_equal(parts[1], (small.array != 0) & ~parts[2])
    assert np.array_equal(parts[0], ~(parts[1] | parts[2]))


def test_among_equals_the_one_asked_first_keeps_the_voxel() -> None:
    sources, volume = stack(series())
    mask = box(volume, 1, 5)
    answers = [Finding(question, "", mask, 0.5) for question in reversed(TARGETS[:2])]
    (only,) = made(answers, sources)["seg"].SegmentSequence
    assert only.SegmentLabel == TARGETS[0].target.label


def test_an_empty_mask_gets_no_segment_and_the_numbers_close_up(tmp_path: Path) -> None:
    sources, volume = stack(series())
    answers = findings(CHEST, volume)
    index = [each.question.id for each in answers].index("seg_left_lung")
    answers[index] = replace(answers[index], mask=volume.with_array(np.zeros_like(volume.array)))
    seg = made(answers, sources)["seg"]
    assert [each.SegmentNumber for each in seg.SegmentSequence] == [1, 2, 3, 4]
    assert [each.SegmentLabel for each in seg.SegmentSequence][1] == "Heart"
    heart = segment(seg, 2, volume, tmp_path / "s.dcm")
    assert np.array_equal(heart, answers[index + 1].mask.array != 0)


def test_without_a_voxel_there_is_no_seg_and_nothing_measured() -> None:
    objects = encoded(without=[each.id for each in TARGETS])
    assert set(objects) == {"draft", "measurements"}
    assert "Volume" not in as_text(objects["measurements"])  # coded answers, and no numbers


def test_a_mask_for_a_question_in_words_is_not_written() -> None:
    sources, volume = stack(series())
    words = next(each for each in CHEST.questions if not each.target)
    assert set(made([Finding(words, "No.", box(volume, 0, 5))], sources)) == {"draft"}


def test_a_mask_of_another_size_is_refused() -> None:
    sources, volume = stack(series())
    with pytest.raises(TemplateError, match="expected masks of the source's"):
        made([Finding(TARGETS[0], "", box(volume, 0, 5)[1:])], sources)


def test_masks_on_two_grids_are_refused() -> None:
    sources, volume = stack(series())
    moved = hd.Volume(
        box(volume, 1, 5).array, volume.affine + np.eye(4, k=3), coordinate_system="PATIENT"
    )
    answers = [Finding(TARGETS[0], "", box(volume, 0, 5)), Finding(TARGETS[1], "", moved)]
    with pytest.raises(TemplateError, match="one grid"):
        made(answers, sources)
