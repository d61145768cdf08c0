"""What the ledger knows of deliveries beyond an attempt: proof, dead letters, sending again.

Knows the tables. Must not know peers or files. Beyond ``sent`` a delivery goes on:

    sent -> delivered        the peer has committed to it, or finds all of it
    sent -> sent-unproven    nobody can say, or nobody did in time
    sent -> pending          the peer does not have all of it: it is sent again; so it is, when the
                             peer says so only after a query has found it
    failed -> acknowledged   somebody has seen that it was given up, and leaves it so
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import Row, select, update

from dicom_node.errors import BadInput

from . import tables
from .ledger import Delivery, Ledger
from .records import to_delivery, to_text
from .transaction import Transaction

KINDS: Final = {"pending": "delivery.lost", "sent-unproven": "delivery.unproven"}
# From where a delivery may come to these states. A commitment may come after we gave up waiting for
# it, and be refused after a query had found everything.
WAITING: Final = {"sent-unproven": ("sent",), "delivered": ("sent", "sent-unproven")}
ENDED: Final = ("failed", "sent-unproven", "delivered", "sent", "held", "acknowledged")


def settle(
    ledger: Ledger,
    delivery_id: int,
    state: str,
    *,
    detail: str,
    next_at: datetime | None = None,
) -> bool:
    """Say what became of a delivery that the peer has stored; once, whoever else says it.

    Parameters
    ----------
    state
        ``delivered``, ``sent-unproven``, ``failed``; ``pending`` to send it again, at `next_at`.
    """
    table = tables.deliveries
    waiting = WAITING.get(state, ("sent", "sent-unproven", "delivered"))
    with ledger.transaction() as transaction:
        row = transaction.connection.execute(
            update(table)
            .where(table.c.id == delivery_id, table.c.state.in_(waiting))
            .values(state=state, detail=detail, next_at=to_text(next_at or transaction.now))
            .returning(table)
        ).one_or_none()
        if row is None:
            return False
        _tell(transaction, row, KINDS.get(state, f"delivery.{state}"), detail=detail)
        if state in {"pending", "failed"}:
            transaction.advance_for(row.job_id, ("done",), "delivering")
            transaction.end_deliveries(row.job_id)
    return True


def wait(ledger: Ledger, delivery_id: int, next_at: datetime) -> None:
    """Look again at a delivery whose proof is waited for, then."""
    table = tables.deliveries
    with ledger.transaction() as transaction:
        transaction.connection.execute(
            update(table)
            .where(table.c.id == delivery_id, table.c.state == "sent")
            .values(next_at=to_text(next_at))
        )


def hasten(ledger: Ledger, destination: str) -> int:
    """Let what waits for its next attempt be due now; say how many deliveries that are.

    The peer is there again: that is told in the same transaction.
    """
    table = tables.deliveries
    with ledger.transaction() as transaction:
        now = to_text(transaction.now)
        waiting = (table.c.destination == destination) & (table.c.state == "pending")
        hastened = transaction.connection.execute(
            update(table).where(waiting, table.c.next_at > now).values(next_at=now)
        ).rowcount
        transaction.event("destination.up", destination=destination, waiting=hastened)
    return hastened


def of_transaction(ledger: Ledger, transaction_uid: str) -> Delivery | None:
    """Find the delivery whose commitment was asked for under this UID; None if there is none."""
    table = tables.deliveries
    with ledger.reading() as connection:
        row = connection.execute(
            select(table).where(table.c.transaction_uid == transaction_uid)
        ).one_or_none()
    return to_delivery(row) if row else None


def find(ledger: Ledger, delivery_id: int) -> Delivery:
    """Find one.

    Raises
    ------
    BadInput
        There is none of this number.
    """
    table = tables.deliveries
    with ledger.reading() as connection:
        row = connection.execute(select(table).where(table.c.id == delivery_id)).one_or_none()
    if row is None:
        raise BadInput(f"no delivery has the number {delivery_id}")
    return to_delivery(row)


def listed(ledger: Ledger, *, state: str = "", destination: str = "") -> list[Delivery]:
    """List deliveries, the latest first; a destination by the beginning of its name."""
    table = tables.deliveries
    wanted = select(table).order_by(table.c.id.desc())
    if state:
        wanted = wanted.where(table.c.state == state)
    if destination:
        wanted = wanted.where(table.c.destination.startswith(destination, autoescape=True))
    with ledger.reading() as connection:
        return [to_delivery(row) for row in connection.execute(wanted)]


def resend(ledger: Ledger, numbers: Sequence[int], *, by: str) -> list[Delivery]:
    """Send again, from the first attempt on; what is under way anyhow stays as it is.

    Raises
    ------
    BadInput
        There is none of one of these numbers, or its results have expired; none after it is sent.
    """
    return [each for number in numbers for each in _moved(ledger, number, "pending", by)]


def acknowledge(ledger: Ledger, numbers: Sequence[int], *, by: str) -> list[Delivery]:
    """Leave as given up what has failed; raises as `resend`."""
    return [each for number in numbers for each in _moved(ledger, number, "acknowledged", by)]


def proven(ledger: Ledger, job_id: str) -> bool:
    """Say whether every destination of a job has proven to have it, or somebody let it go.

    Not while an object is held, which nobody else has; what goes nowhere has nothing to prove.
    """
    ended = all(each.state in {"delivered", "acknowledged"} for each in ledger.deliveries(job_id))
    return ended and not any(each.held for each in ledger.results(job_id))


def _moved(ledger: Ledger, number: int, state: str, by: str) -> list[Delivery]:
    again = state == "pending"
    job = ledger.job(find(ledger, number).job_id)
    if again and job and job.expired_at:
        raise BadInput(f"the results of delivery {number} are gone since {job.expired_at:%Y-%m-%d}")
    before = ENDED if again else ("failed",)
    table = tables.deliveries
    with ledger.transaction() as transaction:
        row = transaction.connection.execute(
            update(table)
            .where(table.c.id == number, table.c.state.in_(before))
            .values(
                state=state,
                next_at=to_text(transaction.now),
                **({"attempts": 0, "transaction_uid": None, "stored_at": None} if again else {}),
            )
            .returning(table)
        ).one_or_none()
        if row is None:
            return []
        _tell(transaction, row, "delivery.restarted" if again else "delivery.acknowledged", by=by)
        if again:
            transaction.advance_for(row.job_id, ("done", "failed"), "delivering")
        else:
            transaction.advance_for(row.job_id, ("failed",), "delivering")
            transaction.end_deliveries(row.job_id)
    return [to_delivery(row)]


def _tell(transaction: Transaction, row: Row[tuple[object, ...]], kind: str, **data: str) -> None:
    about = {"study_uid": row.study_uid, "job_id": row.job_id}
    transaction.event(kind, **about, destination=row.destination, **data)
