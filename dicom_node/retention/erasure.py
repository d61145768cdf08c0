"""A person's data leaves the node for good (GDPR article 17), and the chain of events holds.

What goes, and is in no byte of the data folder afterwards: received images, results, drafts as
text, also those put out for a RIS that nobody has fetched; in the ledger the patient's name and ID,
the accession number, dates and descriptions, and every UID of the study, its series, instances and
results, wherever they stand, in what events say too. The audit messages that are kept as files lose
them as well.

What stays: that there was a study, under a pseudonym drawn at random; the numbers, times and kinds
of its events; its jobs with protocol, model, times and their keys, which are digests: who holds the
images, and nobody else, could compute them again; where results were sent, when, and whether they
came there; who erased, when, and the reason given. That much tells what this node did, and is of
nobody. What others have is theirs to erase: the peers that got results, the receiver of the audit
messages, and backups.

A study on hold is refused. The order is: the intent, with all of the person's studies or none of
them; the files; the ledger, with `study.erased` in the same transaction; last the file of the
ledger is written anew, since a database keeps deleted bytes. After a crash `resume` goes on where
it was.
"""

import logging
import secrets
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pydicom
from pydicom.errors import InvalidDicomError

from dicom_node import audit, text_drop
from dicom_node.config import Config
from dicom_node.config.destinations import TEXT
from dicom_node.errors import BadInput, Unavailable
from dicom_node.instance import is_uid
from dicom_node.ledger import Ledger, Study, removals, traces
from dicom_node.ledger.removals import ERASURE, Removal
from dicom_node.ledger.transaction import Transaction

from . import leaving

log = logging.getLogger(__name__)

PATIENCE_S: Final = 60.0  # for a moment in which nothing is received


@dataclass(frozen=True)
class Erased:
    """What became of one study."""

    pseudonym: str
    files: int
    events: int  # emptied
    unreached: tuple[str, ...]  # folders of drafts as text that are not there: look into them


def of_patient(ledger: Ledger, patient_id: str, issuer: str = "") -> list[str]:
    """List the UIDs of a patient's studies; with an issuer only those of its numbering.

    Raises
    ------
    BadInput
        There is no such patient, or of some studies nobody can tell any more who issued the ID
        (Issuer of Patient ID, PS3.3 C.2.2): those are to be erased by their UIDs.
    """
    with ledger.reading() as connection:
        found = traces.studies_of(connection, patient_id)
    if issuer:
        issuers = {uid: _issuer(ledger, uid) for uid in found}
        unknown = [uid for uid, said in issuers.items() if said is None]
        if unknown:
            raise BadInput(
                f"the images of {', '.join(unknown)} are gone, and with them the issuer of the"
                " patient ID; erase these by their Study Instance UID"
            )
        found = [uid for uid, said in issuers.items() if said == issuer]
    if not found:
        raise BadInput(
            f"no study is known of patient {patient_id}" + f" of {issuer}" * bool(issuer)
        )
    return found


def erase(
    ledger: Ledger, config: Config, study_uids: Sequence[str], *, by: str, reason: str = ""
) -> list[Erased]:
    """Erase studies with all that came of them.

    Raises
    ------
    BadInput
        One is not known, or on hold: nothing is erased then.
    Unavailable
        One is being read at this moment, and nothing is erased; or images are being received all
        the time: then it is begun, and the node goes on with it by itself.
    """
    with leaving.alone(config, PATIENCE_S):
        resume(ledger, config)
        with ledger.transaction() as transaction:
            for uid in study_uids:
                _check(transaction, ledger.study(uid), uid)
            begun = [_begin(transaction, uid, by, reason) for uid in study_uids]
        return _finish(ledger, config, begun)


def resume(ledger: Ledger, config: Config) -> int:
    """Finish what a crash has left half done; return how many removals that were."""
    with ledger.reading() as connection:
        begun = removals.pending(connection)
    for each in begun:
        if each.what == ERASURE:
            _finish(ledger, config, [each])
        else:
            leaving.finish(ledger, config, each)
    return len(begun)


def _check(transaction: Transaction, study: Study | None, uid: str) -> None:
    if study is None:
        raise BadInput(f"no study is known as {uid}")
    for each in removals.held(transaction.connection, [uid]):
        raise BadInput(
            f"study {uid} is on hold since {each.at:%Y-%m-%d} by {each.by}: {each.reason};"
            " `lamed-node hold remove` lets it go"
        )
    if traces.is_being_read(transaction, uid):
        raise Unavailable(f"study {uid} is being read at this moment; try again when that is over")


