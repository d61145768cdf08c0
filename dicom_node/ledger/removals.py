"""What may leave the node, what is on its way out, and what is held: as the ledger has it.

Knows the tables and SQLAlchemy; must not know files. A removal is begun in one transaction, which
asks again whether it may be, and ended in another once the files are gone: `pending` in between,
also after a crash.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Row, String, delete, func, insert, select, update

from dicom_node.errors import BadInput, Unavailable

from . import tables
from .records import canonical, to_text
from .transaction import Transaction

IMAGES: Final = "images"
RESULTS: Final = "results"
ERASURE: Final = "erasure"
ENDED: Final = ("done", "rejected", "failed")  # states of a study, and of a job
PROVEN: Final = frozenset({"delivered", "acknowledged"})
STORED: Final = frozenset({"sent", "sent-unproven"})  # as the peer says


@dataclass(frozen=True)
class Hold:
    """Why a study must stay as it is."""

    study_uid: str
    reason: str
    by: str
    at: datetime


@dataclass(frozen=True)
class Images:
    """The images of one study that are there."""

    study_uid: str
    last_at: datetime
    count: int
    bytes: int


@dataclass(frozen=True)
class Removal:
    """One that was begun."""

    id: int
    what: str  # images | results | erasure
    study_uid: str  # of an erasure: what stands for the study from then on
    job_id: str  # of results
    detail: dict[str, Any]


# --- asked ----------------------------------------------------------------------------------------


def images(connection: Connection) -> list[Images]:
    """List the studies of which images are there, superseded ones included; the oldest first."""
    table, study = tables.instances.c, tables.studies.c
    wanted = (
        select(
            study.study_uid,
            study.last_at,
            func.count().label("images"),
            func.sum(table.size).label("bytes"),
        )
        .join_from(tables.studies, tables.instances)
        .where(table.expired_at.is_(None))
        .group_by(study.study_uid)
        .order_by(study.last_at)
    )
    return [
        Images(row.study_uid, datetime.fromisoformat(row.last_at), row.images, row.bytes)
        for row in connection.execute(wanted)
    ]


def ended_jobs(connection: Connection) -> list[tuple[str, str, datetime]]:
    """List job, study and end of the jobs whose results have not expired; the oldest first."""
    table = tables.jobs.c
    wanted = (
        select(table.id, table.study_uid, table.finished_at)
        .where(table.state.in_(ENDED), table.expired_at.is_(None), table.finished_at.is_not(None))
        .order_by(table.finished_at)
    )
    return [
        (row.id, row.study_uid, datetime.fromisoformat(row.finished_at))
        for row in connection.execute(wanted)
    ]


def expired_jobs(connection: Connection) -> set[str]:
    """Give the jobs of which no results are here any more, nor are to be."""
    table = tables.jobs.c
    return set(connection.scalars(select(table.id).where(table.expired_at.is_not(None))))


def kept_because(connection: Connection, study_uid: str, *, unproven: bool) -> str:
    """Say why nothing of a study may expire; empty if it may.

    Parameters
    ----------
    unproven
        Whether what a peer has stored without proof that it has it counts as not delivered.
    """
    job, sent, made = tables.jobs.c, tables.deliveries.c, tables.results.c
    back, gone, held_ = tables.reviews.c, tables.removals.c, tables.holds.c
    study = tables.studies.c
    ours = made.job_id.in_(select(job.id).where(job.study_uid == study_uid))
    delivered = PROVEN if unproven else PROVEN | STORED
    reasons: tuple[tuple[str, Any, Any], ...] = (
        ("on hold", held_.study_uid, held_.study_uid == study_uid),
        ("not ended", study.state, (study.study_uid == study_uid) & study.state.not_in(ENDED)),
        ("to be read", job.id, (job.study_uid == study_uid) & job.state.not_in(ENDED)),
        ("not delivered", sent.id, (sent.study_uid == study_uid) & sent.state.not_in(delivered)),
        (
            "an answer waits to be looked at",
            back.instance_id,
            (back.study_uid == study_uid) & (back.state == "waiting"),
        ),
        ("results are held back", made.sop_uid, ours & (made.held != "")),
        ("on its way out", gone.id, gone.study_uid == study_uid),
    )
    return next((why for why, column, which in reasons if _any(connection, column, which)), "")


def is_delivered(connection: Connection, job_id: str) -> bool:
    """Tell whether a job's results went anywhere; else the files here are all there is."""
    table = tables.deliveries.c
    return _any(connection, table.id, table.job_id == job_id)


def has_failed(connection: Connection, study_uid: str) -> bool:
    """Tell whether a study could not be read or sent: somebody may want to try again."""
    table = tables.studies.c
    return _any(connection, table.study_uid, table.study_uid == study_uid, table.state == "failed")


def pending(connection: Connection) -> list[Removal]:
    """List the removals that were begun and not ended, in their order."""
    wanted = select(tables.removals).order_by(tables.removals.c.id)
    return [to_removal(row) for row in connection.execute(wanted)]


def to_removal(row: Row[Any]) -> Removal:
    """Read a row of the removals."""
    return Removal(row.id, row.what, row.study_uid, row.job_id, json.loads(row.detail))


