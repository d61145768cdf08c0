"""Every accepted instance on disk, as it came, before the peer hears that it was accepted.

    spool/<study>/<series>/<sop>.dcm        incoming/ beside them holds what is not yet whole

Knows files, the header of a data set and the ledger. Never decodes pixels. The order is: write,
fsync, rename, fsync of the folders, ledger; after a crash in between `Spool.recover` finishes it.
What is refused leaves nothing behind.
"""

import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
import struct
import threading
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian

from .errors import Mismatch, NotDicom, OutOfResources
from .instance import Instance
from .ledger import Ledger

log = logging.getLogger(__name__)

MB = 1 << 20
STRIPES = 64
IMPLEMENTATION_UID = "2.25.255811243041107938912011350873312270401"
IMPLEMENTATION_NAME = "LAMED_NODE"
UID_FORM = re.compile(r"[0-9]+(\.[0-9]+)*")
UID_LENGTH = 64
HEADER = {
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
TAGS = [tag for tag in map(tag_for_keyword, ("SpecificCharacterSet", *HEADER.values())) if tag]
REQUIRED = tuple(HEADER.values())[:4]
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
LONG_VRS = {b"OB", b"OW", b"OF", b"OD", b"OV", b"OL", b"UN"}  # of 12 bytes before the value
UNDEFINED = 0xFFFFFFFF
SEQUENCE_END = b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"
HEAD_LENGTH = 128 + 4 + 12  # preamble, DICM, the group length; it counts from there on
INFLATED_LIMIT = 1 << 30


@dataclass(frozen=True)
class Announced:
    """What the sender said it would send (PS3.7 9.3.1.1) and who it is."""

    sop_class_uid: str
    sop_uid: str
    transfer_syntax_uid: str
    calling_ae: str


class Spool:
    """The folder of received instances.

    Parameters
    ----------
    minimum_free_mb
        Below so much free space instances are refused.
    """

    def __init__(self, root: Path, ledger: Ledger, *, minimum_free_mb: int) -> None:
        self._root, self._ledger = root.absolute(), ledger
        self._minimum_free = minimum_free_mb * MB
        self._incoming = self._root / "incoming"
        self._incoming.mkdir(parents=True, exist_ok=True)
        for folder in (self._root, self._root.parent):
            _sync(folder)
        # One sender at a time for an instance: two may send the same one at once.
        self._locks = [threading.Lock() for _ in range(STRIPES)]

    def store(self, dataset: bytes, announced: Announced) -> Instance:
        """Keep one data set as it came; when this returns it is on disk and in the ledger.

        Raises
        ------
        NotDicom
            The bytes are no data set in this transfer syntax, or one that is cut short.
        Mismatch
            It is another instance than the one announced, or lacks its place in the hierarchy.
        OutOfResources
            There is no room.
        """
        header = _header(dataset, announced)
        _check_announced(header, announced)
        content = _file_head(announced) + dataset
        instance = _instance(header, content, self._path(header), announced.transfer_syntax_uid)
        self._check_room(len(content))
        with (
            self._locks[hash(instance.sop_uid) % STRIPES],
            _out_of_resources(),
            self._held(fcntl.LOCK_SH),
        ):
            return self._keep(instance, content, announced.calling_ae)

    def recover(self) -> int:
        """After a crash: drop what was not whole, remember what is whole but not in the ledger.

        Returns
        -------
        How many instances the ledger learned of; 0 also while another process is receiving into
        this folder, whose half-written files are no debris.
        """
        try:
            with self._held(fcntl.LOCK_EX | fcntl.LOCK_NB):
                for partial in self._incoming.iterdir():
                    partial.unlink()
                known = self._ledger.paths()
                orphans = [path for path in self._root.glob("*/*/*.dcm") if path not in known]
                # The latest version of an instance becomes the current one.
                orphans.sort(key=lambda path: path.stat().st_mtime_ns)
                return sum(map(self._recover, orphans))
        except BlockingIOError:
            return 0

    def _keep(self, instance: Instance, content: bytes, calling_ae: str) -> Instance:
        earlier = self._ledger.instance(instance.study_uid, instance.sop_uid)
        kind = "instance.stored"
        if earlier is not None:
            if earlier.sha256 == instance.sha256 and earlier.path.is_file():
                self._ledger.event(
                    "instance.duplicate",
                    study_uid=instance.study_uid,
                    sop_uid=instance.sop_uid,
                    calling_ae=calling_ae,
                )
                return earlier
            # The same UID with another content is a correction in practice: the newest is
            # current, the earlier one stays beside it.
            kind, instance = "instance.superseded", _beside(instance)
        self._write(instance.path, content)
        try:
            self._ledger.record_instance(instance, kind=kind, calling_ae=calling_ae)
        except BaseException:  # whatever it is: the sender is not told success and sends again
            instance.path.unlink(missing_ok=True)
            raise
        return instance

    def _write(self, path: Path, content: bytes) -> None:
        partial = self._incoming / f"{uuid.uuid4().hex}.partial"
        try:
            with partial.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.rename(path)
        finally:
            partial.unlink(missing_ok=True)
        # Always all three: whoever made a folder may not have come to its fsync yet, and one
        # that did not change costs nothing.
        for folder in (path.parent, path.parent.parent, self._root):
            _sync(folder)

    @contextmanager
    def _held(self, how: int) -> Iterator[None]:
        """Hold the folder: any number of writers, or one that recovers."""
        handle = os.open(self._root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, how)
            yield
        finally:
            os.close(handle)

    def _path(self, header: Dataset) -> Path:
        study, series, sop = (
            _name(str(header[HEADER[key]].value)) for key in ("study_uid", "series_uid", "sop_uid")
        )
        return self._root / study / series / f"{sop}.dcm"

    def _check_room(self, size: int) -> None:
        free = shutil.disk_usage(self._root).free
        if free - size < self._minimum_free:
            raise OutOfResources(
                f"{free // MB} MB free, the limit is {self._minimum_free // MB} MB"
            )

    def _recover(self, path: Path) -> int:
        try:
            content = path.read_bytes()
            meta = pydicom.filereader.read_file_meta_info(path)
            start = HEAD_LENGTH + int(meta.FileMetaInformationGroupLength)
            syntax = str(meta.TransferSyntaxUID)
            said = Announced(
                str(meta.MediaStorageSOPClassUID), str(meta.MediaStorageSOPInstanceUID), syntax, ""
            )
            header = _header(content[start:], said)
        except (NotDicom, Mismatch, InvalidDicomError, AttributeError, OSError) as error:
            self._ledger.event("spool.unreadable", path=str(path), reason=str(error))
            return 0
        self._ledger.record_instance(
            _instance(header, content, path, syntax), kind="instance.recovered"
        )
        return 1


def _file_head(announced: Announced) -> bytes:
    """Write preamble and File Meta Information (PS3.10 7.1); the data set stays as it is.

    Without the sender's title, so that the same instance from another sender is the same file.
    """
    elements = b"".join(
        (
            _element(0x0001, b"OB", b"\x00\x01"),
            _element(0x0002, b"UI", announced.sop_class_uid.encode()),
            _element(0x0003, b"UI", announced.sop_uid.encode()),
            _element(0x0010, b"UI", announced.transfer_syntax_uid.encode()),
            _element(0x0012, b"UI", IMPLEMENTATION_UID.encode()),
            _element(0x0013, b"SH", IMPLEMENTATION_NAME.encode()),
        )
    )
    return (
        bytes(128) + b"DICM" + _element(0x0000, b"UL", struct.pack("<I", len(elements))) + elements
    )


def _element(number: int, vr: bytes, value: bytes) -> bytes:
    if len(value) % 2:
        value += b" " if vr == b"SH" else b"\x00"
    length = struct.pack("<HI", 0, len(value)) if vr == b"OB" else struct.pack("<H", len(value))
    return struct.pack("<HH", 0x0002, number) + vr + length + value


class _Whole(BytesIO):
    """Bytes that notice a read past their end, which pydicom forgives; zeros are padding."""

    cut_short = False

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        if 0 < len(found) < (size or 0) and found.strip(b"\x00"):
            self.cut_short = True
        return found


def _header(dataset: bytes, announced: Announced) -> Dataset:
    if announced.transfer_syntax_uid == DeflatedExplicitVRLittleEndian:
        dataset = _inflated(dataset)
        announced = replace(announced, transfer_syntax_uid=ExplicitVRLittleEndian)
    content = _Whole(_file_head(announced) + dataset)
    try:
        header = pydicom.dcmread(content, stop_before_pixels=True, specific_tags=TAGS)
        missing = [keyword for keyword in REQUIRED if not str(header.get(keyword) or "").strip()]
    except Exception as error:  # the edge: any bytes may come, and pydicom may trip over them
        raise NotDicom(f"not a data set: {type(error).__name__} {error}") from error
    if content.cut_short:
        raise NotDicom("cut short in the middle of an element")
    _check_end(content.getvalue(), content.tell(), announced.transfer_syntax_uid)
    if missing:
        # Without any identity it is not one of ours at all (PS3.4 B.2.3: 0xC000, else 0xA900).
        kind = NotDicom if {"SOPInstanceUID", "SOPClassUID"} <= set(missing) else Mismatch
        raise kind(f"no {', '.join(missing)} in the data set")
    return header


def _inflated(dataset: bytes) -> bytes:
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflated = inflate.decompress(dataset, INFLATED_LIMIT)
    except zlib.error as error:
        raise NotDicom(f"not deflated: {error}") from error
    if not inflate.eof:
        raise NotDicom("the deflated data set is cut short, or too large to be one")
    return inflated


def _check_end(content: bytes, position: int, transfer_syntax_uid: str) -> None:
    """Refuse a data set whose last element or whose pixels run past its end."""
    if position < len(content):  # the reader stopped before the pixels
        order = ">" if transfer_syntax_uid == ExplicitVRBigEndian else "<"
        position += 12 if content[position + 4 : position + 6] in LONG_VRS else 8
        if position > len(content):
            raise NotDicom("cut short before the pixels")
        (length,) = struct.unpack_from(f"{order}I", content, position - 4)
        if length == UNDEFINED:
            if content.rfind(SEQUENCE_END) < position:
                raise NotDicom("the pixels are cut short: no end of their last fragment")
            return
        position += length
    if position > len(content):
        raise NotDicom(f"cut short: {len(content)} bytes came, its elements need {position}")


def _check_announced(header: Dataset, announced: Announced) -> None:
    for keyword, said in (
        ("SOPInstanceUID", announced.sop_uid),
        ("SOPClassUID", announced.sop_class_uid),
    ):
        if str(header[keyword].value) != said:
            raise Mismatch(f"{keyword} {said} was announced, {header[keyword].value} came")


def _instance(header: Dataset, content: bytes, path: Path, transfer_syntax_uid: str) -> Instance:
    values = {key: _text(header, keyword) for key, keyword in HEADER.items()}
    return Instance(
        **values,
        transfer_syntax_uid=transfer_syntax_uid,
        path=path,
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
        received_at=datetime.now(UTC),
    )


def _text(header: Dataset, keyword: str) -> str:
    try:
        return str(header.get(keyword) or "").strip()
    except Exception:  # noqa: BLE001 - the edge: a broken value must not lose the instance
        return ""


def _beside(instance: Instance) -> Instance:
    name = f"{instance.path.stem}.{instance.received_at:%Y%m%dT%H%M%S%f}.dcm"
    return replace(instance, path=instance.path.with_name(name))


def _name(uid: str) -> str:
    """Make a file name of a UID; what is no UID is digested, so that no path can be smuggled in."""
    if UID_FORM.fullmatch(uid) and len(uid) <= UID_LENGTH:
        return uid
    return f"x-{hashlib.sha256(uid.encode()).hexdigest()[:32]}"


@contextmanager
def _out_of_resources() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise OutOfResources(f"cannot store: {error.strerror}") from error
        raise


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
