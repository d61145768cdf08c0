"""Events written and verified per second, beside the least that SQLite could do.

Each event is a transaction of its own that is on the disk (synchronous=FULL) when it returns; the
bare table has neither chain nor triggers. The bare verification reads and digests as many bytes.
"""

import hashlib
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from .lab import OURS, Lab, Values, in_process

BENCH = "ledger"
BARE = "bare sqlite3"
DATA = {
    "calling_ae": "SCANNER",
    "sop_uid": "1.2.840.113619.2.55.3.604688119.971.1",
    "size": 526_336,
}


def run(lab: Lab) -> None:
    written, verified = lab.size(1000, 20), lab.size(50_000, 100)
    for case, count, ours, bare in (
        ("written, one by one", written, write, write_bare),
        ("verified", verified, verify, verify_bare),
    ):
        subjects = {OURS: ours, BARE: bare}
        lab.turns(
            BENCH,
            f"{count} events {case}",
            {name: partial(_rate, lab, each, count) for name, each in subjects.items()},
        )


def _rate(lab: Lab, function: Callable[..., object], count: int) -> Values:
    with lab.scratch() as folder:
        return {"events/s": count / in_process(function, folder, count)["s"]}


def write(folder: str, count: str) -> Callable[[], None]:
    from dicom_node.ledger import Ledger

    ledger = Ledger(Path(folder) / "ledger.sqlite")

    def work() -> None:
        for _ in range(int(count)):
            ledger.event("bench.event", study_uid="1.2.3", **DATA)

    return work


def write_bare(folder: str, count: str) -> Callable[[], None]:
    connection = _bare(Path(folder) / "bare.sqlite")

    def work() -> None:
        for _ in range(int(count)):
            connection.execute("INSERT INTO events (data) VALUES (?)", (json.dumps(DATA),))

    return work


def verify(folder: str, count: str) -> Callable[[], None]:
    from dicom_node.ledger import Ledger

    ledger = Ledger(Path(folder) / "ledger.sqlite")
    with ledger.transaction() as transaction:
        for _ in range(int(count)):
            transaction.event("bench.event", study_uid="1.2.3", **DATA)

    def work() -> None:
        if ledger.verify() != int(count):
            raise RuntimeError("events are missing")

    return work


def verify_bare(folder: str, count: str) -> Callable[[], None]:
    connection = _bare(Path(folder) / "bare.sqlite")
    # As long as an event with its number, time, kind, study and two digests.
    row = json.dumps(DATA) + " " * 300
    rows = [(row,)] * int(count)
    with closing(connection.cursor()) as cursor:
        cursor.execute("BEGIN")
        cursor.executemany("INSERT INTO events (data) VALUES (?)", rows)
        cursor.execute("COMMIT")

    def work() -> None:
        previous = ""
        for (data,) in connection.execute("SELECT data FROM events ORDER BY seq"):
            previous = hashlib.sha256((previous + data).encode()).hexdigest()

    return work


def _bare(path: Path) -> Any:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE events (seq INTEGER PRIMARY KEY, data TEXT NOT NULL)")
    return connection
