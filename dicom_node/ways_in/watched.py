"""Files that somebody puts into a folder are taken into the spool, and removed from there.

    watch_dir/...            Part 10 files, zip archives of them, in folders or not
    watch_dir/refused/       what cannot be taken, each with a .txt that says why

Knows folders. A file is taken when it has stopped growing, and removed when it is stored durably;
one that cannot be stored now waits where it is. Everything is opened by way of the folder it was
seen in and no link is followed, so that nothing outside is read or removed. Names of files may name
patients: they stand in the .txt, in no log and no event.
"""

import io
import logging
import os
import stat
import threading
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from dicom_node.errors import BadInput, NodeError, NotDicom, Unavailable
from dicom_node.ledger import Ledger
from dicom_node.spool import Spool
from dicom_node.spool.arrivals import Arrival

log = logging.getLogger(__name__)

POLL_S: Final = 1.0
SETTLED_S: Final = 3.0  # without a change, a file is whole
ABANDONED_S: Final = 60.0  # after which an empty folder goes
SENDER: Final = "watched folder"
REFUSED: Final = "refused"
UNFINISHED: Final = (".part", ".partial", ".tmp", ".filepart", ".crdownload")
DIRECTORY: Final = "DICOMDIR"  # PS3.10 8.6: it only lists the files beside it
ZIP: Final = b"PK\x03\x04"
MOST_MEMBERS: Final = 100_000
LONGEST_NAME: Final = 200  # bytes, that there be room for more

Mark = tuple[int, int, int]  # inode, size and time of change: while they stay, a file is as it was


@dataclass
class Watched:
    """One folder.

    Parameters
    ----------
    most
        Bytes that an instance, or an archive, may have.
    settled_s
        A file that is as it was for so long is whole.
    """

    folder: Path
    spool: Spool
    ledger: Ledger
    most: int
    settled_s: float = SETTLED_S
    _seen: dict[str, tuple[Mark, float]] = field(default_factory=dict)

    def run(self, stop: threading.Event) -> None:
        """Take in what comes, until told to stop."""
        while not stop.wait(min(POLL_S, self.settled_s)):
            try:
                self.step(stop)
            except OSError as error:  # a share that is away comes back
                log.warning("watched.error", extra={"reason": error.strerror})
            except Exception:  # the loop's edge: one file's fault is no other's
                log.exception("watched.error")

    def step(self, stop: threading.Event | None = None) -> int:
        """Look once through the folder; return how many files were taken.

        Raises
        ------
        OSError
            The folder is not there or cannot be read.
        """
        taken, there = 0, set()
        with _opened(self.folder) as top:
            for path, name, folder in _files(top):
                if not self.spool.has_room() or (stop is not None and stop.is_set()):
                    return taken
                there.add(path)
                if self._is_settled(path, name, folder):
                    taken += self._taken(name, folder, top)
        self._seen = {path: each for path, each in self._seen.items() if path in there}
        return taken

    def _is_settled(self, path: str, name: str, folder: int) -> bool:
        try:
            now = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return False
        mark = (now.st_ino, now.st_size, now.st_mtime_ns)
        known, since = self._seen.get(path, (None, 0.0))
        if mark != known:
            self._seen[path] = (mark, time.monotonic())
            return False
        return time.monotonic() - since >= self.settled_s

    def _taken(self, name: str, folder: int, top: int) -> bool:
        """Take a file; one that cannot be removed, or put aside, keeps no other one waiting."""
        try:
            if not os.access(".", os.W_OK | os.X_OK, dir_fd=folder):  # it would come for ever
                raise PermissionError(0, "nothing can be removed from the folder")
            return self._take(name, folder, top)
        except OSError as error:
            log.warning("watched.stuck", extra={"reason": error.strerror})
            return False

    def _take(self, name: str, folder: int, top: int) -> bool:
        try:
            content = _read(name, folder, self.most)
            if name != DIRECTORY:
                self._store(content)
        except (Unavailable, FileNotFoundError):  # later
            return False
        except (NodeError, OSError) as error:
            self._refuse(name, folder, top, str(error))
            return False
        os.unlink(name, dir_fd=folder)
        return True

    def _store(self, content: bytearray) -> None:
        if not content.startswith(ZIP):
            Arrival.of(content, SENDER).store(self.spool)
            return
        refused = []
        for name, member in _members(content, self.most):
            try:
                if isinstance(member, NodeError):
                    raise member
                Arrival.of(member, SENDER).store(self.spool)
            except Unavailable:
                raise
            except NodeError as error:
                refused.append(f"{name}: {error}")
        if refused:
            told = "; ".join(refused[:100])
            raise BadInput(f"{len(refused)} files of the archive are not taken: {told}")

    def _refuse(self, name: str, folder: int, top: int, reason: str) -> None:
        with suppress(FileExistsError):
            os.mkdir(REFUSED, 0o750, dir_fd=top)
        with _opened(REFUSED, top) as refused:
            target = _free(name, refused)
            os.rename(name, target, src_dir_fd=folder, dst_dir_fd=refused)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            with os.fdopen(os.open(f"{target}.txt", flags, 0o640, dir_fd=refused), "wb") as file:
                file.write(f"{reason}\n".encode(errors="replace"))
        log.warning("watched.refused")
        with suppress(NodeError):
            kind = reason.partition(":")[0] if reason.startswith("no DICOM") else "see its .txt"
            self.ledger.event("watched.refused", study_uid=None, job_id=None, reason=kind)


