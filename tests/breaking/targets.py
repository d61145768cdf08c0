"""What is fuzzed: each target makes cases, puts one to the node, and says what came of it.

Knows what is promised: no crash, no hang, an answer of the kind that is documented. Whatever else
happens is a `Found`. The node's own edges, which survive anything, count as found too: what they
catch was not foreseen.
"""

import logging
import select
import shutil
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import TracebackType
from typing import ClassVar, Self

from pydicom import dcmread
from pydicom.encaps import encapsulate, generate_frames

from dicom_node import qa, volume
from dicom_node.config import Config
from dicom_node.demo import sample
from dicom_node.errors import BadInput, Mismatch, NodeError, NotDicom
from dicom_node.ledger import Ledger
from dicom_node.network.part10 import Part10
from dicom_node.scp import Scp
from dicom_node.spool import Announced, Spool, header
from dicom_node.volume import opening

from . import data_sets, requests, speech
from .mutation import TEXTS, Node, mangled, shaken

PATIENCE_S = 6.0  # less than the node's own, after which it would hang up
TOKEN = "a-token-that-is-not-guessed"


class Found(AssertionError):
    """A promise that was not kept."""


@dataclass(frozen=True)
class Case:
    """Bytes, and what is said of them: a transfer syntax and how they are announced."""

    content: bytes
    syntax: str = ""
    sop_class_uid: str = ""
    sop_uid: str = ""


class Target:
    """One thing that reads what others wrote; used as a context, in a folder of its own."""

    name: ClassVar[str]
    limit_s: ClassVar[float] = 10.0  # of a case, which takes milliseconds

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.up = ExitStack()

    def __enter__(self) -> Self:
        folder = self.folder
        folder.mkdir(parents=True, exist_ok=True)
        self.up.callback(shutil.rmtree, folder, ignore_errors=True)
        self.errors = self.up.enter_context(_errors())
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.up.close()

    def start(self) -> None:
        """Start what is needed."""

    def make(self, random: Random) -> Case:
        """Make a case."""
        raise NotImplementedError

    def put(self, case: Case) -> str:
        """Put a case to the node; say in a few words what came."""
        raise NotImplementedError

    def check(self) -> None:
        """Look after many cases whether all is as before."""

    def run(self, case: Case) -> str:
        """Put a case to the node, and look at what its edges caught."""
        self.errors.clear()
        said = self.put(case)
        if errors := [each for each in self.errors if not self.is_known(each)]:
            raise Found(errors[0])
        return said

    def is_known(self, error: str) -> bool:  # noqa: ARG002 - for those that know one
        """Say whether an error that was caught is of a library, and harms nobody."""
        return False

    def opened(self) -> Ledger:
        """Give a ledger in the folder."""
        self.config = Config(
            dicom_port=0,
            http_port=0,
            data_dir=self.folder / "node",
            minimum_free_mb=1,
            network_timeout_s=2 * PATIENCE_S,
            maximum_instance_mb=8,
        )
        self.ledger = self.up.enter_context(Ledger(self.config.ledger_path))
        return self.ledger


class Header(Target):
    """`header.read`, by its scan and by pydicom, which must agree on whose a data set is."""

    name = "header"

    def make(self, random: Random) -> Case:
        return _data_set(random)

    def put(self, case: Case) -> str:
        try:
            found = header.read(case.content, case.syntax)
        except (NotDicom, Mismatch) as error:
            return _words(error)
        self._agree(case, dict(found))
        return "read"

    def _agree(self, case: Case, found: dict[str, str]) -> None:
        if case.syntax == header.DeflatedExplicitVRLittleEndian:
            return
        try:
            again = header._read(case.content, case.syntax)
        except NotDicom:  # for a value that is not asked for: the scan forgives more
            return
        differs = [name for name in header.IDENTITY if found[name] != again[name]]
        if differs:
            raise Found(f"scan and pydicom differ in {differs}")


