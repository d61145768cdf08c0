"""Storage commitment, as its provider: we say what of an archive's list we keep (PS3.4 J.3).

Knows the ledger and the files. What is asked is looked up at once: each instance must be in the
ledger, with this SOP class, and its file whole on the disk. The report follows on the association
that asked. A peer that has ended it before it answered gets the report on one that we open, if its
AE title is that of a destination; it waits in the ledger for that.
"""

import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from pydicom import Dataset
from sqlalchemy import Connection, delete, insert, select, update

from dicom_node import scu
from dicom_node.config import Config
from dicom_node.errors import BadInput, NodeError
from dicom_node.ledger import Ledger, tables
from dicom_node.ledger.records import to_text
from dicom_node.network import dimse, outgoing
from dicom_node.network.dimse import Answer, Ask, Request
from dicom_node.network.requestor import Offer
from dicom_node.scu import commitment
from dicom_node.scu.backoff import again_at

log = logging.getLogger(__name__)

REQUEST: Final = 1  # Action Type ID (PS3.4 Table J.3-1)
NO_SUCH_OBJECT: Final = 0x0112
CLASS_CONFLICT: Final = 0x0119
MOST: Final = 100_000  # instances of a request
PATIENCE_S: Final = 10.0  # for the answer on the association that asked
MOST_ATTEMPTS: Final = 20
POLL_S: Final = 1.0
AT_ONCE: Final = 500


@dataclass(frozen=True)
class Provider:
    """Answers requests, and reports."""

    ledger: Ledger
    config: Config

    def asked(self, request: Request) -> Answer:
        """Answer an N-ACTION (PS3.4 J.3.2).

        Raises
        ------
        BadInput
            It is no request for commitment.
        """
        uid, wanted = _wanted(request)
        with self.ledger.transaction() as transaction:
            failed = _failures(transaction.connection, wanted)
            transaction.event(
                "commitment.asked",
                calling_ae=request.calling_ae,
                transaction_uid=uid,
                kept=len(wanted) - len(failed),
                failed=len(failed),
            )
            number = transaction.connection.scalar(
                insert(tables.commitments)
                .values(
                    transaction_uid=uid,
                    ae_title=request.calling_ae,
                    wanted=json.dumps(wanted),
                    next_at=to_text(datetime.now(UTC) + timedelta(seconds=PATIENCE_S)),
                )
                .returning(tables.commitments.c.id)
            )
        report, kind = _report(uid, wanted, failed)
        command = outgoing.command_set(
            {
                dimse.AFFECTED_CLASS: scu.COMMITMENT,
                dimse.COMMAND_FIELD: dimse.N_EVENT_REPORT_RQ,
                dimse.MESSAGE_ID: 1,
                dimse.DATA_SET_TYPE: dimse.A_DATA_SET,
                dimse.AFFECTED_INSTANCE: f"{scu.COMMITMENT}.1",
                dimse.EVENT_TYPE: kind,
            }
        )
        data = outgoing.encoded(report, request.transfer_syntax_uid)

        def done(status: int) -> None:
            if status == dimse.SUCCESS:
                self._end(int(number or 0), "commitment.reported", how="on its association")

        return Answer(ask=Ask(command, data, done))

    def run(self, stop: threading.Event) -> None:
        """Report to those who have not heard it yet, until told to stop."""
        while not stop.wait(POLL_S):
            try:
                for row in self._due():
                    self._report(row)
            except Exception:  # the loop's edge
                log.exception("commitment.error")

    def _due(self) -> list[Any]:
        table = tables.commitments
        with self.ledger.reading() as connection:
            due = select(table).where(table.c.next_at <= to_text(datetime.now(UTC)))
            return list(connection.execute(due.order_by(table.c.id)))

    def _report(self, row: Any) -> None:  # noqa: ANN401 - a row of SQLAlchemy
        peers = [each for each in self.config.destinations if each.ae_title == row.ae_title]
        if not peers:
            told = "the peer ended its association, and no destination has its AE title"
            self._end(row.id, "commitment.unreported", reason=told)
            return
        wanted: dict[str, str] = json.loads(row.wanted)
        with self.ledger.reading() as connection:
            report, kind = _report(row.transaction_uid, wanted, _failures(connection, wanted))
        offer = Offer(scu.COMMITMENT, outgoing.SYNTAXES, as_scp=True)
        try:
            caller = scu.Caller.of(self.config, peers[0])
            with scu.session(peers[0], [offer], caller) as opened:
                opened.report_commitment(report, kind)
        except NodeError as error:
            self._put_off(row, str(error))
        else:
            self._end(row.id, "commitment.reported", how="on an association of ours")

    def _put_off(self, row: Any, reason: str) -> None:  # noqa: ANN401 - as above
        attempts = row.attempts + 1
        if attempts >= MOST_ATTEMPTS:
            self._end(row.id, "commitment.unreported", reason=reason)
            return
        table = tables.commitments
        changed = {"attempts": attempts, "next_at": to_text(again_at(self.config, attempts))}
        with self.ledger.transaction() as transaction:
            transaction.connection.execute(
                update(table).where(table.c.id == row.id).values(changed)
            )

    def _end(self, number: int, kind: str, **data: str) -> None:
        table = tables.commitments
        with self.ledger.transaction() as transaction:
            row = transaction.connection.execute(
                delete(table).where(table.c.id == number).returning(table)
            ).one_or_none()
            if row is not None:
                told = {"calling_ae": row.ae_title, "transaction_uid": row.transaction_uid}
                transaction.event(kind, **told, **data)


