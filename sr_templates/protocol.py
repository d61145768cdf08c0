"""What is asked of which exam: a protocol is one TOML file that a radiologist can review.

Knows TOML, codes and the limits the Standard sets to labels. Must not know how a question is
answered, nor how an answer is written: that is the business of the modules beside it.
Everything is checked when it is read, so an unknown code or a misspelt key stops the node at its
start and not at the first patient.
"""

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydicom.sr._concepts_dict import concepts

_Concepts = dict[str, dict[str, tuple[str, list[int]]]]
OURS = Path(__file__).parent / "protocols"
SCHEMES = ("DCM", "LN", "SCT")
MODALITIES = ("CT", "MR")
# Languages of questions and answers (PS3.16 CID 5000 refers to RFC 5646).
LANGUAGES = {"en": "English", "de": "German", "es": "Spanish", "fr": "French", "zh": "Chinese"}
LONG_STRING = 64  # characters of LO (PS3.5 6.2), which segment labels and titles become
MAXIMUM_QUESTION = 1000
MAXIMUM_NEW_TOKENS = 1024


class TemplateError(Exception):
    """A protocol, or what was handed over to be written, is not as it must be."""


def _known() -> dict[tuple[str, str], dict[str, frozenset[int]]]:
    """Meanings of each code, and the context groups each meaning is listed in."""
    table: dict[tuple[str, str], dict[str, frozenset[int]]] = {}
    for scheme in SCHEMES:
        # pydicom publishes these tables (PS3.16) by keyword only; we look them up by value.
        for codes in cast("_Concepts", concepts[scheme]).values():
            for value, (meaning, groups) in codes.items():
                table.setdefault((scheme, value), {})[meaning] = frozenset(groups)
    return table


KNOWN = _known()


@dataclass(frozen=True)
class Code:
    """A coded concept of DCM, LOINC (LN) or SNOMED CT (SCT) that the Standard lists.

    Raises
    ------
    TemplateError
        The scheme or the value is unknown, or the meaning is not that of the value.
    """

    scheme: str
    value: str
    meaning: str

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise TemplateError(
                f"coding scheme must be one of {', '.join(SCHEMES)}, not {self.scheme!r}"
            )
        meanings = KNOWN.get((self.scheme, self.value))
        if meanings is None:
            raise TemplateError(f"{self.scheme} {self.value!r} is not a code known here")
        if self.meaning not in meanings:
            expected = " or ".join(repr(each) for each in sorted(meanings))
            raise TemplateError(
                f"{self.scheme} {self.value} means {expected}, not {self.meaning!r}"
            )

    @classmethod
    def parse(cls, text: str) -> "Code":
        """Read ``SCT 39607008 Lung``: scheme, value, meaning."""
        parts = text.split(maxsplit=2)
        if len(parts) != 3:  # noqa: PLR2004 - the three parts just named
            raise TemplateError(f"expected 'SCHEME VALUE MEANING', got {text!r}")
        return cls(*parts)

    def within(self, group: int) -> bool:
        """Whether context group `group` of PS3.16 lists this code."""
        return group in KNOWN[self.scheme, self.value][self.meaning]

    def __str__(self) -> str:
        return f"{self.scheme} {self.value} {self.meaning}"


@dataclass(frozen=True)
class Target:
    """A structure to outline, as the SEG describes it (PS3.3 C.8.20.4).

    `laterality` None: the structure has no side. `region` None: the type says where it is.
    """

    label: str
    category: Code
    type: Code
    region: Code | None = None
    laterality: Code | None = None
    colour_rgb: tuple[int, int, int] = (255, 255, 0)


@dataclass(frozen=True)
class Evaluation:
    """Which answers count as which code, and what they are about (PS3.16 TID 1501).

    `answers` pairs words with codes: a model that says anything else has declined to answer.
    """

    concept: Code
    answers: tuple[tuple[str, Code], ...]

    def code(self, answer: str) -> Code | None:
        """Return the code of an answer, whole and in any case; None if it is not allowed."""
        return dict(self.answers).get(plain_answer(answer))

    @property
    def allowed(self) -> str:
        """The allowed answers, for a sentence."""
        return ", ".join(f'"{words}"' for words, _ in self.answers)


def plain_answer(answer: str) -> str:
    """Return an answer as it is compared: small letters, single spaces, no mark at its ends."""
    return " ".join(answer.casefold().split()).strip(" .!\"'")


@dataclass(frozen=True)
class Question:
    """One question to the model.

    `caption`: the answer is a text about the whole volume, shown as the impression.
    `target`: the answer is an outline; None means that words are expected. `evaluation`: only some
    words count; None: any do.
    """

    id: str
    heading: str
    text: str
    caption: bool = False
    max_new_tokens: int = 256
    target: Target | None = None
    evaluation: Evaluation | None = None


