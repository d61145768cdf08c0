"""Audit messages kept as files: one for each day (UTC), a message on each line.

Knows files. A message is on the disk when `add` returns. Who writes or rewrites holds the lock.
"""

import base64
import fcntl
import os
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from dicom_node.ledger.traces import Traces

from .codes import STUDY_UID
from .message import UNKNOWN, written

SUFFIX: Final = ".xml.log"
ENCODED: Final = frozenset({"ParticipantObjectQuery"})


def add(folder: Path, day: str, messages: Sequence[bytes]) -> None:
    """Append messages to the file of a day, YYYY-MM-DD."""
    with _locked(folder):
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        with os.fdopen(os.open(folder / f"{day}{SUFFIX}", flags, 0o600), "ab") as file:
            file.writelines(each + b"\n" for each in messages)
            file.flush()
            os.fsync(file.fileno())


def expire(folder: Path, days: float, now: datetime | None = None) -> int:
    """Remove the files of days that are older; 0 keeps all. Return how many went."""
    if not days:
        return 0
    oldest = f"{(now or datetime.now(UTC)) - timedelta(days=days):%Y-%m-%d}"
    old = [each for each in sorted(folder.glob(f"*{SUFFIX}")) if each.name[:10] < oldest]
    for each in old:
        each.unlink()
    return len(old)


def forget(folder: Path, traces: Traces, pseudonym: str) -> int:
    """Take whose it was out of the messages that tell of a study; return how many they were."""
    with _locked(folder):
        return sum(_forget(each, traces, pseudonym) for each in folder.glob(f"*{SUFFIX}"))


def _forget(path: Path, traces: Traces, pseudonym: str) -> int:
    lines = path.read_bytes().splitlines()
    left = [_without(each, traces, pseudonym) for each in lines]
    changed = sum(one != other for one, other in zip(lines, left, strict=True))
    if changed:
        partial = path.with_name(f".{path.name}.partial")
        partial.touch(0o600)
        with partial.open("wb") as file:
            file.writelines(each + b"\n" for each in left)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync(path.parent)
    return changed


def _without(line: bytes, traces: Traces, pseudonym: str) -> bytes:
    try:
        root = ET.fromstring(line)  # noqa: S314 - written here
    except ET.ParseError:  # cut by a crash; it was written again after it
        return b"" if traces.mark(line.decode("utf-8", "replace")) else line
    seen = traces.seen_from(_study(root))
    if not sum(_empty(each, seen, pseudonym) for each in root.iter()):
        return line
    return written(root)


def _study(root: ET.Element) -> str | None:
    """Tell which study a message is of; None: of none."""
    for each in root.iter("ParticipantObjectIdentification"):
        kind = each.find("ParticipantObjectIDTypeCode")
        if kind is not None and kind.get("csd-code") == STUDY_UID.value:
            return each.get("ParticipantObjectID")
    return None


def _empty(element: ET.Element, traces: Traces, pseudonym: str) -> bool:
    changed = False
    for name, value in element.attrib.items():
        encoded = (element.tag, name) == ("ParticipantObjectDetail", "value")
        if traces.mark(_opened(value) if encoded else value):
            stands = pseudonym if value == traces.study_uid else UNKNOWN
            element.set(name, base64.b64encode(stands.encode()).decode() if encoded else stands)
            changed = True
    text = element.text or ""
    if traces.mark(_opened(text) if element.tag in ENCODED else text):
        element.text = "" if element.tag in ENCODED else UNKNOWN
        changed = True
    return changed


def _opened(value: str) -> str:
    return base64.b64decode(value).decode("utf-8", "replace")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
