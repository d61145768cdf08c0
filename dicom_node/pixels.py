"""Stored pixels of one instance -> integers as the modality wrote them, frame by frame.

Knows transfer syntaxes, bits and the place of Pixel Data in a file (PS3.5 7.1, 8, A.4). Knows
nothing of what the numbers mean or where in the patient they lie. Native pixels are read straight
from the file; compressed ones go through pydicom's decoders.
"""

import copy
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    JPEGLSNearLossless,
)

from .errors import UnusableSeries

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

DECODERS: Final = {JPEGLSLossless: "pyjpegls", JPEGLSNearLossless: "pyjpegls"}
"""The decoder of a transfer syntax, where pydicom must not try one after the other: what the
strict ones refuse as broken JPEG-LS, pylibjpeg-libjpeg turns into noise."""

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


@dataclass(frozen=True)
class Instance:
    """One image instance: its header without pixels, and where its pixels are."""

    header: Dataset
    source: Path | Dataset
    start: int = 0  # offset of native pixels in a file
    length: int = 0  # bytes of native pixels announced

    @property
    def uid(self) -> str:
        """Return the SOP Instance UID."""
        return str(self.header.get("SOPInstanceUID", ""))

    @property
    def native(self) -> bool:
        """Tell whether the pixels are stored without compression."""
        return _transfer_syntax(self.header) in NATIVE

    @property
    def frame_count(self) -> int:
        """Return the number of frames; 1 for a classic image."""
        return int(self.header.get("NumberOfFrames") or 1)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the integer type of native pixels, in the byte order of the transfer syntax."""
        order = ">" if _transfer_syntax(self.header) == ExplicitVRBigEndian else "<"
        kind = "i" if self.header.PixelRepresentation == 1 else "u"
        return np.dtype(f"{order}{kind}{int(self.header.BitsAllocated) // 8}")

    def frames(self) -> Iterator[Stored]:
        """Give the frames as stored: integers (rows, columns), bits above the stored ones too.

        Raises
        ------
        UnusableSeries
            truncated-pixels: there are fewer than rows, columns and frames ask for.
            undecodable: no decoder reads them, or a pixel has an odd number of bits.
        """
        if self.header.BitsAllocated not in CONTAINERS:
            raise UnusableSeries(
                "undecodable", f"{self.header.BitsAllocated} bits for a pixel in {self.uid}"
            )
        return self._read() if self.native else self._decode()

    def significant(self, stored: Stored) -> Stored:
        """Keep Bits Stored of the bits: above may be overlays or rubbish (PS3.5 8.1.1)."""
        bits = int(self.header.BitsStored)
        container = stored.dtype.itemsize * 8
        if bits >= container:
            return stored
        # Decoders put the lowest bit at the bottom; native pixels end where High Bit says.
        high = int(self.header.HighBit) if self.native else bits - 1
        # Up to the top and back: the way down brings the sign of signed pixels along.
        kept: Stored = (stored << (container - 1 - high)) >> (container - bits)
        return kept

    def _read(self) -> Iterator[Stored]:
        rows, columns = int(self.header.Rows), int(self.header.Columns)
        count = rows * columns
        frame_bytes = count * self.dtype.itemsize
        expected = self.frame_count * frame_bytes
        if self.length < expected:
            raise self._truncated(f"{expected} bytes", self.length)
        for index, data in enumerate(self._chunks(frame_bytes)):
            if len(data) < frame_bytes:
                raise self._truncated(f"{expected} bytes", index * frame_bytes + len(data))
            yield np.frombuffer(data, self.dtype).reshape(rows, columns)

    def _chunks(self, size: int) -> Iterator[bytes | memoryview]:
        """Give the bytes of native frames, one frame in memory at a time if they are in a file."""
        if isinstance(self.source, Dataset):
            data = memoryview(self.source.PixelData)
            yield from (data[size * at : size * (at + 1)] for at in range(self.frame_count))
            return
        with self.source.open("rb") as file:
            file.seek(self.start)
            yield from (file.read(size) for _ in range(self.frame_count))

    def _decode(self) -> Iterator[Stored]:
        count, decoder = 0, DECODERS.get(_transfer_syntax(self.header), "")
        try:
            for stored in iter_pixels(self.source, raw=True, decoding_plugin=decoder):
                count += 1
                yield stored
        except DECODER_ERRORS as error:
            syntax = _transfer_syntax(self.header).name
            raise UnusableSeries(
                "undecodable", f"{syntax} pixels of {self.uid}, frame {count + 1}: {error}"
            ) from error
        if count < self.frame_count:
            raise self._truncated(f"{self.frame_count} frames", count)

    def _truncated(self, expected: str, found: int) -> UnusableSeries:
        return UnusableSeries(
            "truncated-pixels", f"expected {expected} of pixels in {self.uid}, got {found}"
        )


def open_instance(source: Path | Dataset) -> Instance:
    """Read the header of a file, or take that of a data set; pixels are not read yet.

    Raises
    ------
    UnusableSeries
        not-an-image: the bytes are not DICOM, or there are no pixels.
    """
    if isinstance(source, Dataset):
        return _in_memory(source)
    try:
        with source.open("rb") as file:
            header = dcmread(file, stop_before_pixels=True)
            if _transfer_syntax(header) == DeflatedExplicitVRLittleEndian:
                return _in_memory(dcmread(source))
            start, length = _find_pixels(file, header)
    except (InvalidDicomError, EOFError, struct.error, zlib.error) as error:
        raise UnusableSeries("not-an-image", f"a file is not DICOM: {error}") from error
    return Instance(header, source, start, length)


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
    return file.tell(), length


def _without_pixels(header: Dataset) -> UnusableSeries:
    kind = UID(header.get("SOPClassUID", "")).name or "no SOP class"
    return UnusableSeries(
        "not-an-image", f"no pixels in {header.get('SOPInstanceUID', 'an instance')} ({kind})"
    )


def _transfer_syntax(header: Dataset) -> UID:
    """Return the transfer syntax; the default one where none is named (PS3.5 10.1)."""
    meta = getattr(header, "file_meta", None)
    return UID(getattr(meta, "TransferSyntaxUID", None) or ImplicitVRLittleEndian)
