"""The structures and findings we have words for: names, sides, synonyms, descriptions.

Knows the dictionary in `wording/` and how the published sets spell their classes; no images.
A term is written once for both sides. What is said of a side is added here, from one place, so
that no description can contradict the name.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Final

from model.errors import ModelError

from .sample import side_of

DICTIONARIES: Final = ("head", "chest", "abdomen", "frame", "findings")
CORRECTIONS: Final = "corrections"
FEWEST: Final = 3  # descriptions of a term
KEYS: Final = {"name", "side", "paired", "numbers", "also", "descriptions"}
TEENS: Final = range(11, 14)
ENDINGS: Final = {1: "st", 2: "nd", 3: "rd"}


@dataclass(frozen=True)
class Term:
    """One structure or finding, of one side if it has one.

    `descriptions` are noun phrases without the name; none for a name that is not in the
    dictionary.
    """

    name: str
    side: str = ""
    descriptions: tuple[str, ...] = ()

    @property
    def the(self) -> str:
        """The name with its article."""
        return f"the {self.name}"


def term(name: str) -> Term:
    """Find a structure by its name, a synonym, or the spelling of a published set.

    A name that is not in the dictionary, or of a side that the structure does not have, gives a
    term without descriptions.
    """
    side = side_of(name.replace("_", " "))
    found = _index().get((_base(name, side), side))
    return found or Term(" ".join(name.split()), side)


def terms() -> tuple[Term, ...]:
    """Give every term of the dictionary, paired ones for each side and without one."""
    return tuple(dict.fromkeys(_index().values()))


def corrected(code: str, number: int, name: str) -> str:
    """Give the name that is meant by class `number` (from 1) of the published set `code`."""
    published, meant = _corrections().get((code, number), (name, name))
    return meant if name == published else name


def wording(name: str) -> dict[str, Any]:
    """Read one file of `wording/`."""
    text = (files(__package__) / "wording" / f"{name}.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


@cache
def _index() -> Mapping[tuple[str, str], Term]:
    index: dict[tuple[str, str], Term] = {}
    for file in DICTIONARIES:
        for entry in wording(file)["terms"]:
            _check(file, entry)
            for names, found in _spelled(entry):
                for each in names:
                    place = index.setdefault((_base(each, found.side), found.side), found)
                    if place is not found:
                        raise ModelError(f"{file}.toml: {each} is said of two terms")
    return index


@cache
def _corrections() -> Mapping[tuple[str, int], tuple[str, str]]:
    return {
        (code, int(number)): (published, meant)
        for code, classes in wording(CORRECTIONS).items()
        for number, (published, meant) in classes.items()
    }


def _check(file: str, entry: Mapping[str, Any]) -> None:
    place = f"{file}.toml, {entry.get('name', 'a term without a name')}"
    unknown = set(entry) - KEYS
    if unknown or "name" not in entry:
        raise ModelError(f"{place}: expected {sorted(KEYS)}, got {sorted(unknown) or 'no name'}")
    lines = entry.get("descriptions", [])
    if len(set(lines)) < FEWEST:
        raise ModelError(f"{place}: expected {FEWEST} descriptions, got {len(set(lines))}")
    if any(re.search(r"\b(left|right)\b", each) for each in lines):
        raise ModelError(f"{place}: a description names a side, which is the name's to do")


def _spelled(entry: Mapping[str, Any]) -> Iterator[tuple[list[str], Term]]:
    """Give the terms that an entry stands for, each with all of its spellings."""
    first, last = entry.get("numbers", (0, 0))
    sides = ("", "left", "right") if entry.get("paired") else (entry.get("side", ""),)
    for number in range(first, last + 1):
        names, *lines = (
            [each.replace("{nth}", _nth(number)).replace("{n}", str(number)) for each in some]
            for some in ([entry["name"], *entry.get("also", [])], entry["descriptions"])
        )
        for side in sides:
            yield names, _sided(names[0], side, lines[0], paired=len(sides) > 1)


def _sided(name: str, side: str, descriptions: list[str], *, paired: bool) -> Term:
    if not side:
        return Term(name, "", tuple(descriptions))
    where = f", on the {side} side" if paired else ""
    return Term(f"{side} {name}", side, tuple(each + where for each in descriptions))


def _base(name: str, side: str) -> str:
    """Spell a name as all its spellings are looked up: small, without its side or signs."""
    plain = " ".join(re.sub(r"[^0-9a-z]+", " ", name.lower()).split())
    return " ".join(re.sub(rf"\b{side}\b", " ", plain).split()) if side else plain


def _nth(number: int) -> str:
    ending = "th" if number % 100 in TEENS else ENDINGS.get(number % 10, "th")
    return f"{number}{ending}"
