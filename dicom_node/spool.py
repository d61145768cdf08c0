"""Every accepted instance on disk, as it came, before the peer hears that it was accepted.

    spool/<study>/<series>/<sop>.dcm        incoming/ beside them holds what is not yet whole

Knows files, the header of a data set and the ledger. Never decodes pixels. The order is: write,
fsync, rename, fsync of the folders, ledger; after a crash in between `Spool.recover` finishes it.
"""

import errno
import hashlib
import logging
import os
import re
import shutil
import struct
import threading
import uuid
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
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

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
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
PIXEL_TAGS = {0x7FE00008, 0x7FE00009, 0x7FE00010}
UNDEFINED = 0xFFFFFFFF
SEQUENCE_END = b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"


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
        # One sender at a time for an instance: two may send the same one at once.
        self._locks = [threading.Lock() for _ in range(STRIPES)]

    def store(self, dataset: bytes, announced: Announced) -> Instance:
        """Keep one data set as it came; when this returns it is on disk and in the ledger.

        Raises
        ------
        NotDicom
            The bytes are no data set in this transfer syntax, or one that is cut short.
        Mismatch
            It is another instance than the one announced.
        OutOfResources
            There is no room.
        """
        content = _file_head(announced) + dataset
        header = _header(content, announced.transfer_syntax_uid)
        _check_announced(header, announced)
        instance = _instance(header, content, self._path(header), announced.transfer_syntax_uid)
        self._check_room(len(content))
        with self._locks[hash(instance.sop_uid) % STRIPES], _out_of_resources():
            return self._keep(instance, content, announced.calling_ae)

    def recover(self) -> int:
        """After a crash: drop what was not whole, remember what is whole but not in the ledger."""
        for partial in self._incoming.iterdir():
            partial.unlink()
        known, recovered = self._ledger.paths(), 0
        for path in sorted(self._root.glob("*/*/*.dcm")):
            if path not in known:
                recovered += self._recover(path)
        return recovered

    def _keep(self, instance: Instance, content: bytes, calling_ae: str) -> Instance:
        earlier = self._ledger.instance(instance.study_uid, instance.sop_uid)
        told = {"calling_ae": calling_ae}
        if earlier is None:
            self._write(instance.path, content)
            self._ledger.record_instance(instance, **told)
            return instance
        if earlier.sha256 == instance.sha256:
            about = {"study_uid": instance.study_uid, "sop_uid": instance.sop_uid}
            self._ledger.event("instance.duplicate", **about, **told)
            return earlier
        # The same UID with another content is a correction in practice: the newest is current,
        # the earlier one stays beside it.
        later = _beside(instance)
        self._write(later.path, content)
        self._ledger.record_instance(later, kind="instance.superseded", **told)
        return later

    def _write(self, path: Path, content: bytes) -> None:
        partial = self._incoming / f"{uuid.uuid4().hex}.partial"
        try:
            with partial.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            made = [each for each in (path.parent.parent, path.parent) if not each.exists()]
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.rename(path)
        finally:
            partial.unlink(missing_ok=True)
        for folder in {path.parent, *(each.parent for each in made)}:
            _sync(folder)

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
            header = _header(content, str(meta.TransferSyntaxUID))
            instance = _instance(header, content, path, str(meta.TransferSyntaxUID))
        except (NotDicom, InvalidDicomError, AttributeError, OSError) as error:
            self._ledger.event("spool.unreadable", path=str(path), reason=str(error))
            return 0
        self._ledger.record_instance(instance, kind="instance.recovered")
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


def _header(content: bytes, transfer_syntax_uid: str) -> Dataset:
    buffer = BytesIO(content)
    try:
        header = pydicom.dcmread(buffer, stop_before_pixels=True, specific_tags=TAGS)
        missing = [
            keyword for keyword in list(HEADER.values())[:4] if not str(header.get(keyword) or "")
        ]
    except Exception as error:
        raise NotDicom(f"not a data set: {type(error).__name__} {error}") from error
    if missing:
        raise NotDicom(f"a data set has {', '.join(missing)}; what came has none")
    if transfer_syntax_uid != DeflatedExplicitVRLittleEndian:
        _check_end(content, buffer.tell(), UID(transfer_syntax_uid))
    return header


def _check_end(content: bytes, position: int, transfer_syntax: UID) -> None:
    """Refuse a data set whose last element or whose pixels run past its end."""
    end = position
    if position + 12 <= len(content):
        order = "<" if transfer_syntax.is_little_endian else ">"
        group, element = struct.unpack_from(f"{order}HH", content, position)
        implicit = transfer_syntax == ImplicitVRLittleEndian
        if group << 16 | element in PIXEL_TAGS:
            start = position + (8 if implicit else 12)
            (length,) = struct.unpack_from(f"{order}I", content, start - 4)
            if length == UNDEFINED:
                if content.rfind(SEQUENCE_END) < start:
                    raise NotDicom("the pixels are cut short: no end of their last fragment")
                return
            end = start + length
    if end > len(content):
        raise NotDicom(f"cut short: {len(content)} bytes came, its elements need {end}")


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
    name = f"{instance.path.stem}.{instance.sha256[:8]}.dcm"
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
