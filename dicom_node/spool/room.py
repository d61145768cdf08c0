"""Tells when the disk of the spool is too full to receive, and when there is room again.

Knows who can be asked, and the ledger. What follows is others' business: the SCP refuses
associations and answers 0xA700 in open ones, STOW-RS answers 503, pulls and the watched folder
wait.
"""

import logging
import threading
from collections.abc import Callable
from typing import Final

from dicom_node.errors import NodeError
from dicom_node.ledger import Ledger

log = logging.getLogger(__name__)

POLL_S: Final = 1.0


def run(has_room: Callable[[], bool], ledger: Ledger, stop: threading.Event) -> None:
    """Tell each change until told to stop."""
    had = True
    while not stop.wait(POLL_S):
        try:
            had = step(has_room, ledger, had=had)
        except Exception:  # the loop's edge: a folder that cannot be asked now
            log.exception("room.error")


def step(has_room: Callable[[], bool], ledger: Ledger, *, had: bool) -> bool:
    """Look once, and give what the ledger has been told; `had` is what it was told before."""
    has = has_room()
    if has == had:
        return had
    kind = "spool.room" if has else "spool.full"
    log.warning(kind)
    try:
        ledger.event(kind, study_uid=None, job_id=None)
    except NodeError as error:  # the ledger may lie on the same disk: it is told when it can be
        log.warning("room.untold", extra={"reason": str(error)})
        return had
    return has
