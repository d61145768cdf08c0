"""What a profile wants of a SEG: its encoding, its frames, and in how many objects."""

import weakref
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from pydicom import Dataset, dcmread

from sr_templates import Finding, Profile, TemplateError
from sr_templates.document import Document
from sr_templates.segmentation import Outlines, Written, encode_segmentation, outline
from tests.drafts import ALGORITHM, CREATED_AT, JOB, PROTOCOLS, SHAPE, findings, series, stack
from tests.test_encoding import complaints

CHEST = PROTOCOLS["ct_chest"]
SEGMENTS = len(CHEST.targets)
ENCODINGS = ("BINARY", "LABELMAP", "FRACTIONAL")
SOURCES, VOLUME = stack(series())


def made(*, answers: list[Finding] | None = None, **profile: object) -> tuple[Outlines, Written]:
    document = Document.about(CHEST, SOURCES, ALGORITHM, JOB, CREATED_AT)
    outlines = outline(findings(CHEST, VOLUME) if answers is None else answers, document)
    assert outlines is not None
    return outlines, encode_segmentation(outlines, document, Profile("pacs", **profile), "pacs")


def read(instance: Dataset, path: Path) -> hd.seg.Segmentation:
    instance.save_as(path, enforce_file_format=True)
    return hd.seg.segread(path)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("omit", [True, False])
def test_every_form_is_clean_for_dciodvfy(encoding: str, *, omit: bool, tmp_path: Path) -> None:
    _, written = made(segmentation=encoding, omit_empty_frames=omit)
    (seg,) = written.objects.values()
    assert complaints(seg, tmp_path / "seg.dcm") == []


def test_parts_are_clean_for_dciodvfy_too(tmp_path: Path) -> None:
    _, written = made(maximum_frames=4)
    for label, each in written.objects.items():
        assert complaints(each, tmp_path / f"{label}.dcm") == []


def test_a_label_map_has_its_own_class_and_one_frame_for_each_slice_that_holds_something(
    tmp_path: Path,
) -> None:
    outlines, written = made(segmentation="LABELMAP")
    seg = read(written.objects["seg.pacs"], tmp_path / "seg.dcm")
    assert seg.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.7"
    assert (seg.SegmentationType, seg.BitsAllocated) == ("LABELMAP", 8)
    assert seg.NumberOfFrames == np.count_nonzero(outlines.areas.any(axis=1)) < SHAPE[0]
    assert not seg.file_meta.TransferSyntaxUID.is_compressed
    held = seg.get_volume(combine_segments=True).match_geometry(VOLUME)
    assert np.array_equal(held.array, outlines.labels.array)


def test_fractions_are_the_probabilities_and_where_there_are_none_the_mask(tmp_path: Path) -> None:
    random = np.random.default_rng(0).random(SHAPE, np.float32)
    answers = [each for each in findings(CHEST, VOLUME) if each.question.target]
    answers[0] = replace(answers[0], probability=lambda: VOLUME.with_array(random))
    outlines, written = made(answers=answers, segmentation="FRACTIONAL")
    seg = read(written.objects["seg.pacs"], tmp_path / "seg.dcm")
    assert (seg.SegmentationFractionalType, seg.MaximumFractionalValue) == ("PROBABILITY", 255)
    assert seg.SegmentsOverlap == "UNDEFINED"
    held = seg.get_volume().match_geometry(VOLUME).array
    assert np.abs(held[..., 0] - random).max() <= 0.5 / 255 + 1e-6
    for each in outlines.segments[1:]:
        assert np.array_equal(held[..., each.number - 1], outlines.labels.array == each.number)


def test_a_probability_is_asked_for_only_where_it_is_written_and_one_at_a_time() -> None:
    alive: list[weakref.ref[hd.Volume]] = []
    most = 0

    def probability() -> hd.Volume:
        nonlocal most
        given = VOLUME.with_array(np.full(SHAPE, 0.5, np.float32))
        alive.append(weakref.ref(given))
        most = max(most, sum(each() is not None for each in alive))
        return given

    answers = [replace(each, probability=probability) for each in findings(CHEST, VOLUME)]
    made(answers=answers)
    made(answers=answers, segmentation="LABELMAP")
    assert not alive
    made(answers=answers, segmentation="FRACTIONAL")
    assert (len(alive), most) == (SEGMENTS, 1)


