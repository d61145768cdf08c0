"""An association that we ask for: the PDUs of the requestor (PS3.8 7.1 and 9.3).

Knows one connected socket, with TLS or without, and what was negotiated. Must not know what is
stored or asked. A data set goes from the file into P-DATA-TF in pieces as long as the peer takes
them; nothing of it is decoded, and no more than a block of it is in memory.
"""

import select
import socket
import ssl
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO, Final

from dicom_node.errors import PeerError

from .upper_layer import (
    ABORT,
    APPLICATION_CONTEXT,
    ASSOCIATE_AC,
    ASSOCIATE_RJ,
    ASSOCIATE_RQ,
    DATA_TF,
    FAREWELL_S,
    MAXIMUM_PDU,
    RELEASE_RP,
    RELEASE_RQ,
    Aborted,
    Connection,
    Message,
    Violation,
)

BLOCK: Final = 512 << 10  # bytes of a data set that are framed and sent at once
UNLIMITED: Final = 256 << 10  # what we send to a peer that takes PDUs of any length
SMALLEST: Final = 64
WINDOW: Final = 8  # operations that we would have under way
SEND_BUFFER: Final = 1 << 20

# Result, source, reason of an A-ASSOCIATE-RJ (PS3.8 Table 9-21): what the source says.
REASONS: Final[Mapping[tuple[int, int], str]] = {
    (1, 1): "No reason given",
    (1, 2): "Application context name not supported",
    (1, 3): "Calling AE title not recognised",
    (1, 7): "Called AE title not recognised",
    (2, 1): "No reason given",
    (2, 2): "Protocol version not supported",
    (3, 1): "Temporary congestion",
    (3, 2): "Local limit exceeded",
}
CALLED_UNKNOWN: Final = (1, 7)
CALLING_UNKNOWN: Final = (1, 3)


class Rejected(PeerError):
    """The peer sent an A-ASSOCIATE-RJ; `why` is its source and reason (PS3.8 Table 9-21)."""

    def __init__(self, source: int, reason: int) -> None:
        self.why = (source, reason)
        super().__init__(REASONS.get(self.why, f"source {source}, reason {reason}"))


@dataclass(frozen=True)
class Offer:
    """A presentation context as we propose it."""

    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]
    as_scp: bool = False  # whether we would be its SCP, with the roles turned around


