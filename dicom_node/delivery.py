"""Results go to every destination, each at its own pace, until they are there or given up.

Knows the ledger's deliveries, the back-off and the destinations: peers, and a folder that a RIS
reads. What is held is not sent. One slow or dead peer delays no
other: each destination has its own thread while it has something to get.
"""

import logging
import random
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path

from . import scu, text_drop
from .config import Config, Destination
from .destinations import TEXT
from .errors import NodeError
from .ledger import Delivery, Ledger, Result

log = logging.getLogger(__name__)

LONGEST_WAIT_S = 3600.0
POLL_S = 0.5
MOST_DESTINATIONS = 1000  # threads are made as they are needed, and never shared by two peers


def run(ledger: Ledger, config: Config, stop: threading.Event) -> None:
    """Deliver whatever is due until told to stop; a delivery that is under way is finished."""
    under_way: dict[str, Future[None]] = {}
    with ThreadPoolExecutor(MOST_DESTINATIONS, thread_name_prefix="delivery") as pool:
        while not stop.is_set():
            # Before the ledger is read: what ends in between would be in the list as still due.
            busy = {each for each, future in under_way.items() if not future.done()}
            for destination, due in _due(ledger):
                if destination not in busy:
                    under_way[destination] = pool.submit(_deliver_all, ledger, config, due, stop)
            stop.wait(POLL_S)


def deliver(ledger: Ledger, config: Config, delivery: Delivery) -> bool:
    """Send to one destination what it gets of a job, SEG before the reports that refer to it.

    Returns
    -------
    Whether the peer has stored all of them. If not, the next attempt is planned or, after
    ``delivery_attempts``, the delivery has failed; either stands in the ledger with the reason.
    """
    made = [
        each
        for each in ledger.results(delivery.job_id)
        if each.label in (delivery.labels or (each.label,))
    ]
    sent = [each for each in made if not each.held]
    if not sent:
        ledger.record_delivery(delivery.id, "held", detail=_told(made, sent))
        return False
    try:
        _hand_over(ledger, config, delivery, sent)
    except NodeError as error:
        _put_off(ledger, config, delivery, str(error))
        return False
    except OSError as error:  # a result file that is gone or cannot be read, a folder without room
        _put_off(ledger, config, delivery, f"cannot read the result: {error}")
        return False
    ledger.record_delivery(delivery.id, "sent", detail=_told(made, sent))
    return True


def _hand_over(ledger: Ledger, config: Config, delivery: Delivery, sent: Sequence[Result]) -> None:
    if delivery.destination.startswith(TEXT):
        folder = Path(delivery.destination.removeprefix(TEXT))
        study = ledger.study(delivery.study_uid)
        accession = study.accession_number if study else ""
        name = text_drop.name(accession or delivery.study_uid, delivery.job_id)
        text_drop.put(sent[0].path.with_name(text_drop.SOURCE), folder / name)
        return
    scu.send(
        [each.path for each in sent],
        Destination.parse(delivery.destination),
        calling_ae=config.ae_title,
        timeout_s=config.network_timeout_s,
    )


def _told(made: Sequence[Result], sent: Sequence[Result]) -> str:
    held = len(made) - len(sent)
    return f"{len(sent)} instances stored" + (f", {held} held" if held else "")


def _due(ledger: Ledger) -> list[tuple[str, list[Delivery]]]:
    due = sorted(ledger.due_deliveries(), key=lambda each: (each.destination, each.id))
    return [(key, list(each)) for key, each in groupby(due, key=lambda each: each.destination)]


def _deliver_all(
    ledger: Ledger, config: Config, deliveries: Sequence[Delivery], stop: threading.Event
) -> None:
    for delivery in deliveries:
        if stop.is_set():
            return
        try:
            deliver(ledger, config, delivery)
        except Exception as error:  # the edge of this destination's loop: put off, never lost
            log.exception("delivery.error", extra={"job": delivery.job_id})
            _put_off(ledger, config, delivery, f"{type(error).__name__}: {error}")


def _put_off(ledger: Ledger, config: Config, delivery: Delivery, reason: str) -> None:
    attempt = delivery.attempts + 1
    if attempt >= config.delivery_attempts:
        ledger.record_delivery(delivery.id, "failed", detail=reason)
        return
    wait_s = min(LONGEST_WAIT_S, config.delivery_backoff_s * 2.0 ** (attempt - 1))
    # Jitter keeps many studies from knocking at a returning PACS in the same second.
    wait_s *= random.uniform(0.8, 1.0)  # noqa: S311 - jitter, no secret
    ledger.record_delivery(
        delivery.id,
        "pending",
        detail=reason,
        next_at=datetime.now(UTC) + timedelta(seconds=wait_s),
    )
