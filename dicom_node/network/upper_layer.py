"""PDUs of the DICOM Upper Layer as an acceptor reads and writes them (PS3.8 9.3).

Knows one connected socket, with TLS or without. Must not know which titles, contexts or requests
are welcome. Bytes go from the socket into one buffer, and from there into the message: nothing of a
data set is looked at. What a peer sends is bounded before it is believed.
"""

import socket
import ssl
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from dicom_node.errors import BadInput, PeerError, SilentPeer

from .dimse import Answer, Command, response

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, DATA_TF = 1, 2, 3, 4
RELEASE_RQ, RELEASE_RP, ABORT = 5, 6, 7
APPLICATION_CONTEXT: Final = "1.2.840.10008.3.1.1.1"  # PS3.7 A.2.1

MAXIMUM_PDU: Final = 131_072  # what we announce
LARGEST_PDU: Final = 1 << 20  # what we take all the same, and an A-ASSOCIATE-RQ may be
BUFFER: Final = 256 << 10
MB: Final = 1 << 20
FAREWELL_S: Final = 2.0

# Reasons of an A-ABORT of the provider (PS3.8 Table 9-26).
NOT_SPECIFIED, UNRECOGNIZED_PDU, UNEXPECTED_PDU, INVALID_PARAMETER = 0, 1, 2, 6
ABSTRACT_SYNTAX_UNKNOWN: Final = 3  # result of a presentation context (PS3.8 Table 9-18)


class Violation(PeerError):
    """The peer does not speak the protocol; the association is aborted."""

    def __init__(self, message: str, reason: int = NOT_SPECIFIED) -> None:
        super().__init__(message)
        self.reason = reason


class Aborted(PeerError):
    """The peer sent an A-ABORT."""


class Lost(PeerError):
    """The peer hung up without a word."""


@dataclass(frozen=True)
class Context:
    """A presentation context as proposed: its number, the SOP class, the transfer syntaxes."""

    number: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


@dataclass(frozen=True)
class Proposal:
    """An A-ASSOCIATE-RQ (PS3.8 9.3.2); `roles` gives whether the peer wants to be SCU and SCP."""

    called_ae: str
    calling_ae: str
    version: int
    application_context: str
    contexts: tuple[Context, ...]
    maximum_length: int = 0
    roles: Mapping[str, tuple[bool, bool]] = field(default_factory=dict)
    titles: bytes = bytes(64)  # the fields that an A-ASSOCIATE-AC sends back as they came


@dataclass(frozen=True)
class Accepted:
    """What an A-ASSOCIATE-AC says: the transfer syntax of each context, None for a refused one."""

    contexts: Mapping[int, tuple[str, str | None]]  # abstract syntax, transfer syntax
    roles: Mapping[str, tuple[bool, bool]] = field(default_factory=dict)


@dataclass(frozen=True)
class Message:
    """A whole DIMSE message; `oversize` if its data set was more than is taken, and thrown away."""

    context: int
    command: Command
    data: bytearray
    oversize: bool = False


