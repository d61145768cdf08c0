"""Standing orders: what a rule of the site has fetched before a study is decided upon.

Knows the requests of `pull`. A study is fetched once for each time that it is open; what fails is
asked for again a few times, and then read as it is. After a restart what was asked for is found in
the ledger.
"""

import logging
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from dicom_node.errors import BadInput
from dicom_node.ledger import Ledger, Study

from . import pull

log = logging.getLogger(__name__)

ATTEMPTS: Final = 3
PAUSE_S: Final = 30.0  # until what has failed is asked for again
BY: Final = "rule"


@dataclass
class _Order:
    number: int  # of the request; 0: there can be none
    attempts: int = 1
    failed_at: float | None = None  # None: it has not


@dataclass(frozen=True)
class StandingOrders:
    """What was asked for, of the studies that are open."""

    ledger: Ledger
    _orders: dict[tuple[str, datetime], _Order] = field(default_factory=dict)

    def pending(self, study: Study, source: str) -> bool:
        """Say whether a study is still on its way; asks for it if nobody has yet."""
        key = (study.study_uid, study.opened_at)
        order = self._orders.get(key)
        if order is None:
            order = self._orders[key] = _Order(self._earlier(study) or self._ask(study, source))
        if not order.number:
            return False
        state = pull.find(self.ledger, order.number).state
        if state != "failed" or order.attempts >= ATTEMPTS:
            return state not in pull.ENDED
        if order.failed_at is None:
            order.failed_at = time.monotonic()
        if time.monotonic() - order.failed_at >= PAUSE_S:
            self._orders[key] = _Order(self._ask(study, source), order.attempts + 1)
        return True

    def forget(self, open_uids: set[str]) -> None:
        """Forget the studies that are not open any more."""
        for key in [each for each in self._orders if each[0] not in open_uids]:
            del self._orders[key]

    def _ask(self, study: Study, source: str) -> int:
        try:
            return pull.ask(self.ledger, source, {"StudyInstanceUID": study.study_uid}, by=BY)
        except BadInput as error:  # a scanner may send a UID that is none
            log.warning("pull.refused", extra={"study": study.study_uid, "reason": str(error)})
            return 0

    def _earlier(self, study: Study) -> int:
        """Find what an earlier process has asked for; 0 if there is nothing."""
        asked = [
            each.data["number"]
            for each in self.ledger.events(study_uid=study.study_uid)
            if each.kind == "pull.asked"
            and each.data.get("by") == BY
            and each.at >= study.opened_at
        ]
        return max(asked, default=0)