@contextmanager
def _opened(path: Path | str, parent: int | None = None) -> Iterator[int]:
    """Open a folder, and no link to one."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    handle = os.open(path, flags | (os.O_NOFOLLOW if parent is not None else 0), dir_fd=parent)
    try:
        yield handle
    finally:
        os.close(handle)


def _files(top: int) -> Iterator[tuple[str, str, int]]:
    """Give path and name of each file that is to be taken, and its folder; drop empty folders."""
    for path, folders, names, handle in os.fwalk(".", dir_fd=top):  # no link is followed
        if path == "." and REFUSED in folders:
            folders.remove(REFUSED)
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        links = [each for each in folders if _is_link(each, handle)]
        for name in sorted([*names, *links]):
            if not name.startswith(".") and not name.lower().endswith(UNFINISHED):
                yield f"{path}/{name}", name, handle
        for each in folders:
            _drop(each, handle)


def _is_link(name: str, folder: int) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _drop(name: str, folder: int) -> None:
    """Remove a folder that is empty, and long since left."""
    with suppress(OSError):  # it is not empty, or no folder any more
        changed = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime
        if time.time() - changed > ABANDONED_S:
            os.rmdir(name, dir_fd=folder)


def _read(name: str, folder: int, most: int) -> bytearray:
    """Read a regular file; `BadInput` for anything else, or for more than `most` bytes."""
    # Non-blocking: a pipe would wait for whoever writes into it.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    if _is_link(name, folder):
        raise BadInput("a link, which is not followed")
    with os.fdopen(os.open(name, flags, dir_fd=folder), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise BadInput("no regular file")
        if found.st_size > most:
            raise BadInput(f"{found.st_size} bytes, the limit is {most}")
        content = bytearray(found.st_size)
        if file.readinto(content) != found.st_size:
            raise BadInput("it shrank while it was read")
        return content


def _members(content: bytearray, most: int) -> Iterator[tuple[str, bytearray | NodeError]]:
    """Give each file of a zip archive, or what is wrong with it; names are no paths here."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
        listed = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise BadInput(f"no zip archive that can be read: {error}") from error
    if len(listed) > MOST_MEMBERS:
        raise BadInput(f"an archive of more than {MOST_MEMBERS} files")
    for each in listed:
        if not each.is_dir() and each.filename.rpartition("/")[2] != DIRECTORY:
            yield each.filename, _member(archive, each, most)


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, most: int) -> bytearray | NodeError:
    try:
        with archive.open(member) as file:
            content = bytearray(file.read(most + 1))  # whatever it says of its size
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, OSError, ValueError) as error:
        return NotDicom(f"cannot be read: {error}")
    return BadInput(f"more than {most} bytes") if len(content) > most else content


def _free(name: str, folder: int) -> str:
    """Give a name that nothing in the folder has."""
    there = set(os.listdir(folder))
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = name[: LONGEST_NAME // 4]
    taken = name in there or f"{name}.txt" in there
    return f"{time.time_ns()}-{name}" if taken else name
