"""The queue: a job is held by one worker at a time, under a lease that a heartbeat renews.

Knows the jobs table of the ledger. A worker that falls silent loses its lease and another takes
the job; a job that was begun too often has failed. Each step and its event are one transaction.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, and_, or_, select, true, update

from . import tables
from .errors import Mismatch
from .ledger import Ledger
from .records import Job, Result, to_job, to_text
from .transaction import Transaction

__all__ = ["Job", "Jobs", "State"]

_table = tables.jobs
_ANEW = {"state": "queued", "reason": "", "attempts": 0, "worker": "", "finished_at": None}
_ANEW |= {"expired_at": None}


class State(StrEnum):
    """Where a job stands: queued -> running -> done, failed or rejected."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    REJECTED = "rejected"


class Jobs:
    """The jobs of one ledger."""

    def __init__(self, ledger: Ledger, *, maximum_attempts: int = 3) -> None:
        self._ledger = ledger
        self._maximum_attempts = maximum_attempts

    def enqueue(
        self,
        study_uid: str,
        protocol: str,
        sop_uids: Iterable[str],
        *,
        model_digest: str,
        series: Sequence[Mapping[str, Any]],
        seen: int | None = None,
    ) -> Job:
        """Add a job, or find the one that has the same key; the study is queued.

        The key is made of the study, the set of its SOP Instance UIDs, the protocol and the
        digest of the model: the same question about the same images is asked once. Images that
        were replaced under their UIDs are not the same. A job that has failed or whose results have
        expired is queued again; one that waits for an earlier set of images is superseded.

        Parameters
        ----------
        seen
            `Study.arrivals` when the images were looked at: if more came since, the study is open
            again at once. None: nobody looked.
        """
        instances = sorted(set(sop_uids))
        with self._ledger.transaction() as transaction:
            replaced = _replaced(transaction, study_uid, instances)
            key = _key(study_uid, *instances, protocol, model_digest, *replaced)
            found = _find(transaction, key)
            transaction.appoint(study_uid, key)
            if found is None:
                _supersede(transaction, study_uid, key, _table.c.protocol == protocol)
                values = {"state": State.QUEUED, "sop_uids": json.dumps(instances)}
                _add(transaction, key, study_uid, protocol, series, values)
                transaction.event("job.queued", study_uid=study_uid, job_id=key, protocol=protocol)
                transaction.set_study_state(study_uid, "queued")
            elif found.state in {State.FAILED, State.REJECTED} or found.expired_at:
                transaction.forget_results(key)
                _set(transaction, key, **_ANEW)
                transaction.event("job.requeued", study_uid=study_uid, job_id=key)
                transaction.set_study_state(study_uid, "queued")
            else:
                transaction.event("job.known", study_uid=study_uid, job_id=key, state=found.state)
                _restore_study(transaction, found)
            transaction.reopen_if_overtaken(study_uid, seen)
            return _get(transaction, key)

    def reject(
        self,
        study_uid: str,
        reason: str,
        *,
        series: Sequence[Mapping[str, Any]] = (),
        seen: int | None = None,
    ) -> Job:
        """Add a job that is refused from the start, so that the reason stands where one looks.

        `seen` is as for `enqueue`.
        """
        with self._ledger.transaction() as transaction:
            now = to_text(transaction.now)
            key = _key(study_uid, reason, now)
            transaction.appoint(study_uid, key)
            _supersede(transaction, study_uid, key, true())
            values = {"state": State.REJECTED, "reason": reason, "finished_at": now}
            _add(transaction, key, study_uid, "", series, values | {"sop_uids": "[]"})
            transaction.event("job.rejected", study_uid=study_uid, job_id=key, reason=reason)
            transaction.set_study_state(study_uid, "rejected", reason)
            transaction.reopen_if_overtaken(study_uid, seen)
            return _get(transaction, key)

    def claim(self, worker: str, lease_s: float) -> Job | None:
        """Take the oldest job that waits, or whose worker fell silent; None if there is none."""
        with self._ledger.transaction() as transaction:
            while True:
                job = _waiting(transaction)
                if job is None:
                    return None
                if job.attempts >= self._maximum_attempts:
                    reason = job.reason or "its worker fell silent"
                    _end(transaction, job, State.FAILED, f"{job.attempts} attempts: {reason}")
                    continue
                return self._lease(transaction, job, worker, lease_s)

    def heartbeat(self, job_id: str, worker: str, lease_s: float) -> bool:
        """Renew a lease; False if it was lost to another worker."""
        with self._ledger.transaction() as transaction:
            until = to_text(transaction.now + timedelta(seconds=lease_s))
            renewed = update(_table).where(_held(job_id, worker)).values(lease_until=until)
            return transaction.connection.execute(renewed).rowcount == 1

    def finish(self, job_id: str, worker: str, state: State, reason: str = "") -> None:
        """End a job.

        Raises
        ------
        Mismatch
            The job is not held by this worker any more.
        """
        with self._ledger.transaction() as transaction:
            _end(transaction, _need(transaction, job_id, worker), state, reason)

    def complete(
        self,
        job_id: str,
        worker: str,
        results: Sequence[Result],
        plan: Mapping[str, Sequence[str]],
        summary: Mapping[str, Any],
        *,
        record: Mapping[str, Any] | None = None,
    ) -> None:
        """End a job that is done, with what it made and where that is to go: all or nothing.

        `plan` tells by destination the labels of the results that it gets; `record` tells how they
        came to be.

        Raises
        ------
        Mismatch
            The job is not held by this worker any more.
        """
        with self._ledger.transaction() as transaction:
            job = _need(transaction, job_id, worker)
            if record is not None:
                transaction.event("job.record", study_uid=job.study_uid, job_id=job_id, **record)
            transaction.record_results(job, results, plan, summary)
            _end(transaction, job, State.DONE, "")

    def release(self, job_id: str, worker: str, reason: str) -> None:
        """Put a job back into the queue; its attempts are used up in the end.

        Raises
        ------
        Mismatch
            The job is not held by this worker any more.
        """
        with self._ledger.transaction() as transaction:
            job = _need(transaction, job_id, worker)
            if job.attempts >= self._maximum_attempts:
                _end(transaction, job, State.FAILED, f"{job.attempts} attempts: {reason}")
                return
            _set(
                transaction, job_id, state=State.QUEUED, worker="", lease_until=None, reason=reason
            )
            transaction.event("job.released", study_uid=job.study_uid, job_id=job_id, reason=reason)
            transaction.advance_for(job_id, ("processing",), "queued")

    def get(self, job_id: str) -> Job | None:
        """Find a job; None if there is none with this key."""
        return self._ledger.job(job_id)

    def for_study(self, study_uid: str) -> list[Job]:
        """List the jobs of a study, the oldest first."""
        return self._ledger.jobs(study_uid)

    def _lease(self, transaction: Transaction, job: Job, worker: str, lease_s: float) -> Job:
        _set(
            transaction,
            job.id,
            state=State.RUNNING,
            worker=worker,
            attempts=job.attempts + 1,
            lease_until=to_text(transaction.now + timedelta(seconds=lease_s)),
            started_at=to_text(transaction.now),
        )
        transaction.event(
            "job.claimed",
            study_uid=job.study_uid,
            job_id=job.id,
            worker=worker,
            attempt=job.attempts + 1,
        )
        transaction.advance_for(job.id, ("queued",), "processing")
        return _get(transaction, job.id)


