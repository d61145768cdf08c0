"""Everything is remembered: studies, jobs, results, deliveries, and the hash-chained events.

Knows SQLAlchemy and one SQLite file that several processes share. Every change of a state and the
event that tells of it are one transaction. Events are only ever added: triggers refuse anything
else, and each event carries the digest of the one before it, so that `Ledger.verify` finds what
was changed past the triggers.
"""

import fcntl
import hashlib
import secrets
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    and_,
    create_engine,
    select,
    text,
    update,
)
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy.engine import URL, Engine
from sqlalchemy.exc import DatabaseError, OperationalError

from dicom_node.errors import OutOfResources, Unavailable
from dicom_node.instance import Instance

from . import chain, tables
from .prepared import driver
from .reading import Reading
from .records import Delivery, Event, Job, Result, Review, Study, canonical, to_text
from .together import Together
from .transaction import Transaction

__all__ = ["Delivery", "Event", "Job", "Ledger", "Result", "Review", "Study", "Transaction"]

BUSY_S = 30.0


class Ledger(Reading):
    """The ledger in one SQLite file; made if it is not there. Threads and processes may share it.

    Raises
    ------
    Unavailable
        The file cannot be opened or made; any method, when another holds it for 30 s.
    OutOfResources
        Any method that writes, when the disk is full: nothing of it has been written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._engine = _engine(path)
            self._together = Together(self._transaction)
            self._writer: Connection | None = None
            with _alone(path), self._engine.connect() as connection:
                connection.execute(text("PRAGMA journal_mode=WAL"))
            with self.transaction() as transaction:
                tables.create(transaction.connection)
        except (OSError, DatabaseError) as error:
            reason = error.orig if isinstance(error, DatabaseError) else error
            raise Unavailable(f"cannot open the ledger {path}: {reason}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        if self._writer is not None:
            self._writer.close()
        self._writer = None
        self._engine.dispose()

    def transaction(self) -> AbstractContextManager[Transaction]:
        """Write: the only writer from its first statement on; committed at the end, or nothing."""
        return self._together.alone()

    @contextmanager
    def _transaction(self) -> Iterator[Transaction]:
        with _refusals():
            # One connection for all that is written: the writers of a process take turns, and to
            # fetch one from the pool takes SQLAlchemy as long as to write an image takes SQLite.
            if self._writer is None:
                self._writer = self._engine.connect()
            with self._writer.begin():
                driver(self._writer).execute("BEGIN IMMEDIATE")
                yield Transaction(self._writer)

    # --- written ----------------------------------------------------------------------------

    def event(
        self, kind: str, *, study_uid: str | None = None, job_id: str | None = None, **data: object
    ) -> None:
        """Add one event; it shares its commit with whatever else is written now."""
        self._together.write(
            lambda transaction: transaction.event(kind, study_uid=study_uid, job_id=job_id, **data)
        )

    def record_instance(
        self, instance: Instance, *, kind: str = "instance.stored", **data: str
    ) -> None:
        """Remember a stored instance; a study that was past reception is open again.

        It shares its commit with whatever else is written now, and has returned when that is done.
        """
        self._together.write(lambda transaction: transaction.arrive(instance, kind, data))

    def request_completion(self, study_uid: str, *, by: str = "") -> bool:
        """Ask that a study be taken as complete now; False if it is not known.

        One that has failed or was rejected is tried again. `by` says for the event who asked.
        """
        table = tables.studies
        with self.transaction() as transaction:
            wanted = select(table.c.state).where(table.c.study_uid == study_uid)
            state = transaction.connection.scalar(wanted)
            if state in {"failed", "rejected"}:
                transaction.reopen(study_uid, "asked for again")
            if state in {"receiving", "failed", "rejected"}:
                asked = update(table).where(table.c.study_uid == study_uid)
                transaction.connection.execute(asked.values(complete_requested=True))
                transaction.event("study.completion_requested", study_uid=study_uid, by=by)
            return state is not None

    def set_study_state(self, study_uid: str, state: str, reason: str = "") -> None:
        """Move a study on, in a transaction of its own; see `Transaction.set_study_state`."""
        with self.transaction() as transaction:
            transaction.set_study_state(study_uid, state, reason)

    def record_delivery(
        self,
        delivery_id: int,
        state: str,
        *,
        detail: str = "",
        next_at: datetime | None = None,
        transaction_uid: str | None = None,
    ) -> None:
        """Remember an attempt: ``sent``, ``failed`` or ``held``, or ``pending`` until `next_at`.

        What has ended stays as it ended, whatever a second courier has to say; `deliveries` tells
        whether the peer has what was sent.
        """
        table = tables.deliveries
        with self.transaction() as transaction:
            row = transaction.connection.execute(
                update(table)
                .where(table.c.id == delivery_id, table.c.state == "pending")
                .values(
                    state=state,
                    detail=detail,
                    attempts=table.c.attempts + 1,
                    next_at=to_text(next_at or transaction.now),
                    stored_at=to_text(transaction.now) if state == "sent" else None,
                    transaction_uid=transaction_uid,
                )
                .returning(table)
            ).one_or_none()
            if row is None:
                return
            transaction.event(
                {"pending": "delivery.retry"}.get(state, f"delivery.{state}"),
                study_uid=row.study_uid,
                job_id=row.job_id,
                destination=row.destination,
                attempt=row.attempts,
                detail=detail,
            )
            transaction.end_deliveries(row.job_id)

    def release(self, sop_uid: str, *, by: str = "") -> Result:
        """Send a result that is held, with whatever is wrong with it.

        Raises
        ------
        BadInput
            No result has this UID, or it is not held.
        """
        with self.transaction() as transaction:
            return transaction.release(sop_uid, by)

    def record_review(
        self,
        review: Review,
        state: str,
        *,
        detail: Mapping[str, Any],
        link: str = "",
        draft: Result | None = None,
    ) -> None:
        """Remember what became of something that came back; once, whoever else looks at it."""
        table = tables.reviews
        job_id, draft_uid = (draft.job_id, draft.sop_uid) if draft else (None, None)
        about = {"job_id": job_id, "draft_uid": draft_uid}
        with self.transaction() as transaction:
            looked = transaction.connection.execute(
                update(table)
                .where(table.c.instance_id == review.instance_id, table.c.state == "waiting")
                .values(state=state, link=link, detail=canonical(detail), **about)
            )
            if looked.rowcount:
                transaction.event(
                    "draft.answered" if draft else f"answer.{state}",
                    study_uid=review.study_uid,
                    job_id=job_id,
                    sop_uid=review.sop_uid,
                    **({"link": link, "draft": draft.sop_uid} if draft else {}),
                    **{key: each for key, each in detail.items() if key != "text"},
                )

    def issue_token(self, purpose: str, *, lifetime_s: float = 3600.0) -> str:
        """Make a token; only its digest is kept."""
        token = secrets.token_urlsafe(32)
        with self.transaction() as transaction:
            expires_at = to_text(transaction.now + timedelta(seconds=lifetime_s))
            row = {"digest": _sha256(token), "purpose": purpose, "expires_at": expires_at}
            transaction.connection.execute(tables.tokens.insert().values(**row))
        return token

    def redeem_token(self, purpose: str, token: str) -> bool:
        """Use a token up; tell whether it was good."""
        with self.transaction() as transaction:
            used = update(tables.tokens).where(_good(purpose, token, transaction.now))
            found = transaction.connection.execute(used.values(used_at=to_text(transaction.now)))
            return found.rowcount == 1

    def token_is_good(self, purpose: str, token: str) -> bool:
        """Tell whether a token is good, and leave it so."""
        wanted = select(tables.tokens.c.digest).where(_good(purpose, token, datetime.now(UTC)))
        return bool(self._rows(wanted))

    def token_was_issued(self, purpose: str) -> bool:
        """Tell whether any token was ever made for this purpose."""
        return bool(
            self._rows(select(tables.tokens.c.digest).where(tables.tokens.c.purpose == purpose))
        )

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Read, with statements of one's own; what is written meanwhile may be seen or not."""
        with _refusals(), self._engine.connect() as connection:
            yield connection

    def scrub(self) -> None:
        """Write the file anew, so that what was deleted or changed is in none of its bytes.

        Raises
        ------
        Unavailable
            Others read or write for so long that it cannot be done now.
        """
        with self.reading() as connection:
            connection.exec_driver_sql("VACUUM")
            # Else the write-ahead log keeps pages as they were (sqlite.org/wal.html).
            busy, *_ = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()
        if busy:
            raise Unavailable(f"{self.path} is read all the time, and cannot be written anew")

    def erased_events(self) -> int:
        """Count the events that are in the chain without what they said."""
        with self.reading() as connection:
            return chain.count_empty(connection)

    def head(self) -> tuple[int, str]:
        """Give number and digest of the last event; what `verify` can be held against later."""
        with _refusals(), self._engine.connect() as connection:
            return chain.head(connection)

    def verify(self, head: tuple[int, str] | None = None) -> int:
        """Check the whole chain and return the number of events.

        Parameters
        ----------
        head
            Number and digest noted earlier: only with them is a cut-off end found.

        Raises
        ------
        LedgerBroken
            Names the first event that is changed, missing or not linked.
        """
        with _refusals(), self._engine.connect() as connection:
            wanted = select(tables.events).order_by(tables.events.c.seq)
            return chain.verify(connection.execution_options(yield_per=1000).execute(wanted), head)

    def _rows(self, wanted: Select[Any]) -> Sequence[Row[Any]]:
        with _refusals(), self._engine.connect() as connection:
            return connection.execute(wanted).all()


