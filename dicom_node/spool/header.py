"""What reception reads of a data set: whose it is, and whether it is whole. Never pixels.

Knows how elements are encoded (PS3.5 7.1) and pydicom. Most data sets are read by a scan of our own
that looks at each element's tag and length; whatever that finds odd is read by pydicom, which
forgives what can be forgiven and says what cannot.
"""

import struct
import threading
import zlib
from collections.abc import Mapping
from io import BytesIO
from typing import Final

import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from dicom_node.errors import Mismatch, NotDicom

HEADER: Final = {
    "study_uid": "StudyInstanceUID",
    "series_uid": "SeriesInstanceUID",
    "sop_uid": "SOPInstanceUID",
    "sop_class_uid": "SOPClassUID",
    "patient_id": "PatientID",
    "patient_name": "PatientName",
    "accession_number": "AccessionNumber",
    "study_date": "StudyDate",
    "study_description": "StudyDescription",
    "modality": "Modality",
}
IDENTITY: Final = tuple(HEADER)[:4]  # what an instance must have
TAGS: Final = {tag: name for name, key in HEADER.items() if (tag := tag_for_keyword(key))}
CHARACTER_SET: Final = 0x00080005
PIXELS: Final = (0x7FE00008, 0x7FE00009, 0x7FE00010)
LONG_VRS: Final = {
    *(b"OB", b"OW", b"OF", b"OD", b"OV", b"OL", b"UN", b"SQ", b"UC", b"UR", b"UT", b"SV", b"UV"),
}
SHORT_VRS: Final = {
    *(b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO", b"LT"),
    *(b"PN", b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"),
}
HEAD: Final = struct.Struct("<HH2sH")  # tag, VR and length of an element with an explicit short VR
UNDEFINED: Final = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xE000FFFE, 0xE00DFFFE, 0xE0DDFFFE  # as little endian reads them
LAST_FRAGMENT: Final = b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"
DEEPEST: Final = 16
MOST_ELEMENTS: Final = 1_000_000  # a second or two; an Enhanced CT of 2,000 frames has a tenth
INFLATED_LIMIT: Final = 1 << 30
ONE_AT_A_TIME: Final = threading.Lock()  # of what may become a thousand times as large

Header = Mapping[str, str]  # by the names of HEADER; empty if it is absent


def read(dataset: bytes | bytearray, transfer_syntax_uid: str) -> Header:
    """Read the identity of a data set; texts are decoded by its own character set.

    Raises
    ------
    NotDicom
        The bytes are no data set in this transfer syntax, or one that is cut short.
    Mismatch
        It lacks its place in the hierarchy.
    """
    if transfer_syntax_uid == DeflatedExplicitVRLittleEndian:
        with ONE_AT_A_TIME:
            return read(_inflated(dataset), ExplicitVRLittleEndian)
    found: Header | None = None
    if transfer_syntax_uid != ExplicitVRBigEndian:
        found = _scanned(dataset, explicit=transfer_syntax_uid != ImplicitVRLittleEndian)
    if found is None:
        found = _read(dataset, transfer_syntax_uid)
    missing = [HEADER[name] for name in IDENTITY if not found[name]]
    if missing:
        # Without any identity it is not one of ours at all (PS3.4 B.2.3: 0xC000, else 0xA900).
        kind = NotDicom if {"SOPInstanceUID", "SOPClassUID"} <= set(missing) else Mismatch
        raise kind(f"no {', '.join(missing)} in the data set")
    return found


# --- the scan -------------------------------------------------------------------------------------


class _Odd(Exception):
    """Something that the scan does not judge."""


def _scanned(data: bytes | bytearray, *, explicit: bool) -> Header | None:
    """Read a data set that is whole, in order and in plain ASCII; None for any other."""
    try:
        values = _Scan(data, explicit=explicit).values()
        return {name: _plain(values.get(tag, b"")) for tag, name in TAGS.items()}
    except (_Odd, struct.error, RecursionError):
        return None


def _plain(value: bytes) -> str:
    # An escape begins another character set, a backslash another value (PS3.5 6.1).
    if not value.isascii() or b"\x1b" in value or b"\\" in value:
        raise _Odd
    return value.decode("ascii").rstrip("\0 ").strip()


class _Scan:
    """Goes from element to element by their lengths."""

    def __init__(self, data: bytes | bytearray, *, explicit: bool) -> None:
        self._data, self._explicit = data, explicit
        self._count = 0

    def values(self) -> dict[int, bytes]:
        """Give the values wanted; the data set ends with its last element or with its pixels."""
        data, position, before, end = self._data, 0, -1, len(self._data)
        values: dict[int, bytes] = {}
        while position < end:
            group, element, vr, length = HEAD.unpack_from(data, position)
            tag = group << 16 | element
            if tag <= before:
                raise _Odd
            before = tag
            # Nearly every element is of this kind, and this loop is most of what a scan takes.
            if self._explicit and vr in SHORT_VRS:
                start = position + 8
                position = start + length
                if tag in TAGS:
                    values[tag] = bytes(data[start:position])
                continue
            start, length = self._length(position)
            if tag in PIXELS:
                self._check_pixels(start, length)
                return values
            position = self._past_sequence(start, 0) if length == UNDEFINED else start + length
            if tag in TAGS:
                values[tag] = bytes(data[start:position])
        if position != end:
            raise _Odd
        return values

    def _length(self, position: int) -> tuple[int, int]:
        """Give where the value of an element begins and how long it is."""
        self._count += 1
        if self._count > MOST_ELEMENTS:
            raise NotDicom(f"more than {MOST_ELEMENTS} elements")
        if not self._explicit:
            return position + 8, int(struct.unpack_from("<I", self._data, position + 4)[0])
        vr = bytes(self._data[position + 4 : position + 6])
        if vr in SHORT_VRS:
            return position + 8, int(struct.unpack_from("<H", self._data, position + 6)[0])
        if vr in LONG_VRS:
            length = int(struct.unpack_from("<I", self._data, position + 8)[0])
            if length == UNDEFINED and vr == b"UN":  # what is in it has no VRs (PS3.5 6.2.2)
                raise _Odd
            return position + 12, length
        raise _Odd

    def _past_sequence(self, position: int, depth: int) -> int:
        """Go past the items of a sequence of undefined length (PS3.5 7.5)."""
        if depth > DEEPEST:
            raise _Odd
        while True:
            tag, length = struct.unpack_from("<II", self._data, position)
            position += 8
            if tag == SEQUENCE_END:
                return position
            if tag != ITEM:
                raise _Odd
            position = (
                self._past_item(position, depth) if length == UNDEFINED else position + length
            )

    def _past_item(self, position: int, depth: int) -> int:
        while struct.unpack_from("<I", self._data, position)[0] != ITEM_END:
            start, length = self._length(position)
            undefined = length == UNDEFINED
            position = self._past_sequence(start, depth + 1) if undefined else start + length
        return position + 8

    def _check_pixels(self, start: int, length: int) -> None:
        if length == UNDEFINED:
            if self._data.rfind(LAST_FRAGMENT) < start:
                raise _Odd
        elif start + length != len(self._data):
            raise _Odd


# --- everything else ------------------------------------------------------------------------------


class _Whole(BytesIO):
    """Bytes that notice a read past their end, which pydicom forgives; zeros are padding."""

    cut_short = False

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        if 0 < len(found) < (size or 0) and found.strip(b"\x00"):
            self.cut_short = True
        return found


class _Stop:
    """Stops pydicom before the pixels, and when there is no end of elements."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, tag: int, *_: object) -> bool:
        self._count += 1
        if self._count > MOST_ELEMENTS:
            raise NotDicom(f"more than {MOST_ELEMENTS} elements")
        return tag in PIXELS


def _read(dataset: bytes | bytearray, transfer_syntax_uid: str) -> Header:
    content = _Whole(dataset)
    try:
        header = pydicom.filereader.read_dataset(
            content,
            transfer_syntax_uid == ImplicitVRLittleEndian,
            transfer_syntax_uid != ExplicitVRBigEndian,
            stop_when=_Stop(),
            specific_tags=[pydicom.tag.Tag(each) for each in (CHARACTER_SET, *TAGS)],
        )
        identity = {name: _said(header.get(HEADER[name])) for name in IDENTITY}
    except Exception as error:  # the edge: any bytes may come, and pydicom may trip over them
        raise NotDicom(f"not a data set: {type(error).__name__} {error}") from error
    if content.cut_short:
        raise NotDicom("cut short in the middle of an element")
    _check_end(dataset, content.tell(), transfer_syntax_uid)
    return {name: identity.get(name) or _text(header, key) for name, key in HEADER.items()}


def _inflated(dataset: bytes | bytearray) -> bytes:
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflated = inflate.decompress(dataset, INFLATED_LIMIT)
    except zlib.error as error:
        raise NotDicom(f"not deflated: {error}") from error
    if not inflate.eof:
        raise NotDicom("the deflated data set is cut short, or too large to be one")
    return inflated


def _check_end(content: bytes | bytearray, position: int, transfer_syntax_uid: str) -> None:
    """Refuse a data set whose last element or whose pixels run past its end."""
    if position < len(content):  # the reader stopped before the pixels
        order = ">" if transfer_syntax_uid == ExplicitVRBigEndian else "<"
        explicit = transfer_syntax_uid != ImplicitVRLittleEndian
        long = explicit and bytes(content[position + 4 : position + 6]) in LONG_VRS
        position += 12 if long else 8
        if position > len(content):
            raise NotDicom("cut short before the pixels")
        (length,) = struct.unpack_from(f"{order}I", content, position - 4)
        if length == UNDEFINED:
            if content.rfind(LAST_FRAGMENT) < position:
                raise NotDicom("the pixels are cut short: no end of their last fragment")
            return
        position += length
    if position > len(content):
        raise NotDicom(f"cut short: {len(content)} bytes came, its elements need {position}")


def _text(header: Dataset, keyword: str) -> str:
    try:
        return _said(header.get(keyword))
    except Exception:  # noqa: BLE001 - the edge: a broken value must not lose the instance
        return ""


def _said(value: object) -> str:
    """Give a value as it was sent, also if it has become several (PS3.5 6.4)."""
    texts = value if isinstance(value, MultiValue) else [value or ""]
    return "\\".join(map(str, texts)).strip()
