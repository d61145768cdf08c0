"""Which font has which character, for whatever is drawn or set on a page.

Knows font files and nothing of pages. Noto Sans (SIL OFL) has Latin, Greek and Cyrillic; Chinese,
Japanese and Korean come with the extra `cjk`. What no font has is replaced, and never left out.
"""

import io
from collections.abc import Iterator
from functools import cache
from importlib.resources import as_file, files
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path

from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTFont
from fontTools.varLib.instancer import instantiateVariableFont
from PIL import ImageDraw, ImageFont

REPLACEMENT = "\ufffd"
# What reports use and Noto Sans has not.
SPELT = {"≥": ">=", "≤": "<=", "→": "->", "←": "<-", "≈": "~"}
NOTO = ("fontpkg_noto_sans", "files/NotoSans[wdth,wght].ttf")
EASTERN = tuple(
    ("justmytype_intl_cjk", f"fonts/ofl/notosans{each}/NotoSans{each.upper()}[wght].ttf")
    for each in ("sc", "jp", "kr", "tc")
)
REGULAR, BOLD = 400, 700
Colour = tuple[int, int, int]


@cache
def fonts() -> tuple[Path, ...]:
    """Return the font files there are; the first that has a character is the one to take."""
    return tuple(_path(*each) for each in (NOTO, *EASTERN) if find_spec(each[0]))


def legible(text: str) -> str:
    """Return the text with what no font has spelt otherwise or replaced by `REPLACEMENT`."""
    return "".join(_legible(each) for each in text)


def needed(text: str) -> tuple[Path, ...]:
    """Return the fonts that a legible text takes; the first always."""
    first, *others = fonts()
    used = {_font(each) for each in text}
    return first, *(each for each in others if each in used)


def cut(font: Path, text: str, weight: int = REGULAR) -> bytes:
    """Return a font file with the characters of a text alone, and of one weight.

    To be put into a document: it takes a second, of the whole font it would take half a minute.
    """
    with TTFont(font, lazy=True, recalcTimestamp=False) as opened:
        options = Options()
        options.layout_features = []
        subsetter = Subsetter(options)
        subsetter.populate(text=f"{text}{REPLACEMENT} ")
        subsetter.subset(opened)
        axes = {each.axisTag: each.defaultValue for each in opened["fvar"].axes}
        # In place: a copy would open the file once more and never close it.
        instantiateVariableFont(opened, axes | {"wght": weight}, inplace=True)
        written = io.BytesIO()
        opened.save(written)
    return written.getvalue()


def width(text: str, size: int, weight: int = REGULAR) -> int:
    """Return how many pixels a line of text takes."""
    return round(sum(_pen(font, size, weight).getlength(run) for font, run in _runs(text)))


def fitted(text: str, size: int, room: int, weight: int = REGULAR) -> str:
    """Cut a line to a width in pixels, and show that it is cut."""
    if width(text, size, weight) <= room:
        return text
    while text and width(f"{text}…", size, weight) > room:
        text = text[:-1].rstrip()
    return f"{text}…"


def draw(  # noqa: PLR0913 - what a line of text is made of
    canvas: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    size: int,
    fill: Colour,
    *,
    weight: int = REGULAR,
    halo: Colour | None = None,
) -> None:
    """Draw one line of text from its left baseline on; a `halo` keeps it legible on anything."""
    x, y = place
    for font, run in _runs(text):
        pen = _pen(font, size, weight)
        stroke = 0 if halo is None else max(1, size // 8)
        canvas.text(
            (x, y), run, fill, pen, anchor="ls", stroke_width=stroke, stroke_fill=halo or fill
        )
        x += pen.getlength(run)


def _path(package: str, name: str) -> Path:
    with as_file(files(package).joinpath(name)) as path:
        return path


@cache
def _characters(font: Path) -> frozenset[int]:
    with TTFont(font, lazy=True) as opened:
        return frozenset(opened.getBestCmap())


@cache
def _font(character: str) -> Path | None:
    return next((each for each in fonts() if ord(character) in _characters(each)), None)


def _legible(character: str) -> str:
    # Not out of another font, which would be loaded for one sign.
    if character in SPELT:
        return SPELT[character]
    return character if character == "\n" or _font(character) else REPLACEMENT


def _runs(text: str) -> Iterator[tuple[Path, str]]:
    for font, run in groupby(legible(text), key=_font):
        yield font or fonts()[0], "".join(run)


@cache
def _pen(font: Path, size: int, weight: int) -> ImageFont.FreeTypeFont:
    pen = ImageFont.truetype(font, size, layout_engine=ImageFont.Layout.BASIC)
    axes = pen.get_variation_axes()
    pen.set_variation_by_axes(
        [float(weight if each["name"] == b"Weight" else each["default"] or 0) for each in axes]
    )
    return pen