class Connection:
    """One connected socket.

    Parameters
    ----------
    timeout_s
        How long the peer may be silent, and how long a PDU may take from its beginning on.
    most
        Bytes of a data set above which it is thrown away; its `Message` says so.
    """

    def __init__(self, sock: socket.socket, *, timeout_s: float, most: int = 2048 * MB) -> None:
        self._sock, self._timeout_s, self._most = sock, timeout_s, most
        self._buffer = memoryview(bytearray(BUFFER))
        self._start = self._end = 0
        self._peer_maximum = 0
        _limit(sock, timeout_s)
        with suppress(OSError):  # the peer is gone already
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def proposal(self) -> Proposal:
        """Read the A-ASSOCIATE-RQ, which must come first.

        Raises
        ------
        SilentPeer
            The peer hung up without a byte, as a probe does.
        Violation
            Something else came, or nothing in time.
        """
        try:
            kind, body = self._pdu()
        except Lost as error:
            if self._end == self._start:
                raise SilentPeer("the peer hung up without a byte") from error
            raise
        if kind != ASSOCIATE_RQ:
            raise Violation(_unexpected("A-ASSOCIATE-RQ", kind), UNEXPECTED_PDU)
        proposal = decode_proposal(bytes(body))
        self._peer_maximum = proposal.maximum_length
        return proposal

    @property
    def first(self) -> bytes:
        """What lies unread in the buffer: after a `Violation` of `proposal`, what came instead."""
        return bytes(self._buffer[: min(self._end, 16)])

    def accept(self, proposal: Proposal, accepted: Accepted, *, uid: str, name: str) -> None:
        """Send the A-ASSOCIATE-AC, with our implementation's class UID and version name."""
        self._send(encode_acceptance(proposal, accepted, uid=uid, name=name))

    def reject(self, result: int, source: int, diagnostic: int) -> None:
        """Send an A-ASSOCIATE-RJ (PS3.8 Table 9-21)."""
        self._part(struct.pack(">BxI4B", ASSOCIATE_RJ, 4, 0, result, source, diagnostic))

    def abort(self, reason: int = NOT_SPECIFIED) -> None:
        """Send an A-ABORT as the provider, and hang up."""
        self._part(struct.pack(">BxI4B", ABORT, 4, 0, 0, 2, reason))

    def messages(self) -> Iterator[Message]:
        """Give each message once it is whole; ends with the peer's release, which is answered.

        Raises
        ------
        Aborted, Lost, Violation
            The association ended otherwise.
        """
        assembly = _Assembly(self._most)
        while True:
            kind, body = self._pdu()
            if kind == DATA_TF:
                yield from assembly.take(body)
            elif kind == RELEASE_RQ:
                self._part(struct.pack(">BxI4x", RELEASE_RP, 4))
                return
            elif kind == ABORT:
                raise Aborted("the peer aborted")
            else:
                raise Violation(_unexpected("P-DATA-TF", kind), UNEXPECTED_PDU)

    def respond(self, message: Message, answer: Answer) -> None:
        """Send the response to a message, and what it asks; in pieces that the peer takes."""
        self._message(message.context, response(message.command, answer), answer.data)
        if answer.ask is not None:
            self._message(message.context, answer.ask.command, answer.ask.data)

    def _message(self, context: int, command: bytes, data: bytes) -> None:
        pdus = [*self._pieces(context, command, 1)]
        if data:
            pdus += self._pieces(context, data, 0)
        self._send(b"".join(pdus))

    def _send(self, content: bytes) -> None:
        try:
            self._sock.sendall(content)
        except BlockingIOError as error:
            raise TimeoutError(f"the peer took no bytes for {self._timeout_s:g} s") from error

    def _pieces(self, context: int, content: bytes, command: int) -> Iterator[bytes]:
        # 6 bytes of a PDV before its fragment; 0 is no limit (PS3.8 D.1).
        size = max(min(self._peer_maximum or MAXIMUM_PDU, MAXIMUM_PDU) - 6, 64)
        for begin in range(0, len(content), size):
            piece = content[begin : begin + size]
            last = 2 if begin + size >= len(content) else 0
            head = struct.pack(
                ">BxIIBB", DATA_TF, len(piece) + 6, len(piece) + 2, context, command | last
            )
            yield head + piece

    def _pdu(self) -> tuple[int, memoryview]:
        """Read one PDU: its type, and its body until the next one is read."""
        self._fill(6)
        kind, length = struct.unpack_from(">BxI", self._buffer, self._start)
        if not ASSOCIATE_RQ <= kind <= ABORT:
            raise Violation(f"no PDU has the type 0x{kind:02X}", UNRECOGNIZED_PDU)
        if length > LARGEST_PDU:
            raise Violation(f"a PDU of {length} bytes, at most {LARGEST_PDU}", INVALID_PARAMETER)
        self._fill(6 + length)
        begin = self._start + 6
        self._start = begin + length
        return kind, self._buffer[begin : self._start]

    def _fill(self, wanted: int) -> None:
        """Read until so many bytes lie in the buffer."""
        if self._end - self._start >= wanted:
            return
        self._make_room(wanted)
        deadline = time.monotonic() + self._timeout_s
        while self._end - self._start < wanted:
            try:
                count = self._sock.recv_into(self._buffer[self._end :])
                # Linux forgets it: with Nagle's algorithm at the sender a delayed ACK costs 40 ms
                # for each PDU that is sent in two pieces.
                self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            except (TimeoutError, BlockingIOError) as error:
                raise Violation(f"nothing came for {self._timeout_s:g} s") from error
            except OSError as error:
                raise Lost(f"the connection broke: {error.strerror or error}") from error
            if not count:
                raise Lost("the peer hung up")
            self._end += count
            if time.monotonic() > deadline and self._end - self._start < wanted:
                raise Violation(f"a PDU took more than {self._timeout_s:g} s")

    def _make_room(self, wanted: int) -> None:
        left = self._end - self._start
        if wanted > len(self._buffer):
            larger = memoryview(bytearray(wanted))
            larger[:left] = self._buffer[self._start : self._end]
            self._buffer = larger
        elif left and self._start:
            self._buffer[:left] = self._buffer[self._start : self._end]
        self._start, self._end = 0, left

    def _part(self, last_words: bytes) -> None:
        """Send the last PDU and let the peer hang up first: it then has read it."""
        with suppress(OSError):
            self._sock.sendall(last_words)
            self._sock.settimeout(FAREWELL_S)
            self._sock.shutdown(socket.SHUT_WR)
            deadline = time.monotonic() + FAREWELL_S
            while self._sock.recv(65_536) and time.monotonic() < deadline:
                pass

    def close(self) -> None:
        """Let go of the socket; a reader in another thread is woken."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


def _limit(sock: socket.socket, timeout_s: float) -> None:
    """Limit how long a read or a write waits; by the kernel, where nothing is encrypted.

    Python's own timeout asks `poll` before each of them, which is a tenth of what a small image
    costs; TLS needs it, since it reads when it writes.
    """
    if isinstance(sock, ssl.SSLSocket):
        sock.settimeout(timeout_s)
        return
    sock.settimeout(None)
    limit = struct.pack("ll", int(timeout_s), int(timeout_s % 1 * 1e6))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


class _Assembly:
    """The fragments of messages (PS3.8 E.2): one at a time, the command before the data set."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._begin()

    def _begin(self) -> None:
        self._context = 0
        self._said = bytearray()
        self._command: Command | None = None
        self._data = bytearray()
        self._size = 0

    def take(self, body: memoryview) -> Iterator[Message]:
        """Take the PDVs of a P-DATA-TF; give the messages that are whole with them."""
        position = 0
        while position < len(body):
            if position + 6 > len(body):
                raise Violation("a PDV is cut short", INVALID_PARAMETER)
            length, context, control = struct.unpack_from(">IBB", body, position)
            end = position + 4 + length
            if length < 2 or end > len(body):  # noqa: PLR2004 - context and control
                raise Violation(f"a PDV of {length} bytes does not fit", INVALID_PARAMETER)
            message = self._fragment(context, control, body[position + 6 : end])
            if message is not None:
                yield message
            position = end

    def _fragment(self, context: int, control: int, piece: memoryview) -> Message | None:
        if self._context not in {0, context}:
            raise Violation("a message goes on in another context", INVALID_PARAMETER)
        self._context = context
        if bool(control & 1) == (self._command is not None):
            raise Violation("a data set without command, or none after one", INVALID_PARAMETER)
        if control & 1:
            return self._take_command(piece, last=bool(control & 2))
        self._size += len(piece)
        if self._size <= self._most:
            self._data += piece
        elif self._data:
            self._data = bytearray()
        return self._whole() if control & 2 else None

    def _take_command(self, piece: memoryview, *, last: bool) -> Message | None:
        self._said += piece
        if len(self._said) > MAXIMUM_PDU:
            raise Violation("a command set of more than a PDU", INVALID_PARAMETER)
        if not last:
            return None
        try:
            self._command = Command.decode(self._said)
        except BadInput as error:
            raise Violation(str(error), INVALID_PARAMETER) from error
        return None if self._command.has_data else self._whole()

    def _whole(self) -> Message:
        command = self._command
        assert command is not None  # noqa: S101 - `_fragment` refused a data set without one
        message = Message(self._context, command, self._data, oversize=self._size > self._most)
        self._begin()
        return message


