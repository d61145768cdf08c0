"""The hash chain over the events: how a link is made, and how the chain is checked."""

import hashlib
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, select

from . import tables
from .errors import LedgerBroken
from .records import canonical, to_text

GENESIS = "0" * 64


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
    digest = _digest(previous, row)
    connection.execute(tables.events.insert(), {**row, "previous": previous, "digest": digest})
    return seq + 1, digest


def head(connection: Connection) -> tuple[int, str]:
    """Give number and digest of the last event."""
    table = tables.events.c
    row = connection.execute(select(table.seq, table.digest).order_by(table.seq.desc()).limit(1))
    seq, digest = row.one_or_none() or (0, GENESIS)
    return seq, digest


def verify(rows: Iterable[Row[Any]], noted: tuple[int, str] | None) -> int:
    """Check every link and return the number of events; see `Ledger.verify`."""
    seq, previous = 0, GENESIS
    for row in rows:
        seq, previous = _linked(row, seq, previous)
        if noted is not None and noted[0] == seq and noted[1] != previous:
            raise LedgerBroken(f"event {seq} is not the one that was noted as head")
    if noted is not None and noted[0] > seq:
        raise LedgerBroken(f"the events end at {seq}, but {noted[0]} was noted as head")
    return seq


def _linked(row: Row[Any], seq: int, previous: str) -> tuple[int, str]:
    values = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's documented accessor
    said, digest = values.pop("previous"), values.pop("digest")
    if row.seq != seq + 1:
        raise LedgerBroken(f"event {seq + 1} is missing")
    if said != previous:
        raise LedgerBroken(f"event {row.seq} does not follow from event {seq}")
    if digest != _digest(previous, values):
        raise LedgerBroken(f"event {row.seq} was changed")
    return row.seq, digest


def _digest(previous: str, row: Mapping[str, Any]) -> str:
    return hashlib.sha256((previous + canonical(row)).encode()).hexdigest()
