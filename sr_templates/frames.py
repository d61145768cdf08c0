"""Frames of a SEG, made while they are read: their pixels, and what is said of each.

Knows functional groups (PS3.3 C.7.6.16) and how pixels lie in Pixel Data (PS3.5 8.1.1). A hundred
segments are some ten thousand frames, of which a hundred differ in anything but a number: what
frames share is encoded once, and no more than eight are held as pixels at a time.
"""

import io
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.tag import Tag

from .protocol import Code
from .provenance import coded
from .source_images import SourceImage

PER_FRAME = Tag("PerFrameFunctionalGroupsSequence")
# PS3.16 CID 7203 and CID 7202.
SEGMENTATION = Code("DCM", "113076", "Segmentation")
SOURCE_IMAGE = Code("DCM", "121322", "Source image for image processing operation")
ITEM = b"\xfe\xff\x00\xe0"
EIGHT = 8  # frames of single bits end at a whole byte
TOGETHER = 0  # the segment of a frame that shows all of them


@dataclass(frozen=True)
class Frame:
    """One frame: the number of its segment in the object, or `TOGETHER`, and its slice."""

    segment: int
    place: int


class PixelData(io.RawIOBase):
    """A stream of blocks that are made when they are read.

    `block` makes the n-th, `size` bytes long except for the last one; `length` is that of all.
    """

    def __init__(self, block: Callable[[int], bytes], size: int, length: int) -> None:
        super().__init__()
        self._block, self._size, self._length = block, size, length
        self._at = 0
        self._made = (-1, b"")

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def seekable(self) -> bool:
        """Tell that it can be read again."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place in the stream."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        self._at = start + offset
        return self._at

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        """Fill `buffer` as far as the block at this place goes."""
        if self._at >= self._length:
            return 0
        index, start = divmod(self._at, self._size)
        if self._made[0] != index:
            self._made = index, self._block(index)
        # What is beyond the last block is padding.
        piece = self._made[1][start : start + len(buffer)] or b"\0"
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)


def bits(labels: NDArray[np.uint8], frames: Sequence[Frame]) -> io.BufferedReader:
    """Return frames of single bits: for each, where `labels` has its number."""
    size = labels[0].size
    planes = np.empty((EIGHT, *labels.shape[1:]), bool)

    def block(index: int) -> bytes:
        some = frames[EIGHT * index : EIGHT * (index + 1)]
        for plane, frame in zip(planes, some, strict=False):
            np.equal(labels[frame.place], frame.segment, out=plane)
        return np.packbits(planes[: len(some)], bitorder="little").tobytes()

    return _reader(block, size, -(-len(frames) * size // EIGHT))


def octets(frame: Callable[[int], bytes], size: int, count: int) -> io.BufferedReader:
    """Return frames of bytes: `frame` makes the n-th of `count`, of `size` pixels each."""
    return _reader(lambda index: frame(index) if index < count else b"", size, count * size)


def _reader(block: Callable[[int], bytes], size: int, length: int) -> io.BufferedReader:
    # The value of an element has an even length (PS3.5 7.1.1).
    return io.BufferedReader(PixelData(block, size, length + length % 2), size)


def functional_groups(
    frames: Sequence[Frame], images: Sequence[SourceImage], order: Sequence[int]
) -> RawDataElement:
    """Return the Per-Frame Functional Groups Sequence, encoded: explicit VR, little endian.

    Parameters
    ----------
    images
        The source image of each slice.
    order
        The slices along the normal of their planes: so they are counted as a dimension.
    """
    used = {each.place for each in frames}
    counted = {place: n for n, place in enumerate((each for each in order if each in used), 1)}
    numbers = {each.segment for each in frames}
    origins = {place: _encoded(_derivation(images[place])) for place in used}
    planes = {place: _encoded(_position(images[place])) for place in used}
    # What is the same for all frames is in the shared groups.
    names = {each: _encoded(_name(each)) if len(numbers) > 1 else b"" for each in numbers}
    is_map = numbers == {TOGETHER}
    blank = _encoded(_content([0] if is_map else [0, 0]))
    value = b"".join(
        _item(
            origins[each.place],
            _counted(blank, *([] if is_map else [each.segment]), counted[each.place]),
            planes[each.place],
            names[each.segment],
        )
        for each in frames
    )
    return RawDataElement(PER_FRAME, "SQ", len(value), value, 0, False, True)  # noqa: FBT003


def _derivation(image: SourceImage) -> Dataset:
    """Say what a frame was made from (PS3.3 C.7.6.16.2.6), on the same pixels."""
    source, derivation, group = Dataset(), Dataset(), Dataset()
    source.ReferencedSOPClassUID = image.sop_class_uid
    source.ReferencedSOPInstanceUID = image.sop_instance_uid
    if image.frame is not None:
        source.ReferencedFrameNumber = image.frame
    source.SpatialLocationsPreserved = "YES"
    source.PurposeOfReferenceCodeSequence = [coded(SOURCE_IMAGE)]
    derivation.SourceImageSequence = [source]
    derivation.DerivationCodeSequence = [coded(SEGMENTATION)]
    group.DerivationImageSequence = [derivation]
    return group


def _position(image: SourceImage) -> Dataset:
    group = Dataset()
    group.PlanePositionSequence = hd.PlanePositionSequence("PATIENT", image.position)
    return group


def _name(segment: int) -> Dataset:
    group, identification = Dataset(), Dataset()
    identification.ReferencedSegmentNumber = segment
    group.SegmentIdentificationSequence = [identification]
    return group


def _content(indices: Sequence[int]) -> Dataset:
    group, content = Dataset(), Dataset()
    content.DimensionIndexValues = list(indices)
    group.FrameContentSequence = [content]
    return group


def _counted(blank: bytes, *indices: int) -> bytes:
    """Write other indices into an encoded group that ends with them."""
    written = struct.pack(f"<{len(indices)}L", *indices)
    return blank[: -len(written)] + written


def _encoded(group: Dataset) -> bytes:
    written = DicomBytesIO()
    written.is_little_endian, written.is_implicit_VR = True, False
    write_dataset(written, group)
    return written.getvalue()


def _item(*groups: bytes) -> bytes:
    value = b"".join(groups)
    return ITEM + struct.pack("<L", len(value)) + value