def _wanted(request: Request) -> tuple[str, dict[str, str]]:
    if request.type_id != REQUEST:
        raise BadInput(f"expected action type 1 of storage commitment, got {request.type_id}")
    asked = outgoing.decoded(request.data, request.transfer_syntax_uid)
    uid = str(asked.get("TransactionUID") or "")
    items = asked.get("ReferencedSOPSequence") or []
    if not uid or not items or len(items) > MOST:
        raise BadInput(
            f"a request for commitment has a TransactionUID and 1 to {MOST} instances,"
            f" not {uid!r} and {len(items)}"
        )
    try:
        return uid, {
            str(each.ReferencedSOPInstanceUID): str(each.ReferencedSOPClassUID) for each in items
        }
    except AttributeError as error:
        raise BadInput(f"a request for commitment: {error}") from error


def _failures(connection: Connection, wanted: Mapping[str, str]) -> dict[str, int]:
    """Look for each instance; give a failure reason (PS3.3 C.14.1.1) for those we do not keep."""
    failed = dict.fromkeys(wanted, NO_SUCH_OBJECT)
    table, uids = tables.instances, list(wanted)
    for first in range(0, len(uids), AT_ONCE):
        rows = connection.execute(
            select(table).where(
                table.c.sop_uid.in_(uids[first : first + AT_ONCE]),
                table.c.superseded.is_(False),
                table.c.expired_at.is_(None),
            )
        )
        for row in rows:
            if row.sop_class_uid != wanted[row.sop_uid]:
                failed[row.sop_uid] = CLASS_CONFLICT
            elif _is_whole(Path(row.path), row.size):
                failed.pop(row.sop_uid, None)
    return failed


def _is_whole(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _report(uid: str, wanted: Mapping[str, str], failed: Mapping[str, int]) -> tuple[Dataset, int]:
    """Write an N-EVENT-REPORT's data set and its Event Type ID (PS3.4 Table J.3-2)."""
    kept = [(sop_class, each) for each, sop_class in wanted.items() if each not in failed]
    report = commitment.information(uid, kept)
    if not kept:
        del report.ReferencedSOPSequence
    if not failed:
        return report, commitment.ALL_COMMITTED
    gone = commitment.information(uid, [(wanted[each], each) for each in failed])
    for item in gone.ReferencedSOPSequence:
        item.FailureReason = failed[item.ReferencedSOPInstanceUID]
    report.FailedSOPSequence = gone.ReferencedSOPSequence
    return report, commitment.FAILURES