@dataclass(frozen=True)
class Protocol:
    """Which exams it is for, how they are windowed, what is asked, and the report's codes.

    `window` is (level, width) in modality units (HU); `percentiles` (low, high) is for images
    without such units. Exactly one of the two is not None.
    """

    name: str
    title: str
    modality: str
    body_parts: tuple[str, ...]
    keywords: tuple[str, ...]
    minimum_slices: int
    window: tuple[float, float] | None
    percentiles: tuple[float, float] | None
    language: str
    document_title: Code
    procedure: Code
    region: Code
    questions: tuple[Question, ...]

    @property
    def targets(self) -> tuple[Question, ...]:
        """The questions that ask for an outline."""
        return tuple(each for each in self.questions if each.target)


class _Lines:
    """A file by its lines, to say where a key is: the reader of TOML does not keep that."""

    def __init__(self, file: Path, text: str) -> None:
        self.file, self._lines = file, text.splitlines()

    def at(self, where: str) -> str:
        """Return file and line of a dotted key, such as ``questions[2].target.type``."""
        line = column = 0
        for part in filter(None, where.split(".")):
            name, _, place = part.partition("[")
            header, quoted = (
                rf"\s*\[\[\s*{re.escape(name)}\s*\]\]",
                rf"[\"']?{re.escape(name)}[\"']?",
            )
            # A key at the start of a line, in the name of a table, or within braces.
            key = rf"\s*(\[.*\.)?{quoted}\s*[=\]]|.*[{{,]\s*{quoted}\s*="
            times = int(place.rstrip("]")) if place else 1
            line, column = self._find(header if place else key, line, column, times)
        return f"{self.file}:{line + 1}"

    def _find(self, sought: str, line: int, column: int, times: int) -> tuple[int, int]:
        """Return where a pattern is met for the n-th time from a place on; the place if never."""
        for index in range(line, len(self._lines)):
            found = re.compile(sought).match(self._lines[index], column if index == line else 0)
            times -= bool(found)
            if found and not times:
                return index, found.end()
        return line, column


class _Table:
    """One TOML table being read: each key is taken once, and what is left over is refused."""

    def __init__(self, values: object, lines: "_Lines", key: str = "") -> None:
        self.lines, self.key, self.keys = lines, key, frozenset[str]()
        if not isinstance(values, dict):
            raise self.error("", f"expected a table, got {values!r}")
        self.values, self.keys = dict(values), frozenset(values)

    def error(self, key: str, problem: str) -> TemplateError:
        where = ".".join(part for part in (self.key, key) if part)
        # What is missing has no line but that of its table.
        place = self.lines.at(where if key in self.keys else self.key)
        return TemplateError(f"{place}: {where or 'file'}: {problem}")

    def take(self, key: str, kind: type, default: object = ...) -> Any:  # noqa: ANN401 - TOML
        value = self.values.pop(key, default)
        if value is ...:
            raise self.error(key, f"is missing, expected {kind.__name__}")
        # TOML's true is no number, though Python's bool is an int.
        if value is not default and type(value) is not kind:
            raise self.error(key, f"expected {kind.__name__}, got {value!r}")
        return value

    def text(self, key: str, limit: int = LONG_STRING) -> str:
        value = str(self.take(key, str)).strip()
        if not value or len(value) > limit or not value.isprintable() or "\\" in value:
            raise self.error(
                key, f"expected 1-{limit} characters on one line without backslash, got {value!r}"
            )
        return value

    def choice(self, key: str, choices: Mapping[str, object] | tuple[str, ...]) -> str:
        value = self.text(key)
        if value not in choices:
            raise self.error(key, f"expected one of {', '.join(choices)}, got {value!r}")
        return value

    def words(self, key: str) -> tuple[str, ...]:
        values = self.take(key, list)
        if not values or not all(isinstance(each, str) and each.strip() for each in values):
            raise self.error(key, f"expected a list of words, got {values!r}")
        return tuple(values)

    def whole(self, key: str, least: int, most: int, default: int | None = None) -> int:
        value = self.take(key, int, ... if default is None else default)
        if not least <= value <= most:
            raise self.error(key, f"expected {least} to {most}, got {value!r}")
        return int(value)

    def pair(self, key: str) -> tuple[float, float] | None:
        values = self.take(key, list, None)
        if values is None:
            return None
        if len(values) != 2 or not all(type(each) in (int, float) for each in values):  # noqa: PLR2004
            raise self.error(key, f"expected two numbers, got {values!r}")
        return float(values[0]), float(values[1])

    def code(self, key: str, *, group: int | None = None, optional: bool = False) -> Code | None:
        text = self.take(key, str, None if optional else ...)
        if text is None:
            return None
        try:
            code = Code.parse(text)
        except TemplateError as error:
            raise self.error(key, str(error)) from None
        if group and not code.within(group):
            raise self.error(key, f"expected a code of PS3.16 CID {group}, got {code}")
        return code

    def within(self, key: str) -> "_Table | None":
        values = self.take(key, dict, None)
        path = f"{self.key}.{key}" if self.key else key
        return None if values is None else _Table(values, self.lines, path)

    def need(self, key: str, group: int | None = None) -> Code:
        code = self.code(key, group=group)
        assert code is not None  # noqa: S101 - `take` has refused a missing key
        return code

    def done(self) -> None:
        if self.values:
            raise self.error(min(self.values), "is not a known key")


