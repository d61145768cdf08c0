"""Rows of the jobs table: how one is added, found, held and ended; who of those that wait is next.

Knows SQLAlchemy and the tables. Each function is a step of somebody's transaction; what the steps
are for, `jobs` knows.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, or_, select, update

from dicom_node.errors import BadInput, Mismatch

from . import tables
from .records import Job, to_job, to_text
from .transaction import Transaction

TABLE = tables.jobs
ANEW = {"state": "queued", "reason": "", "attempts": 0, "worker": "", "finished_at": None}
ANEW |= {"expired_at": None}


# Who is due earlier is next: what is urgent goes before what is normal, and that before what is
# off-peak, until it has waited for so much longer. So nothing waits for ever.
PATIENCE: Final = {
    "urgent": timedelta(0),
    "normal": timedelta(hours=4),
    "off-peak": timedelta(hours=24),
}
SUPERSEDED: Final = "superseded by job "


class State(StrEnum):
    """Where a job stands: queued -> running -> done, failed or rejected."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    REJECTED = "rejected"


@dataclass(frozen=True)
class Order:
    """What is to become a job: images of one series and the protocol that is to read them."""

    protocol: str
    sop_uids: tuple[str, ...]
    series: tuple[Mapping[str, Any], ...]  # chosen and skipped ones, each with its reason
    priority: str = "normal"
    window: str = ""  # in which it is read; empty: always
    rule: str = ""
    destinations: tuple[str, ...] = ()  # none: all
    caveat: str = ""  # what its drafts are to say of the images as a whole


def end(transaction: Transaction, job: Job, state: State, reason: str, kind: str = "") -> None:
    """End a job with the event `kind`, or the one of its state."""
    finished_at = to_text(transaction.now)
    change(
        transaction, job.id, state=state, reason=reason, lease_until=None, finished_at=finished_at
    )
    transaction.event(kind or f"job.{state}", study_uid=job.study_uid, job_id=job.id, reason=reason)
    if state in {State.FAILED, State.REJECTED}:
        transaction.advance_for(job.id, ("queued", "processing"), str(state), reason)


def supersede(
    transaction: Transaction,
    study_uid: str,
    keys: Sequence[str],
    which: ColumnElement[bool],
    reason: str = "",
) -> None:
    """End the jobs of a study that wait for others of its images, also if a worker fell silent.

    `keys` are those that take their place; if there are none, `reason` says why.
    """
    waiting = select(TABLE).where(
        TABLE.c.study_uid == study_uid, TABLE.c.id.not_in(keys), which, left(transaction)
    )
    for row in transaction.connection.execute(waiting).all():
        told = reason or f"{SUPERSEDED}{keys[0]}"
        end(transaction, to_job(row), State.REJECTED, told, "job.superseded")


def _replaced(
    transaction: Transaction, study_uid: str, instances: Collection[str]
) -> tuple[str, ...]:
    """Count the earlier versions of these instances; nothing if there are none."""
    table = tables.instances.c
    earlier = transaction.connection.scalars(
        select(table.sop_uid).where(table.study_uid == study_uid, table.superseded)
    )
    count = len([each for each in earlier if each in set(instances)])
    return (str(count),) if count else ()


def key_of(transaction: Transaction, study_uid: str, order: Order, model_digest: str) -> str:
    """Give the key of a job: the same question about the same images has the same."""
    instances = sorted(set(order.sop_uids))
    replaced = _replaced(transaction, study_uid, instances)
    return key(study_uid, *instances, order.protocol, model_digest, *replaced)


