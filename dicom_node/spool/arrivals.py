"""A DICOM file that comes otherwise than by C-STORE, into the spool by the same rules.

Knows the file meta information (PS3.10 7.1) and the spool. Must not know where files come from.
Nothing is decoded: the data set goes on as the bytes it came in.
"""

import struct
from dataclasses import dataclass
from io import BytesIO
from typing import Final, Self

from dicom_node.errors import BadInput, Mismatch, NotDicom
from dicom_node.instance import Instance, is_uid
from dicom_node.network import negotiation
from dicom_node.network.part10 import SOP_CLASS, SOP_INSTANCE, TRANSFER_SYNTAX, meta_information

from . import header
from .spool import Announced, Spool

MOST_META: Final = 1 << 20  # bytes in which the data set must have begun


class NoStorage(BadInput):
    """The SOP class is none that is stored (PS3.7 C.5: SOP class not supported)."""

    status = 0x0122


@dataclass(frozen=True)
class Arrival:
    """One file, taken apart: what its meta information announces, and its data set."""

    announced: Announced
    dataset: bytes | bytearray

    @classmethod
    def of(cls, content: bytearray, sender: str) -> Self:
        """Take a Part 10 file apart; `content` is used up. `sender` stands in for an AE title.

        Raises
        ------
        NotDicom
            It is no such file.
        """
        try:
            values, offset = meta_information(BytesIO(bytes(content[:MOST_META])))
        except (ValueError, struct.error) as error:
            raise NotDicom(f"no DICOM file: {error}") from error
        sop_class, sop_uid, syntax = (
            values.get(each, b"").rstrip(b"\x00 ").decode("ascii", "replace")
            for each in (SOP_CLASS, SOP_INSTANCE, TRANSFER_SYNTAX)
        )
        if not (is_uid(sop_class) and sop_uid and is_uid(syntax)):
            raise NotDicom("its meta information lacks a UID")
        del content[:offset]
        return cls(Announced(sop_class, sop_uid, syntax, sender), content)

    def store(self, spool: Spool, *, study_uid: str = "") -> Instance:
        """Keep it; with `study_uid` only if it is of this study.

        Raises
        ------
        NoStorage
            It is of a SOP class that is none to be stored.
        NotDicom, Mismatch, OutOfResources
            As `Spool.store`; or it is of another study.
        """
        if not negotiation.is_storage(self.announced.sop_class_uid):
            raise NoStorage(f"SOP class {self.announced.sop_class_uid} is none that is stored")
        if study_uid:
            found = header.read(self.dataset, self.announced.transfer_syntax_uid)["study_uid"]
            if found != study_uid:
                raise Mismatch(f"study {study_uid} was announced, {found} came")
        return spool.store(self.dataset, self.announced)
