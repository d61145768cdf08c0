"""Stored pixels of one instance -> integers as the modality wrote them, frame by frame.

Knows transfer syntaxes, bits and the place of Pixel Data in a file (PS3.5 7.1, 8, A.4). Knows
nothing of what the numbers mean or where in the patient they lie. Native pixels are read straight
from the file; compressed ones go through pydicom's decoders.
"""

import copy
import os
import struct
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import generate_frames
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
)

from dicom_node.errors import UnusableSeries
from dicom_node.network.part10 import TRANSFER_SYNTAX, meta_information

from . import codestream
from .pattern import Likeness, Pattern

T = TypeVar("T")
Stored = NDArray[np.integer[Any]]

PIXEL_DATA: Final = 0x7FE00010
NATIVE: Final = frozenset(
    {
        ImplicitVRLittleEndian,
        ExplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
    }
)
CONTAINERS: Final = (8, 16, 32)
"""Bits Allocated that are read. PS3.3 allows CT and MR only 16; old ones come in 8."""

DECODERS: Final = {
    JPEGLSLossless: "pyjpegls",
    JPEGLSNearLossless: "pyjpegls",
    **dict.fromkeys(
        (
            JPEGBaseline8Bit,
            JPEGExtended12Bit,
            JPEGLossless,
            JPEGLosslessSV1,
            JPEG2000,
            JPEG2000Lossless,
        ),
        "pylibjpeg",
    ),
}
"""The decoder of a transfer syntax, where pydicom must not try one after the other: what the
strict ones refuse as broken JPEG-LS, pylibjpeg-libjpeg turns into noise; and over broken JPEG GDCM
ends the whole process."""

DECODER_ERRORS: Final = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)
"""What pydicom and its decoders raise over foreign bytes; lack of memory is ours and passes."""


HEADER_ERRORS: Final = (*DECODER_ERRORS, BytesLengthException, InvalidDicomError, zlib.error)

INFLATED_LIMIT: Final = 1 << 30
"""Bytes that a deflated data set may become, as at reception."""
CHUNK: Final = 1 << 20
LONGER: Final = 1 << 10
"""Bytes by which a header may be longer than that of the first instance to be read at once."""

LAYOUT: Final = (
    "NumberOfFrames",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
)
"""What is read here of a header besides its transfer syntax."""


@contextmanager
def foreign_header(reason: str) -> Iterator[None]:
    """Refuse an instance for what pydicom raises over its header; what the disk raises passes.

    Raises
    ------
    UnusableSeries
        With this reason.
    """
    try:
        yield
    except HEADER_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UnusableSeries(
            reason, f"a header cannot be understood: {type(error).__name__} {error}"
        ) from error


def shared(read: Callable[[Any], T]) -> cached_property[T]:
    """Make a property that is read once: where there is a `first`, that one's is taken."""

    def get(each: Any) -> T:  # noqa: ANN401 - instances and what is made of them
        return read(each) if each.first is None else cast("T", getattr(each.first, read.__name__))

    get.__doc__ = read.__doc__
    return cached_property(get)


