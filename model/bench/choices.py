"""Which letter a four-choice answer gives, and how often it is right.

Knows words, not images. An answer that names two choices, or none, names no letter and is wrong.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

LETTERS = "ABCD"
ABSENT = {"", "na", "nan", "n/a"}  # how the published tables write a choice that is not there
# "B", "(b)", "B.", "option B", "**B**: sagittal"; not "A nodule", where A is a word.
_LEADING = re.compile(
    r"^\W*(?:(?:[Oo]ption|[Cc]hoice|[Aa]nswer)\s+)?\(?([A-Da-d])(?:\s*[.):,*]|\s+-|\s*$)"
)
# "The answer is C", "Answer: C", "I choose (B)"; not "the answer is a nodule".
_NAMED = re.compile(
    r"(?i:\b(?:answer|option|choice|choose|select|pick)\b"
    r"(?:\s+(?:is|are|would be|option|choice|letter))*)[\s:=*(\"']*"
    r"([B-Db-d]|[Aa](?!\s+(?!because\b|since\b|as\b)[a-z]))(?![\w'])"
)
# "It is B.", "So: (B)", "C.A. B."; not "vitamin D." and not "it is not A."
_MARKED = re.compile(
    r"(?:^|[.!?:;(*]|\b(?:is|be|think|say|letter)\b)\s*\(?([A-D])(?=[.):*](?![a-z0-9]))",
    re.MULTILINE,
)
_SEVERAL = re.compile(r"\b([A-D])\s*(?:,|/|&|\band\b|\bor\b)\s*([A-D])\b")
_DENIED = re.compile(r"\b(?:not|isn't|no|neither|nor|cannot|rather than|instead of)\b")


@dataclass(frozen=True)
class Judged:
    """One answered question: its kind, the letter that is right, the letter given if any."""

    kind: str
    truth: str
    given: str | None

    @property
    def right(self) -> bool:
        """Whether the letter given is the right one."""
        return self.given == self.truth


@dataclass(frozen=True)
class Accuracy:
    """How many of so many were right, and how many named no letter."""

    count: int
    right: int
    unread: int

    @property
    def accuracy(self) -> float:
        """The part that was right."""
        return self.right / self.count


def read(text: str, choices: Sequence[str] = ()) -> str | None:
    """Read the one letter an answer gives; None if it gives none, or more than one.

    Parameters
    ----------
    choices
        The texts of A, B, C, D, so that an answer may also be a choice in words.
    """
    known = {
        letter: _plain(choice)
        for letter, choice in zip(LETTERS, choices, strict=False)
        if _plain(choice) not in ABSENT
    }
    said = _plain(text)
    whole = [letter for letter, choice in known.items() if choice == said]
    if len(whole) == 1:
        return whole[0]
    letters = _letters(text)
    if not letters:
        return _in_words(said, known)
    letters |= _worded(text, known)
    if len(letters) > 1 or (choices and not letters <= known.keys()):
        return None
    return letters.pop()


def reference(text: str, letter: str) -> bool:
    """Judge as the published script does: the letter and a dot, anywhere."""
    return f"{letter}." in text


def accuracy(judged: Iterable[Judged]) -> dict[str, Accuracy]:
    """Count for each kind of question, in the order of the kinds, and for "all" of them."""
    listed = list(judged)
    kinds = sorted({each.kind for each in listed})
    found = {kind: _count([each for each in listed if each.kind == kind]) for kind in kinds}
    return found | ({"all": _count(listed)} if listed else {})


def mean_of_kinds(counted: dict[str, Accuracy]) -> float:
    """Average the kinds, each weighing the same, as the published tables do."""
    return fmean(each.accuracy for kind, each in counted.items() if kind != "all")


def _count(judged: Sequence[Judged]) -> Accuracy:
    right = sum(each.right for each in judged)
    return Accuracy(len(judged), right, sum(each.given is None for each in judged))


def _plain(text: str) -> str:
    """Lower the case, and drop marks and spaces that mean nothing at the ends."""
    return re.sub(r"\s+", " ", str(text)).strip(" .,:;!*\"'`()").lower()


def _letters(text: str) -> set[str]:
    """Give every letter that stands in the place of a choice."""
    found = [match[1] for match in [_LEADING.match(text)] if match]
    found += _NAMED.findall(text) + _MARKED.findall(text)
    found += [letter for pair in _SEVERAL.findall(text) for letter in pair]
    return {letter.upper() for letter in found}


def _worded(text: str, known: dict[str, str]) -> set[str]:
    """Give letters whose words follow: B of "B. Sagittal", and of "A. Sagittal" if B is that."""
    words = _plain(_LEADING.sub("", text, count=1))
    return {
        letter
        for letter, choice in known.items()
        if choice == words or re.search(rf"(?i)\b{letter}[.):]\s*{re.escape(choice)}(?!\w)", text)
    }


def _in_words(said: str, known: dict[str, str]) -> str | None:
    """Find the one choice whose words are in the answer; one inside another does not count."""
    for letter, choice in known.items():
        if choice in {"yes", "no"} and re.match(rf"{choice}\s*[.,;:]", said):
            return letter
    spans = [
        (match.start(), match.end(), letter)
        for letter, choice in known.items()
        for match in re.finditer(rf"(?<!\w){re.escape(choice)}(?!\w)", said)
    ]
    outer = [a for a in spans if not any(_inside(a, b) for b in spans)]
    letters = {letter for *_, letter in outer}
    if len(letters) != 1 or _DENIED.search(said[: outer[0][0]]):
        return None
    return letters.pop()


def _inside(a: tuple[int, int, str], b: tuple[int, int, str]) -> bool:
    return b[0] <= a[0] and a[1] <= b[1] and (b[0], b[1]) != (a[0], a[1])
