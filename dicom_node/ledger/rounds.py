"""The jobs that speak for a study together, such as chest and abdomen of one CT, and how it stands.

Reads the tables, and writes none: of a round one job is the first (``studies.job_id``), the others
name it as their `lead`.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, or_, select

from . import tables


def members(connection: Connection, study_uid: str) -> Sequence[Any]:
    """Give id, state, reason and protocol of the jobs that speak for a study."""
    table, study = tables.jobs.c, tables.studies.c
    wanted = (
        select(table.id, table.state, table.reason, table.protocol)
        .join(tables.studies, study.study_uid == table.study_uid)
        .where(table.study_uid == study_uid)
        .where(or_(table.id == study.job_id, table.lead == study.job_id))
        .order_by(table.created_at, table.id)
    )
    return connection.execute(wanted).all()


def standing(connection: Connection, found: Sequence[Any]) -> tuple[str, str]:
    """Give the state of the study that these jobs speak for, and the reason."""
    states = {each.state for each in found}
    for state, meaning in (("running", "processing"), ("queued", "queued")):
        if state in states:
            return meaning, ""
    table = tables.deliveries
    wanted = select(table).where(table.c.job_id.in_([each.id for each in found]))
    sent = connection.execute(wanted.order_by(table.c.id)).all()
    if any(each.state == "pending" for each in sent):
        return "delivering", ""
    bad = [
        f"{each.protocol}: {each.reason}" for each in found if each.state in {"failed", "rejected"}
    ]
    lost = [f"{each.destination}: {each.detail}" for each in sent if each.state == "failed"]
    told = [
        *bad,
        *([f"not delivered to {'; '.join(lost)}"] if lost else []),
        *_held(connection, found),
    ]
    if states == {"rejected"}:
        return "rejected", "; ".join(told)
    return "failed" if lost or "failed" in states else "done", "; ".join(told)


def _held(connection: Connection, found: Sequence[Any]) -> list[str]:
    table = tables.results.c
    wanted = select(table.label).where(
        table.job_id.in_([each.id for each in found]), table.held != ""
    )
    labels = connection.scalars(wanted.order_by(table.job_id, table.position)).all()
    return [f"held, not sent: {', '.join(labels)}"] if labels else []
