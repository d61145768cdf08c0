"""What we ask of a peer, as bytes, and what its answer means (PS3.7 6.3, 9.3, Annex C).

Knows command sets, small data sets and statuses. Must not know sockets or PDUs.
"""

import struct
from collections.abc import Mapping
from io import BytesIO
from typing import Final

from pydicom import Dataset
from pydicom.filereader import read_dataset
from pydicom.uid import UID, ImplicitVRLittleEndian

from dicom_node.errors import BadInput

from . import dimse
from .dimse import Command
from .part10 import Part10

SYNTAXES: Final = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")  # of what is no instance
C_FIND_RQ: Final = 0x0020
PRIORITY: Final = 0x0700

STORED_ALREADY: Final = 0x0111  # PS3.7 C.5.13: exactly what we wish
PENDING: Final = {0xFF00, 0xFF01}  # PS3.4 Table C.4-1
WARNINGS: Final = {0x0001, 0x0107, 0x0116}  # PS3.7 Annex C; and 0xBxxx
# What another try cannot change (PS3.7 Annex C, PS3.4 Table B.2-1); and 0xA9xx, 0xCxxx.
PERMANENT: Final = {0x0105, 0x0106, 0x0112, 0x0115, 0x0117, 0x0118, 0x0119, 0x0122, 0x0211, 0x0212}


def command_set(elements: Mapping[int, int | str]) -> bytes:
    """Write a command set: Implicit VR Little Endian, in the order of its elements (PS3.7 6.3)."""
    content = b"".join(_element(each, elements[each]) for each in sorted(elements))
    return struct.pack("<HHII", 0, 0, 4, len(content)) + content


def store_request(file: Part10, number: int) -> bytes:
    """Write a C-STORE-RQ (PS3.7 Table 9.3-1) of medium priority."""
    return command_set(
        {
            dimse.AFFECTED_CLASS: file.sop_class_uid,
            dimse.COMMAND_FIELD: dimse.C_STORE_RQ,
            dimse.MESSAGE_ID: number,
            PRIORITY: 0,
            dimse.DATA_SET_TYPE: dimse.A_DATA_SET,
            dimse.AFFECTED_INSTANCE: file.sop_uid,
        }
    )


def encoded(ds: Dataset, syntax: str) -> bytes:
    """Write a small data set in one of `SYNTAXES`."""
    buffer = BytesIO()
    implicit = syntax == ImplicitVRLittleEndian
    ds.save_as(buffer, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
    return buffer.getvalue()


def decoded(content: bytes, syntax: str) -> Dataset:
    """Read a small data set of a peer, in one of `SYNTAXES`.

    Raises
    ------
    BadInput
        It cannot be read.
    """
    try:
        return read_dataset(BytesIO(content), syntax == ImplicitVRLittleEndian, True)  # noqa: FBT003 - pydicom's order
    except Exception as error:  # the edge: a peer may send anything
        raise BadInput(f"a data set of a peer cannot be read: {error}") from error


def is_stored(status: int) -> bool:
    """Say whether the peer has the instance now, a warning or not."""
    return status in WARNINGS | {dimse.SUCCESS, STORED_ALREADY} or status >> 12 == 0xB  # noqa: PLR2004 - PS3.7 Annex C


def is_permanent(status: int) -> bool:
    """Say whether another try could change nothing about this failure."""
    return status in PERMANENT or status >> 8 == 0xA9 or status >> 12 == 0xC  # noqa: PLR2004 - PS3.4 Table B.2-1


def meaning(response: Command) -> str:
    """Say the status of a response, and the comment on it."""
    status = response.number(dimse.STATUS)
    kind = "Failure" if not is_stored(status) else "Warning" if status else "Success"
    comment = response.values.get(dimse.ERROR_COMMENT, b"").decode("ascii", "replace")
    comment = comment.strip(" \x00")
    return f"status 0x{status:04X} ({kind})" + (f": {comment}" if comment else "")


def name(uid: str) -> str:
    """Give the name of a UID, or the UID."""
    return UID(uid).name


def _element(number: int, value: int | str) -> bytes:
    raw = struct.pack("<H", value) if isinstance(value, int) else value.encode("ascii")
    raw += b"\x00" * (len(raw) % 2)
    return struct.pack("<HHI", 0, number, len(raw)) + raw
