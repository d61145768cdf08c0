"""A draft as plain text, put into a folder from which a RIS takes it.

Knows files: one appears whole or not at all, and a repeat replaces it. The folder is not made: one
that is not there is a share that is not mounted.
"""

import contextlib
import os
import re
import shutil
from pathlib import Path
from typing import Final

from .errors import Unavailable

SOURCE: Final = "report.txt"  # beside the objects of a job
LONGEST = 64  # characters of a name; an accession number has 16


def name(order: str, job_id: str) -> str:
    """Name a file by the order, which may hold what a path must not, and by the job."""
    return f"{re.sub(r'[^A-Za-z0-9.-]+', '_', order)[:LONGEST].lstrip('.')}_{job_id}.txt"


def put(source: Path, target: Path) -> None:
    """Copy a text into the folder of `target` and see it onto the disk.

    Raises
    ------
    Unavailable
        The folder is not there or cannot be written.
    """
    partial = target.with_name(f".{target.name}.partial")
    try:
        with source.open("rb") as read, partial.open("wb") as written:
            shutil.copyfileobj(read, written)
            written.flush()
            os.fsync(written.fileno())
        partial.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        told = f"cannot put the report into {target.parent}: {error.strerror}"
        raise Unavailable(told) from error
