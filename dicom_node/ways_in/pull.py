"""Studies are fetched from a source: asked for by somebody, done by the process of the SCP.

    waiting -> pulling -> done | failed

Knows the ledger, where what is asked for survives a restart, and in which order things are done:
find, say what is expected, fetch, count. Must not know how a source is asked.
"""

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import insert, select, update

from dicom_node.config import Config, sources
from dicom_node.config.sources import Source
from dicom_node.errors import BadInput, NodeError, PeerError
from dicom_node.ledger import Ledger, tables
from dicom_node.ledger.records import to_text
from dicom_node.spool import Spool

from . import expectations, fetching, holdings

log = logging.getLogger(__name__)

POLL_S: Final = 0.5
PROGRESS_S: Final = 0.5
KEYS: Final = ("StudyInstanceUID", "AccessionNumber", "PatientID", "StudyDate")
WILD: Final = set("*?\\")  # PS3.4 C.2.2.2: nobody is to fetch an archive by a slip
LONGEST: Final = 64
ENDED: Final = ("done", "failed")

Tell = Callable[[int, int], None]  # of how many have come, of how many


@dataclass(frozen=True)
class Pull:
    """One request, as it stands."""

    id: int
    source: str
    wanted: Mapping[str, str]
    state: str
    expected: int
    stored: int
    detail: str


def ask(ledger: Ledger, source: str, wanted: Mapping[str, str], *, by: str = "") -> int:
    """Ask that studies be fetched; give the number of the request.

    Raises
    ------
    BadInput
        What is wanted is nothing in particular.
    """
    _check(wanted)
    with ledger.transaction() as transaction:
        number = transaction.connection.scalar(
            insert(tables.pulls)
            .values(
                source=source,
                wanted=json.dumps(dict(wanted)),
                state="waiting",
                at=to_text(transaction.now),
            )
            .returning(tables.pulls.c.id)
        )
        study_uid = wanted.get("StudyInstanceUID")
        told = {"source": source, "by": by, "keys": sorted(wanted)}
        transaction.event("pull.asked", study_uid=study_uid, job_id=None, number=number, **told)
    return int(number or 0)


def find(ledger: Ledger, number: int) -> Pull:
    """Give a request as it stands now; `BadInput` if there is none of this number."""
    with ledger.reading() as connection:
        wanted = select(tables.pulls).where(tables.pulls.c.id == number)
        row = connection.execute(wanted).one_or_none()
    if row is None:
        raise BadInput(f"no pull has the number {number}")
    about = {key: getattr(row, key) for key in ("id", "source", "state", "expected", "stored")}
    return Pull(wanted=json.loads(row.wanted), detail=row.detail, **about)


def run(ledger: Ledger, config: Config, spool: Spool, stop: threading.Event) -> None:
    """Fetch what is asked for, one after the other, until told to stop."""
    restart(ledger)
    while not stop.wait(POLL_S):
        try:
            while not stop.is_set() and step(ledger, config, spool, stop):
                pass
        except Exception:  # the loop's edge: a locked database must not end it
            log.exception("pull.error")


def restart(ledger: Ledger) -> None:
    """Take up again what a process was fetching when it ended."""
    table = tables.pulls
    with ledger.transaction() as transaction:
        again = update(table).where(table.c.state == "pulling").values(state="waiting")
        for row in transaction.connection.execute(again.returning(table)).all():
            transaction.event("pull.restarted", number=row.id, source=row.source)


