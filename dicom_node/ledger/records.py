"""What the ledger remembers, as frozen values, and how a row becomes one.

Knows the tables and the text forms: times are UTC ISO 8601, structured data is canonical JSON.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Row, Select, func, select

from dicom_node.instance import Instance

from . import tables


@dataclass(frozen=True)
class Study:
    """One study as it stands."""

    study_uid: str
    state: str
    reason: str
    patient_id: str
    patient_name: str
    accession_number: str
    study_date: str
    study_description: str
    modalities: tuple[str, ...]
    instance_count: int
    first_at: datetime
    last_at: datetime
    complete_requested: bool
    opened_at: datetime  # when the present reception began
    arrivals: int  # instances ever recorded: tells whether more came since one looked
    expired_at: datetime | None = None  # when images of it were last removed; None: never


@dataclass(frozen=True)
class Job:
    """One reading of one study by one protocol; ``id`` is its idempotent key."""

    id: str
    study_uid: str
    protocol: str
    state: str  # queued -> running -> done | failed | rejected
    reason: str
    attempts: int
    worker: str
    lease_until: datetime | None  # None: nobody holds it
    created_at: datetime
    started_at: datetime | None  # None: not begun
    finished_at: datetime | None  # None: not ended
    series: tuple[dict[str, Any], ...]  # chosen and skipped series, each with its reason
    sop_uids: tuple[str, ...]
    summary: dict[str, Any]
    expired_at: datetime | None = None  # when its results were removed; None: they are there
    priority: str = "normal"  # urgent | normal | off-peak
    due_at: str = ""  # who is due earlier is next
    not_before: datetime | None = None  # None: at once
    window: str = ""  # HH:MM-HH:MM in local time in which it is read; empty: always
    rule: str = ""  # of the site that asked for it; empty: none
    destinations: tuple[str, ...] = ()  # that get its results; none: all
    lead: str = ""  # the first job of its round; empty: itself
    caveat: str = ""  # what the drafts say of the images as a whole; empty: nothing


@dataclass(frozen=True)
class Result:
    """One object that a job made."""

    job_id: str
    label: str  # seg, measurements, draft, measurements.ohif, ...
    sop_class_uid: str
    sop_uid: str
    series_uid: str
    path: Path
    sha256: str
    held: str = ""  # why it is not sent, a line for each fault; empty: it is


DELIVERED = ("sent", "delivered", "sent-unproven")  # states in which the peer has said it has all


@dataclass(frozen=True)
class Delivery:
    """The results of one job on their way to one destination."""

    id: int
    job_id: str
    study_uid: str
    destination: str  # AET@HOST:PORT, or AET@HOST:PORT/PROFILE
    state: str  # pending -> sent | failed | held; sent -> delivered | sent-unproven | pending
    attempts: int
    next_at: datetime
    detail: str
    labels: tuple[str, ...]  # of the results that go there; none: all, as earlier versions sent
    transaction_uid: str | None = None  # of the commitment that was asked for; None: none was
    stored_at: datetime | None = None  # when the peer had stored all of it; None: not yet


@dataclass(frozen=True)
class Review:
    """One thing that came back to a study: a report or a segmentation that is not of ours."""

    instance_id: int
    study_uid: str
    sop_uid: str
    path: Path
    at: datetime  # when it came
    state: str  # waiting -> linked | unrelated | unread
    job_id: str | None  # None: it answers no draft of ours
    draft_uid: str | None  # the object that it answers; None: none
    link: str  # predecessor | evidence | study, or nothing
    detail: dict[str, Any]  # what stands in it


@dataclass(frozen=True)
class Event:
    """One thing that happened; ``digest`` covers it and the digest of the one before."""

    seq: int
    at: datetime
    kind: str
    study_uid: str | None  # None: about no study
    job_id: str | None  # None: about no job
    data: dict[str, Any]
    previous: str
    digest: str


def to_text(time: datetime) -> str:
    """Write a time as the tables hold it: UTC, microseconds, sortable."""
    return time.astimezone(UTC).isoformat(timespec="microseconds")


def canonical(data: Mapping[str, Any]) -> str:
    """Write JSON in the one form that is digested."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)


