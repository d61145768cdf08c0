"""What can be asked of the ledger: every query, and nothing that writes.

Knows SQLAlchemy and the tables. `Ledger` is one of these with what it writes.
"""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Row, Select, func, or_, select

from dicom_node.instance import Instance

from . import tables
from .records import (
    Delivery,
    Event,
    Job,
    Result,
    Review,
    Study,
    select_instances,
    select_reviews,
    select_studies,
    to_delivery,
    to_event,
    to_instance,
    to_job,
    to_result,
    to_review,
    to_study,
    to_text,
)


class Reading:
    """The queries of a ledger; who inherits says how rows are fetched."""

    def _rows(self, wanted: Select[Any]) -> Sequence[Row[Any]]:
        raise NotImplementedError

    def instance(self, study_uid: str, sop_uid: str) -> Instance | None:
        """Find the current version of one instance; None if it is not known."""
        wanted = select_instances(study_uid).where(tables.instances.c.sop_uid == sop_uid)
        return next((to_instance(row) for row in self._rows(wanted)), None)

    def instances(self, study_uid: str) -> list[Instance]:
        """List the current instances of a study in the order of their arrival."""
        return [to_instance(row) for row in self._rows(select_instances(study_uid))]

    def paths(self) -> set[Path]:
        """Give the path of every instance that is here, superseded ones included."""
        table = tables.instances.c
        there = select(table.path).where(table.expired_at.is_(None))
        return {Path(row.path) for row in self._rows(there)}

    def paths_of(self, sha256: str) -> list[Path]:
        """Give the paths of the instances that are here and whose file has this digest."""
        table = tables.instances.c
        there = (table.sha256 == sha256) & table.expired_at.is_(None)
        return [Path(row.path) for row in self._rows(select(table.path).where(there))]

    def study(self, study_uid: str) -> Study | None:
        """Find one study; None if it is not known."""
        wanted = select_studies().where(tables.studies.c.study_uid == study_uid)
        return next((to_study(row) for row in self._rows(wanted)), None)

    def studies(
        self, *, limit: int = 100, offset: int = 0, state: str | None = None, text: str = ""
    ) -> list[Study]:
        """List studies, the latest first; `text` is sought in identifiers, names and accession."""
        table = tables.studies.c
        wanted = select_studies().order_by(table.last_at.desc()).limit(limit).offset(offset)
        if state is not None:
            wanted = wanted.where(table.state == state)
        if text:
            sought = (table.patient_id, table.patient_name, table.accession_number, table.study_uid)
            wanted = wanted.where(or_(*(each.contains(text, autoescape=True) for each in sought)))
        return [to_study(row) for row in self._rows(wanted)]

    def study_counts(self) -> dict[str, int]:
        """Count the studies of each state."""
        state = tables.studies.c.state
        counted = self._rows(select(state, func.count().label("number")).group_by(state))
        return {row.state: row.number for row in counted}

    def quiet_studies(
        self,
        quiet_s: float,
        open_limit_s: float,
        now: datetime | None = None,
        *,
        grace_s: float | None = None,
    ) -> list[Study]:
        """List the studies whose reception is over: quiet, open too long, or asked for.

        With `grace_s` also those that are quiet for so long and whose size is known.
        """
        table, now = tables.studies.c, now or datetime.now(UTC)
        over = or_(
            table.complete_requested,
            table.last_at <= to_text(now - timedelta(seconds=quiet_s)),
            table.opened_at <= to_text(now - timedelta(seconds=open_limit_s)),
        )
        if grace_s is not None:
            still = table.last_at <= to_text(now - timedelta(seconds=grace_s))
            known = table.study_uid.in_(select(tables.expectations.c.study_uid))
            over = or_(over, known & still)
        return [
            to_study(row)
            for row in self._rows(select_studies().where(table.state == "receiving", over))
        ]

    def jobs(self, study_uid: str) -> list[Job]:
        """List the jobs of a study, the oldest first."""
        table = tables.jobs
        wanted = select(table).where(table.c.study_uid == study_uid).order_by(table.c.created_at)
        return [to_job(row) for row in self._rows(wanted)]

    def job(self, job_id: str) -> Job | None:
        """Find one job; None if there is none with this key."""
        wanted = select(tables.jobs).where(tables.jobs.c.id == job_id)
        return next((to_job(row) for row in self._rows(wanted)), None)

    def results(self, job_id: str) -> list[Result]:
        """List what a job made, in the order in which it is to be sent."""
        table = tables.results
        wanted = select(table).where(table.c.job_id == job_id).order_by(table.c.position)
        return [to_result(row) for row in self._rows(wanted)]

    def held(self) -> list[Result]:
        """List the results that are not sent because something is wrong with them."""
        table = tables.results
        return [to_result(row) for row in self._rows(select(table).where(table.c.held != ""))]

    def reviews(self, study_uid: str) -> list[Review]:
        """List what came back to a study, in the order of arrival; superseded ones too."""
        wanted = select_reviews().where(tables.reviews.c.study_uid == study_uid)
        return [to_review(row) for row in self._rows(wanted)]

    def waiting_reviews(self) -> list[Review]:
        """List what came back and is not looked at, of studies that are not about to be read."""
        about_to = select(tables.studies.c.study_uid).where(
            tables.studies.c.state.in_(("receiving", "queued", "processing"))
        )
        table = tables.reviews.c
        wanted = select_reviews().where(table.state == "waiting", table.study_uid.not_in(about_to))
        return [to_review(row) for row in self._rows(wanted)]

    def deliveries(self, job_id: str) -> list[Delivery]:
        """List the deliveries of a job."""
        table = tables.deliveries
        wanted = select(table).where(table.c.job_id == job_id).order_by(table.c.id)
        return [to_delivery(row) for row in self._rows(wanted)]

    def due_deliveries(
        self,
        now: datetime | None = None,
        states: Sequence[str] = ("pending",),
        *,
        but: Collection[str] = (),
        limit: int | None = None,
    ) -> list[Delivery]:
        """List the deliveries whose time has come, the oldest first.

        Those that are ``pending`` are to be sent; with ``sent``, also those to be proven. None of
        the destinations `but`, and no more than `limit`.
        """
        table = tables.deliveries
        due = table.c.state.in_(states) & (table.c.next_at <= to_text(now or datetime.now(UTC)))
        wanted = select(table).where(due).order_by(table.c.id).limit(limit)
        if but:
            wanted = wanted.where(table.c.destination.not_in(but))
        return [to_delivery(row) for row in self._rows(wanted)]

    def events(
        self, *, study_uid: str | None = None, after: int = 0, limit: int | None = None
    ) -> list[Event]:
        """List events in their order, of one study or of all."""
        table = tables.events
        wanted = select(table).where(table.c.seq > after).order_by(table.c.seq).limit(limit)
        if study_uid is not None:
            wanted = wanted.where(table.c.study_uid == study_uid)
        return [to_event(row) for row in self._rows(wanted)]
