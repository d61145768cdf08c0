"""Files leave the node for good: one process at a time removes, and nothing is stored meanwhile.

Knows the files and, through `removals`, the ledger. Must not know why something leaves. When a
function returns, what it removed stays removed, also after a power cut.
"""

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from dicom_node.config import Config
from dicom_node.errors import Unavailable
from dicom_node.ledger import Ledger, removals
from dicom_node.ledger.removals import RESULTS, Removal

PATIENCE_S: Final = 10.0  # for a moment in which nothing is received
STEP_S: Final = 0.02


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
