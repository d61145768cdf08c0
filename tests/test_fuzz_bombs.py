"""A few bytes that want to be gigabytes, and claims that nothing follows: refused, and at once."""

import resource
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
)

from dicom_node import volume
from dicom_node.demo import sample
from dicom_node.errors import NotDicom, UnusableSeries
from dicom_node.spool import header
from dicom_node.volume import codestream, opening
from tests.breaking import data_sets

LARGE = 65_535
MEMORY = 3 << 30  # more than all of this needs, and less than any of what is claimed


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """Let what takes the memory that is claimed fail at once."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def series(tmp_path: Path, syntax: str, change: Callable[[Dataset], None]) -> list[Path]:
    made = sample.series(shape=(4, 32, 32), transfer_syntax=syntax)
    for each in made:
        change(each)
    return sample.write(made, tmp_path)


def large(instance: Dataset) -> None:
    instance.Rows = instance.Columns = LARGE


def many(instance: Dataset) -> None:
    instance.NumberOfFrames = 2_000_000_000


def fewer(instance: Dataset) -> None:
    instance.Rows = instance.Columns = 20_000


@pytest.mark.parametrize(
    ("change", "reason"),
    [(large, "too-large"), (many, "too-large|several-stacks"), (fewer, "truncated-pixels")],
)
def test_a_header_that_claims_what_does_not_follow_is_refused(
    tmp_path: Path, change: Callable[[Dataset], None], reason: str
) -> None:
    with pytest.raises(UnusableSeries, match=reason):
        volume.load(series(tmp_path, ExplicitVRLittleEndian, change))


def test_one_instance_of_two_thousand_million_frames_is_refused(tmp_path: Path) -> None:
    made = sample.series(shape=(4, 32, 32))[0]
    many(made)
    with pytest.raises(UnusableSeries, match="too-large"):
        volume.load(sample.write([made], tmp_path))


def test_a_length_that_the_file_does_not_have_is_not_read(tmp_path: Path) -> None:
    (path,) = sample.write(sample.series(shape=(4, 32, 32))[:1], tmp_path)
    content = path.read_bytes()
    at = content.rindex(b"\xe0\x7f\x10\x00OW")
    path.write_bytes(content[: at + 8] + struct.pack("<I", 0xFFFFFFF0) + content[at + 12 :])
    assert opening.open_instance(path).length == 32 * 32 * 2


def jpeg_2000(frame: bytearray) -> None:
    at = frame.index(b"\xff\x51")
    for place in (at + 6, at + 22):  # the image, and one tile of its size
        struct.pack_into(">II", frame, place, LARGE, LARGE)


def jpeg_ls(frame: bytearray) -> None:
    struct.pack_into(">HH", frame, frame.index(b"\xff\xf7") + 5, LARGE, LARGE)


@pytest.mark.parametrize(
    ("syntax", "swell"), [(JPEG2000Lossless, jpeg_2000), (JPEGLSLossless, jpeg_ls)]
)
def test_a_frame_that_is_larger_than_its_header_says_is_not_decoded(
    tmp_path: Path, syntax: str, swell: Callable[[bytearray], None]
) -> None:
    def change(instance: Dataset) -> None:
        frame = bytearray(next(generate_frames(instance.PixelData, number_of_frames=1)))
        swell(frame)
        instance.PixelData = encapsulate([bytes(frame)])

    with pytest.raises(UnusableSeries, match=r"65535, columns=65535"):
        volume.load(series(tmp_path, syntax, change))


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless])
def test_the_size_of_a_frame_is_read(syntax: str) -> None:
    instance = sample.series(shape=(4, 32, 48), transfer_syntax=syntax)[0]
    frame = next(generate_frames(instance.PixelData, number_of_frames=1))
    assert codestream.size(frame) == (32, 48, 1)
    with pytest.raises(ValueError, match=r"cut short|before its scan"):
        codestream.size(frame[:6])


def test_the_size_of_a_frame_in_a_file_of_its_own_is_read() -> None:
    frame = b"\xff\x4f\xff\x51" + struct.pack(">HH8IH", 41, 0, 9, 7, 2, 1, 9, 7, 0, 0, 3)
    boxes = struct.pack(">I4s4x", 12, b"jP  ") + struct.pack(">I4s8x", 16, b"ftyp")
    boxed = boxes + struct.pack(">I4sQ", 1, b"jp2c", 16 + len(frame)) + frame
    assert codestream.size(boxed) == codestream.size(frame) == (6, 7, 3)
    with pytest.raises(ValueError, match="without a codestream"):
        codestream.size(boxes + struct.pack(">I4s", 0, b"free"))
    assert codestream.size(b"RLE is of no such kind") is None


def bomb(size: int) -> bytes:
    """Deflate a data set whose pixels are so many zeros."""
    model = data_sets.models()[0]
    at = model.content.rindex(b"\xe0\x7f\x10\x00OW")
    head = model.content[: at + 8] + struct.pack("<I", size)
    deflate = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    zeros = bytes(1 << 20)
    squeezed = deflate.compress(head)
    squeezed += b"".join(deflate.compress(zeros) for _ in range(size >> 20))
    squeezed += deflate.flush()
    return squeezed + bytes(len(squeezed) % 2)


@pytest.fixture
def low_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header, "INFLATED_LIMIT", 8 << 20)
    monkeypatch.setattr(opening, "INFLATED_LIMIT", 8 << 20)


@pytest.mark.usefixtures("low_limit")
def test_a_deflated_data_set_above_the_limit_is_refused_before_it_is_inflated(
    tmp_path: Path,
) -> None:
    model, squeezed = data_sets.models()[0], bomb(32 << 20)
    with pytest.raises(NotDicom, match="too large"):
        header.read(squeezed, DeflatedExplicitVRLittleEndian)
    path = tmp_path / "bomb.dcm"
    names = (DeflatedExplicitVRLittleEndian, model.sop_class_uid, model.sop_uid)
    path.write_bytes(data_sets.head(*names) + squeezed)
    with pytest.raises(UnusableSeries, match="becomes more than"):
        opening.open_instance(path)


@pytest.mark.usefixtures("low_limit")
def test_a_deflated_data_set_below_the_limit_is_read(tmp_path: Path) -> None:
    assert header.read(bomb(4 << 20), DeflatedExplicitVRLittleEndian)["modality"] == "CT"
    made = sample.series(shape=(4, 32, 32), transfer_syntax=DeflatedExplicitVRLittleEndian)
    assert volume.load(sample.write(made, tmp_path)).image.spatial_shape == (4, 32, 32)
