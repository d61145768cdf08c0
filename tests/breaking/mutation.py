"""Seeded mutations: of bytes, of numbers that are lengths, and of the trees that formats are.

Knows how PDUs, command sets and explicit data sets nest, so that what it makes is nearly right:
noise alone is refused at the first byte. Knows nothing of the node.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

NUMBERS = (0, 1, 2, 3, 6, 7, 8, 0x7F, 0x80, 0xFE, 0xFF, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF)
LARGE = (*NUMBERS, 0x10000, 0x100000, 0x100001, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
TEXTS = (
    b"",
    b" ",
    b"\x00",
    b"'; DROP TABLE studies; --",
    b"' OR 1=1 --",
    b"<script>alert(1)</script>",
    b'"><img src=x onerror=alert(1)>',
    b"{{7*7}}{% raw %}",
    b"../../../../etc/passwd",
    b"..\\..\\windows",
    b"/absolute",
    b"a\x00b",
    b"%s%n%x${jndi:ldap://x}",
    b"\x1b$B$$\x1b(B",
    b"\x1b[2J",
    b"\xff\xfe\xfd",
    b"\xc3\x28",
    b"\xe2\x80\xae",
    b"1." * 40,
    b"1.2.\xd9\xa3",
    b"9" * 70,
    b"=HYPERLINK(1)",
    b"\r\nX: y\r\n",
    b"A" * 300,
    b"^" * 70,
    b"\\" * 20,
)


def mangled(content: bytes, random: Random, times: int = 1) -> bytes:
    """Change bytes: flip, overwrite, cut out, repeat, insert, cut off."""
    changed = bytearray(content)
    for _ in range(times):
        random.choice(_BYTES)(changed, random)
    return bytes(changed)


def _flip(content: bytearray, random: Random) -> None:
    if content:
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)


def _overwrite(content: bytearray, random: Random) -> None:
    form = random.choice(("B", "<H", ">H", "<I", ">I"))
    size = struct.calcsize(form)
    if len(content) >= size:
        number = random.choice(LARGE) & ((1 << 8 * size) - 1)
        struct.pack_into(form, content, random.randrange(len(content) - size + 1), number)


def _span(content: bytearray, random: Random) -> slice:
    begin = random.randrange(len(content) + 1)
    return slice(begin, begin + random.choice((1, 2, 4, 8, 30, 200)))


def _cut_out(content: bytearray, random: Random) -> None:
    del content[_span(content, random)]


def _repeat(content: bytearray, random: Random) -> None:
    span = _span(content, random)
    content[span.start : span.start] = content[span] * random.choice((1, 2, 50))


def _insert(content: bytearray, random: Random) -> None:
    begin = random.randrange(len(content) + 1)
    content[begin:begin] = random.choice((random.choice(TEXTS), random.randbytes(8), bytes(8)))


def _cut_off(content: bytearray, random: Random) -> None:
    del content[random.randrange(len(content) + 1) :]


_BYTES: Sequence[Callable[[bytearray, Random], None]] = (
    _flip,
    _overwrite,
    _overwrite,
    _cut_out,
    _repeat,
    _insert,
    _cut_off,
)


@dataclass
class Node:
    """A part of something encoded: its head, written with the length of what follows.

    `head` is a struct format and its values, the last of which is the length; empty has no head.
    """

    form: str = ""
    head: list[int] = field(default_factory=list)
    content: "bytes | list[Node]" = b""
    lie: int | None = None  # a length that is not so
    tail: bytes = b""
    delimited: bool = False  # by undefined length and a delimiter

    def encode(self) -> bytes:
        body = (
            self.content
            if isinstance(self.content, bytes)
            else b"".join(each.encode() for each in self.content)
        )
        if not self.form:
            return body + self.tail
        size = struct.calcsize(self.form.rpartition("x")[2][-1])
        length = len(body) if self.lie is None else self.lie
        most = (1 << 8 * size) - 1
        values = [each & 0xFFFFFFFF for each in self.head]
        return struct.pack(self.form, *values, min(length, most)) + body + self.tail

    def nodes(self) -> "list[Node]":
        """This and all below."""
        found, at = [self], 0
        while at < len(found):
            content = found[at].content
            found += content if isinstance(content, list) else []
            at += 1
        return found


def shaken(root: Node, random: Random, times: int = 1) -> None:
    """Change a tree: nodes go, come twice, change places, lie about their length, hold others."""
    for _ in range(times):
        node = random.choice(root.nodes())
        random.choice(_TREES)(node, random)


def _lie(node: Node, random: Random) -> None:
    true = len(node.content) if isinstance(node.content, bytes) else 0
    node.lie = random.choice((*LARGE, true + 1, true + 2, max(true - 1, 0)))


def _content(node: Node, random: Random) -> None:
    if isinstance(node.content, bytes):
        choices = (mangled(node.content, random), random.choice(TEXTS), node.content * 3, b"")
        node.content = random.choice(choices)


def _children(change: Callable[[list[Node], Random], None]) -> Callable[[Node, Random], None]:
    def at(node: Node, random: Random) -> None:
        if isinstance(node.content, list) and node.content:
            change(node.content, random)

    return at


def _drop(nodes: list[Node], random: Random) -> None:
    del nodes[random.randrange(len(nodes))]


def _again(nodes: list[Node], random: Random) -> None:
    # References, not copies: a later change is of all of them, which is a mutation too.
    at = random.randrange(len(nodes))
    nodes[at:at] = [nodes[at]] * random.choice((1, 1, 2, 130))


def _shuffle(nodes: list[Node], random: Random) -> None:
    random.shuffle(nodes)


def _deeper(node: Node, random: Random) -> None:
    """Put a node into itself, so many times."""
    if node.form and isinstance(node.content, list):
        for _ in range(random.choice((1, 3, 17, 100))):
            inner = Node(node.form, list(node.head), node.content, node.lie, node.tail)
            node.content = [inner]


def _kind(node: Node, random: Random) -> None:
    if node.head:
        at = random.randrange(len(node.head))
        size = 8 if "B" in node.form else 16
        node.head[at] = random.choice(NUMBERS) & ((1 << size) - 1)


_TREES: Sequence[Callable[[Node, Random], None]] = (
    _lie,
    _content,
    _content,
    _children(_drop),
    _children(_again),
    _children(_shuffle),
    _deeper,
    _kind,
)
