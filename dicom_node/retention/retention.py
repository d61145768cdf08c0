"""Received images and results leave the node when they are old, or when there are too many.

Nothing leaves before its delivery is proven, nothing that is on hold, nothing that is still to be
read, sent or looked at. Two clocks and two limits, each of which 0 turns off:

    images    days since the last one of the study came; GB in the spool, the oldest study first
    results   days since the job ended; GB of results, the oldest job first

A failed study may be tried again, so only its age makes it leave. A job without a destination made
what is nowhere else: its results leave by age only, however little room there is.

Knows the files and, through `removals`, the ledger. The order is: the ledger says that something is
going, the files go and the folders are synchronized, the ledger says that it is gone. A crash in
between leaves the first and perhaps some of the second; `resume` does the rest. The study and its
jobs stay in the ledger and on the QA pages, as expired.
"""

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from sqlalchemy import Connection

from dicom_node.config import Config
from dicom_node.errors import Unavailable
from dicom_node.ledger import Ledger, removals
from dicom_node.ledger.removals import IMAGES, RESULTS

from . import leaving
from .erasure import resume

log = logging.getLogger(__name__)

GB: Final = 1_000_000_000
PERIOD_S: Final = 600.0
RETRY_S: Final = 30.0


@dataclass(frozen=True)
class Going:
    """The images of one study, or the results of one job, that may leave."""

    what: str  # images | results
    study_uid: str
    job_id: str  # of results
    since: datetime  # what its age is counted from
    files: int
    bytes: int
    why: str  # age | size


def run(ledger: Ledger, config: Config, stop: threading.Event) -> None:
    """Let go what may go, every ten minutes until told to stop; in one process of the node."""
    while not stop.is_set():
        try:
            with leaving.alone(config):
                resume(ledger, config)
                sweep(ledger, config)
            pause_s = PERIOD_S
        except Unavailable as error:  # another process is at it, or the ledger is locked
            log.info("retention.put_off", extra={"reason": str(error)})
            pause_s = RETRY_S
        except Exception:  # the loop's edge: one bad file must not end it
            log.exception("retention.error")
            pause_s = RETRY_S
        stop.wait(pause_s)


def recover(ledger: Ledger, config: Config) -> None:
    """Do at the start what a crash has left, unless another process of the node is at it."""
    try:
        with leaving.alone(config):
            resume(ledger, config)
    except Unavailable as error:
        log.info("retention.put_off", extra={"reason": str(error)})


def sweep(ledger: Ledger, config: Config, now: datetime | None = None) -> list[Going]:
    """Remove whatever may leave now, and tell it. To be called by whoever is `alone`."""
    _remove_strays(ledger, config)
    gone = []
    for each in plan(ledger, config, now)[0]:
        with ledger.transaction() as transaction:
            # Asked again: since the plan was made it may have been held, or opened again.
            if removals.kept_because(
                transaction.connection, each.study_uid, unproven=config.retain_unproven
            ):
                continue
            told = {"files": each.files, "bytes": each.bytes, "why": each.why}
            removal = removals.begin(transaction, each.what, each.study_uid, each.job_id, **told)
        leaving.finish(ledger, config, removal)
        gone.append(each)
    return gone


def plan(
    ledger: Ledger, config: Config, now: datetime | None = None
) -> tuple[list[Going], dict[str, int]]:
    """Tell what may leave now, and for what reasons how many studies must stay that would."""
    now = now or datetime.now(UTC)
    with ledger.reading() as connection:
        keeper = _Keeper(connection, config)
        gone = [*_images(keeper, now), *_results(keeper, now)]
    return gone, keeper.kept


class _Keeper:
    """Asks of each study once why it must stay."""

    def __init__(self, connection: Connection, config: Config) -> None:
        self.connection, self.config = connection, config
        self.kept: dict[str, int] = {}
        self._asked: dict[str, str] = {}

    def lets_go(self, study_uid: str) -> bool:
        if study_uid not in self._asked:
            why = removals.kept_because(
                self.connection, study_uid, unproven=self.config.retain_unproven
            )
            self._asked[study_uid] = why
            if why:
                self.kept[why] = self.kept.get(why, 0) + 1
        return not self._asked[study_uid]


def _images(keeper: _Keeper, now: datetime) -> Iterator[Going]:
    config, there = keeper.config, removals.images(keeper.connection)
    total, limit = sum(each.bytes for each in there), config.retain_spool_gb * GB
    for each in there:
        old = _is_old(each.last_at, config.retain_spool_days, now)
        full = bool(limit) and total > limit
        if not (old or full) or not keeper.lets_go(each.study_uid):
            continue
        if old or not removals.has_failed(keeper.connection, each.study_uid):
            total -= each.bytes
            why = "age" if old else "size"
            yield Going(IMAGES, each.study_uid, "", each.last_at, each.count, each.bytes, why)


def _results(keeper: _Keeper, now: datetime) -> Iterator[Going]:
    config, connection = keeper.config, keeper.connection
    ended = removals.ended_jobs(connection)
    sizes = {job_id: _size(config.results_dir / job_id) for job_id, _, _ in ended}
    total, limit = sum(size for _, size in sizes.values()), config.retain_results_gb * GB
    for job_id, study_uid, at in ended:
        files, size = sizes[job_id]
        old = _is_old(at, config.retain_results_days, now)
        full = bool(limit) and total > limit and removals.is_delivered(connection, job_id)
        if files and (old or full) and keeper.lets_go(study_uid):
            total -= size
            yield Going(RESULTS, study_uid, job_id, at, files, size, "age" if old else "size")


def _is_old(at: datetime, days: float, now: datetime) -> bool:
    return bool(days) and at < now - timedelta(days=days)


def _size(folder: Path) -> tuple[int, int]:
    found = [each.stat().st_size for each in folder.rglob("*") if each.is_file()]
    return len(found), sum(found)


def _remove_strays(ledger: Ledger, config: Config) -> None:
    """Remove what a worker has written that had lost its job, after its results had to go."""
    if not config.results_dir.is_dir():
        return
    with ledger.reading() as connection:
        expired = removals.expired_jobs(connection)
    for each in expired.intersection(folder.name for folder in config.results_dir.iterdir()):
        files, size = _size(config.results_dir / each)
        leaving.remove_folder(config.results_dir / each)
        ledger.event("retention.stray", job_id=each, files=files, bytes=size)
