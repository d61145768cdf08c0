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

import errno
import fcntl
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from sqlalchemy import Connection

from . import removals
from .config import Config
from .errors import Unavailable
from .ledger import Ledger
from .removals import IMAGES, RESULTS, Removal

log = logging.getLogger(__name__)

GB: Final = 1_000_000_000
PERIOD_S: Final = 600.0
RETRY_S: Final = 30.0
PATIENCE_S: Final = 10.0  # for a moment in which nothing is received
STEP_S: Final = 0.02


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
            with alone(config):
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
        with alone(config):
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
        finish(ledger, config, removal)
        gone.append(each)
    return gone


def resume(ledger: Ledger, config: Config) -> int:
    """Finish what a crash has left half done; return how many removals that were."""
    with ledger.reading() as connection:
        begun = removals.pending(connection)
    for each in begun:
        if each.what == removals.ERASURE:
            from .erasure import finish as finish_erasure  # which knows this module

            finish_erasure(ledger, config, each)
        else:
            finish(ledger, config, each)
    return len(begun)


def finish(ledger: Ledger, config: Config, removal: Removal) -> None:
    """Remove the files of a removal that was begun, then say so.

    Raises
    ------
    Unavailable
        Images are being received all the time; it stays begun.
    """
    if removal.what == RESULTS:
        remove_folder(config.results_dir / removal.job_id)
        with ledger.transaction() as transaction:
            removals.end(transaction, removal)
        return
    # No instance may come in between: one that is sent again would be stored under a name that is
    # about to be removed.
    with quiet(config.spool_dir):
        with ledger.reading() as connection:
            paths = removals.paths(connection, removal.study_uid, removal.detail["upto"])
        remove_files(paths, config.spool_dir)
        with ledger.transaction() as transaction:
            removals.end(transaction, removal)


# --- what may leave -----------------------------------------------------------------------------


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


# --- files ----------------------------------------------------------------------------------------


@contextmanager
def alone(config: Config, patience_s: float = 0.0) -> Iterator[None]:
    """Be the only one who removes.

    Raises
    ------
    Unavailable
        Another process is at it.
    """
    path = config.data_dir / "retention.lock"
    with _locked(path, patience_s, "another process is removing files at this moment"):
        yield


@contextmanager
def quiet(spool_dir: Path, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Hold the spool while nothing is being stored: it is the lock that `Spool` holds to store.

    Raises
    ------
    Unavailable
        Something is being stored all the time.
    """
    with _locked(spool_dir / "lock", patience_s, "images are being received all the time"):
        yield


@contextmanager
def _locked(path: Path, patience_s: float, refusal: str) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if not _try(lambda: fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB), patience_s):
            raise Unavailable(refusal)
        yield
    finally:
        os.close(handle)


def _try(lock: Callable[[], None], patience_s: float) -> bool:
    until = time.monotonic() + patience_s
    while True:
        try:
            lock()
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(STEP_S)
        else:
            return True


def remove_files(paths: list[Path], root: Path) -> None:
    """Remove files below a root, and the folders that are empty then; when it returns it lasts."""
    folders = {each.parent for each in paths}
    for each in paths:
        each.unlink(missing_ok=True)
    for folder in sorted(folders):
        for each in (folder, *folder.parents):
            if not each.is_relative_to(root) or each == root or not _remove_if_empty(each):
                break
    for each in {near for folder in folders for near in (folder, folder.parent, root)}:
        sync(each)


def remove_folder(folder: Path) -> None:
    """Remove a folder with all that is in it; when it returns it lasts."""
    if folder.is_dir():
        shutil.rmtree(folder)
        sync(folder.parent)


def _remove_strays(ledger: Ledger, config: Config) -> None:
    """Remove what a worker has written that had lost its job, after its results had to go."""
    if not config.results_dir.is_dir():
        return
    with ledger.reading() as connection:
        expired = removals.expired_jobs(connection)
    for each in expired.intersection(folder.name for folder in config.results_dir.iterdir()):
        files, size = _size(config.results_dir / each)
        remove_folder(config.results_dir / each)
        ledger.event("retention.stray", job_id=each, files=files, bytes=size)


def _remove_if_empty(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        return False
    return True


def sync(folder: Path) -> None:
    """See the names in a folder onto the disk; a folder that is gone needs none."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
