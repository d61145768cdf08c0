"""The queue: a job is held by one worker at a time, under a lease that a heartbeat renews.

Knows the jobs table of the ledger. A worker that falls silent loses its lease and another takes
the job; a job that was begun too often has failed. Each step and its event are one transaction.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import select, true, update

from .errors import BadInput
from .ledger import Ledger, job_rows, rounds
from .ledger.job_rows import SUPERSEDED, Order, State
from .ledger.records import Job, Result, to_job, to_text
from .ledger.transaction import Transaction
from .routing.window import Window

__all__ = ["Job", "Jobs", "Order", "State"]


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
        """Add one job to a study; see `enqueue_all`."""
        order = Order(protocol, tuple(sop_uids), tuple(series))
        return self.enqueue_all(study_uid, [order], model_digest=model_digest, seen=seen)[0]

    def enqueue_all(
        self,
        study_uid: str,
        orders: Sequence[Order],
        *,
        model_digest: str,
        seen: int | None = None,
    ) -> list[Job]:
        """Add the jobs of a study, or find those that have the same keys; the study is queued.

        A key is made of the study, the set of its SOP Instance UIDs, the protocol and the
        digest of the model: the same question about the same images is asked once. Images that
        were replaced under their UIDs are not the same. A job that has failed or whose results have
        expired is queued again; what waits for an earlier set of images is superseded.

        Parameters
        ----------
        seen
            `Study.arrivals` when the images were looked at: if more came since, the study is open
            again at once. None: nobody looked.
        """
        with self._ledger.transaction() as transaction:
            keyed = {
                job_rows.key_of(transaction, study_uid, each, model_digest): each for each in orders
            }
            keys = list(keyed)
            transaction.appoint(study_uid, keys[0])
            protocols = [each.protocol for each in orders]
            job_rows.supersede(
                transaction, study_uid, keys, job_rows.TABLE.c.protocol.in_(protocols)
            )
            for key, order in keyed.items():
                job_rows.put(transaction, study_uid, key, order)
            transaction.lead(study_uid, keys)
            jobs = [job_rows.get(transaction, each) for each in keys]
            if any(each.state == State.QUEUED and not each.attempts for each in jobs):
                transaction.set_study_state(study_uid, "queued")
            _restore_study(transaction, study_uid, jobs)
            transaction.reopen_if_overtaken(study_uid, seen)
            return jobs

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
            key = job_rows.key(study_uid, reason, now)
            transaction.appoint(study_uid, key)
            job_rows.supersede(transaction, study_uid, [key], true())
            values = {"state": State.REJECTED, "reason": reason, "finished_at": now}
            job_rows.add(transaction, key, study_uid, Order("", (), tuple(series)), values)
            transaction.event("job.rejected", study_uid=study_uid, job_id=key, reason=reason)
            transaction.set_study_state(study_uid, "rejected", reason)
            transaction.reopen_if_overtaken(study_uid, seen)
            return job_rows.get(transaction, key)

    def ignore(
        self,
        study_uid: str,
        reason: str,
        *,
        series: Sequence[Mapping[str, Any]] = (),
        seen: int | None = None,
    ) -> None:
        """Be done with a study that is not to be read; `seen` is as for `enqueue_all`."""
        with self._ledger.transaction() as transaction:
            job_rows.supersede(transaction, study_uid, [], true(), f"not to be read: {reason}")
            transaction.event("study.ignored", study_uid=study_uid, reason=reason, series=series)
            transaction.set_study_state(study_uid, "done", reason)
            transaction.reopen_if_overtaken(study_uid, seen)

    def claim(self, worker: str, lease_s: float) -> Job | None:
        """Take the job that is due first, of those that wait or whose worker fell silent.

        None if there is none. What is off-peak waits for its window.
        """
        with self._ledger.transaction() as transaction:
            while True:
                job = job_rows.waiting(transaction)
                if job is None:
                    return None
                opens = job.window and Window.parse(job.window).opens(transaction.now)
                if opens:
                    job_rows.defer(transaction, job, opens)
                    continue
                if job.attempts >= self._maximum_attempts:
                    reason = job.reason or "its worker fell silent"
                    job_rows.end(
                        transaction, job, State.FAILED, f"{job.attempts} attempts: {reason}"
                    )
                    continue
                return self._lease(transaction, job, worker, lease_s)

    def heartbeat(self, job_id: str, worker: str, lease_s: float) -> bool:
        """Renew a lease; False if it was lost to another worker."""
        with self._ledger.transaction() as transaction:
            until = to_text(transaction.now + timedelta(seconds=lease_s))
            renewed = (
                update(job_rows.TABLE)
                .where(job_rows.held(job_id, worker))
                .values(lease_until=until)
            )
            return transaction.connection.execute(renewed).rowcount == 1

    def finish(self, job_id: str, worker: str, state: State, reason: str = "") -> None:
        """End a job.

        Raises
        ------
        Mismatch
            The job is not held by this worker any more.
        """
        with self._ledger.transaction() as transaction:
            job_rows.end(transaction, job_rows.need(transaction, job_id, worker), state, reason)

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
            job = job_rows.need(transaction, job_id, worker)
            if record is not None:
                transaction.event("job.record", study_uid=job.study_uid, job_id=job_id, **record)
            transaction.record_results(job, results, plan, summary)
            job_rows.end(transaction, job, State.DONE, "")
            transaction.settle(job.study_uid)

    def release(self, job_id: str, worker: str, reason: str) -> None:
        """Put a job back into the queue; its attempts are used up in the end.

        Raises
        ------
        Mismatch
            The job is not held by this worker any more.
        """
        with self._ledger.transaction() as transaction:
            job = job_rows.need(transaction, job_id, worker)
            if job.attempts >= self._maximum_attempts:
                job_rows.end(transaction, job, State.FAILED, f"{job.attempts} attempts: {reason}")
                return
            job_rows.change(
                transaction, job_id, state=State.QUEUED, worker="", lease_until=None, reason=reason
            )
            transaction.event("job.released", study_uid=job.study_uid, job_id=job_id, reason=reason)
            transaction.advance_for(job_id, ("processing",), "queued")

    def prioritize(self, job_id: str, priority: str, *, by: str) -> Job:
        """Give a job that waits another priority; one that runs goes on as it is.

        Raises
        ------
        BadInput
            There is no such job, or it does not wait.
        """
        with self._ledger.transaction() as transaction:
            job = job_rows.of_state(transaction, job_id, State.QUEUED)
            kept = {} if priority == job.priority else {"window": "", "not_before": None}
            due_at = job_rows.due(job.created_at, priority)
            job_rows.change(transaction, job_id, priority=priority, due_at=due_at, **kept)
            told = {"priority": priority, "before": job.priority, "by": by}
            transaction.event("job.prioritized", study_uid=job.study_uid, job_id=job_id, **told)
            return job_rows.get(transaction, job_id)

    def cancel(self, job_id: str, *, by: str) -> Job:
        """End a job that waits; raises as `prioritize`."""
        with self._ledger.transaction() as transaction:
            job = job_rows.of_state(transaction, job_id, State.QUEUED)
            job_rows.end(transaction, job, State.REJECTED, f"cancelled by {by}", "job.cancelled")
            return job_rows.get(transaction, job_id)

    def retry(self, job_id: str, *, by: str) -> Job:
        """Queue a job again that has failed, or was refused or cancelled.

        Raises
        ------
        BadInput
            There is no such job, it is none that can be done, or a later one took its place.
        """
        with self._ledger.transaction() as transaction:
            job = job_rows.of_state(transaction, job_id, State.FAILED, State.REJECTED)
            if not job.protocol:
                raise BadInput(
                    f"job {job_id} has no protocol; `process` decides about its study anew"
                )
            if job.reason.startswith(SUPERSEDED):
                raise BadInput(f"job {job_id} is {job.reason}")
            told = {"study_uid": job.study_uid, "job_id": job_id}
            transaction.forget_results(job_id)
            job_rows.change(
                transaction,
                job_id,
                **job_rows.ANEW,
                due_at=job_rows.due(transaction.now, job.priority),
            )
            transaction.event("job.requeued", **told, by=by)
            if job_id not in {
                each.id for each in rounds.members(transaction.connection, job.study_uid)
            }:
                transaction.lead(job.study_uid, [job_id])
            transaction.advance_for(job_id, ("done", "failed", "rejected", "delivering"), "queued")
            return job_rows.get(transaction, job_id)

    def listed(self, states: Collection[str] = (), limit: int = 200) -> list[Job]:
        """List jobs, those that are due first first; of these states, or of any."""
        wanted = select(job_rows.TABLE).order_by(
            job_rows.TABLE.c.due_at, job_rows.TABLE.c.created_at, job_rows.TABLE.c.id
        )
        if states:
            wanted = wanted.where(job_rows.TABLE.c.state.in_(states))
        with self._ledger.reading() as connection:
            return [to_job(row) for row in connection.execute(wanted.limit(limit)).all()]

    def get(self, job_id: str) -> Job | None:
        """Find a job; None if there is none with this key."""
        return self._ledger.job(job_id)

    def for_study(self, study_uid: str) -> list[Job]:
        """List the jobs of a study, the oldest first."""
        return self._ledger.jobs(study_uid)

    def _lease(self, transaction: Transaction, job: Job, worker: str, lease_s: float) -> Job:
        job_rows.change(
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
        return job_rows.get(transaction, job.id)


def _restore_study(transaction: Transaction, study_uid: str, jobs: Sequence[Job]) -> None:
    """Bring a study that was decided upon to where its jobs stand, also if nothing new had come."""
    for each in jobs:
        if each.state == State.DONE:
            transaction.restart_deliveries(each.id)
    if transaction.settle(study_uid, anew=True):
        return
    (job,) = jobs
    if job.state == State.RUNNING:
        transaction.advance_study(job.study_uid, ("receiving",), "queued")
        transaction.advance_study(job.study_uid, ("queued",), "processing")
    elif job.state == State.DONE:
        transaction.advance_study(job.study_uid, ("receiving",), "delivering")
        transaction.end_deliveries(job.id)
    else:
        transaction.advance_study(job.study_uid, ("receiving",), "queued")
