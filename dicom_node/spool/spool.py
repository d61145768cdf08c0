"""Every accepted instance on disk, as it came, before the peer hears that it was accepted.

    spool/<study>/<series>/<sop>.dcm        incoming/ beside them holds what is not yet whole

Knows files, the header of a data set and the ledger. Never decodes pixels. The order is: write,
fsync, rename, ledger; after a crash in between `Spool.recover` finishes it. What is refused leaves
nothing behind.
"""

import errno
import fcntl
import hashlib
import logging
import os
import shutil
import struct
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError

from dicom_node.errors import Mismatch, NotDicom, OutOfResources
from dicom_node.instance import Instance, is_uid
from dicom_node.ledger import Ledger

from . import header as headers
from .header import HEADER, Header

log = logging.getLogger(__name__)

MB = 1 << 20
STRIPES = 64
PARTIAL = ".partial"
ENOUGH = 1.1  # of the least free space, once there was too little
IMPLEMENTATION_UID = "2.25.255811243041107938912011350873312270401"
IMPLEMENTATION_NAME = "LAMED_NODE"
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
HEAD_LENGTH = 128 + 4 + 12  # preamble, DICM, the group length; it counts from there on


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
        self._is_full = False
        self._incoming = self._root / "incoming"
        self._incoming.mkdir(parents=True, exist_ok=True)
        for folder in (self._root, self._root.parent):
            _sync(folder)
        # One sender at a time for an instance: two may send the same one at once.
        self._locks = [threading.Lock() for _ in range(STRIPES)]
        self._counting = threading.Lock()
        self._writers, self._handle = 0, -1  # of the lock on the folder, while somebody writes

    def store(self, dataset: bytes | bytearray, announced: Announced) -> Instance:
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
        header = headers.read(dataset, announced.transfer_syntax_uid)
        _check_announced(header, announced)
        parts = (_file_head(announced), dataset)
        instance = _instance(header, self._path(header), announced.transfer_syntax_uid, parts)
        self._check_room(instance.size)
        with (
            self._locks[hash(instance.sop_uid) % STRIPES],
            _out_of_resources(),
            self._writing(),
        ):
            return self._keep(instance, parts, announced.calling_ae)

    def recover(self) -> int:
        """After a crash: finish or drop what was being stored, remember what the ledger missed.

        Returns
        -------
        How many instances the ledger learned of; 0 also while another process is receiving into
        this folder, whose half-written files are no debris.
        """
        try:
            with self._alone():
                for partial in self._incoming.iterdir():
                    self._finish(partial)
                known = self._ledger.paths()
                orphans = [path for path in self._root.glob("*/*/*.dcm") if path not in known]
                # The latest version of an instance becomes the current one.
                orphans.sort(key=lambda path: path.stat().st_mtime_ns)
                return sum(map(self._recover, orphans))
        except BlockingIOError:
            return 0

    def _keep(
        self, instance: Instance, parts: Sequence[bytes | bytearray], calling_ae: str
    ) -> Instance:
        # What was ever received under this name lies there: only then is the ledger asked.
        earlier = instance.path.exists() and self._ledger.instance(
            instance.study_uid, instance.sop_uid
        )
        if earlier:
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
            instance = _beside(instance)
        self._write(instance, parts)
        try:
            self._ledger.record_instance(instance, calling_ae=calling_ae)
        except BaseException:  # whatever it is: the sender is not told success and sends again
            instance.path.unlink(missing_ok=True)
            raise
        return instance

    def _write(self, instance: Instance, parts: Sequence[bytes | bytearray]) -> None:
        """Have the bytes on the disk, then under their name.

        The name itself is not waited for. After a power cut the file lies under one of its two
        names, and `recover` knows by the digest in the first which one it was to have.
        """
        partial = f"{self._incoming}/{instance.sha256}.{uuid.uuid4().hex}{PARTIAL}"
        try:
            _write_through(partial, parts)
            try:
                os.rename(partial, instance.path)  # noqa: PTH104 - a Path takes longer
            except FileNotFoundError:
                instance.path.parent.mkdir(parents=True, exist_ok=True)
                os.rename(partial, instance.path)  # noqa: PTH104
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise

    def _finish(self, partial: Path) -> None:
        """Give a file the name that the ledger has for it; drop it if there is none."""
        for path in self._ledger.paths_of(partial.name.partition(".")[0]):
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                partial.rename(path)
                _sync(path.parent)
                return
        partial.unlink()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the folder as writers do; those of this process hold it together."""
        with self._counting:
            if not self._writers:
                self._handle = self._hold(fcntl.LOCK_SH)
            self._writers += 1
        try:
            yield
        finally:
            with self._counting:
                self._writers -= 1
                if not self._writers:
                    os.close(self._handle)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the folder while nobody writes.

        Raises
        ------
        BlockingIOError
            Somebody does.
        """
        handle = self._hold(fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            yield
        finally:
            os.close(handle)

    def _hold(self, how: int) -> int:
        handle = os.open(f"{self._root}/lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, how)
        except BaseException:
            os.close(handle)
            raise
        return handle

    def _path(self, header: Header) -> Path:
        study, series, sop = (
            _name(header[name]) for name in ("study_uid", "series_uid", "sop_uid")
        )
        return Path(f"{self._root}/{study}/{series}/{sop}.dcm")

    def has_room(self) -> bool:
        """Say whether there is room for more than what is under way.

        Once there was none, there must be a little more than the least: senders that wait are not
        let in for a single image.
        """
        least = self._minimum_free * (ENOUGH if self._is_full else 1)
        self._is_full = shutil.disk_usage(self._root).free < least
        return not self._is_full

    def _check_room(self, size: int) -> None:
        free = shutil.disk_usage(self._root).free
        if free - size < self._minimum_free:
            self._is_full = True
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
            header = headers.read(content[start:], syntax)
            _check_announced(header, said)
        except (NotDicom, Mismatch, InvalidDicomError, AttributeError, OSError) as error:
            self._ledger.event("spool.unreadable", path=str(path), reason=str(error))
            return 0
        self._ledger.record_instance(
            _instance(header, path, syntax, (content,)), kind="instance.recovered"
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


def _check_announced(header: Header, announced: Announced) -> None:
    for name, said in (("sop_uid", announced.sop_uid), ("sop_class_uid", announced.sop_class_uid)):
        if header[name] != said:
            raise Mismatch(f"{HEADER[name]} {said} was announced, {header[name]} came")


def _instance(
    header: Header, path: Path, transfer_syntax_uid: str, parts: Sequence[bytes | bytearray]
) -> Instance:
    digest = hashlib.sha256()
    for each in parts:
        digest.update(each)
    return Instance(
        **header,
        transfer_syntax_uid=transfer_syntax_uid,
        path=path,
        sha256=digest.hexdigest(),
        size=sum(map(len, parts)),
        received_at=datetime.now(UTC),
    )


def _beside(instance: Instance) -> Instance:
    name = f"{instance.path.stem}.{instance.received_at:%Y%m%dT%H%M%S%f}.dcm"
    return replace(instance, path=instance.path.with_name(name))


def _name(uid: str) -> str:
    """Make a file name of a UID; what is no UID is digested, so that no path can be smuggled in."""
    if is_uid(uid):
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


def _write_through(path: str, parts: Sequence[bytes | bytearray]) -> None:
    """Write a new file, and return when its bytes and its name are on the disk.

    The fsync of a new file keeps its name too on the journaling file systems of Linux (ext4, XFS,
    Btrfs): it was made in the same transaction.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
    try:
        left = [memoryview(each) for each in parts]
        while left:
            count = os.writev(handle, left)
            while left and count >= len(left[0]):
                count -= len(left.pop(0))
            if left:
                left[0] = left[0][count:]
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
