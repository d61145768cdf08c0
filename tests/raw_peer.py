"""A peer that sends what a test says, byte for byte; its PDUs are encoded by pynetdicom.

Knows a socket and PS3.8 through pynetdicom's classes, so that ours are held against another's.
"""

import socket
import struct
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from pynetdicom import build_context
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RJ, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
)

VERIFICATION = "1.2.840.10008.1.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
RELEASE_RQ = struct.pack(">BxI4x", 5, 4)
ABORT = struct.pack(">BxI4x", 7, 4)


def request(
    contexts: Sequence[tuple[str, Sequence[str]]] = ((VERIFICATION, [IMPLICIT]),),
    *,
    called: str = "LAMED",
    calling: str = "SCANNER",
    maximum: int = 16_382,
    roles: Mapping[str, tuple[bool, bool]] | None = None,
) -> bytes:
    """Encode an A-ASSOCIATE-RQ; the contexts are numbered 1, 3, 5, ..."""
    primitive = A_ASSOCIATE()
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    primitive.called_ae_title, primitive.calling_ae_title = called, calling
    proposed = [build_context(uid, list(transfers)) for uid, transfers in contexts]
    for number, each in enumerate(proposed):
        each.context_id = 2 * number + 1
    primitive.presentation_context_definition_list = proposed
    length, uid = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received = maximum
    uid.implementation_class_uid = "1.2.3.4"
    primitive.user_information = [length, uid]
    for sop_class, (scu, scp) in (roles or {}).items():
        role = SCP_SCU_RoleSelectionNegotiation()
        role.sop_class_uid, role.scu_role, role.scp_role = sop_class, scu, scp
        primitive.user_information.append(role)
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(primitive)
    return bytes(pdu.encode())


def command(field: int, sop_class: str = VERIFICATION, sop_uid: str = "", *, data: bool) -> bytes:
    """Encode a command set, without the code under test."""
    elements = [(0x0002, _uid(sop_class)), (0x0100, struct.pack("<H", field))]
    elements += [(0x0110, struct.pack("<H", 7)), (0x0800, struct.pack("<H", 1 if data else 0x0101))]
    if sop_uid:
        elements.append((0x1000, _uid(sop_uid)))
    body = b"".join(struct.pack("<HHI", 0, tag, len(each)) + each for tag, each in elements)
    return struct.pack("<HHII", 0, 0, 4, len(body)) + body


def fragments(context: int, content: bytes, *, command: bool, size: int = 16_000) -> bytes:
    """Encode P-DATA-TF PDUs, each with one PDV of at most `size` bytes."""
    pdus = []
    for begin in range(0, max(len(content), 1), size):
        piece = content[begin : begin + size]
        control = (1 if command else 0) | (2 if begin + size >= len(content) else 0)
        pdv = struct.pack(">IBB", len(piece) + 2, context, control) + piece
        pdus.append(struct.pack(">BxI", 4, len(pdv)) + pdv)
    return b"".join(pdus)


class RawPeer:
    """One connection to a port."""

    def __init__(self, port: int, timeout_s: float = 10.0) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.sock.close()

    def send(self, content: bytes) -> None:
        self.sock.sendall(content)

    def pdu(self) -> bytes:
        """Read a whole PDU; empty if the other side hung up."""
        head = self._exactly(6)
        return head + self._exactly(struct.unpack(">BxI", head)[1]) if head else b""

    def associate(self, content: bytes) -> Any:
        """Propose; give what is answered, as pynetdicom decodes it."""
        self.send(content)
        answer = self.pdu()
        kind: Any = {2: A_ASSOCIATE_AC, 3: A_ASSOCIATE_RJ}[answer[0]]()
        kind.decode(answer)
        return kind.to_primitive()

    def answer(self) -> dict[int, bytes]:
        """Read a response; give its command set by element number."""
        content, last = b"", False
        while not last:
            pdu = self.pdu()
            assert pdu[:1] == b"\x04", f"no P-DATA-TF: {pdu[:10]!r}"
            content += pdu[12:]
            last = bool(pdu[11] & 2)
        values, position = {}, 0
        while position < len(content):
            _, element, length = struct.unpack_from("<HHI", content, position)
            values[element] = content[position + 8 : position + 8 + length]
            position += 8 + length
        return values

    def status(self) -> int:
        """Read a response; give its status."""
        return int.from_bytes(self.answer()[0x0900], "little")

    def _exactly(self, count: int) -> bytes:
        found = b""
        while len(found) < count:
            try:
                piece = self.sock.recv(count - len(found))
            except ConnectionError:
                piece = b""
            if not piece:
                return b""
            found += piece
        return found


def _uid(text: str) -> bytes:
    return text.encode() + b"\x00" * (len(text) % 2)