def to_job(row: Row[Any]) -> Job:
    """Read a row of the jobs table."""
    values = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's documented accessor
    for name in ("lease_until", "started_at", "finished_at", "expired_at", "not_before"):
        values[name] = values[name] and datetime.fromisoformat(values[name])
    values["created_at"] = datetime.fromisoformat(values["created_at"])
    values["series"] = tuple(json.loads(values["series"]))
    values["sop_uids"] = tuple(json.loads(values["sop_uids"]))
    values["destinations"] = tuple(json.loads(values["destinations"]))
    values["summary"] = json.loads(values["summary"])
    return Job(**values)


def select_studies() -> Select[Any]:
    """Select studies with the count and the modalities of their current instances."""
    table = tables.instances.c
    current = (table.study_uid == tables.studies.c.study_uid) & table.superseded.is_(False)
    # Counted for each study that is asked for, by index: not for all of them at every poll.
    # One that came again after it had expired is one.
    count = select(func.count(table.sop_uid.distinct())).where(current).scalar_subquery()
    modalities = select(func.group_concat(table.modality.distinct())).where(current)
    return select(
        tables.studies,
        count.label("instance_count"),
        modalities.scalar_subquery().label("modalities"),
    )


def to_study(row: Row[Any]) -> Study:
    """Read a row of `select_studies`."""
    values = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's documented accessor
    del values["job_id"]
    for name in ("opened_at", "first_at", "last_at", "expired_at"):
        values[name] = values[name] and datetime.fromisoformat(values[name])
    values["modalities"] = tuple(sorted(filter(None, (values["modalities"] or "").split(","))))
    return Study(**values)


def select_instances(study_uid: str) -> Select[Any]:
    """Select the current instances of a study with what is known of their study."""
    table, study = tables.instances, tables.studies.c
    return (
        select(
            table,
            study.patient_id,
            study.patient_name,
            study.accession_number,
            study.study_date,
            study.study_description,
        )
        .join(tables.studies)
        .where(table.c.study_uid == study_uid, table.c.superseded.is_(False))
        .where(table.c.expired_at.is_(None))
        .order_by(table.c.id)
    )


def to_instance(row: Row[Any]) -> Instance:
    """Read a row of `select_instances`."""
    values = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's documented accessor
    del values["id"], values["superseded"], values["expired_at"]
    values["path"] = Path(values["path"])
    values["received_at"] = datetime.fromisoformat(values["received_at"])
    return Instance(**values)


def to_result(row: Row[Any]) -> Result:
    """Read a row of the results table."""
    values = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's documented accessor
    del values["position"]
    return Result(**values | {"path": Path(values["path"])})


def to_delivery(row: Row[Any]) -> Delivery:
    """Read a row of the deliveries table."""
    values = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's documented accessor
    values["next_at"] = datetime.fromisoformat(values["next_at"])
    values["labels"] = tuple(json.loads(values["labels"]))
    values["stored_at"] = values["stored_at"] and datetime.fromisoformat(values["stored_at"])
    return Delivery(**values)


def select_reviews() -> Select[Any]:
    """Select reviews with what is known of the instance."""
    table = tables.instances.c
    return (
        select(tables.reviews, table.sop_uid, table.path, table.received_at.label("at"))
        .join(tables.instances)
        .order_by(tables.reviews.c.instance_id)
    )


def to_review(row: Row[Any]) -> Review:
    """Read a row of `select_reviews`."""
    values = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's documented accessor
    values["path"], values["detail"] = Path(values["path"]), json.loads(values["detail"])
    return Review(**values | {"at": datetime.fromisoformat(values["at"])})


def to_event(row: Row[Any]) -> Event:
    """Read a row of the events table."""
    values = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's documented accessor
    del values["salt"], values["commitment"]
    values["at"], values["data"] = datetime.fromisoformat(values["at"]), json.loads(values["data"])
    return Event(**values)