def load_protocols(folder: Path | None = None) -> dict[str, Protocol]:
    """Read our protocols and those of `folder`, by name.

    A protocol of `folder` with the name of one of ours takes its place: the site's word counts.

    Raises
    ------
    TemplateError
        A file cannot be read, or something in it is missing, unknown or out of range; names
        file, key, what was expected and what came.
    """
    if folder is not None and not folder.is_dir():
        raise TemplateError(f"{folder}: expected a folder of protocols, there is none")
    folders = [OURS] if folder is None else [OURS, folder]
    files = [file for each in folders for file in sorted(each.glob("*.toml"))]
    return {protocol.name: protocol for protocol in map(read_protocol, files)}


def read_protocol(file: Path) -> Protocol:
    """Read and check one protocol file."""
    try:
        text = file.read_text(encoding="utf-8")
        values = tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise TemplateError(f"{file}: cannot be read as TOML: {error}") from error
    table = _Table(values, _Lines(file, text))
    name = table.text("name")
    if name != file.stem:
        raise table.error("name", f"expected the file's name {file.stem!r}, got {name!r}")
    protocol = Protocol(
        name=name,
        title=table.text("title", limit=30),  # leaves room for the mark in SeriesDescription
        modality=table.choice("modality", MODALITIES),
        body_parts=table.words("body_parts"),
        keywords=table.words("keywords"),
        minimum_slices=table.whole("minimum_slices", 1, 10_000),
        window=table.pair("window"),
        percentiles=table.pair("percentiles"),
        language=table.choice("language", LANGUAGES),
        document_title=table.need("document_title", group=7000),
        procedure=table.need("procedure"),
        region=table.need("region", group=4031),
        questions=tuple(_each(table, "questions", _question)),
    )
    table.done()
    _check(protocol, table)
    return protocol


def _each(table: _Table, key: str, read: Callable[[_Table], Question]) -> list[Question]:
    return [
        read(_Table(item, table.lines, f"{key}[{index}]"))
        for index, item in enumerate(table.take(key, list), 1)
    ]


def _question(table: _Table) -> Question:
    target, evaluation = table.within("target"), table.within("evaluation")
    question = Question(
        id=table.text("id", limit=32),
        heading=table.text("heading"),
        text=table.text("text", limit=MAXIMUM_QUESTION),
        caption=table.take("caption", bool, default=False),
        max_new_tokens=table.whole("max_new_tokens", 1, MAXIMUM_NEW_TOKENS, default=256),
        target=None if target is None else _target(target),
        evaluation=None if evaluation is None else _evaluation(evaluation),
    )
    if question.caption and question.target:
        raise table.error("target", "a caption is a text, it outlines nothing")
    if question.evaluation and (question.caption or question.target):
        raise table.error("evaluation", "only words that answer a question can be evaluated")
    table.done()
    return question


def _target(table: _Table) -> Target:
    target = Target(
        label=table.text("label"),
        category=table.need("category", group=7150),
        type=table.need("type"),
        region=table.code("region", optional=True),
        laterality=table.code("laterality", group=244, optional=True),
        colour_rgb=_colour(table),
    )
    table.done()
    return target


def _evaluation(table: _Table) -> Evaluation:
    concept, answers = table.need("concept"), table.within("answers")
    if answers is None or not answers.values:
        raise table.error("answers", "expected the allowed answers, each with its code")
    pairs = tuple((each, answers.need(each)) for each in tuple(answers.values))
    for words, _ in pairs:
        if words != plain_answer(words):
            raise answers.error(words, f"expected small letters, as {plain_answer(words)!r}")
    table.done()
    return Evaluation(concept, pairs)


def _colour(table: _Table) -> tuple[int, int, int]:
    values = table.take("colour_rgb", list)
    if len(values) != 3 or any(type(each) is not int or not 0 <= each <= 255 for each in values):  # noqa: PLR2004
        raise table.error("colour_rgb", f"expected three numbers 0-255, got {values!r}")
    red, green, blue = values
    return red, green, blue


def _check(protocol: Protocol, table: _Table) -> None:
    """Check what concerns several keys at once."""
    if (protocol.window is None) == (protocol.percentiles is None):
        raise table.error("window", "expected either window or percentiles, and not both")
    if protocol.window and protocol.window[1] <= 0:
        raise table.error("window", f"expected [level, width > 0], got {protocol.window}")
    if protocol.percentiles and not 0 <= protocol.percentiles[0] < protocol.percentiles[1] <= 100:  # noqa: PLR2004
        raise table.error(
            "percentiles", f"expected 0 <= low < high <= 100, got {protocol.percentiles}"
        )
    if not protocol.questions:
        raise table.error("questions", "expected at least one question")
    ids = [each.id for each in protocol.questions]
    repeated = sorted({each for each in ids if ids.count(each) > 1})
    if repeated:
        raise table.error("questions", f"expected each id once, got {repeated[0]!r} again")
    labels = [each.target.label for each in protocol.targets if each.target]
    if len(set(labels)) < len(labels):
        raise table.error("questions", f"expected each target label once, got {labels}")
