"""Results and folders go to a peer: C-STORE and C-ECHO, as they are on the disk.

Knows pynetdicom and Part 10 files. The bytes of a data set are sent untouched, each SOP class and
transfer syntax in a presentation context of its own, so that no peer can choose another one.
"""

import logging
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydicom.filereader import read_file_meta_info
from pydicom.misc import is_dicom
from pydicom.uid import UID
from pynetdicom import AE, _config, build_context, evt
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.status import code_to_category

from .config import Destination
from .errors import BadInput, PeerError

log = logging.getLogger(__name__)

# Files are sent in pieces, straight from the disk and without being decoded.
_config.STORE_SEND_CHUNKED_DATASET = True
_config.LOG_HANDLER_LEVEL = "none"

MAXIMUM_CONTEXTS = 128  # PS3.8 9.3.2.2: the context ID is an odd byte
MAXIMUM_PDU = 131_072
STORED = {"Success", "Warning"}

Context = tuple[str, str]  # SOP class, transfer syntax


@dataclass(frozen=True)
class _File:
    path: Path
    context: Context


def send(
    paths: Sequence[Path],
    destination: Destination,
    *,
    calling_ae: str,
    timeout_s: float,
    on_progress: Callable[[int], None] | None = None,
) -> None:
    """Store files at a peer, in this order.

    Parameters
    ----------
    timeout_s
        How long the peer may be silent.
    on_progress
        Called with the number of instances stored so far.

    Raises
    ------
    BadInput
        A file is no DICOM file.
    PeerError
        The peer cannot be reached, refuses, answers with a failure, is silent or hangs up.
    """
    done = 0
    for batch in _batches([_file(path) for path in paths]):
        contexts = [build_context(*each) for each in dict.fromkeys(file.context for file in batch)]
        with _association(destination, contexts, calling_ae, timeout_s) as assoc:
            for file in batch:
                _store(assoc, file, destination, timeout_s)
                done += 1
                if on_progress is not None:
                    on_progress(done)


def echo(destination: Destination, *, calling_ae: str, timeout_s: float) -> None:
    """Ask a peer for a sign of life.

    Raises
    ------
    PeerError
        There is none, and why.
    """
    contexts = [build_context(Verification)]
    with _association(destination, contexts, calling_ae, timeout_s) as assoc:
        status = assoc.send_c_echo().get("Status")
        if status != 0x0000:
            raise PeerError(f"{destination} answered C-ECHO with {_meaning(status)}")


def find_dicom(folder: Path) -> list[Path]:
    """Find every DICOM file below a folder, or the file itself.

    Raises
    ------
    BadInput
        There is no such folder or file.
    """
    if not folder.exists():
        raise BadInput(f"no such file or folder: {folder}")
    paths = [folder] if folder.is_file() else sorted(folder.rglob("*"))
    return [
        path
        for path in paths
        if path.is_file() and path.name.upper() != "DICOMDIR" and is_dicom(path)
    ]


def _file(path: Path) -> _File:
    try:
        meta = read_file_meta_info(path)
        return _File(path, (str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)))
    except FileNotFoundError as error:
        raise BadInput(f"no such file: {path}") from error
    except Exception as error:  # the edge: a file of any kind may be handed over
        raise BadInput(f"{path} is no DICOM file: {error}") from error


def _batches(files: Sequence[_File]) -> Iterator[list[_File]]:
    """Cut where an association would need more contexts than it can have."""
    batch: list[_File] = []
    contexts: set[Context] = set()
    for file in files:
        if file.context not in contexts and len(contexts) == MAXIMUM_CONTEXTS:
            yield batch
            batch, contexts = [], set()
        batch.append(file)
        contexts.add(file.context)
    if batch:
        yield batch


