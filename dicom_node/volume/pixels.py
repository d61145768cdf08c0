"""Stored pixels of one instance -> integers as the modality wrote them, frame by frame.

Knows transfer syntaxes, bits and the place of Pixel Data in a file (PS3.5 7.1, 8, A.4). Knows
nothing of what the numbers mean or where in the patient they lie. Native pixels are read straight
from the file; compressed ones go through pydicom's decoders.
"""

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.encaps import generate_frames
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

from . import codestream
from .pattern import Likeness

T = TypeVar("T")
Stored = NDArray[np.integer[Any]]

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
        return transfer_syntax(self.header) in NATIVE

    @shared
    def frame_count(self) -> int:
        """Return the number of frames; 1 for a classic image."""
        return int(self.header.get("NumberOfFrames") or 1)

    @shared
    def dtype(self) -> np.dtype[Any]:
        """Return the integer type of native pixels, in the byte order of the transfer syntax."""
        order = ">" if transfer_syntax(self.header) == ExplicitVRBigEndian else "<"
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
        place = stored if stored.flags.writeable else None
        if stored.dtype.kind == "u" and high == bits - 1:
            return np.bitwise_and(stored, (1 << bits) - 1, out=place)
        # Up to the top and back: the way down brings the sign of signed pixels along.
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
        with opened(self.source) as handle:
            for at in range(self.frame_count):
                data = memoryview(room or bytearray(size))[:size]
                yield data[: _read_into(handle, data, self.start + size * at)]

    def _decode(self) -> Iterator[Stored]:
        count, decoder = 0, DECODERS.get(transfer_syntax(self.header), "")
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
        syntax = transfer_syntax(self.header).name
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


@contextmanager
def opened(path: Path) -> Iterator[int]:
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


def transfer_syntax(header: Dataset) -> UID:
    """Return the transfer syntax; the default one where none is named (PS3.5 10.1)."""
    meta = getattr(header, "file_meta", None)
    return UID(getattr(meta, "TransferSyntaxUID", None) or ImplicitVRLittleEndian)