class Stored(Target):
    """`Spool.store`: what is refused leaves nothing, what is taken lies there and can be read."""

    name = "spool"

    def start(self) -> None:
        self.spool = Spool(self.folder / "node" / "spool", self.opened(), minimum_free_mb=1)
        self.root = self.config.spool_dir.resolve()

    def make(self, random: Random) -> Case:
        case = _data_set(random)
        if random.random() < 0.3:  # as announced, so that it comes as far as a name
            try:
                read = header.read(case.content, case.syntax)
            except NodeError:
                return case
            return Case(case.content, case.syntax, read["sop_class_uid"], read["sop_uid"])
        return case

    def put(self, case: Case) -> str:
        announced = Announced(case.sop_class_uid, case.sop_uid, case.syntax, "FUZZ")
        try:
            stored = self.spool.store(case.content, announced)
        except NodeError as error:
            if any((self.root / "incoming").iterdir()):
                raise Found("what was refused left a file") from error
            return _words(error)
        path = stored.path.resolve()
        if not path.is_relative_to(self.root) or len(path.relative_to(self.root).parts) != 3:
            raise Found(f"it lies outside of its place: {path}")
        if not path.read_bytes().endswith(case.content):
            raise Found("it is not as it came")
        known = self.ledger.instance(stored.study_uid, stored.sop_uid)
        if known is None or (known.path, known.sha256) != (stored.path, stored.sha256):
            raise Found(f"the ledger has {known}")
        return "stored"

    def check(self) -> None:
        self.ledger.verify()


class Reading(Target):
    """Files: `Part10.read`, and `volume.load` of a series in which one file is broken."""

    name = "file"

    def start(self) -> None:
        self.path = self.folder / "broken.dcm"
        self.others = {
            syntax: sample.write(data_sets.series(syntax)[1:], self.folder / syntax)
            for syntax in data_sets.SYNTAXES
        }

    def make(self, random: Random) -> Case:
        case = _data_set(random)
        head = data_sets.head(case.syntax, case.sop_class_uid, case.sop_uid)
        if random.random() < 0.2:
            head = mangled(head, random, random.randint(1, 3))
        return Case(head + case.content, case.syntax)

    def put(self, case: Case) -> str:
        self.path.write_bytes(case.content)
        try:
            part = Part10.read(self.path)
            _ = part.place
        except BadInput:
            pass
        try:
            volume.load([self.path, *self.others.get(case.syntax, ())])
        except BadInput as error:
            return _words(error)
        return "read"


class Frames(Target):
    """`pixels.frames`: compressed frames of all kinds, through the decoders of others."""

    name = "frames"
    limit_s = 60.0  # CharLS takes seconds over what is cut short

    def make(self, random: Random) -> Case:
        path = random.choice(data_sets.compressed())
        frame = next(generate_frames(dcmread(path).PixelData, number_of_frames=1))
        broken = mangled(frame, random, random.choice((1, 1, 2, 6)))
        return Case(broken or bytes(2), path.name)

    def put(self, case: Case) -> str:
        (path,) = (each for each in data_sets.compressed() if each.name == case.syntax)
        instance = dcmread(path)
        instance.PixelData = encapsulate([case.content])
        try:
            for _ in opening.open_instance(instance).frames():
                pass
        except BadInput as error:
            return f"{_words(error)} {case.syntax}"
        return f"read {case.syntax}"