@pytest.mark.parametrize("value", [-0.1, 1.5, np.nan])
def test_a_number_that_is_no_probability_is_refused(value: float) -> None:
    wrong = VOLUME.with_array(np.full(SHAPE, value, np.float32))
    answers = [replace(each, probability=lambda: wrong) for each in findings(CHEST, VOLUME)]
    with pytest.raises(TemplateError, match=r"expected probabilities of seg_.* from 0 to 1"):
        made(answers=answers, segmentation="FRACTIONAL")


def test_probabilities_on_another_grid_are_refused() -> None:
    wrong = VOLUME.with_array(np.zeros(SHAPE, np.float32))[1:]
    answers = [replace(each, probability=lambda: wrong) for each in findings(CHEST, VOLUME)]
    with pytest.raises(TemplateError, match="on the masks' grid"):
        made(answers=answers, segmentation="FRACTIONAL")


def test_a_segment_that_is_hardly_probable_still_has_a_frame() -> None:
    nothing = VOLUME.with_array(np.full(SHAPE, 0.001, np.float32))
    answers = [replace(each, probability=lambda: nothing) for each in findings(CHEST, VOLUME)]
    _, written = made(answers=answers, segmentation="FRACTIONAL")
    assert written.objects["seg.pacs"].NumberOfFrames == SEGMENTS


def test_segments_stay_together_while_they_fit() -> None:
    outlines, written = made(maximum_frames=12)
    frames = [each.slices for each in outlines.segments]
    assert list(written.objects) == [f"seg.pacs.{n}" for n in range(1, len(written.objects) + 1)]
    assert max(each.NumberOfFrames for each in written.objects.values()) <= 12
    assert sum(each.NumberOfFrames for each in written.objects.values()) == sum(frames)
    for segment in outlines.segments:
        seg, number = written.places[segment.question_id]
        here = [
            each
            for each in written.objects.values()
            if segment.target.label in [item.SegmentLabel for item in each.SegmentSequence]
        ]
        assert here == [seg]
        assert seg.SegmentSequence[number - 1].TrackingUID == segment.tracking_uid


def test_a_limit_of_segments_is_kept_and_each_object_is_a_series_that_says_which_it_is() -> None:
    _, written = made(maximum_segments=2)
    objects = list(written.objects.values())
    assert [len(each.SegmentSequence) for each in objects] == [2, 2, 1]
    for keyword in ("SeriesInstanceUID", "SOPInstanceUID"):
        assert len({each[keyword].value for each in objects}) == 3
    assert "segmentation 2 of 3" in objects[1].SeriesDescription


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_segment_with_too_many_frames_is_spread_and_found_in_the_first(
    encoding: str, tmp_path: Path
) -> None:
    outlines, written = made(segmentation=encoding, maximum_frames=2)
    together = np.zeros(SHAPE, np.uint8)
    for index, each in enumerate(written.objects.values()):
        seg = read(each, tmp_path / f"{index}.dcm")
        assert seg.NumberOfFrames <= 2
        (label,) = (item.SegmentLabel for item in seg.SegmentSequence if item.SegmentNumber)
        (segment,) = (item for item in outlines.segments if item.target.label == label)
        held = seg.get_volume(segment_numbers=[1]).match_geometry(VOLUME).array[..., 0]
        together[held != 0] += segment.number
        first, number = written.places[segment.question_id]
        assert number == 1
        assert first.SegmentSequence[-1].SegmentLabel == label
    assert np.array_equal(together, outlines.labels.array)
    assert len({id(seg) for seg, _ in written.places.values()}) == SEGMENTS


def test_the_same_job_makes_the_same_bytes_however_often_they_are_written(tmp_path: Path) -> None:
    files = []
    for _ in range(2):
        (seg,) = made(segmentation="FRACTIONAL")[1].objects.values()
        for _ in range(2):
            seg.save_as(tmp_path / "seg.dcm", enforce_file_format=True)
            files.append((tmp_path / "seg.dcm").read_bytes())
    assert len(set(files)) == 1
    assert dcmread(tmp_path / "seg.dcm").pixel_array.any()


def test_a_profile_without_a_seg_gets_none() -> None:
    _, written = made(segmentation=None, measurements=None)
    assert (written.objects, written.places) == ({}, {})