class Requestor(Connection):
    """One association, from our A-ASSOCIATE-RQ to our release.

    After `associate`, `contexts` gives by SOP class and transfer syntax the number of each
    presentation context that the peer accepts, and `window` how many operations may be under way.
    """

    def __init__(self, sock: socket.socket, *, timeout_s: float) -> None:
        super().__init__(sock, timeout_s=timeout_s)
        sock.settimeout(timeout_s)  # Python's own holds for all of what is sent at once
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self.contexts: dict[tuple[str, str], int] = {}
        self.window = 1
        self._over = False
        self._incoming: Iterator[Message] = self.messages()

    def associate(
        self, called_ae: str, calling_ae: str, offers: Sequence[Offer], us: tuple[str, str]
    ) -> None:
        """Ask for an association; `us` is our implementation's class UID and version name.

        Raises
        ------
        Rejected
            The peer does not want one.
        Aborted, Lost, Violation
            It did not come about.
        """
        self._sock.sendall(_proposal(called_ae, calling_ae, offers, us))
        kind, body = self._pdu()
        if kind == ASSOCIATE_RJ and len(body) >= 4:  # noqa: PLR2004 - PS3.8 Table 9-21
            self._over = True
            raise Rejected(body[2], body[3])
        if kind == ABORT:
            self._over = True
            raise Aborted("the peer aborted")
        if kind != ASSOCIATE_AC:
            raise Violation(f"expected A-ASSOCIATE-AC, a PDU of type 0x{kind:02X} came")
        self._take(bytes(body), offers)

    def send(self, context: int, command: bytes, data: BinaryIO | None = None) -> None:
        """Send a command set and, from where it stands to its end, the data set of a file.

        Raises
        ------
        OSError
            The connection broke, or the peer took no bytes in time.
        """
        size = self.piece
        head = b"".join(_framed(context, command, size, command=True, last=True))
        if data is None:
            self._sock.sendall(head)
            return
        length = max(1, BLOCK // size) * size
        block = data.read(length)
        while True:
            following = data.read(length) if len(block) == length else b""
            pdus = _framed(context, block, size, command=False, last=not following)
            self._sock.sendall(b"".join((head, *pdus)))
            if not following:
                return
            head, block = b"", following

    def send_bytes(self, context: int, command: bytes, data: bytes) -> None:
        """Send a command set and a data set that is at hand; raises as `send`."""
        self.send(context, command, BytesIO(data))

    @property
    def piece(self) -> int:
        """The longest fragment that the peer takes: 6 bytes less than its PDU (PS3.8 D.1)."""
        return max(min(self._peer_maximum or UNLIMITED, UNLIMITED) - 6, SMALLEST)

    @property
    def is_over(self) -> bool:
        """Whether the peer has ended the association."""
        return self._over

    def message(self) -> Message | None:
        """Wait for the next message; None if the peer has released the association.

        Raises
        ------
        Aborted, Lost, Violation
            It ended otherwise.
        """
        found = next(self._incoming, None)
        self._over = self._over or found is None
        return found

    def readable(self, timeout_s: float) -> bool:
        """Wait until the peer has sent something, or hung up."""
        if self._end > self._start:
            return True
        if isinstance(self._sock, ssl.SSLSocket) and self._sock.pending():
            return True
        return bool(select.select([self._sock], [], [], timeout_s)[0])

    def release(self) -> None:
        """End the association in good order, as far as the peer goes along; then hang up."""
        with suppress(PeerError, OSError):
            if not self._over:
                self._sock.settimeout(min(self._timeout_s, FAREWELL_S))
                self._sock.sendall(struct.pack(">BxI4x", RELEASE_RQ, 4))
                while self._pdu()[0] not in {RELEASE_RP, ABORT}:
                    pass
        self.close()

    def break_off(self) -> None:
        """Send an A-ABORT as the user, wait for nothing, and hang up."""
        with suppress(OSError):
            if not self._over:
                self._sock.settimeout(1.0)
                self._sock.sendall(struct.pack(">BxI4x", ABORT, 4))
        self.close()

    def _take(self, body: bytes, offers: Sequence[Offer]) -> None:
        for kind, content in _items(body[68:]):
            if kind == 0x21 and len(content) >= 4:  # noqa: PLR2004 - PS3.8 Table 9-18
                self._take_context(content, offers)
            elif kind == 0x50:  # noqa: PLR2004 - PS3.8 Table 9-16
                self._take_user(content)

    def _take_context(self, content: bytes, offers: Sequence[Offer]) -> None:
        number, result = content[0], content[2]
        place = number // 2
        if result or not number % 2 or place >= len(offers):
            return
        chosen = next((_uid(value) for kind, value in _items(content[4:]) if kind == 0x40), "")  # noqa: PLR2004 - Table 9-19
        # A peer that chooses what was not proposed gets nothing in this context.
        if chosen in offers[place].transfer_syntaxes:
            self.contexts[offers[place].abstract_syntax, chosen] = number

    def _take_user(self, content: bytes) -> None:
        for kind, value in _items(content):
            if kind == 0x51 and len(value) == 4:  # noqa: PLR2004 - Table D.1-1
                self._peer_maximum = int.from_bytes(value, "big")
            elif kind == 0x53 and len(value) == 4:  # noqa: PLR2004 - PS3.7 Table D.3-8
                # What the peer lets us invoke; 0 is without limit.
                most = int.from_bytes(value[:2], "big") or WINDOW
                self.window = min(most, WINDOW)


def _proposal(
    called_ae: str, calling_ae: str, offers: Sequence[Offer], us: tuple[str, str]
) -> bytes:
    """Write an A-ASSOCIATE-RQ (PS3.8 9.3.2); one context for each offer, numbered 1, 3, 5, ..."""
    titles = called_ae.encode("ascii").ljust(16) + calling_ae.encode("ascii").ljust(16)
    contexts = b"".join(
        _item(
            0x20,
            struct.pack("B3x", 2 * place + 1)
            + _item(0x30, offer.abstract_syntax.encode())
            + b"".join(_item(0x40, each.encode()) for each in offer.transfer_syntaxes),
        )
        for place, offer in enumerate(offers)
    )
    user = _item(0x51, struct.pack(">I", MAXIMUM_PDU)) + _item(0x52, us[0].encode())
    # We would be SCP and not SCU (PS3.7 D.3.3.4).
    user += b"".join(
        _item(0x54, struct.pack(">H", len(uid)) + uid + b"\x00\x01")
        for uid in (each.abstract_syntax.encode() for each in offers if each.as_scp)
    )
    # We invoke up to so many, and perform one at a time (PS3.7 D.3.3.3).
    user += _item(0x53, struct.pack(">HH", WINDOW, 1)) + _item(0x55, us[1].encode())
    body = struct.pack(">Hxx", 1) + titles + bytes(32)
    body += _item(0x10, APPLICATION_CONTEXT.encode()) + contexts + _item(0x50, user)
    return struct.pack(">BxI", ASSOCIATE_RQ, len(body)) + body


def _framed(
    context: int, content: bytes, size: int, *, command: bool, last: bool
) -> Iterator[bytes | memoryview]:
    """Cut into PDVs, each in a P-DATA-TF of its own; an empty data set is one empty fragment."""
    view = memoryview(content)
    for begin in range(0, max(len(content), 1), size):
        piece = view[begin : begin + size]
        ends = last and begin + size >= len(content)
        yield struct.pack(
            ">BxIIBB", DATA_TF, len(piece) + 6, len(piece) + 2, context, command | 2 * ends
        )
        yield piece


def _items(content: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position + 4 <= len(content):
        kind, length = struct.unpack_from(">BxH", content, position)
        position += 4 + length
        if position > len(content):
            raise Violation("an item of the A-ASSOCIATE-AC does not fit")
        yield kind, content[position - length : position]


def _item(kind: int, content: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(content)) + content


def _uid(value: bytes) -> str:
    return value.rstrip(b"\x00 ").decode("ascii", "replace")
