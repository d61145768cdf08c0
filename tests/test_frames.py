"""Frames that are made while they are read are those that highdicom would have held."""

import io
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from pydicom import Dataset, dcmread

from dicom_node import volume
from dicom_node.demo import sample
from sr_templates import Finding, Profile
from sr_templates.document import SEG, Document
from sr_templates.frames import Frame, bits, octets
from sr_templates.segmentation import Outlines, encode_segmentation, outline
from tests.drafts import ALGORITHM, CREATED_AT, JOB, PROTOCOLS, findings, series, stack
from tests.test_segmentation import DIRECTIONS

CHEST = PROTOCOLS["ct_chest"]
PROBABILITY = 0.7
# What highdicom draws by lot, takes from the clock, or says of itself.
OWN = {
    "InstanceCreationDate",
    "InstanceCreationTime",
    "InstanceCreatorUID",
    "ContributingEquipmentSequence",
    "DimensionOrganizationSequence",
    "DimensionIndexSequence",
}


def odd_multi_frame() -> tuple[list[Dataset], hd.Volume]:
    source = volume.load([sample.enhanced(shape=(11, 21, 25))])
    return source.sources, source.on_source(source.image.array)


def plain(outlines: Outlines, ours: Dataset, document: Document, encoding: str) -> Dataset:
    """Make the same by highdicom's plain call, with our descriptions of the segments."""
    options: dict[str, object] = {"pixel_array": outlines.labels}
    if encoding == "FRACTIONAL":
        numbers = [each.number for each in outlines.segments]
        channels = [outlines.labels.array == each for each in numbers]
        options = {
            "pixel_array": hd.Volume(
                np.stack(channels, -1) * np.float32(PROBABILITY),
                outlines.labels.affine,
                "PATIENT",
                channels={"SegmentNumber": numbers},
            ),
            "fractional_type": "PROBABILITY",
        }
    return hd.seg.Segmentation(
        source_images=document.sources,
        segmentation_type=encoding,
        segment_descriptions=[
            hd.seg.SegmentDescription.from_dataset(each)
            for each in ours.SegmentSequence
            if each.SegmentNumber
        ],
        content_label=ours.ContentLabel,
        content_description=ours.ContentDescription,
        omit_empty_frames=True,
        **options,
        **document.modules(SEG),
    )


@pytest.mark.parametrize("encoding", ["BINARY", "LABELMAP", "FRACTIONAL"])
@pytest.mark.parametrize("form", [*DIRECTIONS, "multi-frame"])
def test_the_file_is_that_of_highdicom_s_plain_call(
    form: str, encoding: str, tmp_path: Path
) -> None:
    is_multi_frame = form == "multi-frame"
    sources, image = (
        odd_multi_frame() if is_multi_frame else stack(series(directions=DIRECTIONS[form]))
    )
    document = Document.about(CHEST, sources, ALGORITHM, JOB, CREATED_AT)
    answers = [sure(each) for each in findings(CHEST, image)]
    outlines = outline(answers, document)
    assert outlines is not None
    (ours,) = encode_segmentation(outlines, document, Profile("x", encoding)).objects.values()
    theirs = plain(outlines, ours, document, encoding)
    for path, each in ((tmp_path / "ours", ours), (tmp_path / "theirs", theirs)):
        each.save_as(path, enforce_file_format=True)
    made, expected = dcmread(tmp_path / "ours"), dcmread(tmp_path / "theirs")
    # highdicom 0.28 measures it by the slices of a multi-frame source in another order.
    spacing = [spacing_between_slices(each) for each in (made, expected)]
    assert is_multi_frame or np.allclose(*spacing, rtol=1e-6)
    assert np.array_equal(made.pixel_array, expected.pixel_array)
    for tag in (made.keys() | expected.keys()) - {0x7FE00010}:
        element = made.get(tag) or expected.get(tag)
        if element.keyword not in OWN:
            assert made.get(tag) == expected.get(tag), element.keyword


def spacing_between_slices(seg: Dataset) -> float:
    """Take it out of a SEG."""
    (measures,) = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    spacing = float(measures.SpacingBetweenSlices)
    del measures.SpacingBetweenSlices
    return spacing


def sure(answer: Finding) -> Finding:
    """Give an answer probabilities that say what its mask says."""
    if answer.mask is None:
        return answer
    given = answer.mask.with_array((answer.mask.array != 0) * np.float32(PROBABILITY))
    return Finding(answer.question, answer.text, answer.mask, probability=lambda: given)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 17])
@pytest.mark.parametrize("shape", [(3, 5), (4, 4), (1, 1)])
def test_bits_run_on_from_frame_to_frame(shape: tuple[int, int], count: int) -> None:
    labels = np.random.default_rng(1).integers(0, 3, (count, *shape), np.uint8)
    frames = [Frame(1 + index % 2, index) for index in range(count)]
    read = bits(labels, frames).read()
    packed = np.packbits(
        np.concatenate([(labels[each.place] == each.segment).ravel() for each in frames]),
        bitorder="little",
    ).tobytes()
    assert read == packed + b"\0" * (len(packed) % 2)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_octets_have_an_even_length(count: int) -> None:
    read = octets(lambda index: bytes([index + 1] * 5), 5, count).read()
    assert read == b"".join(bytes([index + 1] * 5) for index in range(count)) + b"\0" * (count % 2)


def test_a_stream_can_be_read_from_anywhere_again_and_again() -> None:
    whole = bytes(range(60))
    stream = octets(lambda index: whole[6 * index : 6 * index + 6], 6, 10)
    for start, length in ((0, 60), (17, 3), (5, 20), (59, 9), (0, 1)):
        stream.seek(start)
        assert stream.read(length) == whole[start : start + length]
    assert stream.seek(0, io.SEEK_END) == 60
    assert stream.read() == b""


def test_each_frame_is_made_once_for_a_file() -> None:
    made: list[int] = []

    def frame(index: int) -> bytes:
        made.append(index)
        return bytes(100)

    stream = octets(frame, 100, 50)
    while stream.read(33):
        pass
    assert made == list(range(50))
