"""Results go to every destination, each at its own pace, until they are there or given up.

Knows the ledger's deliveries, the back-off and the destinations: peers by DIMSE or STOW-RS, and a
folder that a RIS reads. What is held is not sent. One slow or dead peer delays no other: each
destination has its own thread while it has something to get. What a peer has stored is ``sent``;
it is ``delivered`` only on proof.
"""

import logging
import threading
from collections import defaultdict
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from dicom_node import scu, text_drop
from dicom_node.config import Config
from dicom_node.config.destinations import TEXT, named
from dicom_node.errors import Busy, NodeError, NotTaken
from dicom_node.ledger import Delivery, Ledger, Result, deliveries
from dicom_node.network.part10 import Part10
from dicom_node.scu import stow
from dicom_node.scu.backoff import Breaker, again_at

from . import proof

log = logging.getLogger(__name__)

POLL_S = 0.5
MOST_DESTINATIONS = 1000  # threads are made as they are needed, and never shared by two peers
MOST_AT_ONCE = 500  # deliveries that are looked at; those of a busy destination wait in the ledger
DUE = ("pending", "sent")


def run(ledger: Ledger, config: Config, stop: threading.Event) -> None:
    """Deliver whatever is due until told to stop; a delivery that is under way is finished."""
    under_way: dict[str, Future[None]] = {}
    breakers: defaultdict[str, Breaker] = defaultdict(Breaker)
    with ThreadPoolExecutor(MOST_DESTINATIONS, thread_name_prefix="delivery") as pool:
        while not stop.is_set():
            # Before the ledger is read: what ends in between would be in the list as still due.
            busy = {each for each, future in under_way.items() if not future.done()}
            busy |= {each for each, breaker in breakers.items() if breaker.is_open}
            for destination, due in _due(ledger, busy):
                courier = _Courier(ledger, config, breakers[destination], stop)
                under_way[destination] = pool.submit(courier.take, due)
            stop.wait(POLL_S)


def deliver(ledger: Ledger, config: Config, delivery: Delivery) -> bool:
    """Send to one destination what it gets of a job, SEG before the reports that refer to it.

    Returns
    -------
    Whether the peer has stored all of them. If not, the next attempt is planned, or the delivery
    has failed: after ``delivery_attempts``, or when another attempt could change nothing. Either
    stands in the ledger with the reason.
    """
    made = _made(ledger, delivery)
    there = [each for each in made if not each.held]
    if not there:
        ledger.record_delivery(delivery.id, "held", detail=_told(made, there))
        return False
    try:
        _hand_over(ledger, config, delivery, there, _told(made, there))
    except NotTaken as error:
        ledger.record_delivery(delivery.id, "failed", detail=str(error))
        return False
    except NodeError as error:
        retry_after_s = error.retry_after_s if isinstance(error, Busy) else None
        _put_off(ledger, config, delivery, str(error), retry_after_s)
        return False
    except OSError as error:  # a result file that is gone or cannot be read, a folder without room
        _put_off(ledger, config, delivery, f"cannot read the result: {error}")
        return False
    return True


@dataclass(frozen=True)
class _Courier:
    """Takes what is due to one destination, one after the other."""

    ledger: Ledger
    config: Config
    breaker: Breaker
    stop: threading.Event

    def take(self, due: Sequence[Delivery]) -> None:
        for delivery in due:
            # After a failure in a row too many only one is let through.
            if self.stop.is_set() or self.breaker.is_open:
                return
            try:
                self._take(delivery)
            except Exception as error:  # the edge of this destination's loop: put off, never lost
                log.exception("delivery.error", extra={"job": delivery.job_id})
                self._put_off(delivery, f"{type(error).__name__}: {error}")

    def _take(self, delivery: Delivery) -> None:
        if delivery.state == "sent":
            _prove(self.ledger, self.config, delivery)
            return
        deliver(self.ledger, self.config, delivery)
        ended = deliveries.find(self.ledger, delivery.id)
        # A peer that refuses an object for good is there, and takes the next one.
        if ended.state != "pending":
            if self.breaker.worked():
                deliveries.hasten(self.ledger, delivery.destination)
        elif self.breaker.failed():
            told = {"destination": delivery.destination, "reason": ended.detail}
            self.ledger.event("destination.down", **told)

    def _put_off(self, delivery: Delivery, reason: str) -> None:
        if delivery.state == "sent":
            deliveries.wait(self.ledger, delivery.id, again_at(self.config, delivery.attempts))
        else:
            _put_off(self.ledger, self.config, delivery, reason)


