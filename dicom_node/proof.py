"""Whether a peer has what it was sent: it commits to it, or finds it; else it is unproven.

Knows storage commitment (PS3.4 J), C-FIND (PS3.4 C) and what the ledger does with the answer. A
report of commitment is taken from wherever it comes: on the association that asked, on one that the
peer opens to us, minutes later, after a restart.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Final

from pydicom import Dataset

from . import commitment, deliveries, outgoing, scu
from .backoff import again_at
from .config import Config, Destination
from .dimse import Answer, Request
from .errors import NodeError
from .ledger import Delivery, Ledger
from .part10 import Part10
from .requestor import Offer

log = logging.getLogger(__name__)

LISTEN_S: Final = 2.0  # for a report on the association that asked
AGAIN_S: Final = 10.0  # until a peer is asked again whether it finds everything
UNKNOWN_TRANSACTION: Final = 0x0110


def offers(destination: Destination) -> list[Offer]:
    """Tell which services are proposed along with what is stored."""
    wanted = {
        scu.COMMITMENT: destination.proof in {"auto", "commitment"},
        scu.STUDY_ROOT_FIND: destination.proof in {"auto", "query"},
    }
    return [Offer(uid, outgoing.SYNTAXES) for uid, wants in wanted.items() if wants]


def sent(ledger: Ledger, delivery: Delivery, *, detail: str, commits: bool) -> Delivery:
    """Say that the peer has stored everything; with a transaction if it will be asked to commit."""
    uid = commitment.new_transaction() if commits else None
    ledger.record_delivery(delivery.id, "sent", detail=detail, transaction_uid=uid)
    return replace(deliveries.find(ledger, delivery.id), transaction_uid=uid)


def seek(
    ledger: Ledger,
    config: Config,
    delivery: Delivery,
    files: Sequence[Part10],
    opened: scu.Session,
) -> None:
    """Ask the peer, which has stored everything, to prove it; the ledger says ``sent`` before."""
    commits = opened.takes(scu.COMMITMENT) and delivery.transaction_uid is not None
    if not commits and not opened.takes(scu.STUDY_ROOT_FIND):
        told = f"{delivery.detail}; the peer offers no proof of it"
        deliveries.settle(ledger, delivery.id, "sent-unproven", detail=told)
        return
    try:
        if commits:
            _ask_commitment(ledger, delivery, files, opened)
        finds = opened.takes(scu.STUDY_ROOT_FIND)
        if finds and _waits(ledger, delivery) and not _missing(files, opened):
            told = f"{delivery.detail}, and found by a query"
            deliveries.settle(ledger, delivery.id, "delivered", detail=told)
    except NodeError as error:
        # What is stored is stored: the proof is another matter, and is asked for again.
        log.info("proof.failed", extra={"to": delivery.destination, "reason": str(error)})
    if _waits(ledger, delivery):
        _look_again(ledger, config, delivery)


def look_again(
    ledger: Ledger,
    config: Config,
    delivery: Delivery,
    destination: Destination,
    files: Sequence[Part10],
) -> None:
    """Look at a delivery that is ``sent``: ask the peer again, or give the proof up."""
    find = [each for each in offers(destination) if each.abstract_syntax == scu.STUDY_ROOT_FIND]

    def missing() -> list[str]:
        with scu.session(destination, find, scu.Caller.of(config, destination)) as opened:
            return _missing(files, opened)

    by_query(ledger, config, delivery, destination, missing if find else None)


def by_query(
    ledger: Ledger,
    config: Config,
    delivery: Delivery,
    destination: Destination,
    missing: Callable[[], list[str]] | None,
) -> None:
    """Ask a peer what it lacks of a delivery that is ``sent``; None if it is not to be asked."""
    if destination.proof == "none" or _is_over(config, delivery):
        told = f"{delivery.detail}; not proven"
        deliveries.settle(ledger, delivery.id, "sent-unproven", detail=told)
        return
    try:
        if missing is not None and not missing():
            told = f"{delivery.detail}, and found by a query"
            deliveries.settle(ledger, delivery.id, "delivered", detail=told)
    except NodeError as error:
        log.info("proof.failed", extra={"to": delivery.destination, "reason": str(error)})
    if _waits(ledger, delivery):
        _look_again(ledger, config, delivery)


def _is_over(config: Config, delivery: Delivery) -> bool:
    stored_at = delivery.stored_at  # None: of an earlier version
    limit = timedelta(seconds=config.proof_s)
    return stored_at is None or datetime.now(UTC) >= stored_at + limit


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
    told = str(report)
    if not report.failed:
        deliveries.settle(ledger, delivery.id, "delivered", detail=told)
    elif delivery.attempts >= config.delivery_attempts:
        deliveries.settle(ledger, delivery.id, "failed", detail=told)
    else:
        next_at = again_at(config, delivery.attempts)
        deliveries.settle(ledger, delivery.id, "pending", detail=told, next_at=next_at)
    return Answer()


def _ask_commitment(
    ledger: Ledger, delivery: Delivery, files: Sequence[Part10], opened: scu.Session
) -> None:
    assert delivery.transaction_uid is not None  # noqa: S101 - `seek` looked
    asked = commitment.information(
        delivery.transaction_uid, [(each.sop_class_uid, each.sop_uid) for each in files]
    )
    opened.ask_commitment(asked)
    opened.listen(LISTEN_S, lambda: not _waits(ledger, delivery))


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


def _waits(ledger: Ledger, delivery: Delivery) -> bool:
    return deliveries.find(ledger, delivery.id).state == "sent"


def _look_again(ledger: Ledger, config: Config, delivery: Delivery) -> None:
    pause_s = min(AGAIN_S, config.proof_s)
    deliveries.wait(ledger, delivery.id, datetime.now(UTC) + timedelta(seconds=pause_s))
