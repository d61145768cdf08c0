"""Results and folders go to a peer by C-STORE, as they are on the disk; and what else we ask of it.

Knows DIMSE as a user: C-STORE, C-ECHO, C-FIND, N-ACTION, and the requests that a peer sends on our
association. The bytes of a data set are sent untouched, each SOP class and transfer syntax in a
presentation context of its own, so that no peer can choose another one.
"""

import logging
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final

from pydicom import Dataset
from pydicom.misc import is_dicom

from dicom_node.config import Config, Destination
from dicom_node.errors import BadInput, NotTaken, PeerError
from dicom_node.network import dimse, outgoing, tls
from dicom_node.network.dimse import Answer, Request
from dicom_node.network.part10 import Part10
from dicom_node.network.requestor import Offer, Rejected, Requestor
from dicom_node.network.upper_layer import Aborted, Lost, Message, Violation
from dicom_node.spool import IMPLEMENTATION_NAME, IMPLEMENTATION_UID

from .storing import Storing

log = logging.getLogger(__name__)

MAXIMUM_CONTEXTS: Final = 128  # PS3.8 9.3.2.2: the context ID is an odd byte
VERIFICATION: Final = "1.2.840.10008.1.1"
COMMITMENT: Final = "1.2.840.10008.1.20.1"  # PS3.4 J.4
STUDY_ROOT_FIND: Final = "1.2.840.10008.5.1.4.1.2.2.1"
TLS_ALERT: Final = 0x15  # how a peer that speaks TLS answers plain DICOM (RFC 8446 5.1)

Handler = Callable[[Request], Answer]


@dataclass(frozen=True)
class Caller:
    """Who we are on an association, and what we answer to requests of the peer.

    `timeout_s` is how long the peer may be silent; `tls` is None without TLS; `on_request` answers
    what the peer asks, as N-EVENT-REPORT of Storage Commitment.
    """

    ae_title: str
    timeout_s: float
    tls: ssl.SSLContext | None = None
    on_request: Handler | None = None

    @classmethod
    def of(
        cls, config: Config, destination: Destination, on_request: Handler | None = None
    ) -> "Caller":
        """Speak as the node does to this destination."""
        context = tls.client_context(config) if destination.tls else None
        return cls(config.ae_title, config.network_timeout_s, context, on_request)