@dataclass(frozen=True, eq=False)
class Instance:
    """One image instance: its header without pixels, and where its pixels are.

    Parameters
    ----------
    start, length
        Offset of native pixels in a file, and how many bytes of them are announced.
    first
        The instance that it is like, in all that `open_instances` was told; None: it is a first.
    """

    read: Dataset | Likeness
    source: Path | Dataset
    start: int = 0
    length: int = 0
    first: "Instance | None" = None

    @cached_property
    def header(self) -> Dataset:
        """Return the header; of one that is like another it is made when it is asked for."""
        return self.read.dataset() if isinstance(self.read, Likeness) else self.read

    def get(self, keyword: str) -> Any:  # noqa: ANN401 - a value may be anything
        """Return a value of the header, None if it is absent, without making the header."""
        if self.first is None or not isinstance(self.read, Likeness):
            return self.header.get(keyword)
        own = self.read.element(keyword)
        return self.first.get(keyword) if own is None else own.value

    @cached_property
    def uid(self) -> str:
        """Return the SOP Instance UID."""
        return str(self.get("SOPInstanceUID") or "")

    @shared
    def native(self) -> bool:
        """Tell whether the pixels are stored without compression."""
        return _transfer_syntax(self.header) in NATIVE

    @shared
    def frame_count(self) -> int:
        """Return the number of frames; 1 for a classic image."""
        return int(self.header.get("NumberOfFrames") or 1)

    @shared
    def dtype(self) -> np.dtype[Any]:
        """Return the integer type of native pixels, in the byte order of the transfer syntax."""
        order = ">" if _transfer_syntax(self.header) == ExplicitVRBigEndian else "<"
        kind = "i" if self.header.PixelRepresentation == 1 else "u"
        return np.dtype(f"{order}{kind}{int(self.header.BitsAllocated) // 8}")

    @shared
    def shape(self) -> tuple[int, int]:
        """Return the number of rows and of columns."""
        return int(self.header.Rows), int(self.header.Columns)

    @shared
    def bits(self) -> tuple[int, int, int]:
        """Return how many bits a pixel takes, how many of them count, and which is the highest."""
        header = self.header
        return int(header.BitsAllocated), int(header.BitsStored), int(header.HighBit)

    def frames(self, room: bytearray | None = None) -> Iterator[Stored]:
        """Give the frames as stored: integers (rows, columns), bits above the stored ones too.

        Parameters
        ----------
        room
            Memory for a frame. If it is given, a frame may be gone when the next one comes.

        Raises
        ------
        UnusableSeries
            truncated-pixels: there are fewer than rows, columns and frames ask for.
            undecodable: no decoder reads them, or a pixel has an odd number of bits.
        """
        if self.bits[0] not in CONTAINERS:
            raise UnusableSeries("undecodable", f"{self.bits[0]} bits for a pixel in {self.uid}")
        return self._read(room) if self.native else self._decode()

    def significant(self, stored: Stored) -> Stored:
        """Keep Bits Stored of the bits: above may be overlays or rubbish (PS3.5 8.1.1).

        In place, unless the frame may not be changed.
        """
        _, bits, high = self.bits
        container = stored.dtype.itemsize * 8
        if bits >= container:
            return stored
        # Decoders put the lowest bit at the bottom; native pixels end where High Bit says.
        high = high if self.native else bits - 1
        # Up to the top and back: the way down brings the sign of signed pixels along.
        place = stored if stored.flags.writeable else None
        kept: Stored = np.left_shift(stored, container - 1 - high, out=place)
        return np.right_shift(kept, container - bits, out=kept)

    @shared
    def pixel_count(self) -> int:
        """Return how many pixels the header claims."""
        rows, columns = self.shape
        return rows * columns * max(self.frame_count, 0)

    def check_length(self) -> None:
        """Refuse native pixels that are fewer than claimed, before anything is made of that size.

        Raises
        ------
        UnusableSeries
            truncated-pixels: as said.
        """
        expected = self.pixel_count * (self.bits[0] // 8)
        if self.native and self.length < expected:
            raise self._truncated(f"{expected} bytes", self.length)

    def _read(self, room: bytearray | None) -> Iterator[Stored]:
        self.check_length()
        rows, columns = self.shape
        frame_bytes = rows * columns * self.dtype.itemsize
        expected = self.frame_count * frame_bytes
        for index, data in enumerate(self._chunks(frame_bytes, room)):
            if len(data) < frame_bytes:
                raise self._truncated(f"{expected} bytes", index * frame_bytes + len(data))
            yield np.frombuffer(data, self.dtype).reshape(rows, columns)

    def _chunks(self, size: int, room: bytearray | None) -> Iterator[memoryview]:
        """Give the bytes of native frames, one frame in memory at a time if they are in a file."""
        if isinstance(self.source, Dataset):
            data = memoryview(self.source.PixelData).toreadonly()
            yield from (data[size * at : size * (at + 1)] for at in range(self.frame_count))
            return
        with _opened(self.source) as handle:
            for at in range(self.frame_count):
                data = memoryview(room or bytearray(size))[:size]
                yield data[: _read_into(handle, data, self.start + size * at)]

    def _decode(self) -> Iterator[Stored]:
        count, decoder = 0, DECODERS.get(_transfer_syntax(self.header), "")
        try:
            self._check_sizes()
            for stored in iter_pixels(self.source, raw=True, decoding_plugin=decoder):
                count += 1
                yield stored
        except DECODER_ERRORS as error:
            raise self._undecodable(count, error) from error
        except BaseException as error:
            # A decoder in Rust panics with what is no Exception, and cannot be imported (PyO3).
            if type(error).__module__ != "pyo3_runtime":
                raise
            raise self._undecodable(count, error) from error
        if count < self.frame_count:
            raise self._truncated(f"{self.frame_count} frames", count)

    def _undecodable(self, decoded: int, error: BaseException) -> UnusableSeries:
        syntax = _transfer_syntax(self.header).name
        return UnusableSeries(
            "undecodable", f"{syntax} pixels of {self.uid}, frame {decoded + 1}: {error}"
        )

    def _check_sizes(self) -> None:
        """Refuse frames that are of another size than the header's: decoders believe them.

        Raises
        ------
        ValueError
            One is, or does not say it.
        """
        header = self.header
        expected = (int(header.Rows), int(header.Columns), int(header.SamplesPerPixel))
        for frame in self._encoded():
            found = codestream.size(frame)
            if found not in {None, expected}:
                raise ValueError(f"a frame of {found}, the header says {expected}")

    def _encoded(self) -> Iterator[bytes]:
        if isinstance(self.source, Dataset):
            yield from generate_frames(self.source.PixelData, number_of_frames=self.frame_count)
            return
        with self.source.open("rb") as file:
            file.seek(self.start)
            yield from generate_frames(file, number_of_frames=self.frame_count)

    def _truncated(self, expected: str, found: int) -> UnusableSeries:
        return UnusableSeries(
            "truncated-pixels", f"expected {expected} of pixels in {self.uid}, got {found}"
        )


def open_instances(sources: Sequence[Path | Dataset], alike: Collection[str]) -> list[Instance]:
    """Open the instances of one series.

    Parameters
    ----------
    alike
        Keywords of what an instance must have in common with the first to be like it.

    Raises
    ------
    UnusableSeries
        As `open_instance` does.
    """
    opened = [open_instance(each) for each in sources[:1]]
    pattern = _pattern(opened[0], alike) if opened else None
    for each in sources[1:]:
        opened.append(_like(opened[0], pattern, each) or open_instance(each))
    return opened


def _pattern(first: Instance, alike: Collection[str]) -> Pattern | None:
    """Take the header of a file as the pattern of others, if its pixels are native."""
    if isinstance(first.source, Dataset) or not first.native:
        return None
    with first.source.open("rb") as file:
        data = file.read(first.start)
    tags = {tag for each in alike if (tag := tag_for_keyword(each)) is not None}
    return Pattern.of(first.header, data, tags) if isinstance(first.header, FileDataset) else None


def _like(first: Instance, pattern: Pattern | None, source: Path | Dataset) -> Instance | None:
    """Open a file whose header is like that of the first; None if it is not."""
    if pattern is None or isinstance(source, Dataset):
        return None
    with _opened(source) as handle:
        data = os.pread(handle, pattern.size + LONGER, 0)
        size = os.fstat(handle).st_size
    found = pattern.likeness(source, data)
    if found is None:
        return None
    (length,) = struct.unpack_from("<L", data, found.end - 4)
    return Instance(found, source, found.end, min(length, size - found.end), first)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Open a file without a buffer: a series has many files, and little is read of each at once."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield handle
    finally:
        os.close(handle)


def _read_into(handle: int, room: memoryview, begin: int) -> int:
    """Read until the room is full or the file ends; return how many bytes that were."""
    count = 0
    while count < len(room) and (more := os.preadv(handle, [room[count:]], begin + count)):
        count += more
    return count


def open_instance(source: Path | Dataset) -> Instance:
    """Read the header of a file, or take that of a data set; pixels are not read yet.

    Raises
    ------
    UnusableSeries
        not-an-image: the bytes are not DICOM, or there are no pixels.
    """
    if isinstance(source, Dataset):
        return _in_memory(source)
    with foreign_header("not-an-image"), source.open("rb") as file:
        _check_inflated(file)
        header = dcmread(file, stop_before_pixels=True)
        if _transfer_syntax(header) == DeflatedExplicitVRLittleEndian:
            return _in_memory(dcmread(source))
        start, length = _find_pixels(file, header)
    return Instance(header, source, start, length)


def _check_inflated(file: BinaryIO) -> None:
    """Refuse what would become too large for the memory, before pydicom inflates it whole."""
    values, offset = meta_information(file)
    syntax = values.get(TRANSFER_SYNTAX, b"").rstrip(b"\x00 ").decode("ascii", "replace")
    file.seek(offset if syntax == DeflatedExplicitVRLittleEndian else 0)
    if not file.tell():
        return
    inflate, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while not inflate.eof and (piece := inflate.unconsumed_tail or file.read(CHUNK)):
        size += len(inflate.decompress(piece, CHUNK))
        if size > INFLATED_LIMIT:
            raise UnusableSeries(
                "not-an-image", f"a deflated data set becomes more than {INFLATED_LIMIT} bytes"
            )
    file.seek(0)


def _in_memory(dataset: Dataset) -> Instance:
    # A deep copy: whoever changes the header must not change the caller's data set.
    header = copy.deepcopy(dataset[:PIXEL_DATA])
    header.file_meta = getattr(dataset, "file_meta", FileMetaDataset())
    if "PixelData" not in dataset:
        raise _without_pixels(header)
    return Instance(header, dataset, length=len(dataset.PixelData))


def _find_pixels(file: BinaryIO, header: Dataset) -> tuple[int, int]:
    """Read the element where the header ends; return offset and length of its value."""
    syntax = _transfer_syntax(header)
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    # Tag and length; an explicit VR takes another four bytes between them (PS3.5 7.1.2, 7.1.3).
    size, layout = (8, "HHL") if syntax == ImplicitVRLittleEndian else (12, "HH4xL")
    element = file.read(size)
    if len(element) < size:
        raise _without_pixels(header)
    group, number, length = struct.unpack(order + layout, element)
    if group << 16 | number != PIXEL_DATA:
        raise _without_pixels(header)
    # What is claimed to follow may not be there.
    start = file.tell()
    return start, min(length, os.fstat(file.fileno()).st_size - start)


def _without_pixels(header: Dataset) -> UnusableSeries:
    kind = UID(header.get("SOPClassUID", "")).name or "no SOP class"
    return UnusableSeries(
        "not-an-image", f"no pixels in {header.get('SOPInstanceUID', 'an instance')} ({kind})"
    )


def _transfer_syntax(header: Dataset) -> UID:
    """Return the transfer syntax; the default one where none is named (PS3.5 10.1)."""
    meta = getattr(header, "file_meta", None)
    return UID(getattr(meta, "TransferSyntaxUID", None) or ImplicitVRLittleEndian)