def paths(connection: Connection, study_uid: str, upto: int) -> list[Path]:
    """List the files of a study's images up to a number, that have not expired."""
    table = tables.instances.c
    wanted = select(table.path).where(_there(study_uid, upto))
    return [Path(each) for each in connection.scalars(wanted)]


# --- written --------------------------------------------------------------------------------------


def begin(
    transaction: Transaction, what: str, study_uid: str, job_id: str = "", **told: object
) -> Removal:
    """Say that something is going; whoever finds it so after a crash goes on with it."""
    table = tables.instances.c
    upto = transaction.connection.scalar(
        select(func.max(table.id)).where(table.study_uid == study_uid)
    )
    removal = note(transaction, what, study_uid, job_id, {"upto": upto or 0, **told})
    transaction.event(
        "retention.expiring", study_uid=study_uid, job_id=job_id or None, what=what, **told
    )
    return removal


def note(
    transaction: Transaction, what: str, study_uid: str, job_id: str, detail: Mapping[str, Any]
) -> Removal:
    """Note a removal, whatever its event."""
    row = {"what": what, "study_uid": study_uid, "job_id": job_id, "detail": canonical(detail)}
    made = insert(tables.removals).values(**row).returning(tables.removals)
    return to_removal(transaction.connection.execute(made).one())


def end(transaction: Transaction, removal: Removal) -> None:
    """Say that the files are gone; nobody has to see to it any more."""
    if removal.what == IMAGES:
        _end_images(transaction, removal)
    else:
        _expired(transaction, tables.jobs.c.id == removal.job_id, tables.jobs)
    forget(transaction, removal)
    told = {key: each for key, each in removal.detail.items() if key != "upto"}
    transaction.event(
        "retention.expired",
        study_uid=removal.study_uid,
        job_id=removal.job_id or None,
        what=removal.what,
        **told,
    )


def forget(transaction: Transaction, removal: Removal) -> None:
    """Take a removal off the list."""
    table = tables.removals
    transaction.connection.execute(delete(table).where(table.c.id == removal.id))


def _end_images(transaction: Transaction, removal: Removal) -> None:
    table = tables.instances
    going = _there(removal.study_uid, removal.detail["upto"])
    # Their names are free: the same instance may come again.
    gone = {"expired_at": to_text(transaction.now), "path": "expired/" + table.c.id.cast(String)}
    transaction.connection.execute(update(table).where(going).values(gone))
    _expired(transaction, tables.studies.c.study_uid == removal.study_uid, tables.studies)


def _expired(transaction: Transaction, which: Any, table: Any) -> None:  # noqa: ANN401 - SQLAlchemy
    at = to_text(transaction.now)
    transaction.connection.execute(update(table).where(which).values(expired_at=at))


# --- held -----------------------------------------------------------------------------------------


def held(connection: Connection, study_uids: Sequence[str] | None = None) -> list[Hold]:
    """List what is held; of these studies, if any are named."""
    table = tables.holds
    wanted = select(table).order_by(table.c.at)
    if study_uids is not None:
        wanted = wanted.where(table.c.study_uid.in_(study_uids))
    return [
        Hold(row.study_uid, row.reason, row.by, datetime.fromisoformat(row.at))
        for row in connection.execute(wanted)
    ]


def hold(transaction: Transaction, study_uid: str, reason: str, by: str) -> None:
    """Keep a study as it is, until further notice.

    Raises
    ------
    BadInput
        There is no such study, it is held already, or no reason is given.
    Unavailable
        It is being removed at this moment.
    """
    table, gone = tables.studies.c, tables.removals.c
    if not reason.strip():
        raise BadInput("a hold needs a reason")
    if not _any(transaction.connection, table.study_uid, table.study_uid == study_uid):
        raise BadInput(f"no study is known as {study_uid}")
    if held(transaction.connection, [study_uid]):
        raise BadInput(f"study {study_uid} is held already")
    if _any(transaction.connection, gone.id, gone.study_uid == study_uid):
        raise Unavailable(f"study {study_uid} is being removed: it is too late")
    row = {"study_uid": study_uid, "reason": reason, "by": by, "at": to_text(transaction.now)}
    transaction.connection.execute(tables.holds.insert().values(**row))
    transaction.event("hold.added", study_uid=study_uid, reason=reason, by=by)


def unhold(transaction: Transaction, study_uid: str, reason: str, by: str) -> None:
    """Let a study go its way again.

    Raises
    ------
    BadInput
        It is not held.
    """
    table = tables.holds
    gone = transaction.connection.execute(delete(table).where(table.c.study_uid == study_uid))
    if not gone.rowcount:
        raise BadInput(f"study {study_uid} is not held")
    transaction.event("hold.removed", study_uid=study_uid, reason=reason, by=by)


def _any(connection: Connection, column: Any, *which: Any) -> bool:  # noqa: ANN401 - SQLAlchemy
    return connection.scalar(select(column).where(*which).limit(1)) is not None


def _there(study_uid: str, upto: int) -> Any:  # noqa: ANN401 - SQLAlchemy
    table = tables.instances.c
    return (table.study_uid == study_uid) & (table.id <= upto) & table.expired_at.is_(None)