class Session:
    """One association with a peer, and what can be asked on it; see `session`."""

    def __init__(self, requestor: Requestor, destination: Destination, caller: Caller) -> None:
        self._requestor, self._destination, self._caller = requestor, destination, caller
        self._number = 0

    def takes(self, sop_class_uid: str) -> bool:
        """Say whether the peer has accepted this SOP class in any transfer syntax."""
        return any(each == sop_class_uid for each, _ in self._requestor.contexts)

    def store(
        self, files: Sequence[Part10], on_stored: Callable[[Part10], None] | None = None
    ) -> None:
        """Store files in this order; what the peer never takes keeps no other one back.

        As many are under way at once as was negotiated, which mostly is one.

        Raises
        ------
        NotTaken
            The peer refuses some for good, and which; the others are stored.
        PeerError
            It hung up, was silent, or cannot take them now.
        """
        storing = Storing(self._destination, on_stored)
        for file in files:
            context = self._requestor.contexts.get(file.context)
            if context is None:
                storing.refuse(
                    f"does not accept {outgoing.name(file.sop_class_uid)} in"
                    f" {outgoing.name(file.transfer_syntax_uid)}"
                )
                continue
            with self._speaking(f"before it had stored {file.path.name}"):
                while len(storing.waiting) >= self._requestor.window:
                    storing.settle(self._response())
                storing.waiting[self._next()] = file
                with file.path.open("rb") as data:
                    data.seek(file.offset)
                    self._requestor.send(context, outgoing.store_request(file, self._number), data)
        with self._speaking("before it had answered for every instance"):
            while storing.waiting:
                storing.settle(self._response())
        storing.end()

    def echo(self) -> None:
        """Ask for a sign of life; raises `PeerError` if there is none."""
        elements: dict[int, int | str] = {
            dimse.AFFECTED_CLASS: VERIFICATION,
            dimse.COMMAND_FIELD: dimse.C_ECHO_RQ,
        }
        answer = self._ask(VERIFICATION, elements).command
        if answer.number(dimse.STATUS) != dimse.SUCCESS:
            raise PeerError(f"{self._destination} answered C-ECHO with {outgoing.meaning(answer)}")

    def find(self, identifier: Dataset) -> list[Dataset]:
        """Ask what there is by C-FIND in the Study Root (PS3.4 C.4.1).

        Raises
        ------
        PeerError
            The peer does not accept or answer it, or with a failure.
        """
        found = []
        elements: dict[int, int | str] = {
            dimse.AFFECTED_CLASS: STUDY_ROOT_FIND,
            dimse.COMMAND_FIELD: outgoing.C_FIND_RQ,
            outgoing.PRIORITY: 0,
        }
        answer = self._ask(STUDY_ROOT_FIND, elements, identifier)
        while answer.command.number(dimse.STATUS) in outgoing.PENDING:
            syntax = self._context(STUDY_ROOT_FIND)[1]
            found.append(outgoing.decoded(bytes(answer.data), syntax))
            with self._speaking("in the middle of its answer to C-FIND"):
                answer = self._response()
        if answer.command.number(dimse.STATUS) != dimse.SUCCESS:
            told = outgoing.meaning(answer.command)
            raise PeerError(f"{self._destination} answered C-FIND with {told}")
        return found

    def ask_commitment(self, information: Dataset) -> None:
        """Ask the peer to commit to what it has stored: N-ACTION (PS3.4 J.3.2).

        Raises
        ------
        PeerError
            It does not accept or answer it, or with a failure.
        """
        elements: dict[int, int | str] = {
            dimse.REQUESTED_CLASS: COMMITMENT,
            dimse.COMMAND_FIELD: dimse.N_ACTION_RQ,
            dimse.REQUESTED_INSTANCE: f"{COMMITMENT}.1",
            dimse.ACTION_TYPE: 1,
        }
        answer = self._ask(COMMITMENT, elements, information).command
        if answer.number(dimse.STATUS) not in outgoing.WARNINGS | {dimse.SUCCESS}:
            told = outgoing.meaning(answer)
            raise PeerError(f"{self._destination} answered N-ACTION with {told}")

    def report_commitment(self, report: Dataset, event_type: int) -> None:
        """Report as an SCP what we commit to: N-EVENT-REPORT (PS3.4 J.3.3).

        Raises
        ------
        PeerError
            It does not accept or answer it, or with a failure.
        """
        elements: dict[int, int | str] = {
            dimse.AFFECTED_CLASS: COMMITMENT,
            dimse.COMMAND_FIELD: dimse.N_EVENT_REPORT_RQ,
            dimse.AFFECTED_INSTANCE: f"{COMMITMENT}.1",
            dimse.EVENT_TYPE: event_type,
        }
        answer = self._ask(COMMITMENT, elements, report).command
        if answer.number(dimse.STATUS) != dimse.SUCCESS:
            told = outgoing.meaning(answer)
            raise PeerError(f"{self._destination} answered N-EVENT-REPORT with {told}")

    def listen(self, seconds: float, done: Callable[[], bool]) -> None:
        """Answer what the peer asks on this association, so long or until `done`.

        Raises
        ------
        PeerError
            The peer hung up.
        """
        deadline = time.monotonic() + seconds
        with self._speaking("while we waited for its report"):
            while not done() and not self._requestor.is_over and time.monotonic() < deadline:
                if self._requestor.readable(0.05):
                    self._serve(self._requestor.message())

    def _ask(
        self, sop_class: str, elements: Mapping[int, int | str], data: Dataset | None = None
    ) -> Message:
        context, syntax = self._context(sop_class)
        with self._speaking("before it had answered"):
            number = self._next()
            has_data = dimse.NO_DATA_SET if data is None else dimse.A_DATA_SET
            said = {**elements, dimse.MESSAGE_ID: number, dimse.DATA_SET_TYPE: has_data}
            content = None if data is None else BytesIO(outgoing.encoded(data, syntax))
            self._requestor.send(context, outgoing.command_set(said), content)
            return self._response()

    def _context(self, sop_class: str) -> tuple[int, str]:
        for (abstract, syntax), number in self._requestor.contexts.items():
            if abstract == sop_class:
                return number, syntax
        raise NotTaken(f"{self._destination} accepts no {outgoing.name(sop_class)}")

    def _next(self) -> int:
        self._number = self._number % 0xFFFF + 1
        return self._number

    def _response(self) -> Message:
        """Wait for a response; what the peer asks meanwhile is answered."""
        while True:
            message = self._requestor.message()
            if message is None:
                raise Lost("the peer released the association")
            if message.command.field & dimse.RESPONSE:
                return message
            self._serve(message)

    def _serve(self, message: Message | None) -> None:
        if message is None or message.command.field & dimse.RESPONSE:
            return
        syntaxes = {number: key[1] for key, number in self._requestor.contexts.items()}
        request = message.command.request(
            bytes(message.data),
            syntaxes.get(message.context, ""),
            self._destination.ae_title,
            self._destination.host,
        )
        answer = Answer(dimse.UNRECOGNIZED_OPERATION)
        if self._caller.on_request and request.field == dimse.N_EVENT_REPORT_RQ:
            answer = self._caller.on_request(request)
        self._requestor.respond(message, answer)

    @contextmanager
    def _speaking(self, when: str) -> Iterator[None]:
        """Say in the node's words what went wrong with the connection."""
        try:
            yield
        except TimeoutError as error:
            silent = f"took no bytes for {self._caller.timeout_s:g} s"
            raise PeerError(f"{self._destination} {silent} {when}") from error
        except Violation as error:
            raise PeerError(f"{self._destination}: {error} {when}") from error
        except (Lost, Aborted) as error:
            raise PeerError(f"{self._destination} hung up {when}: {error}") from error
        except BrokenPipeError as error:
            raise PeerError(f"{self._destination} hung up {when}") from error
        except ConnectionError as error:
            raise PeerError(f"{self._destination} hung up {when}: {error.strerror}") from error