def step(ledger: Ledger, config: Config, spool: Spool, stop: threading.Event | None = None) -> bool:
    """Fetch what was asked for first; say whether there was anything, and room for it.

    What is broken off because of `stop` is left to `restart`.
    """
    stop = stop or threading.Event()
    if not spool.has_room():
        return False
    table = tables.pulls
    with ledger.transaction() as transaction:
        first = select(table.c.id).where(table.c.state == "waiting").order_by(table.c.id).limit(1)
        number = transaction.connection.scalar(first)
        if number is None:
            return False
        begin = update(table).where(table.c.id == number)
        transaction.connection.execute(begin.values(state="pulling", stored=0))
    one = find(ledger, number)
    try:
        stored = _fetch(ledger, config, spool, one, stop)
    except NodeError as error:
        if stop.is_set():
            return False
        _end(ledger, one, "failed", str(error))
    except Exception as error:  # one request's edge: the others are not to wait for it
        log.exception("pull.error", extra={"number": one.id})
        _end(ledger, one, "failed", f"{type(error).__name__}: {error}")
    else:
        _end(ledger, one, "done", f"{stored} instances")
    return True


def pull(
    source: Source,
    config: Config,
    ledger: Ledger,
    spool: Spool,
    study_uid: str,
    tell: Tell = lambda _, __: None,
) -> int:
    """Fetch one study, and return how many instances of it are here now.

    Raises
    ------
    BadInput
        The source has no such study.
    PeerError
        It cannot be reached, or not all came that it says it has.
    """
    there = holdings.instances(source, config, study_uid)
    if not there:
        raise BadInput(f"{source.name} has no study {study_uid}")
    # Said before the first comes, so that nobody takes half of it for the whole.
    expectations.note(ledger, study_uid, f"pull {source.name}", sop_uids=sorted(there))
    tell(0, len(there))

    def came(count: int) -> None:
        tell(count, len(there))

    fetching.fetch(source, config, spool, study_uid, there, came)
    here = {each.sop_uid for each in ledger.instances(study_uid)}
    missing = len(set(there) - here)
    if missing:
        raise PeerError(f"{missing} of {len(there)} instances of {study_uid} did not come")
    return len(there)


def _fetch(ledger: Ledger, config: Config, spool: Spool, one: Pull, stop: threading.Event) -> int:
    source = sources.named(config.sources, one.source)
    found = holdings.studies(source, config, one.wanted)
    if not found:
        raise BadInput(f"{source.name} has no such study")
    stored, told_at = 0, 0.0

    def tell(count: int, of: int) -> None:
        nonlocal told_at
        if stop.is_set():
            raise fetching.Stopped("the node stops")
        if 0 < count < of and time.monotonic() < told_at + PROGRESS_S:
            return
        told_at = time.monotonic()
        _progress(ledger, one, stored + count, stored + of)

    for study_uid in found:
        stored += pull(source, config, ledger, spool, study_uid, tell)
        tell(0, 0)
    return stored


def _progress(ledger: Ledger, one: Pull, stored: int, expected: int) -> None:
    table = tables.pulls
    with ledger.transaction() as transaction:
        now = update(table).where(table.c.id == one.id)
        transaction.connection.execute(now.values(stored=stored, expected=expected))


def _end(ledger: Ledger, one: Pull, state: str, detail: str) -> None:
    """Say how it ended; whose study it was, only the study tells from now on."""
    table = tables.pulls
    with ledger.transaction() as transaction:
        ended = update(table).where(table.c.id == one.id)
        transaction.connection.execute(ended.values(state=state, detail=detail, wanted="{}"))
        about = {"number": one.id, "source": one.source, "detail": detail}
        study_uid = one.wanted.get("StudyInstanceUID")
        transaction.event(f"pull.{state}", study_uid=study_uid, job_id=None, **about)


def _check(wanted: Mapping[str, str]) -> None:
    for key, value in wanted.items():
        if key not in KEYS or not value.strip() or WILD & set(value) or len(value) > LONGEST:
            raise BadInput(f"{key} must be one value without wildcards, not {value!r}")
    if "StudyDate" in wanted and not re.fullmatch(r"\d{8}", wanted["StudyDate"]):
        raise BadInput(f"StudyDate must be YYYYMMDD, not {wanted['StudyDate']!r}")
    if not set(wanted) - {"StudyDate"}:
        raise BadInput("a study is fetched by its UID, its accession number, or a patient ID")