def key(*parts: str) -> str:
    """Digest parts to a key."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def put(transaction: Transaction, study_uid: str, key: str, order: Order) -> None:
    """Add a job, or queue it again if it has ended without results that are there."""
    found, about = find(transaction, key), {"study_uid": study_uid, "job_id": key}
    if found is None:
        add(transaction, key, study_uid, order, {"state": State.QUEUED})
        told = {"priority": order.priority} if order.priority != "normal" else {}
        transaction.event("job.queued", **about, protocol=order.protocol, **told)
    elif found.state in {State.FAILED, State.REJECTED} or found.expired_at:
        transaction.forget_results(key)
        change(transaction, key, **ANEW, **_waiting_as(transaction, order))
        transaction.event("job.requeued", **about)
    else:
        transaction.event("job.known", **about, state=found.state)


def add(
    transaction: Transaction, key: str, study_uid: str, order: Order, values: Mapping[str, Any]
) -> None:
    """Add a row."""
    row = {
        "id": key,
        "study_uid": study_uid,
        "protocol": order.protocol,
        "created_at": to_text(transaction.now),
        "series": json.dumps(list(order.series), ensure_ascii=False),
        "sop_uids": json.dumps(sorted(set(order.sop_uids))),
        **_waiting_as(transaction, order),
    }
    transaction.connection.execute(TABLE.insert().values(**row | dict(values)))


def _waiting_as(transaction: Transaction, order: Order) -> dict[str, Any]:
    """Say when a job is due, and for whom it is read."""
    return {
        "priority": order.priority,
        "due_at": due(transaction.now, order.priority),
        "window": order.window,
        "not_before": None,
        "rule": order.rule,
        "destinations": json.dumps(list(order.destinations)),
        "caveat": order.caveat,
    }


def due(since: datetime, priority: str) -> str:
    """Say when a job is due that waits since then."""
    return to_text(since + PATIENCE[priority])


def defer(transaction: Transaction, job: Job, opens: datetime) -> None:
    """Let a job wait for its window to open."""
    change(transaction, job.id, not_before=to_text(opens))
    told = {"until": to_text(opens), "window": job.window}
    transaction.event("job.deferred", study_uid=job.study_uid, job_id=job.id, **told)


def change(transaction: Transaction, job_id: str, **values: object) -> None:
    """Set values of a job."""
    transaction.connection.execute(update(TABLE).where(TABLE.c.id == job_id).values(**values))


def find(transaction: Transaction, job_id: str) -> Job | None:
    """Find a job; None if there is none with this key."""
    row = transaction.connection.execute(select(TABLE).where(TABLE.c.id == job_id)).one_or_none()
    return None if row is None else to_job(row)


def get(transaction: Transaction, job_id: str) -> Job:
    """Give a job that is there."""
    return to_job(transaction.connection.execute(select(TABLE).where(TABLE.c.id == job_id)).one())


def of_state(transaction: Transaction, job_id: str, *states: State) -> Job:
    """Find a job in one of these states; `BadInput` says what it is otherwise."""
    job = find(transaction, job_id)
    if job is None:
        raise BadInput(f"no job is known as {job_id!r}")
    if job.state not in states:
        raise BadInput(f"job {job_id} is {job.state}, not {' or '.join(states)}")
    return job


def waiting(transaction: Transaction) -> Job | None:
    """Find the job that is due first, of those that may begin now."""
    now = to_text(transaction.now)
    begun = or_(TABLE.c.not_before.is_(None), TABLE.c.not_before <= now)
    row = transaction.connection.execute(
        select(TABLE)
        .where(left(transaction), begun)
        .order_by(TABLE.c.due_at, TABLE.c.created_at, TABLE.c.id)
        .limit(1)
    ).one_or_none()
    return None if row is None else to_job(row)


def left(transaction: Transaction) -> ColumnElement[bool]:
    """Whether nobody does it: it waits, or its worker fell silent."""
    silent = and_(TABLE.c.state == State.RUNNING, TABLE.c.lease_until < to_text(transaction.now))
    return or_(TABLE.c.state == State.QUEUED, silent)


def held(job_id: str, worker: str) -> ColumnElement[bool]:
    """Whether this worker holds the job: an expired lease counts until another has taken it."""
    return and_(TABLE.c.id == job_id, TABLE.c.worker == worker, TABLE.c.state == State.RUNNING)


def need(transaction: Transaction, job_id: str, worker: str) -> Job:
    """Find a job that a worker holds; `Mismatch` if it does not."""
    row = transaction.connection.execute(select(TABLE).where(held(job_id, worker))).one_or_none()
    if row is None:
        raise Mismatch(f"job {job_id} is not held by {worker}")
    return to_job(row)
