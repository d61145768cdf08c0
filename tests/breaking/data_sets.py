"""Data sets to be broken: valid ones of several kinds, as trees of elements (PS3.5 7.1).

Knows pydicom, which writes the valid ones. `Model` is one data set in one transfer syntax.
"""

import struct
import zlib
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from random import Random

from pydicom import Dataset
from pydicom.data import get_testdata_file
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from dicom_node.demo import sample

from .mutation import TEXTS, Node, mangled, shaken

SYNTAXES = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    RLELossless,
    JPEG2000Lossless,
)
LONG = {b"OB", b"OW", b"OF", b"OD", b"OV", b"OL", b"UN", b"SQ", b"UC", b"UR", b"UT", b"SV", b"UV"}
UNDEFINED = 0xFFFFFFFF
TEXT_VRS = (b"LO", b"PN", b"SH", b"UI", b"CS", b"DA", b"TM", b"DS", b"IS", b"LT", b"ST", b"UT")


@dataclass(frozen=True)
class Model:
    """A data set that is whole, and how it is announced."""

    syntax: str
    content: bytes
    sop_class_uid: str
    sop_uid: str

    @property
    def head(self) -> bytes:
        """Preamble and meta information for it."""
        return head(self.syntax, self.sop_class_uid, self.sop_uid)


@cache
def models() -> tuple[Model, ...]:
    """Classic and enhanced images, each transfer syntax, a few bytes of pixels."""
    made = [series(each)[0] for each in SYNTAXES]
    made.append(sample.enhanced(shape=(3, 8, 8)))
    return tuple(map(model, made))


@cache
def compressed() -> tuple[Path, ...]:
    """Give small images in every compression that pydicom brings along."""
    names = (
        "JPEG-lossy.dcm",
        "JPGExtended.dcm",
        "JPEG2000.dcm",
        "JPEGLSNearLossless_08.dcm",
        "JPEGLSNearLossless_16.dcm",
        "MR_small_RLE.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "SC_rgb_small_odd_jpeg.dcm",
        "SC_rgb_rle_16bit.dcm",
    )
    return tuple(Path(str(get_testdata_file(each, download=False))) for each in names)


def series(syntax: str) -> list[Dataset]:
    """Give a series of a few small images."""
    size = 32 if syntax == JPEG2000Lossless else 16  # for five levels of wavelets
    return sample.series(shape=(4, size, size), transfer_syntax=syntax)


def model(instance: Dataset) -> Model:
    """Encode an instance."""
    file = BytesIO()
    instance.save_as(file, enforce_file_format=True)
    (length,) = struct.unpack_from("<I", file.getvalue(), 128 + 4 + 8)
    return Model(
        str(instance.file_meta.TransferSyntaxUID),
        file.getvalue()[128 + 4 + 12 + length :],
        str(instance.SOPClassUID),
        str(instance.SOPInstanceUID),
    )


def head(syntax: str, sop_class_uid: str, sop_uid: str) -> bytes:
    elements = b"".join(
        struct.pack("<HH2sH", 2, number, b"UI", len(value) + len(value) % 2)
        + value
        + bytes(len(value) % 2)
        for number, value in (
            (0x0002, sop_class_uid.encode()),
            (0x0003, sop_uid.encode()),
            (0x0010, syntax.encode()),
        )
    )
    group = struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(elements))
    return bytes(128) + b"DICM" + group + elements


def broken(chosen: Model, random: Random) -> bytes:
    """Break a data set, as a tree if it is one, else as bytes."""
    content = chosen.content
    if chosen.syntax == DeflatedExplicitVRLittleEndian:
        inner = zlib.decompress(content, -zlib.MAX_WBITS)
        if random.random() < 0.7:
            return deflated(_explicit(inner, random))
        return mangled(content, random, random.randint(1, 3))
    if chosen.syntax in {ExplicitVRBigEndian, ImplicitVRLittleEndian} or random.random() < 0.3:
        return mangled(content, random, random.randint(1, 4))
    return _explicit(content, random)


def deflated(content: bytes) -> bytes:
    squeezed = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    done = squeezed.compress(content) + squeezed.flush()
    return done + bytes(len(done) % 2)


def _explicit(content: bytes, random: Random) -> bytes:
    root = deepcopy(_tree(content))
    if random.random() < 0.3:
        _hostile(root, random)
    if random.random() < 0.2:
        _nested(root, random)
    shaken(root, random, random.randint(0, 3))
    return mangled(root.encode(), random) if random.random() < 0.2 else root.encode()


@cache
def _tree(content: bytes) -> Node:
    """Read the outermost elements; what is in them stays bytes."""
    elements, position = [], 0
    while position < len(content):
        group, number, vr = struct.unpack_from("<HH2s", content, position)
        if vr in LONG:
            (length,) = struct.unpack_from("<I", content, position + 8)
            start = position + 12
        else:
            (length,) = struct.unpack_from("<H", content, position + 6)
            start = position + 8
        lie = None
        if length == UNDEFINED:
            lie, length = UNDEFINED, len(content) - start
        value = content[start : start + length]
        elements.append(element(group, number, vr, value))
        elements[-1].lie = lie
        position = start + length
    return Node(content=elements)


def element(group: int, number: int, vr: bytes, value: "bytes | list[Node]") -> Node:
    first, second = vr
    if vr in LONG:
        return Node("<HHBBxxI", [group, number, first, second], value)
    return Node("<HHBBH", [group, number, first, second], value)


def _hostile(root: Node, random: Random) -> None:
    """Put a text where a text is."""
    assert isinstance(root.content, list)
    texts = [each for each in root.content if bytes(each.head[2:4]) in TEXT_VRS]
    for each in random.sample(texts, min(len(texts), random.randint(1, 3))):
        value = random.choice(TEXTS)
        each.content = value + b" " * (len(value) % 2)


def _nested(root: Node, random: Random) -> None:
    """Put a sequence in it that is as deep as nobody needs it, closed or not."""
    assert isinstance(root.content, list)
    depth = random.choice((1, 5, 15, 16, 17, 100, 990, 5000))
    defined = random.random() < 0.3
    inner = b""
    begin = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, UNDEFINED)
    begin += struct.pack("<HHI", 0xFFFE, 0xE000, UNDEFINED)
    end = struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    if defined:
        for _ in range(min(depth, 100)):
            inner = struct.pack("<HHI", 0xFFFE, 0xE000, len(inner)) + inner
            inner = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, len(inner)) + inner
    else:
        inner = begin * depth + end * random.choice((depth, depth - 1, 0))
    place = next((at for at, each in enumerate(root.content) if each.head and each.head[0] > 8), 0)
    root.content.insert(place, Node(content=inner))
