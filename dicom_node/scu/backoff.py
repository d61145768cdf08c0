"""When a delivery is tried again, and when a destination is left alone for a while.

Knows the settings and a clock. Must not know peers or protocols.
"""

import random
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from dicom_node.config import Config

LONGEST_WAIT_S: Final = 3600.0
FAILURES: Final = 3  # in a row, until a destination is left alone
SHORTEST_REST_S: Final = 5.0
LONGEST_REST_S: Final = 300.0


def again_at(config: Config, attempt: int, retry_after_s: float | None = None) -> datetime:
    """Say when to try again after so many attempts; `retry_after_s` if the peer said when.

    The longest wait doubles up to an hour; full jitter, any time until then, keeps many studies
    from knocking at a returning PACS in the same second.
    """
    # No power of more than 30 doublings: it is an hour long before.
    wait_s = config.delivery_backoff_s * 2.0 ** min(attempt - 1, 30)
    wait_s = min(LONGEST_WAIT_S, wait_s) * random.uniform(0.0, 1.0)  # noqa: S311 - no secret
    if retry_after_s is not None:
        wait_s = min(max(wait_s, retry_after_s), LONGEST_WAIT_S)
    return datetime.now(UTC) + timedelta(seconds=wait_s)


class Breaker:
    """Leaves a destination alone after failures in a row: its other deliveries need not try too.

    After a rest, which doubles, one delivery is let through; what becomes of it decides.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._until = float("-inf")

    @property
    def is_open(self) -> bool:
        """Whether nothing is to be tried now."""
        return self._clock() < self._until

    @property
    def is_tripped(self) -> bool:
        """Whether it failed so often that only one may try."""
        return self._failures >= FAILURES

    def failed(self) -> bool:
        """Count a failure of the peer; say whether that was the one too many."""
        self._failures += 1
        if not self.is_tripped:
            return False
        rest_s = SHORTEST_REST_S * 2.0 ** min(self._failures - FAILURES, 30)
        self._until = self._clock() + min(LONGEST_REST_S, rest_s)
        return self._failures == FAILURES

    def worked(self) -> bool:
        """Note a success; say whether it is the first after a rest."""
        was, self._failures, self._until = self.is_tripped, 0, float("-inf")
        return was