def decode_proposal(body: bytes) -> Proposal:
    """Read an A-ASSOCIATE-RQ (PS3.8 9.3.2).

    Raises
    ------
    Violation
        It is cut short, or its items do not fit into it.
    """
    if len(body) < 68:  # noqa: PLR2004 - the fixed fields of Table 9-11
        raise Violation("an A-ASSOCIATE-RQ is cut short", INVALID_PARAMETER)
    application, contexts, user = "", [], b""
    for kind, content in _items(body, 68):
        if kind == 0x10:  # noqa: PLR2004 - Table 9-12
            application = _uid(content)
        elif kind == 0x20:  # noqa: PLR2004 - Table 9-13
            contexts.append(_context(content))
        elif kind == 0x50:  # noqa: PLR2004 - Table 9-16
            user = content
    length, roles = _user_information(user)
    return Proposal(
        called_ae=_title(body[4:20]),
        calling_ae=_title(body[20:36]),
        version=int.from_bytes(body[:2], "big"),
        application_context=application,
        contexts=tuple(contexts),
        maximum_length=length,
        roles=roles,
        titles=body[4:68],
    )


def encode_acceptance(proposal: Proposal, accepted: Accepted, *, uid: str, name: str) -> bytes:
    """Write an A-ASSOCIATE-AC (PS3.8 9.3.3)."""
    contexts = b"".join(
        _item(
            0x21,
            struct.pack("BxBx", number, 0 if chosen else ABSTRACT_SYNTAX_UNKNOWN)
            + _item(0x40, (chosen or "").encode()),
        )
        for number, (_, chosen) in accepted.contexts.items()
    )
    roles = b"".join(
        _item(0x54, struct.pack(">H", len(each)) + each.encode() + bytes(map(int, granted)))
        for each, granted in accepted.roles.items()
    )
    user = _item(0x51, struct.pack(">I", MAXIMUM_PDU)) + _item(0x52, uid.encode())
    user += roles + _item(0x55, name.encode())
    body = struct.pack(">Hxx", 1) + proposal.titles + _item(0x10, APPLICATION_CONTEXT.encode())
    body += contexts + _item(0x50, user)
    return struct.pack(">BxI", ASSOCIATE_AC, len(body)) + body


