"""How many instances a study is to have, by who knows it: IAN, MPPS, or a source that is asked.

Knows the data sets of Instance Availability Notification (PS3.4 R) and of Modality Performed
Procedure Step (PS3.4 F), and the ledger. Must not know sockets. What is named one by one is united;
what is only counted, counts as it is; the larger of both is expected.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from pydicom import Dataset
from pydicom.uid import generate_uid
from sqlalchemy import Row, insert, select, update

from dicom_node.errors import BadInput, NodeError
from dicom_node.instance import is_uid
from dicom_node.ledger import Ledger, tables
from dicom_node.ledger.records import to_text
from dicom_node.ledger.transaction import Transaction
from dicom_node.network import dimse, outgoing
from dicom_node.network.dimse import Answer, Request

log = logging.getLogger(__name__)

IAN: Final = "1.2.840.10008.5.1.4.33"
MPPS: Final = "1.2.840.10008.3.1.2.3.3"
OPEN, FINAL = "open", "final"
ENDED: Final = {"COMPLETED", "DISCONTINUED"}  # PS3.3 C.4.14
GONE: Final = "UNAVAILABLE"  # PS3.3 C.4.23.1.1
DUPLICATE_INSTANCE: Final = 0x0111  # PS3.7 C.5
NO_SUCH_INSTANCE: Final = 0x0112
MISSING_ATTRIBUTE: Final = 0x0120
NO_MORE_UPDATES: Final = 0x0110  # PS3.4 F.7.2.2.2: of a step that has ended
REFERENCES: Final = (
    "ReferencedSOPSequence",
    "ReferencedImageSequence",
    "ReferencedNonImageCompositeSOPInstanceSequence",
)
POLL_S: Final = 2.0
AGAIN_S: Final = 10.0
MOST_STUDIES: Final = 200

Count = Callable[[str], int | None]


def expected(ledger: Ledger, study_uid: str) -> int | None:
    """Give the number of instances that a study is to have; None if nobody has said for good.

    Results of ours that an archive has, and that did not come here, are not waited for.
    """
    table = tables.expectations.c
    wanted = select(table.state, table.instances, table.sop_uids)
    with ledger.reading() as connection:
        rows = connection.execute(wanted.where(table.study_uid == study_uid)).all()
    if not rows or any(row.state == OPEN for row in rows):
        return None
    named = {uid for row in rows for uid in json.loads(row.sop_uids)}
    counted = [row.instances for row in rows if row.sop_uids == "[]"]
    if named:
        counted.append(len(named - ours_elsewhere(ledger, study_uid)))
    return max(counted, default=0) or None


def ours_elsewhere(ledger: Ledger, study_uid: str) -> set[str]:
    """Give the SOP instance UIDs of what we made for a study and did not receive back."""
    made, here = tables.results.c, tables.instances.c
    jobs = select(tables.jobs.c.id).where(tables.jobs.c.study_uid == study_uid)
    back = select(here.sop_uid).where(here.study_uid == study_uid)
    wanted = select(made.sop_uid).where(made.job_id.in_(jobs), made.sop_uid.not_in(back))
    with ledger.reading() as connection:
        return set(connection.scalars(wanted))


def note(
    ledger: Ledger,
    study_uid: str,
    source: str,
    *,
    instances: int = 0,
    sop_uids: Sequence[str] = (),
    state: str = FINAL,
) -> None:
    """Remember what one source says of a study, in place of what it said before."""
    with ledger.transaction() as transaction:
        _note(transaction, study_uid, source, (max(instances, len(sop_uids)), sop_uids, state))


def handlers(ledger: Ledger) -> dict[tuple[int, str], Callable[[Request], Answer]]:
    """Give what answers IAN and MPPS, by command field and SOP class."""
    return {
        (dimse.N_CREATE_RQ, IAN): lambda request: announced(ledger, request),
        (dimse.N_CREATE_RQ, MPPS): lambda request: begun(ledger, request),
        (dimse.N_SET_RQ, MPPS): lambda request: went_on(ledger, request),
    }


def announced(ledger: Ledger, request: Request) -> Answer:
    """Answer the N-CREATE of an Instance Availability Notification (PS3.4 R.3.2).

    Raises
    ------
    BadInput
        It cannot be understood.
    """
    said = outgoing.decoded(request.data, request.transfer_syntax_uid)
    study_uid = _text(said, "StudyInstanceUID")
    if not is_uid(study_uid):
        return Answer(MISSING_ATTRIBUTE, "StudyInstanceUID is missing or no UID")
    uid = request.sop_uid or str(generate_uid(prefix=None))
    note(ledger, study_uid, f"ian {uid}", sop_uids=_references(_items(said, _SERIES)))
    return Answer(sop_uid=uid)


def begun(ledger: Ledger, request: Request) -> Answer:
    """Answer the N-CREATE of a Modality Performed Procedure Step (PS3.4 F.7.2.1); raises the same.

    Until the step has ended, nobody knows how many instances come of it.
    """
    said = outgoing.decoded(request.data, request.transfer_syntax_uid)
    uid = request.sop_uid or str(generate_uid(prefix=None))
    steps = _items(said, "ScheduledStepAttributesSequence")
    studies = {each for each in (_text(step, "StudyInstanceUID") for step in steps) if is_uid(each)}
    if not studies:
        return Answer(MISSING_ATTRIBUTE, "no StudyInstanceUID in ScheduledStepAttributesSequence")
    with ledger.transaction() as transaction:
        if _known(transaction, uid):
            return Answer(DUPLICATE_INSTANCE, "this step was created before")
        for study_uid in sorted(studies):
            _note(transaction, study_uid, f"mpps {uid}", _performed(said, ()))
    return Answer(sop_uid=uid)


def went_on(ledger: Ledger, request: Request) -> Answer:
    """Answer the N-SET of a Modality Performed Procedure Step (PS3.4 F.7.2.2); raises the same."""
    said = outgoing.decoded(request.data, request.transfer_syntax_uid)
    with ledger.transaction() as transaction:
        known = _known(transaction, request.sop_uid)
        if not known:
            return Answer(NO_SUCH_INSTANCE, "no step is known by this UID")
        if any(row.state == FINAL for row in known):
            return Answer(NO_MORE_UPDATES, "the step has ended and may no longer be updated")
        for row in known:
            now = _performed(said, json.loads(row.sop_uids))
            _note(transaction, row.study_uid, row.source, now)
    return Answer()


def run(ledger: Ledger, name: str, count: Count, stop: threading.Event) -> None:
    """Ask a source, again and again, how many instances it has of each study that is open.

    Parameters
    ----------
    count
        Asks for a StudyInstanceUID; None if the source does not have it.
    """
    asked: dict[str, float] = {}
    while not stop.wait(POLL_S):
        try:
            step(ledger, name, count, asked)
        except Exception:  # the loop's edge: a source that is down must not end it
            log.exception("expectations.error")


def step(ledger: Ledger, name: str, count: Count, asked: dict[str, float]) -> None:
    """Ask once for each study that is open and was not asked for just now.

    `asked` is when each was, by a monotonic clock. Raises what the ledger raises.
    """
    open_now = {each.study_uid for each in ledger.studies(limit=MOST_STUDIES, state="receiving")}
    for gone in set(asked) - open_now:
        del asked[gone]
    for study_uid in sorted(open_now):
        if time.monotonic() - asked.get(study_uid, -AGAIN_S) < AGAIN_S:
            continue
        asked[study_uid] = time.monotonic()
        try:
            found = count(study_uid)
        except NodeError as error:  # nobody knows; the quiet time decides
            log.warning("expectations.unknown", extra={"source": name, "reason": str(error)})
            return
        if found:
            note(ledger, study_uid, f"query {name}", instances=found)


_SERIES: Final = "ReferencedSeriesSequence"
_SERIES_PERFORMED: Final = "PerformedSeriesSequence"
_STATUS: Final = "PerformedProcedureStepStatus"


def _note(
    transaction: Transaction, study_uid: str, source: str, said: tuple[int, Sequence[str], str]
) -> None:
    table, (instances, sop_uids, state) = tables.expectations, said
    same = (table.c.study_uid == study_uid) & (table.c.source == source)
    values = {"state": state, "instances": instances, "sop_uids": json.dumps(list(sop_uids))}
    connection = transaction.connection
    known = connection.execute(select(table).where(same)).one_or_none()
    if known and all(getattr(known, key) == each for key, each in values.items()):
        return
    values |= {"at": to_text(transaction.now)}
    if known:
        connection.execute(update(table).where(same).values(values))
    else:
        connection.execute(insert(table).values(study_uid=study_uid, source=source, **values))
    transaction.event(
        "study.expected", study_uid=study_uid, source=source, state=state, instances=instances
    )


def _known(transaction: Transaction, uid: str) -> Sequence[Row[Any]]:
    """Give what is known of a step; a row for each study that it is of."""
    table = tables.expectations
    wanted = select(table).where(table.c.source == f"mpps {uid}")
    return transaction.connection.execute(wanted).all()


def _performed(said: Dataset, before: Sequence[str]) -> tuple[int, Sequence[str], str]:
    """Read what a step has made so far; what is not said again stays (PS3.4 F.7.2.2)."""
    given = _SERIES_PERFORMED in said
    uids = _references(_items(said, _SERIES_PERFORMED)) if given else before
    return len(uids), uids, FINAL if _text(said, _STATUS) in ENDED else OPEN


def _references(series: Iterable[Dataset]) -> list[str]:
    """List the instances that are named and can be had, each once."""
    found = {
        _text(each, "ReferencedSOPInstanceUID")
        for one in series
        for name in REFERENCES
        for each in _items(one, name)
        if _text(each, "InstanceAvailability") != GONE
    }
    return sorted(filter(is_uid, found))


def _items(ds: Dataset, keyword: str) -> Iterator[Dataset]:
    try:
        yield from ds.get(keyword) or ()
    except Exception as error:  # the edge: a peer may send anything
        raise BadInput(f"{keyword} cannot be read: {error}") from error


def _text(ds: Dataset, keyword: str) -> str:
    try:
        return str(ds.get(keyword) or "").strip()
    except Exception as error:  # the edge, as above
        raise BadInput(f"{keyword} cannot be read: {error}") from error