class Association(Target):
    """A real `Scp` on a real port: a conversation in one go, then the peer stops speaking."""

    name = "association"

    def start(self) -> None:
        spool = Spool(self.folder / "node" / "spool", self.opened(), minimum_free_mb=1)
        self.scp = self.up.enter_context(Scp(self.config, spool, self.ledger))
        self.threads = threading.active_count()

    def make(self, random: Random) -> Case:
        return Case(_conversation(random))

    def put(self, case: Case) -> str:
        said = exchange(self.scp.port, case.content)
        try:
            kinds = [speech.DEFINED[kind] for kind, _ in speech.answers(said)]
            for status, sop_uid in speech.responses(said):
                self._acknowledged(status, sop_uid)
        except (ValueError, KeyError, struct.error) as error:
            raise Found(f"no answer that can be read: {error!r}") from error
        if not kinds and self._is_whole(case.content):
            raise Found("a whole PDU without an answer")
        ended = {"A-ASSOCIATE-RJ", "A-RELEASE-RP", "A-ABORT"}
        if kinds and kinds[-1] not in ended and not speech.aborts(case.content):
            raise Found(f"it ends with {kinds[-1]}")
        return ", ".join(dict.fromkeys(kinds)) or "closed"

    def _acknowledged(self, status: int, sop_uid: str) -> None:
        if status or not sop_uid:
            return
        study = next((each for each in self._studies() if self.ledger.instance(each, sop_uid)), "")
        if not study:
            raise Found(f"{sop_uid} was acknowledged, and the ledger does not have it")

    def _studies(self) -> list[str]:
        return [str(path.name) for path in self.config.spool_dir.iterdir() if path.is_dir()]

    def _is_whole(self, content: bytes) -> bool:
        length = int.from_bytes(content[2:6], "big")
        return len(content) >= 6 and 1 <= content[0] < 7 and len(content) >= 6 + length

    def check(self) -> None:
        random = Random(0)
        whole = speech.proposal([(speech.VERIFICATION, [speech.IMPLICIT])], b"LAMED", b"FUZZ", 0)
        echo = speech.command(speech.C_ECHO, speech.VERIFICATION, "", data=False).encode()
        pdus = [whole, *speech.fragments(1, echo, 1, random)]
        stream = b"".join(each.encode() for each in pdus) + speech.RELEASE
        kinds = [kind for kind, _ in speech.answers(exchange(self.scp.port, stream))]
        if kinds != [2, 4, 6]:
            raise Found(f"no echo afterwards: {kinds}")
        deadline = time.monotonic() + PATIENCE_S
        while threading.active_count() > self.threads:
            if time.monotonic() > deadline:
                raise Found(f"{threading.active_count() - self.threads} threads are left")
            time.sleep(0.02)
        self.ledger.verify()


class Http(Target):
    """The real server of pages and interface, with and without the token."""

    name = "http"

    def is_known(self, error: str) -> bool:
        # uvicorn has answered 400 to a bad chunk, and then tells the application's answer to h11.
        return "LocalProtocolError" in error

    def start(self) -> None:
        app = qa.create_app(self.opened(), results_dir=self.folder / "results", api_token=TOKEN)
        self.server = self.up.enter_context(qa.Server(app, "127.0.0.1", 0))

    def make(self, random: Random) -> Case:
        return Case(requests.make(random, TOKEN))

    def put(self, case: Case) -> str:
        said = exchange(self.server.port, case.content, patience_s=0.25)
        if not said:
            return "closed"
        line = said.split(b"\r\n", 1)[0]
        if not line.startswith(b"HTTP/1.1 ") or not line[9:12].isdigit():
            raise Found(f"no answer of HTTP: {line[:60]!r}")
        if line[9:10] == b"5":
            raise Found(f"it says {line[9:60].decode('latin-1')}")
        return line[9:12].decode()

    def check(self) -> None:
        if b" 200 " not in exchange(
            self.server.port,
            b"GET /api/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            patience_s=PATIENCE_S,
        ):
            raise Found("it is not healthy")
        self.ledger.verify()


TARGETS: dict[str, Callable[[Path], Target]] = {
    each.name: each for each in (Association, Header, Stored, Reading, Frames, Http)
}


def exchange(port: int, content: bytes, *, patience_s: float = 0.0) -> bytes:
    """Send, stop speaking, and read until the other side hangs up.

    Parameters
    ----------
    patience_s
        How long an answer is waited for until we stop speaking.

    Raises
    ------
    Found
        It does not hang up in time, or lets the connection break.
    """
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as sock:
        said = bytearray()
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # it has heard enough
                sock.sendall(content)
            select.select([sock], [], [], patience_s)
            with suppress(OSError):  # it has hung up already
                sock.shutdown(socket.SHUT_WR)
            while piece := sock.recv(65_536):
                said += piece
        except TimeoutError as error:
            raise Found(f"no end for {PATIENCE_S:g} s, {len(said)} bytes came") from error
        except OSError as error:  # it does not read what it refuses; an answer came all the same?
            if not said:
                raise Found(f"the connection broke without an answer: {error}") from error
    return bytes(said)