def _made(ledger: Ledger, delivery: Delivery) -> list[Result]:
    return [
        each
        for each in ledger.results(delivery.job_id)
        if each.label in (delivery.labels or (each.label,))
    ]


def _hand_over(
    ledger: Ledger, config: Config, delivery: Delivery, there: Sequence[Result], told: str
) -> None:
    if delivery.destination.startswith(TEXT):
        _drop(ledger, delivery, there, told)
        return
    destination = named(config.destinations, delivery.destination)
    files = [Part10.read(each.path) for each in there]
    case = proof.Case(ledger, config, delivery, destination, files)
    if destination.url:
        stow.send(files, destination, config)
        stored = proof.sent(ledger, delivery, detail=told, commits=False)
        _query(replace(case, delivery=stored))
        return
    caller, asked = case.caller(), proof.offers(destination)
    *rest, last = scu.batches(files, scu.MAXIMUM_CONTEXTS - len(asked))
    for batch in rest:
        with scu.session(destination, scu.offers_of(batch), caller) as opened:
            opened.store(batch)
    with scu.session(destination, [*scu.offers_of(last), *asked], caller) as opened:
        opened.store(last)
        stored = proof.sent(ledger, delivery, detail=told, commits=opened.takes(scu.COMMITMENT))
        proof.seek(replace(case, delivery=stored), opened)


def _drop(ledger: Ledger, delivery: Delivery, there: Sequence[Result], told: str) -> None:
    folder = Path(delivery.destination.removeprefix(TEXT))
    study = ledger.study(delivery.study_uid)
    accession = study.accession_number if study else ""
    name = text_drop.name(accession or delivery.study_uid, delivery.job_id)
    text_drop.put(there[0].path.with_name(text_drop.SOURCE), folder / name)
    proof.sent(ledger, delivery, detail=told, commits=False)
    # It was written through: the file is its own proof.
    deliveries.settle(ledger, delivery.id, "delivered", detail="the text is in the folder")


def _prove(ledger: Ledger, config: Config, delivery: Delivery) -> None:
    """Look again at what a peer has stored."""
    there = [each for each in _made(ledger, delivery) if not each.held]
    try:
        destination = named(config.destinations, delivery.destination)
        files = [Part10.read(each.path) for each in there]
    except (NodeError, OSError) as error:
        told = f"{delivery.detail}; cannot be proven: {error}"
        deliveries.settle(ledger, delivery.id, "sent-unproven", detail=told)
        return
    case = proof.Case(ledger, config, delivery, destination, files)
    (_query if destination.url else proof.look_again)(case)


def _query(case: proof.Case) -> None:
    proof.by_query(case, lambda: stow.missing(case.files, case.destination, case.config))


def _told(made: Sequence[Result], sent: Sequence[Result]) -> str:
    held = len(made) - len(sent)
    return f"{len(sent)} instances stored" + (f", {held} held" if held else "")


def _due(ledger: Ledger, but: Collection[str]) -> list[tuple[str, list[Delivery]]]:
    """Give what is due by destination; what is to be sent before what is to be proven."""
    found = ledger.due_deliveries(states=DUE, but=but, limit=MOST_AT_ONCE)
    due = sorted(found, key=lambda each: (each.destination, each.state == "sent", each.id))
    return [(key, list(each)) for key, each in groupby(due, key=lambda each: each.destination)]


def _put_off(
    ledger: Ledger,
    config: Config,
    delivery: Delivery,
    reason: str,
    retry_after_s: float | None = None,
) -> None:
    attempt = delivery.attempts + 1
    if attempt >= proof.attempts(config, delivery):
        ledger.record_delivery(delivery.id, "failed", detail=reason)
        return
    next_at = again_at(config, attempt, retry_after_s)
    ledger.record_delivery(delivery.id, "pending", detail=reason, next_at=next_at)
