"""Storage commitment, as its user: what a peer is asked to keep, and what it says (PS3.4 J).

Knows the two data sets. Must not know sockets or the ledger.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from pydicom import Dataset
from pydicom.uid import generate_uid

from dicom_node.errors import BadInput
from dicom_node.network import outgoing
from dicom_node.network.dimse import Request

ALL_COMMITTED: Final = 1  # Event Type ID (PS3.4 Table J.3-2)
FAILURES: Final = 2
REASONS: Final[Mapping[int, str]] = {  # PS3.3 C.14.1.1
    0x0110: "processing failure",
    0x0112: "no such object instance",
    0x0213: "resource limitation",
    0x0122: "SOP class not supported",
    0x0119: "class and instance conflict",
    0x0131: "duplicate transaction UID",
}


@dataclass(frozen=True)
class Report:
    """What a peer says of a transaction: what it keeps, and why it does not keep the rest."""

    transaction_uid: str
    committed: frozenset[str]
    failed: Mapping[str, int]

    def __str__(self) -> str:
        if not self.failed:
            return f"committed to {len(self.committed)} instances"
        reasons = sorted({REASONS.get(each, f"0x{each:04X}") for each in self.failed.values()})
        return f"not committed to {len(self.failed)} instances: {', '.join(reasons)}"


def new_transaction() -> str:
    """Make a transaction UID."""
    return str(generate_uid(prefix=None))


def information(transaction_uid: str, instances: Iterable[tuple[str, str]]) -> Dataset:
    """Write what an N-ACTION asks for: SOP class and instance UIDs (PS3.4 Table J.3-1)."""
    asked = Dataset()
    asked.TransactionUID = transaction_uid
    asked.ReferencedSOPSequence = [_reference(*each) for each in instances]
    return asked


def report(request: Request) -> Report:
    """Read an N-EVENT-REPORT (PS3.4 Table J.3-2).

    Raises
    ------
    BadInput
        It is of no event of storage commitment, or has no transaction UID.
    """
    if request.type_id not in {ALL_COMMITTED, FAILURES}:
        raise BadInput(f"expected event type 1 or 2 of storage commitment, got {request.type_id}")
    said = outgoing.decoded(request.data, request.transfer_syntax_uid)
    uid = str(said.get("TransactionUID") or "")
    if not uid:
        raise BadInput("a report of storage commitment without TransactionUID")
    failed = said.get("FailedSOPSequence") or []
    return Report(
        uid,
        frozenset(
            str(each.ReferencedSOPInstanceUID) for each in said.get("ReferencedSOPSequence") or []
        ),
        {
            str(each.ReferencedSOPInstanceUID): int(each.get("FailureReason") or 0x0110)
            for each in failed
        },
    )


def _reference(sop_class_uid: str, sop_uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class_uid, sop_uid
    return item