@contextmanager
def _association(
    destination: Destination,
    contexts: list[PresentationContext],
    calling_ae: str,
    timeout_s: float,
) -> Iterator[Association]:
    ae = AE(ae_title=calling_ae)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = timeout_s
    address = _resolve(destination)
    assoc = ae.associate(
        address,
        destination.port,
        contexts=contexts,
        ae_title=destination.ae_title,
        max_pdu=MAXIMUM_PDU,
        evt_handlers=[(evt.EVT_CONN_OPEN, _without_delay)],
    )
    if not assoc.is_established:
        raise PeerError(_why_not(assoc, destination, timeout_s))
    try:
        yield assoc
    except BaseException:  # also a Ctrl-C: the peer is not left with an association half done
        assoc.abort()
        raise
    assoc.release()


def _store(assoc: Association, file: _File, destination: Destination, timeout_s: float) -> None:
    sop_class, transfer_syntax = file.context
    accepted = {
        (str(each.abstract_syntax), str(each.transfer_syntax[0]))
        for each in assoc.accepted_contexts
    }
    if file.context not in accepted:
        raise PeerError(
            f"{destination} does not accept {_name(sop_class)} in {_name(transfer_syntax)}"
        )
    try:
        with _watched(assoc, timeout_s):
            status = assoc.send_c_store(file.path).get("Status")
    except (RuntimeError, OSError) as error:  # pynetdicom's word for an association that is gone
        raise PeerError(f"{destination} hung up before {file.path.name}") from error
    if status is None:
        raise PeerError(
            f"{destination} hung up or was silent for {timeout_s:g} s at {file.path.name}"
        )
    if code_to_category(status) not in STORED:
        raise PeerError(f"{destination} refused {file.path.name}: {_meaning(status)}")
    if status != 0x0000:
        log.warning("store.warning", extra={"status": status, "to": str(destination)})


@contextmanager
def _watched(assoc: Association, timeout_s: float) -> Iterator[None]:
    """Cut the connection if a peer that takes no bytes would hold us for ever.

    pynetdicom's timeouts do not cover a send that blocks on a full socket.
    """
    timer = threading.Timer(2 * timeout_s + 1, lambda: _cut(assoc))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _cut(assoc: Association) -> None:
    wrapped = assoc.dul.socket
    if wrapped is not None and wrapped.socket is not None:
        try:
            wrapped.socket.shutdown(socket.SHUT_RDWR)
        except OSError:  # it is gone already
            return


def _resolve(destination: Destination) -> str:
    """Look the name up ourselves: pynetdicom does not say that there is no such host."""
    try:
        return str(socket.getaddrinfo(destination.host, destination.port)[0][4][0])
    except (OSError, UnicodeError) as error:
        raise PeerError(f"{destination}: no host is called {destination.host!r}") from error


def _why_not(assoc: Association, destination: Destination, timeout_s: float) -> str:
    if assoc.is_rejected:
        answer = assoc.acceptor.primitive
        reason = getattr(answer, "reason_str", "no reason given")
        return f"{destination} rejected the association: {reason}"
    try:
        with socket.create_connection((destination.host, destination.port), min(timeout_s, 5.0)):
            pass
    except OSError as error:
        return f"{destination} cannot be reached: {error.strerror or error}"
    if assoc.rejected_contexts and not assoc.accepted_contexts:
        names = sorted({_name(str(each.abstract_syntax)) for each in assoc.rejected_contexts})
        return f"{destination} accepts none of {', '.join(names)}"
    return f"{destination} is reachable but did not answer as a DICOM node in {timeout_s:g} s"


def _without_delay(event: Event) -> None:
    """Send at once: Nagle's algorithm and a delayed ACK cost 40 ms an instance otherwise."""
    wrapped = event.assoc.dul.socket
    if wrapped is not None and wrapped.socket is not None:
        wrapped.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _meaning(status: int | None) -> str:
    if status is None:
        return "nothing"
    return f"status 0x{status:04X} ({code_to_category(status)})"


def _name(uid: str) -> str:

    return UID(uid).name
