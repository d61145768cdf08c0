"""A power cut, simulated: what a disk may hold when the node has got so far, and no further.

Stands between the spool and its folder: it keeps the order of what is written, made to last (fsync)
and renamed. At a cut every byte that was not waited for may be missing or garbage, and of the
changes of names any prefix may have come to the disk, at least up to the last fsync, which a
journaling file system commits together with all names that were changed before it. The ledger
is SQLite with synchronous=FULL: what it has committed stays.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock


class PowerCut(BaseException):
    """The power is gone: nothing that comes after it reaches the disk."""


@dataclass
class Disk:
    """What was done to one folder, in order, until the power is cut at the step `cut`."""

    root: Path
    cut: int
    steps: int = 0
    names: list[tuple[str, ...]] = field(default_factory=list)  # make, rename, unlink; in order
    lasting: int = 0  # how many of the names are on the disk for certain
    content: dict[int, bytes] = field(default_factory=dict)  # by inode
    synced: dict[int, bytes] = field(default_factory=dict)
    _paths: dict[int, Path] = field(default_factory=dict)  # by handle
    _inodes: dict[int, int] = field(default_factory=dict)  # by handle

    def _step(self) -> None:
        self.steps += 1
        if self.steps >= self.cut:
            raise PowerCut

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record what this process does in the folder."""
        with (
            mock.patch("os.open", self._wrapped(os.open, self._opened)),
            mock.patch("os.writev", self._wrapped(os.writev, self._written)),
            mock.patch("os.fsync", self._wrapped(os.fsync, self._fsynced)),
            mock.patch("os.rename", self._wrapped(os.rename, self._renamed)),
            mock.patch.object(Path, "unlink", self._wrapped(Path.unlink, self._unlinked)),
        ):
            yield

    def _wrapped(self, true: Callable[..., Any], record: Callable[..., None]) -> Any:
        def done(*given: Any, **named: Any) -> Any:
            if self.steps >= self.cut:
                raise PowerCut
            result = true(*given, **named)
            record(result, *given)
            return result

        return done

    def _is_ours(self, path: object) -> bool:
        return str(path).startswith(str(self.root)) and str(path).endswith((".partial", ".dcm"))

    def _opened(self, handle: int, path: object, flags: int, *_: object) -> None:
        if self._is_ours(path) and flags & os.O_CREAT:
            inode = os.fstat(handle).st_ino
            self._paths[handle], self._inodes[handle] = Path(str(path)), inode
            self.content[inode] = self.synced[inode] = b""
            self.names.append(("make", str(path), str(inode)))
            self._step()
        else:
            self._inodes.pop(handle, None)

    def _written(self, count: int, handle: int, parts: Any) -> None:
        if handle in self._inodes:
            self.content[self._inodes[handle]] += b"".join(map(bytes, parts))[:count]
            self._step()

    def _fsynced(self, _: None, handle: int) -> None:
        if handle in self._inodes:
            inode = self._inodes[handle]
            self.synced[inode] = self.content[inode]
            self.lasting = len(self.names)
            self._step()

    def _renamed(self, _: None, source: object, target: object) -> None:
        if self._is_ours(source):
            self.names.append(("rename", str(source), str(target)))
            self._step()

    def _unlinked(self, _: None, path: Path) -> None:
        if self._is_ours(path):
            self.names.append(("unlink", str(path)))
            self._step()

    def leave(self, random: Random) -> None:
        """Put into the folder what it may hold after the cut."""
        for path in self.root.rglob("*"):
            if path.is_file() and self._is_ours(path):
                path.unlink()
        there = self._named(random.randint(self.lasting, len(self.names)))
        for folder in sorted(self.root.glob("*/*"), reverse=True):
            if folder.is_dir() and not any(name.startswith(f"{folder}/") for name in there):
                shutil.rmtree(folder)
        for name, inode in there.items():
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_bytes(self._surviving(inode, random))

    def _named(self, count: int) -> dict[str, int]:
        """Give what lies under which name after so many changes."""
        there: dict[str, int] = {}
        for what, *given in self.names[:count]:
            if what == "make":
                there[given[0]] = int(given[1])
            elif what == "rename":
                there[given[1]] = there.pop(given[0])
            else:
                there.pop(given[0], None)
        return there

    def _surviving(self, inode: int, random: Random) -> bytes:
        synced, whole = self.synced[inode], self.content[inode]
        if synced == whole:
            return whole
        size = random.randint(len(synced), len(whole))
        # A block whose data had not come is there in length, and holds zeros.
        return random.choice((whole[:size], synced + bytes(size - len(synced)), synced))
