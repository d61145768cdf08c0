"""A header as the pattern of the others of its series: what they share is made only once.

Knows how elements are encoded (PS3.5 7.1) and what pydicom makes of them when it reads a file. Must
not know what an element means: it is told which ones may not differ. Of a header with other
elements than the pattern's, or in another form, it makes nothing: pydicom reads that.
"""

import copy
import struct
from collections.abc import Collection, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple, cast

from pydicom import DataElement
from pydicom.charset import default_encoding
from pydicom.dataelem import RawDataElement, convert_raw_data_element, empty_value_for_VR
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.tag import BaseTag, Tag
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

PREAMBLE, BEGIN = 128, 132  # where it ends, and where the first element begins (PS3.10 7.1)
META, CHARACTER_SET = 0x0002, 0x00080005
GROUP_LENGTH, MEDIA_STORAGE_SOP_INSTANCE_UID = 0x00020000, 0x00020003
OWN_META: Final = {GROUP_LENGTH, MEDIA_STORAGE_SOP_INSTANCE_UID}
"""What may differ of the file meta information."""

Element = RawDataElement | DataElement
Own = dict[BaseTag, RawDataElement]


class Pattern:
    """One header and the bytes of its elements, which others are compared with."""

    def __init__(self, header: FileDataset, data: bytes, parts: "list[_Part]") -> None:
        self.size = len(data)
        self._parts = parts
        self._begin, self._end = data[:BEGIN], data[BEGIN + sum(len(each.data) for each in parts) :]
        made = {each.made.tag: each.made for each in parts}
        self._meta = {tag: each for tag, each in made.items() if tag.group == META}
        self._body = {tag: each for tag, each in made.items() if tag.group != META}
        self._whole = [each for each in made.values() if isinstance(each, DataElement)]
        self._implicit = bool(header.original_encoding[0])
        self.character_set = header.original_character_set
        self._known: set[BaseTag] = set()
        self._everywhere, self._there = self._way(made.keys()), self._way(self._known)

    @classmethod
    def of(cls, header: FileDataset, data: bytes, fixed: Collection[int]) -> "Pattern | None":
        """Take a header as a pattern; None if it is not plainly one element after the other.

        Parameters
        ----------
        header
            As pydicom read it, before any element of the data set was looked at.
        data
            The file it was read from, up to the value of Pixel Data.
        fixed
            Tags of elements that may not differ.
        """
        try:
            return cls(header, data, list(_parts(header, data, fixed)))
        except _Odd:
            return None

    def likeness(self, path: Path, data: bytes) -> "Likeness | None":
        """Compare the header of another file; None if it differs in what it may not.

        Parameters
        ----------
        data
            The file from its beginning, not less than its header.
        """
        found = self._there.follow(data)
        if found is None:
            found = self._everywhere.follow(data)
            if found is None:
                return None
            self._known |= found[0].keys()
            self._there = self._way(self._known)
        return Likeness(self, path, *found)

    def _way(self, stops: Collection[BaseTag]) -> "_Way":
        steps, run = [], self._begin
        for each in self._parts:
            if each.made.tag in stops:
                steps.append((run, each))
                run = b""
            else:
                run += each.data
        return _Way(steps, run + self._end)

    def dataset(self, path: Path, own: "Own") -> FileDataset:
        """Make what pydicom would of a header with these elements of its own.

        Raw elements can be shared: they are never changed, only replaced when they are decoded.
        """
        meta = {tag: own.get(tag, each) for tag, each in self._meta.items()}
        body = self._body | {tag: each for tag, each in own.items() if tag not in meta}
        body.update((each.tag, copy.deepcopy(each)) for each in self._whole)
        file_meta = FileMetaDataset(meta)
        file_meta.set_original_encoding(False, True, default_encoding)  # noqa: FBT003 - pydicom's
        made = FileDataset(path, body, self._begin[:PREAMBLE], file_meta, self._implicit)
        charset = copy.copy(self.character_set)
        made.set_original_encoding(self._implicit, True, charset)  # noqa: FBT003 - as above
        return made


class Likeness(NamedTuple):
    """A header that is like a pattern, but for some values of its own."""

    pattern: Pattern
    path: Path
    own: Own
    end: int  # where the value of Pixel Data begins

    def element(self, keyword: str) -> DataElement | None:
        """Decode one of its own, a public one; None if it has what the pattern has."""
        raw = self.own.get(Tag(keyword))
        if raw is None:
            return None
        return convert_raw_data_element(raw, encoding=self.pattern.character_set)

    def dataset(self) -> FileDataset:
        """Make the header; no change of it shows in another one."""
        return self.pattern.dataset(self.path, self.own)


