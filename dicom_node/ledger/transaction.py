"""One transaction on the ledger: the steps that change a state, each with its event.

Knows the tables and which state may follow which. Nothing here commits: `Ledger.transaction` does.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, literal_column, select, update

from dicom_node.errors import BadInput, Mismatch
from dicom_node.instance import PICTURES, Instance

from . import chain, rounds, tables
from .prepared import Prepared
from .records import DELIVERED, Job, Result, canonical, to_result, to_text

# From which states a study may come to which: anything else is a bug, and is refused.
TRANSITIONS: Mapping[str, frozenset[str]] = {
    "receiving": frozenset({"queued", "delivering", "done", "rejected", "failed"}),
    "queued": frozenset({"processing", "delivering", "done", "rejected", "failed", "receiving"}),
    "processing": frozenset({"queued", "delivering", "done", "rejected", "failed", "receiving"}),
    "delivering": frozenset({"done", "failed", "queued", "receiving"}),
    "done": frozenset({"receiving", "queued", "delivering"}),
    "rejected": frozenset({"receiving", "queued"}),
    "failed": frozenset({"receiving", "queued", "delivering"}),
    "erased": frozenset(),
}
# The way to a state that cannot be reached at once.
VIA = {"processing": ("queued",), "done": ("delivering",), "delivering": ("queued",)}
SETTLED = frozenset({"receiving", "erased"})  # what becomes of such a study, no job decides

# What is written for each image that comes in.
INSTANCE = tuple(
    each.name for each in tables.instances.c if each.name not in {"id", "superseded", "expired_at"}
)
NOTED = Prepared(
    tables.instances.insert().returning(tables.instances.c.id), *INSTANCE, "superseded"
)
SUPERSEDED = Prepared(
    update(tables.instances)
    .where(
        tables.instances.c.study_uid == bindparam("study_uid"),
        tables.instances.c.sop_uid == bindparam("sop_uid"),
        tables.instances.c.expired_at.is_(None),
    )
    .values(superseded=literal_column("1"))
)
ARRIVED = Prepared(
    update(tables.studies)
    .where(tables.studies.c.study_uid == bindparam("uid"))
    .values(
        last_at=func.max(tables.studies.c.last_at, bindparam("received_at")),
        arrivals=tables.studies.c.arrivals + bindparam("images"),
    )
    .returning(tables.studies.c.state)
)


class Transaction:
    """What can be written; everything in one transaction, or nothing."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.now = datetime.now(UTC)
        self._head: tuple[int, str] | None = None  # of the chain, once known: nobody else writes

    def event(
        self, kind: str, *, study_uid: str | None = None, job_id: str | None = None, **data: object
    ) -> None:
        """Add an event to the chain."""
        about = {"kind": kind, "study_uid": study_uid, "job_id": job_id}
        head = self._head or chain.head(self.connection)
        self._head = chain.append(self.connection, self.now, about, data, head)

    def arrive(self, instance: Instance, kind: str, data: Mapping[str, str]) -> None:
        """Remember a stored instance, its study, and the event `kind`."""
        self.record_study(instance)
        follows = self.record_instance(instance)
        self.event(
            "instance.superseded" if follows and kind == "instance.stored" else kind,
            study_uid=instance.study_uid,
            series_uid=instance.series_uid,
            sop_uid=instance.sop_uid,
            transfer_syntax_uid=instance.transfer_syntax_uid,
            sha256=instance.sha256,
            size=instance.size,
            **data,
        )

    def set_study_state(
        self, study_uid: str, state: str, reason: str = "", *, kind: str = "study.state"
    ) -> None:
        """Move a study on, if its state allows it.

        Raises
        ------
        Mismatch
            There is no such study, or it cannot come from its state to this one.
        """
        before = self.connection.scalar(
            select(tables.studies.c.state).where(tables.studies.c.study_uid == study_uid)
        )
        if before == state:
            return
        if before is None or state not in TRANSITIONS[before]:
            raise Mismatch(f"a study that is {before or 'unknown'} cannot become {state}")
        values: dict[str, object] = {"state": state, "reason": reason}
        if state != "receiving":
            values["complete_requested"] = False
        self.connection.execute(
            update(tables.studies).where(tables.studies.c.study_uid == study_uid).values(values)
        )
        self.event(kind, study_uid=study_uid, state=state, before=before, reason=reason)

    def advance_study(
        self, study_uid: str, before: Sequence[str], state: str, reason: str = ""
    ) -> None:
        """Move a study on if it is in a state of `before`: late images may have re-opened it."""
        now = self.connection.scalar(
            select(tables.studies.c.state).where(tables.studies.c.study_uid == study_uid)
        )
        if now in before:
            self.set_study_state(study_uid, state, reason)

    def advance_for(self, job_id: str, before: Sequence[str], state: str, reason: str = "") -> None:
        """Move on the study that a job speaks for; a job that a newer one followed moves none.

        If several jobs speak for it, it comes to where all of them stand.
        """
        table, job = tables.studies.c, tables.jobs.c
        study_uid = self.connection.scalar(
            select(table.study_uid)
            .join(tables.jobs, job.study_uid == table.study_uid)
            .where(job.id == job_id, table.job_id.in_((job.id, job.lead)))
        )
        if study_uid is not None and not self.settle(study_uid):
            self.advance_study(study_uid, before, state, reason)

    def settle(self, study_uid: str, *, anew: bool = False) -> bool:
        """Bring a study to where its jobs stand; False if one alone speaks for it: nothing is done.

        A study that is open again stays so, unless it is decided upon `anew`.
        """
        found = rounds.members(self.connection, study_uid)
        if len(found) < 2:  # noqa: PLR2004 - together
            return False
        state, reason = rounds.standing(self.connection, found)
        before = self.connection.scalar(
            select(tables.studies.c.state).where(tables.studies.c.study_uid == study_uid)
        )
        if before in SETTLED and not (anew and before == "receiving"):
            return True
        if before != state and state not in TRANSITIONS[str(before)]:
            for each in VIA.get(state, ()):
                self.set_study_state(study_uid, each)
        self.set_study_state(study_uid, state, reason)
        return True

    def lead(self, study_uid: str, job_ids: Sequence[str]) -> None:
        """Let jobs speak for their study together from now on; the first of them leads."""
        table = tables.jobs
        self.appoint(study_uid, job_ids[0])
        alone = update(table).where(table.c.study_uid == study_uid, table.c.lead != "")
        self.connection.execute(alone.values(lead=""))
        others = update(table).where(table.c.id.in_(job_ids[1:]))
        self.connection.execute(others.values(lead=job_ids[0]))

    def appoint(self, study_uid: str, job_id: str) -> None:
        """Let a job speak for its study from now on: the newest does.

        Raises
        ------
        Mismatch
            There is no such study.
        """
        table = tables.studies
        found = self.connection.execute(
            update(table).where(table.c.study_uid == study_uid).values(job_id=job_id)
        )
        if not found.rowcount:
            raise Mismatch(f"no study is known as {study_uid!r}")

    def reopen_if_overtaken(self, study_uid: str, seen: int | None) -> None:
        """Open a study again if more came since `seen` arrivals; None: nobody looked."""
        table = tables.studies.c
        arrivals = self.connection.scalar(
            select(table.arrivals).where(table.study_uid == study_uid)
        )
        if seen is not None and arrivals != seen:
            self.reopen(study_uid, "late images")

    def record_study(self, instance: Instance) -> None:
        """Remember the study of an instance; one that was past reception is open again."""
        received_at = to_text(instance.received_at)
        # What answers a draft, or is one that comes home, is nothing more to read.
        is_image = not instance.may_answer and not self._is_ours(instance)
        arrived = {
            "uid": instance.study_uid,
            "received_at": received_at,
            "images": int(is_image),
        }
        (known,) = ARRIVED.run(self.connection, arrived).fetchone() or (None,)
        if known is None:
            self._open(instance, received_at)
        elif is_image and known != "receiving":
            self.reopen(instance.study_uid, "late images", opened_at=received_at)

    def _open(self, instance: Instance, received_at: str) -> None:
        names = (
            "study_uid",
            "patient_id",
            "patient_name",
            "accession_number",
            "study_date",
            "study_description",
        )
        values = {name: getattr(instance, name) for name in names}
        times = dict.fromkeys(("opened_at", "first_at", "last_at"), received_at)
        self.connection.execute(
            tables.studies.insert().values(**values, **times, state="receiving", arrivals=1)
        )
        self.event("study.opened", study_uid=instance.study_uid)

    def _is_ours(self, instance: Instance) -> bool:
        if instance.sop_class_uid in PICTURES:
            return False
        table = tables.results.c
        same = (table.sop_uid == instance.sop_uid) | (table.series_uid == instance.series_uid)
        return self.connection.scalar(select(table.sop_uid).where(same).limit(1)) is not None

    def reopen(self, study_uid: str, reason: str, *, opened_at: str = "") -> None:
        """Open a study again that was past reception; empty `opened_at` means now."""
        table = tables.studies
        past = (table.c.study_uid == study_uid) & (table.c.state != "receiving")
        if self.connection.scalar(select(table.c.state).where(past)) is None:
            return
        self.set_study_state(study_uid, "receiving", reason, kind="study.reopened")
        self.connection.execute(
            update(table)
            .where(table.c.study_uid == study_uid)
            .values(opened_at=opened_at or to_text(self.now))
        )

    def record_instance(self, instance: Instance) -> bool:
        """Remember an instance; an earlier one of the same UID is superseded, and that is said.

        What may answer a draft waits to be looked at; a draft of ours that comes home does not.
        """
        row = {name: getattr(instance, name) for name in INSTANCE}
        row |= {"path": str(instance.path), "received_at": to_text(instance.received_at)}
        earlier = SUPERSEDED.run(self.connection, row).rowcount
        (key,) = NOTED.run(self.connection, row | {"superseded": 0}).fetchone()
        if instance.may_answer and not self._is_ours(instance):
            about = {"instance_id": key, "study_uid": instance.study_uid}
            self.connection.execute(tables.reviews.insert().values(**about, state="waiting"))
        return earlier > 0

    def record_results(
        self,
        job: Job,
        results: Sequence[Result],
        plan: Mapping[str, Sequence[str]],
        summary: Mapping[str, Any],
    ) -> None:
        """Remember what a job made and, by destination, the labels of what goes there."""
        for position, result in enumerate(results):
            row = vars(result) | {"path": str(result.path), "position": position}
            self.connection.execute(tables.results.insert().values(**row))
        about = {"study_uid": job.study_uid, "job_id": job.id}
        for destination, labels in plan.items():
            planned = about | {"destination": destination, "labels": json.dumps(list(labels))}
            self.connection.execute(
                tables.deliveries.insert().values(
                    **planned, state="pending", next_at=to_text(self.now)
                )
            )
        told = update(tables.jobs).where(tables.jobs.c.id == job.id)
        self.connection.execute(told.values(summary=canonical(summary)))
        self.event(
            "job.results",
            **about,
            results={each.label: each.sop_uid for each in results},
            destinations=list(plan),
            model=summary.get("model"),
        )
        for each in results:
            if each.held:
                fault = {"label": each.label, "sop_uid": each.sop_uid, "reason": each.held}
                self.event("result.held", **about, **fault)
        self.advance_for(
            job.id, ("processing",), "delivering" if plan else "done", self._held_of(job.id)
        )

    def forget_results(self, job_id: str) -> None:
        """Make room for what a job makes anew; what it made and where that went, events tell."""
        for table in (tables.results, tables.deliveries):
            self.connection.execute(delete(table).where(table.c.job_id == job_id))

    def release(self, sop_uid: str, by: str) -> Result:
        """Let a held result go; see `Ledger.release`. Those who were to get it are sent it anew."""
        table = tables.results
        row = self.connection.execute(select(table).where(table.c.sop_uid == sop_uid)).one_or_none()
        if row is None or not row.held:
            what = "no result is known as" if row is None else "it is not held:"
            raise BadInput(f"{what} {sop_uid}")
        self.connection.execute(update(table).where(table.c.sop_uid == sop_uid).values(held=""))
        job = self.connection.execute(
            select(tables.jobs).where(tables.jobs.c.id == row.job_id)
        ).one()
        about = {"study_uid": job.study_uid, "job_id": job.id}
        told = {"label": row.label, "sop_uid": sop_uid, "reason": row.held}
        self.event("result.released", **about, **told, by=by)
        self.restart_deliveries(job.id, (*DELIVERED, "held"), row.label)
        self.advance_for(job.id, ("done", "failed"), "delivering")
        self.end_deliveries(job.id)
        return to_result(row)

    def _held_of(self, job_id: str) -> str:
        table = tables.results.c
        held = self.connection.scalars(
            select(table.label)
            .where(table.job_id == job_id, table.held != "")
            .order_by(table.position)
        ).all()
        return f"held, not sent: {', '.join(held)}" if held else ""

    def restart_deliveries(
        self, job_id: str, states: Sequence[str] = ("failed",), label: str = ""
    ) -> None:
        """Begin again to send what was given up, or what is in `states`; of one label, if any."""
        table = tables.deliveries
        ended = (table.c.job_id == job_id) & table.c.state.in_(states)
        for row in self.connection.execute(select(table).where(ended)).all():
            if label and label not in json.loads(row.labels):
                continue
            anew = {"state": "pending", "attempts": 0, "next_at": to_text(self.now)}
            self.connection.execute(update(table).where(table.c.id == row.id).values(anew))
            about = {"study_uid": row.study_uid, "job_id": job_id}
            self.event("delivery.restarted", **about, destination=row.destination)

    def end_deliveries(self, job_id: str) -> None:
        """Move the study on when the last delivery of the job that speaks for it has ended."""
        table = tables.deliveries
        rows = self.connection.execute(select(table).where(table.c.job_id == job_id)).all()
        if any(row.state == "pending" for row in rows):
            return
        failed = [f"{row.destination}: {row.detail}" for row in rows if row.state == "failed"]
        self.advance_for(
            job_id,
            ("delivering",),
            "failed" if failed else "done",
            f"not delivered to {'; '.join(failed)}" if failed else self._held_of(job_id),
        )
