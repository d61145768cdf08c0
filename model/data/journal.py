"""The journal of a run: what was asked and answered, one JSON line each, never rewritten.

Knows a file and keys; not what they mean. A reply is on disk before anything is made of it, so a
run that was killed goes on from it and asks nothing twice. Only where each reply lies is kept in
memory.
"""

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from .sample import DataError

Entry = dict[str, Any]


class Journal:
    """An append-only file of entries, each with a key; one process at a time.

    `on_entry` is shown each entry that is there already, when the journal is opened.
    """

    def __init__(self, path: Path, on_entry: Callable[[Entry], None] | None = None) -> None:
        self.path = path
        self.dropped = 0
        self._on_entry = on_entry
        self._places: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> Self:
        """Open the journal and find what it holds; a last line that was cut short is dropped.

        Raises
        ------
        DataError
            Another run has it open, or a line before the last one is damaged.
        """
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._index()
        except BlockingIOError as error:
            os.close(self._file)
            raise DataError(self.path, None, "a journal of our own", "another run's") from error
        except BaseException:  # also a Ctrl-C: nothing is left open or half written
            os.close(self._file)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str) -> Entry | None:
        """Read the entry with that key; None if there is none."""
        if key not in self._places:
            return None
        place, length = self._places[key]
        entry: Entry = json.loads(os.pread(self._file, length, place))
        return entry

    def add(self, key: str, entry: Entry) -> None:
        """Write an entry; it is on disk on return.

        Raises
        ------
        DataError
            There is no room for it; the journal is as it was before.
        """
        line = json.dumps({"key": key} | entry).encode() + b"\n"
        place = os.lseek(self._file, 0, os.SEEK_END)
        try:
            _write_all(self._file, line)
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, place)
            raise DataError(self.path, None, "room for an entry", str(error)) from error
        self._places[key] = (place, len(line))

    def _index(self) -> None:
        place = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                entry = _entry(line)
                if entry is None:
                    if file.read(1):
                        raise DataError(self.path, number, "a journal entry", "something else")
                    self.dropped = len(line)
                    break
                self._places[entry["key"]] = (place, len(line))
                place += len(line)
                self._show(entry, number)
        if self.dropped:
            os.ftruncate(self._file, place)

    def _show(self, entry: Entry, number: int) -> None:
        try:
            if self._on_entry:
                self._on_entry(entry)
        except (LookupError, TypeError, ValueError) as error:
            raise DataError(self.path, number, "an entry of such a run", repr(error)) from error


def _entry(line: bytes) -> Entry | None:
    try:
        entry = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("key"), str) else None


def _write_all(file: int, line: bytes) -> None:
    """Write the line whole: a disk that is full may take a part of it."""
    while line:
        line = line[os.write(file, line) :]
