"""Faults planted in a process of the node: the product has no hook for them, and knows nothing.

A fault is a place where the state of the node changes, the how-manieth time it is passed there, and
what happens: before, after or instead. `plant` replaces functions in this process only.
"""

import errno
import functools
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.exc import OperationalError

KILLS = ("kill before", "kill after")


@dataclass(frozen=True)
class Fault:
    """What happens where."""

    role: str
    place: str
    kind: str
    number: int

    def __str__(self) -> str:
        return f"{self.role}: {self.kind} {self.place} {self.number}"


_LASTING = {
    "locked": 3, "ledger full": 3, "no room": 2, "EIO": 2, "out of memory": 2, "refuse": 3,
    "lose": 99,
}  # fmt: skip


def places() -> dict[str, dict[str, tuple[Any, str, int, tuple[str, ...]]]]:
    """Give by role and place: whose function, its name, how often it is passed, what may happen."""
    from dicom_node import results, worker
    from dicom_node.delivery import delivery, proof
    from dicom_node.intake import Intake
    from dicom_node.jobs import Jobs
    from dicom_node.ledger import Ledger, deliveries
    from dicom_node.ledger.reading import Reading
    from dicom_node.network.upper_layer import Connection
    from dicom_node.scp.commitment import Provider
    from dicom_node.scu import Session
    from dicom_node.spool import Spool
    from model import LaMed

    disk, ledger = ("no room", "EIO"), ("locked", "ledger full")
    return {
        "scp": {
            "commit": (DefaultDialect, "do_commit", 30, (*KILLS, *ledger)),
            "write": (os, "writev", 6, (*KILLS, "half", "no room")),
            "fsync": (os, "fsync", 9, (*KILLS, *disk)),
            "rename": (os, "rename", 6, (*KILLS, *disk)),
            "answer": (Connection, "respond", 6, KILLS),
            "record": (Ledger, "record_instance", 6, (*KILLS, "locked")),
            "store": (Spool, "store", 6, KILLS),
            "take": (Intake, "_take", 1, (*KILLS, "locked")),
            "enqueue": (Jobs, "enqueue_all", 1, KILLS),
            "send": (delivery, "deliver", 1, KILLS),
            "sent one": (Session, "store", 2, KILLS),
            "record delivery": (Ledger, "record_delivery", 1, (*KILLS, "locked")),
            "ask for proof": (proof, "seek", 1, KILLS),
            "settle": (deliveries, "settle", 1, (*KILLS, "locked")),
        },
        "worker": {
            "commit": (DefaultDialect, "do_commit", 8, (*KILLS, *ledger)),
            "claim": (Jobs, "claim", 1, (*KILLS, "locked")),
            "read": (LaMed, "read", 1, (*KILLS, "segfault", "out of memory")),
            "interpret": (worker, "interpret", 1, KILLS),
            "save": (results, "save", 1, (*KILLS, *disk)),
            "save one": (results, "save_object", 3, (*KILLS, *disk)),
            "fsync": (os, "fsync", 8, (*KILLS, *disk)),
            "complete": (Jobs, "complete", 1, (*KILLS, "locked")),
        },
        "qa": {
            "commit": (DefaultDialect, "do_commit", 4, (*KILLS, *ledger)),
            "page": (Reading, "studies", 4, KILLS),
        },
        "pacs": {
            "associate": (Connection, "accept", 1, ("refuse", "hang", "close")),
            "store": (Spool, "store", 2, ("refuse", "hang", "close", "lose", *KILLS)),
            "commitment": (Provider, "asked", 1, ("hang", "close", *KILLS)),
        },
    }  # fmt: skip


def choose(random: Random) -> Fault:
    """Draw a fault; roles and places are drawn alike."""
    known = places()
    role = random.choice(("scp", "scp", "scp", "worker", "worker", "worker", "pacs", "pacs", "qa"))
    place = random.choice(list(known[role]))
    _, _, most, kinds = known[role][place]
    return Fault(role, place, random.choice(kinds), random.randint(1, most))


def plant(fault: Fault, fired: Path) -> None:
    """Let it happen in this process; `fired` is there once it has."""
    owner, name, _, _ = places()[fault.role][fault.place]
    true = getattr(owner, name)
    count, lock = [0], threading.Lock()

    @functools.wraps(true)
    def faulty(*given: Any, **named: Any) -> Any:
        with lock:
            count[0] += 1
            due = _is_due(fault, count[0])
        if not due:
            return true(*given, **named)
        fired.touch()
        return _HAPPENS[fault.kind](lambda: true(*given, **named), given)

    setattr(owner, name, faulty)


def _is_due(fault: Fault, count: int) -> bool:
    lasting = {
        "locked": 3,
        "ledger full": 3,
        "no room": 2,
        "EIO": 2,
        "out of memory": 2,
        "refuse": 3,
        "lose": 99,
    }
    return fault.number <= count < fault.number + lasting.get(fault.kind, 1)


def _die(number: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), number)
    time.sleep(60)


def _after(do: Callable[[], Any], _: Any) -> None:
    do()
    _die()


def _half(_: Callable[[], Any], given: Any) -> None:
    handle, parts = given
    os.write(handle, bytes(parts[-1])[: len(parts[-1]) // 2])
    _die()


def _full(_: Callable[[], Any], __: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _io(_: Callable[[], Any], __: Any) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def _locked(_: Callable[[], Any], given: Any) -> None:
    from dicom_node.errors import Unavailable

    if not isinstance(given[0], DefaultDialect):
        raise Unavailable("the ledger cannot be used: database is locked")
    raise OperationalError("COMMIT", None, sqlite3.OperationalError("database is locked"))


def _ledger_full(_: Callable[[], Any], __: Any) -> None:
    full = sqlite3.OperationalError("database or disk is full")
    raise OperationalError("COMMIT", None, full)


def _no_memory(_: Callable[[], Any], __: Any) -> None:
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def _refuse(_: Callable[[], Any], __: Any) -> None:
    from dicom_node.errors import OutOfResources

    raise OutOfResources("no room, says the PACS")


def _hang(_: Callable[[], Any], __: Any) -> None:
    time.sleep(3.0)
    raise ConnectionResetError("hung")


def _close(_: Callable[[], Any], __: Any) -> None:
    raise SystemExit  # ends the thread of the connection, which hangs up


def _lose(_: Callable[[], Any], __: Any) -> None:
    """Say that it is stored, and have nothing."""


_HAPPENS: dict[str, Callable[[Callable[[], Any], Any], Any]] = {
    "kill before": lambda _, __: _die(),
    "kill after": _after,
    "half": _half,
    "no room": _full,
    "EIO": _io,
    "locked": _locked,
    "ledger full": _ledger_full,
    "segfault": lambda _, __: _die(signal.SIGSEGV),
    "out of memory": _no_memory,
    "refuse": _refuse,
    "hang": _hang,
    "close": _close,
    "lose": _lose,
}
