"""A DICOM file as far as it must be known to send it: its file meta information (PS3.10 7.1).

Knows where the data set begins in the file. Must not know what stands in it, but for the study and
the series that it belongs to, if somebody asks.
"""

import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Final

from pydicom import dcmread

from dicom_node.errors import BadInput

SOP_CLASS, SOP_INSTANCE, TRANSFER_SYNTAX = 0x0002, 0x0003, 0x0010
LONG: Final = {b"OB", b"OW", b"SQ", b"UN", b"UT", b"UC", b"UR"}  # PS3.5 Table 7.1-1
MOST_META: Final = 1 << 24


@dataclass(frozen=True)
class Part10:
    """One file: what it holds, in which transfer syntax, and where its data set begins."""

    path: Path
    sop_class_uid: str
    sop_uid: str
    transfer_syntax_uid: str
    offset: int

    @classmethod
    def read(cls, path: Path) -> "Part10":
        """Read the file meta information.

        Raises
        ------
        BadInput
            There is no such file, or it is no DICOM file.
        """
        try:
            with path.open("rb") as file:
                values, offset = meta_information(file)
        except FileNotFoundError as error:
            raise BadInput(f"no such file: {path}") from error
        except (ValueError, struct.error) as error:
            raise BadInput(f"{path} is no DICOM file: {error}") from error
        sop_class, sop_uid, syntax = (
            _uid(values.get(each)) for each in (SOP_CLASS, SOP_INSTANCE, TRANSFER_SYNTAX)
        )
        if not (sop_class and sop_uid and syntax):
            raise BadInput(f"{path} is no DICOM file: its meta information lacks a UID")
        return cls(path, sop_class, sop_uid, syntax, offset)

    @property
    def context(self) -> tuple[str, str]:
        """SOP class and transfer syntax: the presentation context that it needs."""
        return self.sop_class_uid, self.transfer_syntax_uid

    @cached_property
    def place(self) -> tuple[str, str]:
        """StudyInstanceUID and SeriesInstanceUID, read from the data set.

        Raises
        ------
        BadInput
            There is no data set that can be read.
        """
        wanted = ["StudyInstanceUID", "SeriesInstanceUID"]
        try:
            found = dcmread(self.path, stop_before_pixels=True, specific_tags=wanted)
            return str(found.get("StudyInstanceUID", "")), str(found.get("SeriesInstanceUID", ""))
        except Exception as error:  # the edge: any bytes may lie there, and pydicom trips over them
            raise BadInput(f"{self.path} cannot be read: {type(error).__name__} {error}") from error


def meta_information(file: BinaryIO) -> tuple[dict[int, bytes], int]:
    """Give the values of group 0002, which is Explicit VR Little Endian, and where it ends.

    Raises
    ------
    ValueError, struct.error
        It is no DICOM file, or one that is cut short.
    """
    if file.read(132)[128:] != b"DICM":
        raise ValueError("it has no DICM after a preamble")
    values: dict[int, bytes] = {}
    while True:
        begin = file.tell()
        head = file.read(8)
        if head[:2] != b"\x02\x00":
            return values, begin
        element, vr, length = struct.unpack("<2xH2sH", head)
        if vr in LONG:
            (length,) = struct.unpack("<I", file.read(4))
        if length > MOST_META:
            raise ValueError(f"an element of {length} bytes in its meta information")
        values[element] = file.read(length)


def _uid(value: bytes | None) -> str:
    return (value or b"").rstrip(b"\x00 ").decode("ascii", "replace")