def _end(transaction: Transaction, job: Job, state: State, reason: str, kind: str = "") -> None:
    finished_at = to_text(transaction.now)
    _set(transaction, job.id, state=state, reason=reason, lease_until=None, finished_at=finished_at)
    transaction.event(kind or f"job.{state}", study_uid=job.study_uid, job_id=job.id, reason=reason)
    if state in {State.FAILED, State.REJECTED}:
        transaction.advance_for(job.id, ("queued", "processing"), str(state), reason)


def _supersede(
    transaction: Transaction, study_uid: str, key: str, which: ColumnElement[bool]
) -> None:
    """End the jobs of a study that wait, also those whose worker fell silent."""
    waiting = select(_table).where(_table.c.study_uid == study_uid, which, _claimable(transaction))
    for row in transaction.connection.execute(waiting).all():
        reason = f"superseded by job {key}"
        _end(transaction, to_job(row), State.REJECTED, reason, "job.superseded")


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


def _key(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _add(
    transaction: Transaction,
    key: str,
    study_uid: str,
    protocol: str,
    series: Sequence[Mapping[str, Any]],
    values: Mapping[str, Any],
) -> None:
    transaction.connection.execute(
        _table.insert().values(
            id=key,
            study_uid=study_uid,
            protocol=protocol,
            created_at=to_text(transaction.now),
            series=json.dumps(list(series), ensure_ascii=False),
            **values,
        )
    )


def _set(transaction: Transaction, job_id: str, **values: object) -> None:
    transaction.connection.execute(update(_table).where(_table.c.id == job_id).values(**values))


def _find(transaction: Transaction, job_id: str) -> Job | None:
    row = transaction.connection.execute(select(_table).where(_table.c.id == job_id)).one_or_none()
    return None if row is None else to_job(row)


def _get(transaction: Transaction, job_id: str) -> Job:
    return to_job(transaction.connection.execute(select(_table).where(_table.c.id == job_id)).one())


def _waiting(transaction: Transaction) -> Job | None:
    row = transaction.connection.execute(
        select(_table).where(_claimable(transaction)).order_by(_table.c.created_at).limit(1)
    ).one_or_none()
    return None if row is None else to_job(row)


def _claimable(transaction: Transaction) -> ColumnElement[bool]:
    silent = and_(_table.c.state == State.RUNNING, _table.c.lease_until < to_text(transaction.now))
    return or_(_table.c.state == State.QUEUED, silent)


def _held(job_id: str, worker: str) -> ColumnElement[bool]:
    """Whether this worker holds the job: an expired lease counts until another has taken it."""
    return and_(_table.c.id == job_id, _table.c.worker == worker, _table.c.state == State.RUNNING)


def _need(transaction: Transaction, job_id: str, worker: str) -> Job:
    row = transaction.connection.execute(select(_table).where(_held(job_id, worker))).one_or_none()
    if row is None:
        raise Mismatch(f"job {job_id} is not held by {worker}")
    return to_job(row)


def _restore_study(transaction: Transaction, job: Job) -> None:
    """Bring a re-opened study back to where its job stands: nothing new had come."""
    if job.state == State.RUNNING:
        transaction.advance_study(job.study_uid, ("receiving",), "queued")
        transaction.advance_study(job.study_uid, ("queued",), "processing")
    elif job.state == State.DONE:
        transaction.advance_study(job.study_uid, ("receiving",), "delivering")
        transaction.restart_deliveries(job.id)
        transaction.end_deliveries(job.id)
    else:
        transaction.advance_study(job.study_uid, ("receiving",), "queued")