@contextmanager
def _refusals() -> Iterator[None]:
    """Say a refusal of the database in the node's words: the peer is told to try again."""
    try:
        yield
    except (OperationalError, sqlite3.OperationalError) as error:
        said = error.orig if isinstance(error, OperationalError) else error
        kind = OutOfResources if "full" in str(said) else Unavailable
        raise kind(f"the ledger cannot be used: {said}") from error


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes out: SQLite waits for no lock when it changes the journal mode."""
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _engine(path: Path) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(path.absolute())),
        connect_args={"timeout": BUSY_S, "isolation_level": None},
        max_overflow=-1,
    )

    @sqlalchemy_event.listens_for(engine, "connect")
    def prepare(connection: Any, _: object) -> None:  # noqa: ANN401 - sqlite3's connection
        # FULL: what is committed is on the disk, also after a power cut (sqlite.org/pragma.html).
        # secure_delete: what is deleted is overwritten at once, not when its page is used again.
        for pragma in ("synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
            connection.execute(f"PRAGMA {pragma}")

    return engine


def _sha256(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def _good(purpose: str, token: str, now: datetime) -> ColumnElement[bool]:
    table = tables.tokens.c
    return and_(
        table.digest == _sha256(token),
        table.purpose == purpose,
        table.expires_at > to_text(now),
        table.used_at.is_(None),
    )
