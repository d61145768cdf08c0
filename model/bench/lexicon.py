"""Words of reports: which stand for a finding, which for an organ, which only look like one.

Knows `lexicon.toml` and single spaces; what a sentence says of a finding is for `findings`.
"""

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("lexicon.toml")
FINDING, ORGAN, DECOY = "finding", "organ", "decoy"


@dataclass(frozen=True)
class Term:
    """What a word stands for; a finding may name its organ, and may have no side."""

    kind: str
    name: str = ""
    organ: str = ""
    sided: bool = True


@dataclass(frozen=True)
class Mark:
    """A term in a sentence: its characters from `start` to before `stop`."""

    term: Term
    start: int
    stop: int


def marks(sentence: str) -> list[Mark]:
    """Find the terms of a sentence in lower case, the longest first, decoys left out."""
    found = []
    for match in _pattern().finditer(sentence):
        term = _term(match[0])
        if term.kind != DECOY:
            found.append(Mark(term, match.start(), match.end()))
    return found


@cache
def terms() -> dict[str, Term]:
    """Give every word of the lexicon with what it stands for."""
    told = tomllib.loads(FILE.read_text(encoding="utf-8"))
    known = {each: Term(DECOY) for each in told["decoys"]}
    for kind in (ORGAN, FINDING):
        for entry in told[kind]:
            words = entry.pop("words")
            known |= dict.fromkeys(words, Term(kind, **entry))
    return known


@cache
def _pattern() -> re.Pattern[str]:
    longest = sorted(terms(), key=len, reverse=True)
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, longest))})(?:s|es)?\b")


def _term(word: str) -> Term:
    """Look a word up, or what it is the plural of."""
    known = terms()
    return next(
        known[each]
        for each in (word, word.removesuffix("s"), word.removesuffix("es"))
        if each in known
    )
