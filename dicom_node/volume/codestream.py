"""How large a compressed frame says it is, before anything is decoded of it.

Knows where JPEG (ISO/IEC 10918-1 B.2.2), JPEG-LS (ISO/IEC 14495-1 C.2.2) and JPEG 2000 (ISO/IEC
15444-1 A.5.1, I.4) keep rows, columns and components. Decodes nothing. Decoders believe these
numbers and not those of the data set, and take memory for them: of a few hundred bytes gigabytes.
"""

import struct
from typing import Final, NamedTuple

JPEG_2000: Final = b"\xff\x4f\xff\x51"  # SOC, SIZ
BOXED: Final = b"\x00\x00\x00\x0cjP  "  # a JP2 file; it must not be (PS3.5 A.4.4), and is
JPEG: Final = b"\xff\xd8"
# Start of frame: all but DHT (C4), JPG (C8) and DAC (CC); F7 is that of JPEG-LS.
FRAMES: Final = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
ALONE: Final = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length
START_OF_SCAN: Final = 0xDA


class Size(NamedTuple):
    """What a frame says of itself."""

    rows: int
    columns: int
    components: int


def size(frame: bytes) -> Size | None:
    """Read the size of a compressed frame; None if it is of no kind that says one.

    Raises
    ------
    ValueError
        It is of such a kind, and says none.
    """
    try:
        if frame.startswith(BOXED):
            return _jpeg_2000(frame, _in_boxes(frame))
        if frame.startswith(JPEG_2000):
            return _jpeg_2000(frame, 0)
        return _jpeg(frame) if frame.startswith(JPEG) else None
    except struct.error as error:
        raise ValueError("a compressed frame is cut short") from error


def _jpeg_2000(frame: bytes, begin: int) -> Size:
    if frame[begin : begin + 4] != JPEG_2000:
        raise ValueError("a JPEG 2000 codestream does not begin with its size")
    right, bottom, left, top = struct.unpack_from(">4I", frame, begin + 8)
    (components,) = struct.unpack_from(">H", frame, begin + 40)
    return Size(bottom - top, right - left, components)


def _in_boxes(frame: bytes) -> int:
    """Find the codestream among the boxes of a JP2 file."""
    position = 0
    while True:
        length, kind = struct.unpack_from(">I4s", frame, position)
        head = 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", frame, position + 8)
            head = 16
        if kind == b"jp2c":
            return position + head
        if length < head:
            raise ValueError("a JP2 file without a codestream")
        position += length


def _jpeg(frame: bytes) -> Size:
    position = 2
    while True:
        prefix, marker = struct.unpack_from("BB", frame, position)
        if prefix != 0xFF or marker == START_OF_SCAN:  # noqa: PLR2004 - each marker begins so
            raise ValueError("a JPEG frame does not say its size before its scan")
        if marker == 0xFF:  # noqa: PLR2004 - fill bytes may come before a marker
            position += 1
        elif marker in ALONE:
            position += 2
        elif marker in FRAMES:
            rows, columns, components = struct.unpack_from(">HHB", frame, position + 5)
            return Size(rows, columns, components)
        else:
            position += 2 + max(struct.unpack_from(">H", frame, position + 2)[0], 2)
