"""Whether a peer has what it was sent: it commits to it, or finds it; else it is unproven.

Knows storage commitment (PS3.4 J), C-FIND (PS3.4 C) and what the ledger does with the answer. A
report of commitment is taken from wherever it comes: on the association that asked, on one that the
peer opens to us, minutes later, after a restart.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import groupby
from typing import Final

from pydicom import Dataset

from dicom_node import scu
from dicom_node.config import Config, Destination
from dicom_node.errors import NodeError, NotTaken
from dicom_node.ledger import Delivery, Ledger, deliveries
from dicom_node.network import outgoing
from dicom_node.network.dimse import Answer, Request
from dicom_node.network.part10 import Part10
from dicom_node.network.requestor import Offer
from dicom_node.scu import commitment
from dicom_node.scu.backoff import again_at

log = logging.getLogger(__name__)

LISTEN_S: Final = 2.0  # for a report on the association that asked
AGAIN_S: Final = 10.0  # until a peer is asked again whether it finds everything
UNKNOWN_TRANSACTION: Final = 0x0110
FOUND: Final = ", and found by a query"


def offers(destination: Destination) -> list[Offer]:
    """Tell which services are proposed along with what is stored."""
    wanted = {
        scu.COMMITMENT: destination.proof in {"auto", "commitment"},
        scu.STUDY_ROOT_FIND: destination.proof in {"auto", "query"},
    }
    return [Offer(uid, outgoing.SYNTAXES) for uid, wants in wanted.items() if wants]


@dataclass(frozen=True)
class Case:
    """A delivery that a destination has stored, as ``sent`` in the ledger, and its files."""

    ledger: Ledger
    config: Config
    delivery: Delivery
    destination: Destination
    files: Sequence[Part10]

    @property
    def waits(self) -> bool:
        """Whether nothing has been said of it yet, by whomever."""
        return deliveries.find(self.ledger, self.delivery.id).state == "sent"

    def settle(self, state: str, told: str) -> None:
        """Say what is proven."""
        detail = f"{self.delivery.detail}{told}"
        deliveries.settle(self.ledger, self.delivery.id, state, detail=detail)

    def caller(self) -> scu.Caller:
        """Call the destination, and take its reports on our own association."""
        return scu.Caller.of(
            self.config, self.destination, partial(reported, self.ledger, self.config)
        )


def sent(ledger: Ledger, delivery: Delivery, *, detail: str, commits: bool) -> Delivery:
    """Say that the peer has stored everything; with a transaction if it will be asked to commit."""
    uid = commitment.new_transaction() if commits else None
    ledger.record_delivery(delivery.id, "sent", detail=detail, transaction_uid=uid)
    return replace(deliveries.find(ledger, delivery.id), transaction_uid=uid)


def seek(case: Case, opened: scu.Session) -> None:
    """Ask the peer, which has just stored everything, to prove it."""
    commits = opened.takes(scu.COMMITMENT) and case.delivery.transaction_uid is not None
    if not commits and not opened.takes(scu.STUDY_ROOT_FIND):
        case.settle("sent-unproven", "; the peer offers no proof of it")
        return
    try:
        if commits:
            _ask_commitment(case, opened)
        if opened.takes(scu.STUDY_ROOT_FIND) and case.waits and not _missing(case.files, opened):
            case.settle("delivered", FOUND)
    except NodeError as error:
        # What is stored is stored: the proof is another matter, and is asked for again.
        case.ledger.event(
            "delivery.proof_failed",
            study_uid=case.delivery.study_uid,
            job_id=case.delivery.job_id,
            destination=case.delivery.destination,
            reason=str(error),
        )
    if case.waits:
        _look_later(case)


def look_again(case: Case) -> None:
    """Look at a delivery that is ``sent``: take a report that the peer has kept, or ask it.

    A peer may give its report on whatever association we open next (PS3.4 J.3.3).
    """
    by_query(case, lambda: _ask_again(case))


def by_query(case: Case, missing: Callable[[], Sequence[str] | None]) -> None:
    """Ask a peer what it lacks of a delivery that is ``sent``; None is no answer.

    In the end, after `proof_s`, it is sent again if the peer finds some of it and not all, and
    unproven if it finds none or gives no answer: many find nothing that is no image.
    """
    if case.destination.proof == "none":
        case.settle("sent-unproven", "; not to be proven")
        return
    gone, why = None, "the peer has not reported"
    try:
        gone = missing()
    except NotTaken:
        case.settle("sent-unproven", "; the peer offers no proof of it")
        return
    except NodeError as error:
        why = str(error)
    if not case.waits:
        return
    if gone is not None and not gone:
        case.settle("delivered", FOUND)
    elif not _is_over(case):
        _look_later(case)
    else:
        _give_up(case, gone, why)


def _give_up(case: Case, gone: Sequence[str] | None, why: str) -> None:
    if gone is not None:
        why = f"the peer finds {len(case.files) - len(gone)} of {len(case.files)}"
        if len(gone) < len(case.files):
            _send_again(case.ledger, case.config, case.delivery, f"{case.delivery.detail}; {why}")
            return
    case.settle("sent-unproven", f"; not proven: {why}")


def reported(ledger: Ledger, config: Config, request: Request) -> Answer:
    """Answer an N-EVENT-REPORT of storage commitment (PS3.4 J.3.3), and do what follows from it.

    Raises
    ------
    BadInput
        It cannot be understood.
    """
    report = commitment.report(request)
    delivery = deliveries.of_transaction(ledger, report.transaction_uid)
    if delivery is None:
        return Answer(UNKNOWN_TRANSACTION, "no transaction of ours has this UID")
    left_out = _asked(ledger, delivery) - report.committed - set(report.failed)
    if left_out:
        told = f"{report}; of {len(left_out)} it says nothing"
        _send_again(ledger, config, delivery, told)
    elif report.failed:
        _send_again(ledger, config, delivery, str(report))
    else:
        deliveries.settle(ledger, delivery.id, "delivered", detail=str(report))
    return Answer()


def _asked(ledger: Ledger, delivery: Delivery) -> set[str]:
    """Tell which instances the peer was asked to commit to, as the files say."""
    made = ledger.results(delivery.job_id)
    chosen = [each for each in made if each.label in (delivery.labels or (each.label,))]
    return {Part10.read(each.path).sop_uid for each in chosen if not each.held}


def attempts(config: Config, delivery: Delivery) -> int:
    """Say how often a delivery is tried: as its destination says, or the settings for all."""
    chosen = (each for each in config.destinations if str(each) == delivery.destination)
    return next((each.attempts for each in chosen if each.attempts), config.delivery_attempts)


def _send_again(ledger: Ledger, config: Config, delivery: Delivery, told: str) -> None:
    """Send what a peer has lost, as often as anything is sent at most."""
    if delivery.attempts >= attempts(config, delivery):
        deliveries.settle(ledger, delivery.id, "failed", detail=told)
        return
    next_at = again_at(config, delivery.attempts)
    deliveries.settle(ledger, delivery.id, "pending", detail=told, next_at=next_at)


def _is_over(case: Case) -> bool:
    stored_at = case.delivery.stored_at  # None: of an earlier version
    return stored_at is None or _since(stored_at) >= timedelta(seconds=case.config.proof_s)


def _since(moment: datetime) -> timedelta:
    return datetime.now(UTC) - moment


def _ask_commitment(case: Case, opened: scu.Session) -> None:
    instances = [(each.sop_class_uid, each.sop_uid) for each in case.files]
    opened.ask_commitment(commitment.information(str(case.delivery.transaction_uid), instances))
    opened.listen(LISTEN_S, lambda: not case.waits)


def _ask_again(case: Case) -> list[str] | None:
    waits = case.delivery.transaction_uid is not None
    wanted = [
        each for each in offers(case.destination) if waits or each.abstract_syntax != scu.COMMITMENT
    ]
    if not wanted:
        return None
    with scu.session(case.destination, wanted, case.caller()) as opened:
        # No pause was set yet: the node ended after the store and before it asked.
        if opened.takes(scu.COMMITMENT) and case.delivery.next_at == case.delivery.stored_at:
            _ask_commitment(case, opened)
        elif opened.takes(scu.COMMITMENT):
            opened.listen(LISTEN_S, lambda: not case.waits)
        if opened.takes(scu.STUDY_ROOT_FIND) and case.waits:
            return _missing(case.files, opened)
    return None


def _missing(files: Sequence[Part10], opened: scu.Session) -> list[str]:
    there = sorted(files, key=lambda each: each.place)
    missing: list[str] = []
    for (study_uid, series_uid), members in groupby(there, key=lambda each: each.place):
        found = _found(opened, study_uid, series_uid)
        missing += [each.sop_uid for each in members if each.sop_uid not in found]
    return missing


def _found(opened: scu.Session, study_uid: str, series_uid: str) -> set[str]:
    wanted = Dataset()
    wanted.QueryRetrieveLevel = "IMAGE"
    wanted.StudyInstanceUID, wanted.SeriesInstanceUID = study_uid, series_uid
    wanted.SOPInstanceUID = ""
    return {str(each.get("SOPInstanceUID", "")) for each in opened.find(wanted)}


def _look_later(case: Case) -> None:
    """Ask soon at first, then less often: a quarter of the time that has gone by."""
    stored_at = case.delivery.stored_at or datetime.now(UTC)
    pause_s = max(AGAIN_S, _since(stored_at).total_seconds() / 4)
    deliveries.wait(
        case.ledger,
        case.delivery.id,
        datetime.now(UTC) + timedelta(seconds=min(pause_s, case.config.proof_s)),
    )
