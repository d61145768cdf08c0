"""Where a study stands in the ledger, and how its rows lose whose it is.

Knows the tables and SQLAlchemy; must not know files. Tables that it does not name lose every row
that tells of the study: what is added to the ledger later is not forgotten here.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Result,
    Row,
    Table,
    and_,
    delete,
    func,
    insert,
    select,
    update,
)

from . import chain, tables
from .records import canonical, to_text
from .removals import Removal
from .transaction import Transaction

UID: Final = re.compile(r"[0-9]+(?:\.[0-9]+)+")
ERASED: Final = "erased-"  # how a pseudonym begins
SHORTEST: Final = 4  # characters of an ID that is sought within a text, not only as all of it
NAMED: Final = frozenset(
    {
        tables.studies,
        tables.instances,
        tables.jobs,
        tables.results,
        tables.deliveries,
        tables.reviews,
        tables.events,
        tables.holds,
        tables.removals,
        tables.cursors,
        tables.tokens,
    }
)


@dataclass(frozen=True)
class Traces:
    """What points to one study and its patient."""

    study_uid: str
    uids: frozenset[str]
    texts: tuple[str, ...]  # name, ID, accession number
    paths: tuple[Path, ...]

    def seen_from(self, study_uid: object) -> "Traces":
        """Give what points there from something that is of a study, or of none.

        Another study may be of the same person, and stay: there, a name is none of ours.
        """
        ours = study_uid is None or study_uid == self.study_uid
        return self if ours or str(study_uid).startswith(ERASED) else self._uids_only

    @cached_property
    def _uids_only(self) -> "Traces":
        return replace(self, texts=())

    def mark(self, value: object) -> bool:
        """Tell whether a value, or what is in it, points there."""
        if isinstance(value, dict):
            return any(self.mark(each) for pair in value.items() for each in pair)
        if isinstance(value, list):
            return any(map(self.mark, value))
        return isinstance(value, str) and self._in_text(value)

    def may_mark(self, written: str) -> bool:
        """Tell of JSON as it is written whether a closer look is worth while; most is not."""
        return self._sought.search(written) is not None

    @cached_property
    def _sought(self) -> re.Pattern[str]:
        """What begins each UID of the study, and each text as JSON has it."""
        roots = {each[: len(each) * 3 // 4] for each in self.uids}
        texts = {canonical({"": each})[5:-2] for each in self.texts}
        return re.compile("|".join(map(re.escape, sorted(roots | texts))))

    def _in_text(self, text: str) -> bool:
        if text in self.uids or text in self.texts:
            return True
        if any(each in self.uids for each in UID.findall(text)):
            return True
        return any(
            re.search(rf"(?<!\w){re.escape(each)}(?!\w)", text) is not None
            for each in self.texts
            if len(each) >= SHORTEST
        )


# --- found ----------------------------------------------------------------------------------------


def studies_of(connection: Connection, patient_id: str) -> list[str]:
    """List the UIDs of the studies with this patient ID, the oldest first."""
    table = tables.studies.c
    wanted = select(table.study_uid).where(table.patient_id == patient_id).order_by(table.first_at)
    return list(connection.scalars(wanted))


def is_being_read(transaction: Transaction, study_uid: str) -> bool:
    """Tell whether a worker holds a job of the study."""
    table = tables.jobs.c
    wanted = select(table.id).where(
        table.study_uid == study_uid,
        table.state == "running",
        table.lease_until > to_text(transaction.now),
    )
    return transaction.connection.scalar(wanted.limit(1)) is not None


def last(connection: Connection) -> int:
    """Give the number of the last event."""
    return chain.head(connection)[0]


def of(connection: Connection, study_uid: str) -> Traces:
    """Collect what points to a study."""
    image, made, job = tables.instances.c, tables.results.c, tables.jobs.c
    study = connection.execute(
        select(tables.studies).where(tables.studies.c.study_uid == study_uid)
    ).one()
    images = connection.execute(
        select(image.series_uid, image.sop_uid, image.path).where(image.study_uid == study_uid)
    ).all()
    ours = select(job.id).where(job.study_uid == study_uid)
    results = connection.execute(
        select(made.series_uid, made.sop_uid).where(made.job_id.in_(ours))
    ).all()
    uids = {study_uid, *(each for row in (*images, *results) for each in row[:2])}
    for told in connection.scalars(select(job.sop_uids).where(job.study_uid == study_uid)):
        uids.update(json.loads(told))
    texts = (study.patient_name, study.patient_id, study.accession_number)
    return Traces(
        study_uid,
        frozenset(uids),
        tuple(each for each in texts if each.strip("^= ")),
        tuple(Path(row.path) for row in images),
    )


def events_with(connection: Connection, traces: Traces, *, after: int = 0) -> dict[int, str | None]:
    """Find the events that are of a study or tell of it, by number with the study they are of."""
    table = tables.events.c
    wanted = select(table.seq, table.study_uid, table.data, table.salt).where(table.seq > after)
    found: dict[int, str | None] = {}
    rows: Result[Any] = connection.execute(wanted.execution_options(yield_per=1000))
    for row in rows:
        if not chain.is_empty(row) and _points(row, traces.seen_from(row.study_uid)):
            found[row.seq] = row.study_uid
    return found


def _points(row: Row[Any], traces: Traces) -> bool:
    if row.study_uid in traces.uids:
        return True
    return traces.may_mark(row.data) and traces.mark(json.loads(row.data))


# --- removed --------------------------------------------------------------------------------------


def stop(transaction: Transaction, study_uid: str) -> None:
    """See to it that nobody reads or sends a study any more."""
    job, sent = tables.jobs, tables.deliveries
    ended = {"state": "rejected", "lease_until": None, "finished_at": to_text(transaction.now)}
    waits = (job.c.study_uid == study_uid) & job.c.state.in_(("queued", "running"))
    transaction.connection.execute(update(job).where(waits).values(ended))
    due = (sent.c.study_uid == study_uid) & (sent.c.state == "pending")
    transaction.connection.execute(update(sent).where(due).values(state="erased"))
    # Nothing is left to compare with what the peer has.
    asked = (sent.c.study_uid == study_uid) & (sent.c.state == "sent")
    transaction.connection.execute(update(sent).where(asked).values(state="sent-unproven"))


def remove(
    transaction: Transaction,
    removal: Removal,
    traces: Traces,
    marked: dict[int, str | None],
    files: Mapping[str, object],
) -> Removal:
    """Let the rows of a study be nobody's, and say so: from here on it has its pseudonym."""
    connection, pseudonym = transaction.connection, str(removal.detail["pseudonym"])
    counted = connection.scalar(
        select(func.count()).where(tables.instances.c.study_uid == traces.study_uid)
    )
    _rename_study(connection, traces.study_uid, pseudonym)
    _empty_jobs(transaction, traces.study_uid, pseudonym)
    for table, column in (
        (tables.reviews, tables.reviews.c.study_uid),
        (tables.instances, tables.instances.c.study_uid),
        (tables.holds, tables.holds.c.study_uid),
        (tables.studies, tables.studies.c.study_uid),
    ):
        connection.execute(delete(table).where(column == traces.study_uid))
    for table in (tables.studies, tables.jobs, tables.deliveries):
        _blank(connection, table, traces, pseudonym)
    for table in tables.METADATA.sorted_tables:
        if table not in NAMED:
            _delete_marked(connection, table, traces)
    names = {seq: pseudonym if of == traces.study_uid else of for seq, of in marked.items()}
    told = {
        **removal.detail,
        "instances": counted,
        **files,
        "events": len(marked),
    }
    transaction.event(
        chain.ERASED,
        study_uid=pseudonym,
        **{key: each for key, each in told.items() if key != "pseudonym"},
        **chain.erase(connection, names),
    )
    left = replace(removal, study_uid=pseudonym, detail=told)
    table = tables.removals
    values = {"study_uid": pseudonym, "detail": canonical(told)}
    connection.execute(update(table).where(table.c.id == removal.id).values(values))
    return left


