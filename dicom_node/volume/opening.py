"""Files and data sets of a series -> its instances, with their headers and the place of the pixels.

Knows where Pixel Data begins in a file (PS3.10 7, PS3.5 7.1), and which header may be made of that
of the first instance. No pixel is read here.
"""

import copy
import os
import struct
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from pydicom import Dataset, dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
)

from dicom_node.errors import UnusableSeries
from dicom_node.network.part10 import TRANSFER_SYNTAX, meta_information

from .pattern import Pattern
from .pixels import DECODER_ERRORS, Instance, opened, transfer_syntax

PIXEL_DATA: Final = 0x7FE00010
HEADER_ERRORS: Final = (*DECODER_ERRORS, BytesLengthException, InvalidDicomError, zlib.error)

INFLATED_LIMIT: Final = 1 << 30
"""Bytes that a deflated data set may become, as at reception."""
CHUNK: Final = 1 << 20
LONGER: Final = 1 << 10
"""Bytes by which a header may be longer than that of the first instance to be read at once."""


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
    with opened(source) as handle:
        data = os.pread(handle, pattern.size + LONGER, 0)
        size = os.fstat(handle).st_size
    found = pattern.likeness(source, data)
    if found is None:
        return None
    (length,) = struct.unpack_from("<L", data, found.end - 4)
    return Instance(found, source, found.end, min(length, size - found.end), first)


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
        if transfer_syntax(header) == DeflatedExplicitVRLittleEndian:
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
    syntax = transfer_syntax(header)
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
