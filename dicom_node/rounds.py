"""The jobs that speak for a study together, such as chest and abdomen of one CT, and how it stands.

Knows the tables: of a round one job is the first (``studies.job_id``), the others name it as their
`lead`. Must not know who makes a round.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, or_, select, update

from . import tables

if TYPE_CHECKING:
    from .transaction import Transaction

SETTLED = frozenset({"receiving", "erased"})  # what becomes of such a study, no job decides
VIA = {"processing": ("queued",), "done": ("delivering",), "delivering": ("queued",)}


def lead(transaction: "Transaction", study_uid: str, job_ids: list[str]) -> None:
    """Let jobs speak for their study together from now on; the first of them leads."""
    table = tables.jobs
    transaction.appoint(study_uid, job_ids[0])
    alone = update(table).where(table.c.study_uid == study_uid, table.c.lead != "")
    transaction.connection.execute(alone.values(lead=""))
    others = update(table).where(table.c.id.in_(job_ids[1:]))
    transaction.connection.execute(others.values(lead=job_ids[0]))


def settle(transaction: "Transaction", study_uid: str, *, anew: bool = False) -> bool:
    """Bring a study to where its jobs stand; False if one alone speaks for it, and nothing is done.

    A study that is open again stays so, unless it is decided upon `anew`.
    """
    found = members(transaction.connection, study_uid)
    if len(found) < 2:  # noqa: PLR2004 - together
        return False
    state, reason = _standing(transaction.connection, found)
    before = transaction.connection.scalar(
        select(tables.studies.c.state).where(tables.studies.c.study_uid == study_uid)
    )
    if before in SETTLED and not (anew and before == "receiving"):
        return True
    if not transaction.may_become(str(before), state):
        for each in VIA.get(state, ()):
            transaction.set_study_state(study_uid, each)
    transaction.set_study_state(study_uid, state, reason)
    return True


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


def _standing(connection: Connection, found: Sequence[Any]) -> tuple[str, str]:
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