def _rename_study(connection: Connection, study_uid: str, pseudonym: str) -> None:
    table = tables.studies
    row = connection.execute(select(table).where(table.c.study_uid == study_uid)).one()
    kept = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's documented accessor
    whose = ("patient_id", "patient_name", "accession_number", "study_date", "study_description")
    kept |= dict.fromkeys(whose, "") | {"study_uid": pseudonym, "state": "erased", "reason": ""}
    connection.execute(insert(table).values(kept | {"complete_requested": False}))


def _empty_jobs(transaction: Transaction, study_uid: str, pseudonym: str) -> None:
    connection, table = transaction.connection, tables.jobs
    rows = connection.execute(select(table).where(table.c.study_uid == study_uid)).all()
    for row in rows:
        model = {"model": json.loads(row.summary).get("model")}
        values = {"study_uid": pseudonym, "series": "[]", "sop_uids": "[]", "reason": ""}
        values |= {"summary": canonical(model), "expired_at": to_text(transaction.now)}
        connection.execute(update(table).where(table.c.id == row.id).values(values))
        made = tables.results
        connection.execute(delete(made).where(made.c.job_id == row.id))
    sent = tables.deliveries
    mine = update(sent).where(sent.c.study_uid == study_uid)
    connection.execute(mine.values(study_uid=pseudonym, detail=""))


def _blank(connection: Connection, table: Table, traces: Traces, pseudonym: str) -> None:
    """Empty what still tells of the study in the rows that stay, as columns that are added may."""
    for row, same in _marked(connection, table, traces):
        if row["study_uid"] != pseudonym:
            continue
        changed = {
            name: None if table.c[name].nullable else ""
            for name, value in row.items()
            if traces.mark(_opened(value))
        }
        connection.execute(update(table).where(same).values(changed))


def _delete_marked(connection: Connection, table: Table, traces: Traces) -> None:
    for _, same in _marked(connection, table, traces):
        connection.execute(delete(table).where(same))


def _marked(
    connection: Connection, table: Table, traces: Traces
) -> Iterator[tuple[dict[str, Any], ColumnElement[bool]]]:
    """Find the rows that tell of a study, with what selects each."""
    for row in connection.execute(select(table)).all():
        values = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's documented accessor
        seen = traces.seen_from(values.get("study_uid"))
        if any(seen.mark(_opened(each)) for each in values.values()):
            keys = (each == values[each.name] for each in table.primary_key.columns)
            yield values, and_(*keys)


def _opened(value: object) -> object:
    """Give the value of a column, JSON as what is in it."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value
