"""The hash chain over the events: how a link is made, how it is checked, how one is emptied.

The digest of an event covers its number, time, kind and job and a commitment: SHA-256 over a
random salt, the study and the data. Who erases a person takes study, data and salt away; the
commitment and the digest stay, so every later link holds, and without the salt nobody can find out
by trying what was said. An event that is empty without a later one that tells of it was tampered
with: each `ERASED` event names the numbers of those that it emptied.

Each `ERASED` event also carries a digest of what remains of the events that it emptied. Events of
earlier versions have no commitment, and their digest covers study and data themselves: of such a
one that was emptied this seal and the links of its neighbours are all that can be checked.
"""

import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, bindparam, func, select, text, update

from dicom_node.errors import LedgerBroken

from . import tables
from .prepared import Prepared
from .records import canonical, to_text

GENESIS = "0" * 64
ERASED: Final = "study.erased"
EMPTY: Final = canonical({"erased": True})
AT_ONCE: Final = 500
COVERED: Final = ("seq", "at", "kind", "job_id", "commitment")  # by the digest
EARLIER: Final = ("seq", "at", "kind", "study_uid", "job_id", "data")  # in earlier versions
LAST = Prepared(
    select(tables.events.c.seq, tables.events.c.digest)
    .order_by(tables.events.c.seq.desc())
    .limit(1)
)
ADDED = Prepared(tables.events.insert(), *tables.events.c.keys())


def append(
    connection: Connection,
    at: datetime,
    about: Mapping[str, str | None],
    data: Mapping[str, object],
    after: tuple[int, str],
) -> tuple[int, str]:
    """Add an event after the last one; give the new head: `about` holds kind, study_uid, job_id."""
    seq, previous = after
    row = {"seq": seq + 1, "at": to_text(at), **about, "data": canonical(data)}
    row["salt"] = secrets.token_hex(16)
    row["commitment"] = _commitment(row)
    digest = _digest(previous, row)
    ADDED.run(connection, row | {"previous": previous, "digest": digest})
    return seq + 1, digest


def head(connection: Connection) -> tuple[int, str]:
    """Give number and digest of the last event."""
    seq, digest = LAST.run(connection, {}).fetchone() or (0, GENESIS)
    return seq, digest


def erase(connection: Connection, pseudonyms: Mapping[int, str | None]) -> dict[str, Any]:
    """Empty events, by number with what is to stand for their study; tell it for `ERASED`.

    Only here is the trigger away that refuses this, and it is back before anyone else can write.
    """
    emptied = update(tables.events).where(tables.events.c.seq == bindparam("number"))
    emptied = emptied.values(study_uid=bindparam("pseudonym"), data=EMPTY, salt="")
    connection.execute(text("DROP TRIGGER IF EXISTS events_refuse_update"))
    rows = [{"number": seq, "pseudonym": name} for seq, name in pseudonyms.items()]
    if rows:
        connection.execute(emptied, rows)
    for trigger in tables.TRIGGERS:
        connection.execute(text(trigger))
    numbers = sorted(pseudonyms)
    rests: list[str] = []
    for first in range(0, len(numbers), AT_ONCE):
        these = tables.events.c.seq.in_(numbers[first : first + AT_ONCE])
        wanted = select(tables.events).where(these).order_by(tables.events.c.seq)
        rests += map(_rest, connection.execute(wanted))
    return {"emptied": _ranges(numbers), "remains": _sealed(rests)}


def verify(rows: Iterable[Row[Any]], noted: tuple[int, str] | None) -> int:
    """Check every link and return the number of events; see `Ledger.verify`."""
    seq, previous = 0, GENESIS
    empty: dict[int, str] = {}  # what remains of those that no later event has told of yet
    for row in rows:
        _check(row, seq, previous)
        if is_empty(row):
            empty[row.seq] = _rest(row)
        elif row.kind == ERASED:
            _account(row, empty)
        seq, previous = row.seq, row.digest
        if noted is not None and noted[0] == seq and noted[1] != previous:
            raise LedgerBroken(f"event {seq} is not the one that was noted as head")
    if noted is not None and noted[0] > seq:
        raise LedgerBroken(f"the events end at {seq}, but {noted[0]} was noted as head")
    if empty:
        raise LedgerBroken(f"event {min(empty)} was emptied, and no later event tells of it")
    return seq


def _check(row: Row[Any], seq: int, previous: str) -> None:
    if row.seq != seq + 1:
        raise LedgerBroken(f"event {seq + 1} is missing")
    if row.previous != previous:
        raise LedgerBroken(f"event {row.seq} does not follow from event {seq}")
    if not _holds(row):
        raise LedgerBroken(f"event {row.seq} was changed")


def is_empty(row: Row[Any]) -> bool:
    """Tell whether what an event said is erased."""
    return bool(row.salt == "" and row.data == EMPTY)


def count_empty(connection: Connection) -> int:
    """Count the events of which what they said is erased."""
    table = tables.events.c
    empty = select(func.count()).where(table.salt == "", table.data == EMPTY)
    return connection.scalar(empty) or 0


def _holds(row: Row[Any]) -> bool:
    values = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's documented accessor
    if row.commitment is None:
        return is_empty(row) or bool(row.digest == _digest(row.previous, values, EARLIER))
    opened = is_empty(row) or row.commitment == _commitment(values)
    return bool(opened and row.digest == _digest(row.previous, values))


def _account(row: Row[Any], empty: dict[int, str]) -> None:
    """Strike off the empty events that an erasure tells of, if they are still as it left them."""
    told = json.loads(row.data)
    numbers = [each for first, last in told.get("emptied", ()) for each in range(first, last + 1)]
    rests = [empty.pop(each) for each in numbers if each in empty]
    if len(rests) < len(numbers) or told.get("remains") != _sealed(rests):
        raise LedgerBroken(f"an event that was erased by event {row.seq} was changed")


def _rest(row: Row[Any]) -> str:
    return canonical(dict(row._mapping))  # noqa: SLF001 - SQLAlchemy's documented accessor


def _sealed(rests: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(rests).encode()).hexdigest()


def _ranges(numbers: Sequence[int]) -> list[list[int]]:
    found: list[list[int]] = []
    for each in numbers:
        if found and found[-1][1] == each - 1:
            found[-1][1] = each
        else:
            found.append([each, each])
    return found


def _commitment(row: Mapping[str, Any]) -> str:
    said = canonical({"study_uid": row["study_uid"], "data": row["data"]})
    return hashlib.sha256(f"{row['salt']}{said}".encode()).hexdigest()


def _digest(previous: str, row: Mapping[str, Any], names: Sequence[str] = COVERED) -> str:
    covered = canonical({name: row[name] for name in names})
    return hashlib.sha256((previous + covered).encode()).hexdigest()