def _items(content: bytes, position: int = 0) -> Iterable[tuple[int, bytes]]:
    while position < len(content):
        if position + 4 > len(content):
            raise Violation("an item is cut short", INVALID_PARAMETER)
        kind, length = struct.unpack_from(">BxH", content, position)
        position += 4
        if position + length > len(content):
            raise Violation(f"an item of {length} bytes does not fit", INVALID_PARAMETER)
        yield kind, content[position : position + length]
        position += length


def _context(content: bytes) -> Context:
    if len(content) < 4:  # noqa: PLR2004 - Table 9-13
        raise Violation("a presentation context is cut short", INVALID_PARAMETER)
    abstract, transfers = "", []
    for kind, value in _items(content, 4):
        if kind == 0x30:  # noqa: PLR2004 - Table 9-14
            abstract = _uid(value)
        elif kind == 0x40:  # noqa: PLR2004 - Table 9-15
            transfers.append(_uid(value))
    return Context(content[0], abstract, tuple(transfers))


def _user_information(content: bytes) -> tuple[int, dict[str, tuple[bool, bool]]]:
    length, roles = 0, {}
    for kind, value in _items(content):
        if kind == 0x51 and len(value) == 4:  # noqa: PLR2004 - Table D.1-1
            length = int.from_bytes(value, "big")
        elif kind == 0x54 and len(value) >= 4:  # noqa: PLR2004 - PS3.7 Table D.3-9
            size = int.from_bytes(value[:2], "big")
            if len(value) == size + 4:
                roles[_uid(value[2:-2])] = (value[-2] == 1, value[-1] == 1)
    return length, roles


def _item(kind: int, content: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(content)) + content


def _uid(value: bytes) -> str:
    return value.rstrip(b"\x00 ").decode("ascii", "replace")


def _title(value: bytes) -> str:
    return value.decode("ascii", "replace").strip(" \x00")


def _unexpected(wanted: str, kind: int) -> str:
    return f"expected {wanted}, a PDU of type 0x{kind:02X} came"