def _data_set(random: Random) -> Case:
    model = random.choice(data_sets.models())
    content = data_sets.broken(model, random)
    syntax = model.syntax if random.random() < 0.9 else random.choice(data_sets.SYNTAXES)
    return Case(content, syntax, model.sop_class_uid, model.sop_uid)


def _conversation(random: Random) -> bytes:
    """Propose, store, echo, release; each may be wrong, most are not."""
    syntaxes = [speech.EXPLICIT, speech.IMPLICIT]
    contexts = [(speech.CT, syntaxes), (speech.VERIFICATION, syntaxes)]
    contexts += [(speech.CT, [each]) for each in data_sets.SYNTAXES[2:]]
    called, calling = b"LAMED", b"FUZZ"
    if random.random() < 0.1:
        calling = random.choice(TEXTS)[:16]
    if random.random() < 0.03:
        called = random.choice(TEXTS)[:16]
    asked = speech.proposal(
        contexts, called, calling, random.choice((0, 1, 64, 4096, 16_382, 0xFFFFFFFF))
    )
    if random.random() < 0.4:
        shaken(asked, random, random.randint(1, 3))
    pdus = [asked]
    for _ in range(random.choice((0, 1, 1, 2, 4))):
        pdus += _message(random)
    end = random.choice((speech.RELEASE, speech.RELEASE, speech.ABORT, b""))
    stream = Node(content=[*pdus, Node(content=end)])
    if random.random() < 0.3:
        shaken(stream, random, random.randint(1, 2))
    encoded = stream.encode()
    return mangled(encoded, random) if random.random() < 0.2 else encoded


def _message(random: Random) -> list[Node]:
    if random.random() < 0.3:
        code = random.choice((speech.C_ECHO, speech.C_ECHO, 0x0020, 0x0130, 0x8001, 0x0FFF))
        said = speech.command(code, speech.VERIFICATION, "", data=False)
        if random.random() < 0.4:
            shaken(said, random)
        return speech.fragments(3, said.encode(), 1, random)
    model = random.choice(data_sets.models()[:2])
    content = data_sets.broken(model, random) if random.random() < 0.5 else model.content
    said = speech.command(speech.C_STORE, model.sop_class_uid, model.sop_uid, data=True)
    if random.random() < 0.3:
        shaken(said, random)
    context = 1 if random.random() < 0.9 else random.choice((0, 2, 5, 255))
    pdus = speech.fragments(context, said.encode(), 1, random)
    return pdus + speech.fragments(context, content, 0, random)


def _words(error: Exception) -> str:
    """Give the kind of an error and the beginning of its message, without what is of the case."""
    text = "".join(each if each.isalpha() or each in " -" else " " for each in str(error))
    return f"{type(error).__name__} {' '.join(text.split()[:3])}"


@contextmanager
def _errors() -> Iterator[list[str]]:
    """Collect what the edges of the node log with a trace, and what ends a thread."""
    found: list[str] = []

    class Edge(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info and record.exc_info[1]:
                found.append(f"{record.getMessage()}: {_where(record.exc_info[1])}")

    def ended(told: threading.ExceptHookArgs) -> None:
        found.append(f"a thread ended: {_where(told.exc_value)}")

    edge, hook = Edge(logging.ERROR), threading.excepthook
    loggers = [logging.getLogger(each) for each in ("dicom_node", "uvicorn.error")]
    for each in loggers:
        each.addHandler(edge)
    threading.excepthook = ended
    try:
        yield found
    finally:
        threading.excepthook = hook
        for each in loggers:
            each.removeHandler(edge)


def _where(error: BaseException | None) -> str:
    trace = error.__traceback__ if error else None
    while trace and trace.tb_next:
        trace = trace.tb_next
    at = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else "?"
    return f"{type(error).__name__} at {at}: {str(error)[:200]}"