@contextmanager
def session(destination: Destination, offers: Sequence[Offer], caller: Caller) -> Iterator[Session]:
    """Have an association with a peer; released in the end, aborted if something goes wrong.

    Raises
    ------
    NotTaken
        The peer accepts nothing of what is offered.
    PeerError
        It cannot be reached, rejects us, is silent or hangs up, and why, in plain words.
    """
    requestor = Requestor(_connected(destination, caller), timeout_s=caller.timeout_s)
    try:
        _associate(requestor, destination, offers, caller)
        yield Session(requestor, destination, caller)
    except NotTaken:  # the association itself is in order
        requestor.release()
        raise
    except BaseException:  # also a Ctrl-C: the peer is not left with an association half done
        requestor.break_off()
        raise
    requestor.release()


def _associate(
    requestor: Requestor, destination: Destination, offers: Sequence[Offer], caller: Caller
) -> None:
    us = (IMPLEMENTATION_UID, IMPLEMENTATION_NAME)
    try:
        requestor.associate(destination.ae_title, caller.ae_title, offers, us)
    except Rejected as error:
        raise PeerError(f"{destination} rejected the association: {error}") from error
    except (Violation, Aborted, Lost, OSError) as error:
        raise PeerError(_no_node(requestor.first, destination, caller, error)) from error
    if not requestor.contexts:
        names = sorted({outgoing.name(each.abstract_syntax) for each in offers})
        raise NotTaken(f"{destination} accepts none of {', '.join(names)}")


def _no_node(first: bytes, destination: Destination, caller: Caller, error: Exception) -> str:
    if first[:1] == bytes([TLS_ALERT]):
        return f"{destination} speaks TLS, and we speak plain DICOM to it: set tls = true"
    if isinstance(error, Aborted):
        return f"{destination} aborted instead of answering our request for an association"
    if isinstance(error, Violation) and not first:
        silent = f"did not answer as a DICOM node in {caller.timeout_s:g} s"
        return f"{destination} is reachable but {silent}"
    return f"{destination} is reachable but did not answer as a DICOM node: {error}"


def _connected(destination: Destination, caller: Caller) -> socket.socket:
    """Connect, and shake hands if we speak TLS to it."""
    address = (destination.host, destination.port)
    try:
        sock = socket.create_connection(address, caller.timeout_s)
    except (socket.gaierror, UnicodeError) as error:
        raise PeerError(f"{destination}: no host is called {destination.host!r}") from error
    except OSError as error:
        raise PeerError(f"{destination} cannot be reached: {error.strerror or error}") from error
    if caller.tls is None:
        return sock
    try:
        return tls.handshake(sock, caller.tls, caller.timeout_s, server_hostname=destination.host)
    except PeerError as error:
        raise PeerError(f"{destination}: {error}") from error


def send(
    paths: Sequence[Path],
    destination: Destination,
    *,
    calling_ae: str,
    timeout_s: float,
    on_progress: Callable[[int], None] | None = None,
    secured: ssl.SSLContext | None = None,
) -> None:
    """Store files at a peer, in this order.

    Parameters
    ----------
    timeout_s
        How long the peer may be silent.
    on_progress
        Called with the number of instances stored so far.
    secured
        The context for a destination with TLS.

    Raises
    ------
    BadInput
        A file is no DICOM file.
    NotTaken
        The peer does not take some of them, and never will; the others are stored.
    PeerError
        The peer cannot be reached, refuses, answers with a failure, is silent or hangs up.
    """
    done = 0

    def count(_: Part10) -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(done)

    caller = Caller(calling_ae, timeout_s, secured)
    for batch in batches([Part10.read(path) for path in paths]):
        with session(destination, offers_of(batch), caller) as opened:
            opened.store(batch, count)


def echo(
    destination: Destination,
    *,
    calling_ae: str,
    timeout_s: float,
    secured: ssl.SSLContext | None = None,
) -> None:
    """Ask a peer for a sign of life.

    Raises
    ------
    PeerError
        There is none, and why.
    """
    caller = Caller(calling_ae, timeout_s, secured)
    with session(destination, [Offer(VERIFICATION, outgoing.SYNTAXES)], caller) as opened:
        opened.echo()


def offers_of(files: Sequence[Part10]) -> list[Offer]:
    """Give a context of its own to each SOP class and transfer syntax."""
    return [
        Offer(each, (syntax,)) for each, syntax in dict.fromkeys(file.context for file in files)
    ]


def batches(files: Sequence[Part10], most: int = MAXIMUM_CONTEXTS) -> Iterator[list[Part10]]:
    """Cut where an association would need more contexts than it can have."""
    batch: list[Part10] = []
    contexts: set[tuple[str, str]] = set()
    for file in files:
        if file.context not in contexts and len(contexts) == most:
            yield batch
            batch, contexts = [], set()
        batch.append(file)
        contexts.add(file.context)
    if batch:
        yield batch


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
