"""A report as pages of paper: A4, one page if the text allows, never cut.

Knows paper, text and pictures. Has never heard of DICOM. The notice stands on every page. Where the
text is too long for one page it is set smaller, down to what is still read without effort; what is
longer goes on to further pages.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from fpdf import FPDF
from PIL import Image

from . import typefaces

Colour = tuple[int, int, int]
Item = TypeVar("Item")
INK, MUTED, PAPER = (22, 26, 32), (92, 100, 112), (255, 255, 255)
ALARM, PANEL, RULE = (255, 196, 60), (245, 246, 248), (214, 218, 224)
WIDTH, BOTTOM, LEFT = 186.0, 283.0, 12.0  # mm: of the text; where it ends; where it begins
BANNER, GAP = 13.0, 5.0
# Points of the text and width of the column of pictures, from the most pleasant to the least.
WIDE, NARROW = 88.0, 66.0
FORMS = (
    *((size, WIDE) for size in (9.5, 9.0, 8.5)),
    *((size, NARROW) for size in (9.0, 8.5, 8.0, 7.5, 7.0)),
)
LONG = (8.0, NARROW)  # what goes on to further pages
SMALL = 7.0
FACTS = (0.31, 0.27, 0.21, 0.21)  # shares of the width
MM = 0.3528  # of a point
LEADING = 1.32
SWATCH = 3.6  # mm: a colour of the legend and what lies beside it


@dataclass(frozen=True)
class Words:
    """A heading and the paragraphs below it; of a paragraph of several lines the first is muted."""

    heading: str
    paragraphs: tuple[str, ...]


@dataclass(frozen=True)
class Picture:
    """A picture and what stands below it."""

    image: Image.Image
    caption: str


@dataclass(frozen=True)
class Sheet:
    """What is on the pages. `facts`: label and value, four in a row; `legend`: colour and label."""

    notice: str
    title: str
    author: str
    written: datetime
    facts: tuple[tuple[str, str], ...]
    warning: Words
    first: Words
    findings: Words
    about: tuple[Words, ...]
    pictures: tuple[Picture, ...] = ()
    legend: tuple[tuple[Colour, str], ...] = ()

    @property
    def text(self) -> str:
        """Every character there is, and those of the page itself."""
        words = (self.warning, self.first, self.findings, *self.about)
        told = [part for each in words for part in (each.heading, *each.paragraphs)]
        told += [part for each in self.facts for part in each]
        told += [each.caption for each in self.pictures] + [label for _, label in self.legend]
        return "".join([self.notice, self.title, self.author, *told, OWN])


OWN = "Page of 0123456789-:,. Key slices Outlines" + typefaces.REPLACEMENT
REPLACED = (
    f"{typefaces.REPLACEMENT} stands for a character that the fonts of this page do not have."
)


def lay_out(sheet: Sheet) -> bytes:
    """Return the pages as PDF; the same sheet gives the same bytes."""
    with TemporaryDirectory() as folder:
        paper = _Paper(sheet, Path(folder))
        paper.add_page()
        _head(paper, sheet)
        about = [*sheet.about, *_replacements(sheet)]
        size, aside = _fitting(paper, sheet, about)
        _first(paper, sheet.first, size)
        top, depth = paper.y, _about_height(paper, about)
        left_over = _aside(paper, sheet, aside, top, BOTTOM - depth - GAP)
        paper.y = top
        _flow(paper, sheet.findings, size, _text_width(sheet, aside))
        _about(paper, about, depth)
        _more(paper, sheet, left_over)
        return bytes(paper.output())


class _Paper(FPDF):
    """An A4 page with the notice at its head and its number at its foot."""

    def __init__(self, sheet: Sheet, folder: Path) -> None:
        super().__init__(format="A4")
        self.notice, self.title_line = typefaces.legible(sheet.notice), sheet.title
        self.set_auto_page_break(False)
        self.set_margins(LEFT, LEFT)
        self.c_margin = 0
        self.set_creation_date(sheet.written.astimezone())
        self.set_title(sheet.title)
        self.set_author(sheet.author)
        self.set_subject(sheet.notice)
        self._take_fonts(typefaces.legible(sheet.text), folder)

    def _take_fonts(self, text: str, folder: Path) -> None:
        names = []
        for number, font in enumerate(typefaces.needed(text)):
            for style, weight in (("", typefaces.REGULAR), ("B", typefaces.BOLD)):
                file = folder / f"{number}{style}.ttf"
                file.write_bytes(typefaces.cut(font, text, weight))
                self.add_font(f"face{number}", style, file)
            names.append(f"face{number}")
        self.set_fallback_fonts(names[1:], exact_match=False)

    def header(self) -> None:
        self.set_fill_color(ALARM)
        self.rect(0, 0, self.w, BANNER, style="F")
        size = 15.0
        self.pen(size, INK, bold=True)
        while self.get_string_width(self.notice) > WIDTH:
            size -= 0.5
            self.pen(size, INK, bold=True)
        self.set_xy(0, 0)
        self.cell(self.w, BANNER, self.notice, align="C")
        self.set_xy(LEFT, BANNER + 4)

    def footer(self) -> None:
        self.pen(SMALL, MUTED)
        self.set_xy(LEFT, BOTTOM + 3)
        self.cell(WIDTH, 4, self.notice)
        self.set_xy(LEFT, BOTTOM + 3)
        self.cell(WIDTH, 4, f"Page {self.page_no()} of {{nb}}", align="R")

    def pen(self, size: float, colour: Colour, *, bold: bool = False) -> None:
        self.set_font("face0", "B" if bold else "", size)
        self.set_text_color(colour)

    def lines(self, text: str, width: float) -> list[str]:
        """Break a text into lines as the pen is set."""
        broken = self.multi_cell(
            width, None, typefaces.legible(text), align="L", dry_run=True, output="LINES"
        )
        return [str(each) for each in broken]  # type: ignore[union-attr]

    def write_lines(self, lines: Sequence[str], x: float, width: float) -> None:
        for line in lines:
            self.set_x(x)
            self.cell(width, self.leading, line)
            self.y += self.leading

    @property
    def leading(self) -> float:
        """Height of a line in mm."""
        return self.font_size * LEADING


def _rows(items: Sequence[Item], columns: int) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), columns):
        yield items[start : start + columns]


def _text_width(sheet: Sheet, aside: float) -> float:
    return WIDTH - aside - GAP if sheet.pictures else WIDTH


def _replacements(sheet: Sheet) -> list[Words]:
    is_replaced = typefaces.REPLACEMENT in typefaces.legible(sheet.text.replace(OWN, ""))
    return [Words("", (REPLACED,))] if is_replaced else []


def _head(paper: _Paper, sheet: Sheet) -> None:
    paper.pen(15, INK, bold=True)
    paper.write_lines(paper.lines(sheet.title, WIDTH), LEFT, WIDTH)
    paper.pen(8, MUTED)
    for paragraph in sheet.warning.paragraphs:
        paper.write_lines(paper.lines(paragraph, WIDTH), LEFT, WIDTH)
    paper.y += 2
    for row in _rows(sheet.facts, len(FACTS)):
        _facts(paper, row)
    paper.y += 2


def _facts(paper: _Paper, row: Sequence[tuple[str, str]]) -> None:
    """Write one row of labels and values; a value too long for its place takes more lines."""
    top, x, lowest = paper.y, LEFT, paper.y
    paper.set_draw_color(RULE)
    paper.line(LEFT, top, LEFT + WIDTH, top)
    for (label, value), share in zip(row, FACTS, strict=False):
        width = share * WIDTH
        paper.y = top + 0.8
        paper.pen(6.5, MUTED)
        paper.write_lines([typefaces.legible(label)], x, width)
        paper.pen(9, INK, bold=True)
        paper.write_lines(paper.lines(value or "-", width - 2), x, width)
        lowest, x = max(lowest, paper.y), x + width
    paper.y = lowest + 0.8


def _fitting(paper: _Paper, sheet: Sheet, about: Sequence[Words]) -> tuple[float, float]:
    """Return size and width of pictures at which all text fits on one page, if there is one."""
    room = BOTTOM - paper.y - _about_height(paper, about) - GAP
    for size, aside in FORMS:
        _, first = _first_lines(paper, sheet.first, size)
        width = _text_width(sheet, aside)
        if first + _flow_height(paper, sheet.findings, size, width) <= room:
            return size, aside
    return LONG


def _first_lines(paper: _Paper, words: Words, size: float) -> tuple[list[str], float]:
    paper.pen(size + 1, INK)
    lines = [line for each in words.paragraphs for line in paper.lines(each, WIDTH - 8)]
    return lines, (len(lines) + 1.2) * paper.leading + 3 + GAP


def _first(paper: _Paper, words: Words, size: float) -> None:
    """Write what is read first: on a panel, over the whole width."""
    lines, height = _first_lines(paper, words, size)
    top = paper.y
    paper.set_fill_color(PANEL)
    paper.rect(LEFT, top, WIDTH, height - GAP, style="F")
    paper.set_fill_color(ALARM)
    paper.rect(LEFT, top, 1.4, height - GAP, style="F")
    paper.y = top + 1.5
    paper.pen(size + 1, INK, bold=True)
    paper.write_lines([typefaces.legible(words.heading)], LEFT + 3, WIDTH)
    paper.pen(size + 1, INK)
    paper.write_lines(lines, LEFT + 3, WIDTH - 6)
    paper.y = top + height


Line = tuple[str, Colour, bool]  # text, colour, whether it is bold


def _block(paper: _Paper, paragraph: str, size: float, width: float) -> list[Line]:
    """Break a paragraph: a first line of several is what was asked, and is muted."""
    paper.pen(size, INK)
    first, *rest = paragraph.split("\n")
    head = [(line, MUTED if rest else INK, False) for line in paper.lines(first, width)]
    return head + [(line, INK, False) for each in rest for line in paper.lines(each, width)]


def _heading(words: Words) -> list[list[Line]]:
    return [[(typefaces.legible(words.heading), INK, True)]] if words.heading else []


def _flow_height(paper: _Paper, words: Words, size: float, width: float) -> float:
    blocks = [_block(paper, each, size, width) for each in words.paragraphs]
    paper.pen(size, INK)
    return sum(len(each) * paper.leading + _space(size) for each in [*_heading(words), *blocks])


def _space(size: float) -> float:
    """Return what lies between two paragraphs, in mm."""
    return size * MM * 0.5


def _flow(paper: _Paper, words: Words, size: float, width: float) -> None:
    """Write paragraphs below each other, and on further pages over the whole width."""
    start = paper.page_no()
    for block in _heading(words):
        _paragraph(paper, block, size, width)
    for paragraph in words.paragraphs:
        room = width if paper.page_no() == start else WIDTH
        _paragraph(paper, _block(paper, paragraph, size, room), size, room)


def _paragraph(paper: _Paper, block: Sequence[Line], size: float, width: float) -> None:
    paper.pen(size, INK)
    if paper.y + min(len(block), 3) * paper.leading > BOTTOM:
        paper.add_page()
    for line, colour, bold in block:
        if paper.y + paper.leading > BOTTOM:
            paper.add_page()
        paper.pen(size, colour, bold=bold)
        paper.write_lines([line], LEFT, width)
    paper.y += _space(size)


def _about_height(paper: _Paper, about: Sequence[Words]) -> float:
    return sum(_flow_height(paper, each, SMALL, WIDTH) for each in about) + 2


def _about(paper: _Paper, about: Sequence[Words], depth: float) -> None:
    """Write what the report is worth at the foot of the last page of its text."""
    if paper.y + depth > BOTTOM:
        paper.add_page()
    if paper.page_no() == 1:
        paper.y = BOTTOM - depth
    paper.set_draw_color(RULE)
    paper.line(LEFT, paper.y, LEFT + WIDTH, paper.y)
    paper.y += 2
    for words in about:
        _flow(paper, words, SMALL, WIDTH)


def _aside(
    paper: _Paper, sheet: Sheet, width: float, top: float, bottom: float
) -> Sequence[Picture] | None:
    """Put pictures and legend beside the text; return the pictures that found no room.

    None: everything is there, the legend too.
    """
    if not sheet.pictures:
        return None
    x = LEFT + WIDTH - width
    paper.pen(9, INK, bold=True)
    paper.set_xy(x, top)
    paper.cell(width, paper.leading, "Key slices")
    top += paper.leading + 1
    legend = _legend_height(paper, sheet.legend, 2, width)
    for columns in (1, 2, 3):
        if top + _grid_height(paper, sheet.pictures, columns, width) + legend <= bottom:
            paper.y = top
            _grid(paper, sheet.pictures, columns, x, width)
            _legend(paper, sheet.legend, 2, x, width)
            return None
    shown = 0
    while top + _grid_height(paper, sheet.pictures[: shown + 2], 2, width) <= bottom:
        shown += 2
    paper.y = top
    _grid(paper, sheet.pictures[:shown], 2, x, width)
    return sheet.pictures[shown:]


def _more(paper: _Paper, sheet: Sheet, pictures: Sequence[Picture] | None) -> None:
    """Put the legend and the pictures that found no room on pages of their own."""
    if pictures is None:
        return
    paper.add_page()
    _legend(paper, sheet.legend, 3, LEFT, WIDTH)
    for row in _rows(pictures, 3):
        if paper.y + _grid_height(paper, row, 3, WIDTH) > BOTTOM:
            paper.add_page()
        _grid(paper, row, 3, LEFT, WIDTH)


def _tile(columns: int, width: float) -> float:
    return (width - 2 * (columns - 1)) / columns


def _grid_height(paper: _Paper, pictures: Sequence[Picture], columns: int, width: float) -> float:
    return sum(_row_height(paper, row, _tile(columns, width)) for row in _rows(pictures, columns))


def _row_height(paper: _Paper, row: Sequence[Picture], tile: float) -> float:
    paper.pen(SMALL, MUTED)
    return max(
        tile * each.image.height / each.image.width
        + len(paper.lines(each.caption, tile)) * paper.leading
        + 2.5
        for each in row
    )


def _grid(paper: _Paper, pictures: Sequence[Picture], columns: int, x: float, width: float) -> None:
    tile = _tile(columns, width)
    for row in _rows(pictures, columns):
        top, height = paper.y, _row_height(paper, row, tile)
        for column, each in enumerate(row):
            left = x + column * (tile + 2)
            paper.image(each.image, left, top, w=tile)
            paper.y = top + tile * each.image.height / each.image.width + 0.6
            paper.pen(SMALL, MUTED)
            paper.write_lines(paper.lines(each.caption, tile), left, tile)
        paper.y = top + height


def _labels(
    paper: _Paper, row: Sequence[tuple[Colour, str]], width: float
) -> tuple[list[list[str]], float]:
    """Break the labels of one row of the legend; gives their lines and the height of the row."""
    paper.pen(7.5, INK)
    labels = [paper.lines(label, width - SWATCH - 2) for _, label in row]
    return labels, max(len(each) for each in labels) * paper.leading + 0.9


def _legend_height(
    paper: _Paper, legend: Sequence[tuple[Colour, str]], columns: int, width: float
) -> float:
    rows = _rows(legend, columns)
    return sum(_labels(paper, row, width / columns)[1] for row in rows)


def _legend(
    paper: _Paper, legend: Sequence[tuple[Colour, str]], columns: int, x: float, width: float
) -> None:
    column = width / columns
    for row in _rows(legend, columns):
        labels, height = _labels(paper, row, column)
        if paper.y + height > BOTTOM:
            paper.add_page()
        top = paper.y
        for place, ((colour, _), lines) in enumerate(zip(row, labels, strict=True)):
            left = x + place * column
            paper.set_fill_color(colour)
            paper.rect(left, top + 0.5, 2.4, 2.4, style="F")
            paper.pen(7.5, INK)
            paper.y = top
            paper.write_lines(lines, left + SWATCH, column - SWATCH)
        paper.y = top + height