class _Way(NamedTuple):
    """The way through a header: elements where another may differ, each with the bytes before."""

    steps: "list[tuple[bytes, _Part]]"
    rest: bytes

    def follow(self, data: bytes) -> tuple[Own, int] | None:
        """Give the elements that differ, and where what is alike ends; None if it is not alike."""
        own, end = {}, 0
        for before, part in self.steps:
            if not data.startswith(before, end):
                return None
            end += len(before)
            if data.startswith(part.data, end):
                end += len(part.data)
                continue
            found = part.differing(data, end)
            if found is None:
                return None
            own[found.tag] = found
            end = found.value_tell + found.length
        return (own, end + len(self.rest)) if data.startswith(self.rest, end) else None


class _Odd(Exception):
    """An element is not where it should be, or not in a form that is known here."""


class _Form(NamedTuple):
    """How many bytes are the tag and the VR, and how many come before the value (PS3.5 7.1.2)."""

    name: int
    head: int


IMPLICIT, SHORT, LONG = _Form(4, 8), _Form(6, 8), _Form(8, 12)


class _Part(NamedTuple):
    """An element of the pattern: what pydicom makes of it, and its bytes."""

    made: Element  # raw; a sequence of undefined length is read whole
    data: bytes
    form: _Form
    free: bool  # it may have another value

    def differing(self, data: bytes, begin: int) -> RawDataElement | None:
        """Read another value of it; None if that may not be, or if there is another element."""
        name, head = self.form
        if not self.free or not data.startswith(self.data[:name], begin):
            return None
        start = begin + head
        length = int.from_bytes(data[begin + name : start], "little")
        # pydicom looks at the group length at once, and trips over one of another length.
        odd = self.made.tag == GROUP_LENGTH and head + length != len(self.data)
        if odd or start + length > len(data):
            return None
        vr = None if self.form == IMPLICIT else self.made.VR
        return _raw(self.made.tag, vr, data[start : start + length], start)


def _parts(header: FileDataset, data: bytes, fixed: Collection[int]) -> Iterator[_Part]:
    """Give the elements in their order, from the preamble to Pixel Data without a gap."""
    implicit, little = header.original_encoding
    meta, body = list(header.file_meta.elements()), list(header.elements())
    if not (meta and body and little):
        raise _Odd
    # By the first one pydicom guesses whether there are VRs; by the other it decodes texts.
    fixed = {*fixed, body[0].tag, CHARACTER_SET, *(each.tag for each in meta)} - OWN_META
    found = [(each, _form(each, data)) for each in meta]
    found += [(each, IMPLICIT if implicit else _form(each, data)) for each in body]
    begins = [_start(each) - form.head for each, form in found]
    begins.append(len(data) - (IMPLICIT if implicit else LONG).head)  # of Pixel Data
    if begins[0] != BEGIN:
        raise _Odd
    for (each, form), (begin, end) in zip(found, pairwise(begins), strict=True):
        made = _made(each, form, data[begin:end], begin)
        free = each.tag not in fixed and isinstance(made, RawDataElement)
        yield _Part(made, data[begin:end], form, free)


def _form(element: Element, data: bytes) -> _Form:
    """Tell in which form an element is; pydicom may have decoded it as of another VR."""
    start = _start(element)
    is_short = data[start - 8 : start - 4] == _name(element)
    return SHORT if is_short and _vr(data[start - 8 :]) not in EXPLICIT_VR_LENGTH_32 else LONG


def _name(element: Element) -> bytes:
    return struct.pack("<HH", element.tag.group, element.tag.element)


def _vr(data: bytes) -> str:
    return data[4:6].decode("ascii", "replace")


def _start(element: Element) -> int:
    """Tell where in the file its value begins."""
    return element.value_tell if isinstance(element, RawDataElement) else element.file_tell or 0


def _made(element: Element, form: _Form, data: bytes, begin: int) -> Element:
    """Give an element as pydicom made it, after a look whether it is made of these bytes."""
    if not data.startswith(_name(element)):
        raise _Odd
    if isinstance(element, DataElement) and element.is_undefined_length:
        return copy.deepcopy(element)
    vr = None if form == IMPLICIT else _vr(data)
    raw = _raw(element.tag, vr, data[form.head :], begin + form.head)
    # Some that it needs itself are decoded already, and private ones without a value.
    decoded = element.tag.group == META or element.tag == CHARACTER_SET or not raw.value
    same = element == raw if isinstance(element, RawDataElement) else decoded
    if not (same and int.from_bytes(data[form.name : form.head], "little") == raw.length):
        raise _Odd
    return raw


def _raw(tag: BaseTag, vr: str | None, value: bytes, start: int) -> RawDataElement:
    """Make what pydicom makes of an element before it decodes it; no VR: implicit."""
    empty = cast("bytes | None", empty_value_for_VR(vr, raw=True))
    return RawDataElement(tag, vr, len(value), value or empty, start, vr is None, True)  # noqa: FBT003