def _begin(transaction: Transaction, uid: str, by: str, reason: str) -> Removal:
    """Say that it is going; from here on nobody reads or sends it."""
    pseudonym = f"{traces.ERASED}{secrets.token_hex(8)}"
    traces.stop(transaction, uid)
    told = {"pseudonym": pseudonym, "by": by, "reason": reason}
    removal = removals.note(transaction, ERASURE, uid, "", told)
    transaction.event("erasure.begun", study_uid=pseudonym, by=by, reason=reason)
    return removal


def _finish(ledger: Ledger, config: Config, begun: Sequence[Removal]) -> list[Erased]:
    told = [_remove(ledger, config, each) if _has_name(each) else each for each in begun]
    ledger.scrub()
    with ledger.transaction() as transaction:
        for each in told:
            transaction.event("ledger.scrubbed", study_uid=each.study_uid)
            removals.forget(transaction, each)
    return [
        Erased(
            each.study_uid,
            each.detail["files"],
            each.detail["events"],
            tuple(each.detail["unreached"]),
        )
        for each in told
    ]


def _has_name(removal: Removal) -> bool:
    return bool(removal.study_uid != removal.detail["pseudonym"])


def _remove(ledger: Ledger, config: Config, removal: Removal) -> Removal:
    uid, pseudonym = removal.study_uid, removal.detail["pseudonym"]
    with ledger.reading() as connection:
        traced = traces.of(connection, uid)
        marked = traces.events_with(connection, traced)
        upto = traces.last(connection)
    files = sum(_remove_folder(config.results_dir / each.id) for each in ledger.jobs(uid))
    drafts, unreached = _remove_drafts(ledger, uid)
    files += drafts
    if config.audit_dir.is_dir():
        audit.forget(config.audit_dir, traced, pseudonym)
    with leaving.quiet(config.spool_dir, PATIENCE_S):
        files += _remove_images(config.spool_dir, uid, traced.paths)
        with ledger.transaction() as transaction:
            marked |= traces.events_with(transaction.connection, traced, after=upto)
            told = {"files": files, "unreached": unreached}
            left = traces.remove(transaction, removal, traced, marked, told)
    return left


def _remove_drafts(ledger: Ledger, uid: str) -> tuple[int, list[str]]:
    """Remove drafts as text that lie where a RIS takes them; tell the folders that are away."""
    study = ledger.study(uid)
    order = (study.accession_number if study else "") or uid
    put = {
        Path(each.destination.removeprefix(TEXT)) / text_drop.name(order, job.id)
        for job in ledger.jobs(uid)
        for each in ledger.deliveries(job.id)
        if each.destination.startswith(TEXT)
    }
    count = sum(_unlink(each) for each in put)
    for each in put:
        _unlink(each.with_name(f".{each.name}.partial"))
        leaving.sync(each.parent)
    return count, sorted({str(each.parent) for each in put if not each.parent.is_dir()})


def _remove_images(spool_dir: Path, uid: str, paths: Iterable[Path]) -> int:
    """Remove the folder of a study, with what the ledger does not know; it is the first below."""
    spool_dir = spool_dir.absolute()
    inside = [each for each in paths if each.is_relative_to(spool_dir)]
    folders = {spool_dir / each.relative_to(spool_dir).parts[0] for each in inside}
    if is_uid(uid):
        folders.add(spool_dir / uid)
    count = sum(map(_remove_folder, sorted(folders)))
    leaving.sync(spool_dir)
    return count


def _remove_folder(folder: Path) -> int:
    count = sum(each.is_file() for each in folder.rglob("*")) if folder.is_dir() else 0
    if count or folder.is_dir():
        shutil.rmtree(folder)
        leaving.sync(folder.parent)
    return count


def _unlink(path: Path) -> int:
    try:
        path.unlink()
    except FileNotFoundError:
        return 0
    return 1


def _issuer(ledger: Ledger, uid: str) -> str | None:
    """Read the issuer of the patient ID from an image; None: there is none any more."""
    for each in ledger.instances(uid):
        try:
            header = pydicom.dcmread(
                each.path, stop_before_pixels=True, specific_tags=["IssuerOfPatientID"]
            )
        except (OSError, InvalidDicomError):
            continue
        found: Any = header.get("IssuerOfPatientID")
        return str(found or "").strip()
    return None
