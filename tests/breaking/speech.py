"""What a peer says on an association, as trees: A-ASSOCIATE-RQ, P-DATA-TF, C-STORE (PS3.8 9.3).

Knows the encoding, on purpose without the code under test; `answers` reads what comes back.
"""

import struct
from collections.abc import Iterator, Sequence
from random import Random

from .mutation import Node

VERIFICATION, CT = "1.2.840.10008.1.1", "1.2.840.10008.5.1.4.1.1.2"
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
RELEASE, ABORT = struct.pack(">BxI4x", 5, 4), struct.pack(">BxI4x", 7, 4)
P_DATA, A_ABORT = 4, 7
C_ECHO, C_STORE = 0x0030, 0x0001
DEFINED = {2: "A-ASSOCIATE-AC", 3: "A-ASSOCIATE-RJ", 4: "P-DATA", 6: "A-RELEASE-RP", 7: "A-ABORT"}


def item(kind: int, content: bytes | list[Node]) -> Node:
    return Node(">BxH", [kind], content)


def proposal(
    contexts: Sequence[tuple[str, Sequence[str]]], called: bytes, calling: bytes, maximum: int
) -> Node:
    """An A-ASSOCIATE-RQ; the contexts are numbered 1, 3, 5, ..."""
    head = struct.pack(">Hxx", 1) + called.ljust(16)[:16] + calling.ljust(16)[:16] + bytes(32)
    proposed = [
        item(
            0x20,
            [
                Node(content=bytes([2 * number + 1, 0, 0, 0])),
                item(0x30, abstract.encode()),
                *(item(0x40, each.encode()) for each in transfers),
            ],
        )
        for number, (abstract, transfers) in enumerate(contexts)
    ]
    role = struct.pack(">H", len(CT)) + CT.encode() + b"\x01\x00"
    user = [item(0x51, struct.pack(">I", maximum)), item(0x52, b"1.2.3.4"), item(0x54, role)]
    body = [Node(content=head), item(0x10, b"1.2.840.10008.3.1.1.1"), *proposed, item(0x50, user)]
    return Node(">BxI", [1], body)


def command(code: int, sop_class: str, sop_uid: str, *, data: bool) -> Node:
    """A command set."""

    def element(number: int, value: bytes) -> Node:
        return Node("<HHI", [0, number], value + bytes(len(value) % 2))

    elements = [
        element(0x0002, sop_class.encode()),
        element(0x0100, struct.pack("<H", code)),
        element(0x0110, struct.pack("<H", 7)),
        element(0x0700, struct.pack("<H", 0)),
        element(0x0800, struct.pack("<H", 1 if data else 0x0101)),
    ]
    if sop_uid:
        elements.append(element(0x1000, sop_uid.encode()))
    return Node(content=elements)


def fragments(context: int, content: bytes, control: int, random: Random) -> list[Node]:
    """P-DATA-TF PDUs of some size, each with a PDV or more."""
    size = random.choice((64, 1000, 16_000))
    pdvs = []
    for begin in range(0, max(len(content), 1), size):
        last = 2 if begin + size >= len(content) else 0
        pdvs.append(Node(">I", [], [Node(content=bytes([context, control | last])),
                                    Node(content=content[begin : begin + size])]))  # fmt: skip
    together = random.choice((1, 1, 3))
    return [Node(">BxI", [4], pdvs[at : at + together]) for at in range(0, len(pdvs), together)]


def answers(stream: bytes) -> Iterator[tuple[int, bytes]]:
    """Read the PDUs that came back.

    Raises
    ------
    ValueError
        They are none.
    """
    position = 0
    while position < len(stream):
        if len(stream) < position + 6:
            raise ValueError("an answer is cut short")
        kind, length = struct.unpack_from(">BxI", stream, position)
        body = stream[position + 6 : position + 6 + length]
        if kind not in DEFINED or len(body) < length:
            raise ValueError(f"no answer: type {kind}, {len(body)} of {length} bytes")
        yield kind, body
        position += 6 + length


def responses(stream: bytes) -> Iterator[tuple[int, str]]:
    """Give status and Affected SOP Instance UID of each response, put together of its PDVs."""
    said = b""
    for kind, body in answers(stream):
        if kind != P_DATA:
            continue
        position = 0
        while position < len(body):
            length, _, control = struct.unpack_from(">IBB", body, position)
            said += body[position + 6 : position + 4 + length]
            position += 4 + length
            if control & 2:
                yield _status(said)
                said = b""


def _status(said: bytes) -> tuple[int, str]:
    position, values = 0, {}
    while position < len(said):
        _, element, length = struct.unpack_from("<HHI", said, position)
        values[element] = said[position + 8 : position + 8 + length]
        position += 8 + length
    uid = values.get(0x1000, b"").rstrip(b"\x00").decode("ascii", "replace")
    return int.from_bytes(values[0x0900], "little"), uid


def aborts(stream: bytes) -> bool:
    """Say whether a peer that sent this has sent an A-ABORT, after which nothing is answered."""
    position = 0
    while position + 6 <= len(stream):
        kind, length = struct.unpack_from(">BxI", stream, position)
        if kind == A_ABORT:
            return True
        position += 6 + length
    return False
