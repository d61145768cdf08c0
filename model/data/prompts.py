"""Questions and answers in our own words, for every task of M3D-Bench.

Knows terms and templates; neither images nor files. The choice of a template follows from a key,
so that the same sample reads the same in every run and in every process. What is absent is
answered by saying so: without [SEG], without a box.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final, TypeVar

from model.errors import ModelError
from model.tokenizer import BOX_END, BOX_START, SEG

from .sample import LETTERS, Box
from .terms import Term, wording

DECIMALS: Final = 3  # of a number in a box, as the released checkpoints learnt them
TEMPLATES: Final = "templates"
PARTS: Final = ("questions", "present", "absent")
# What each section may put in, part by part; a part that is not named is not there.
SLOTS: Final = {
    "caption": {"questions": ""},
    "presence": {"questions": "the", "present": "", "absent": ""},
    "rec_word": {"questions": "the", "present": "box", "absent": "what"},
    "rec_description": {
        "questions": "description",
        "present": "what the box",
        "absent": "what the",
    },
    "reg_word": {"questions": "box", "present": "what the"},
    "reg_description": {"questions": "box", "present": "what the description"},
    "reg_absent": {"questions": "box the", "absent": "other what"},
    "segmentation": {"questions": "the", "present": "", "absent": "what"},
    "referring": {"questions": "description", "present": "what the", "absent": "what the"},
}
OUTLINED: Final = ("segmentation", "referring")

Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Turn:
    """A question and its answer."""

    question: str
    answer: str


def pick(choices: Sequence[Choice], *key: object) -> Choice:
    """Choose one by a key: the same key, the same choice, whenever and wherever."""
    digest = hashlib.sha256("\0".join(map(str, key)).encode()).digest()
    return choices[int.from_bytes(digest[:8], "big") % len(choices)]


def box_text(box: Box) -> str:
    """Write a box as the network reads it, the last voxel inside as its end."""
    return f"{BOX_START}{[round(float(each), DECIMALS) for each in box]}{BOX_END}"


def choice_text(question: str, choices: Sequence[str]) -> str:
    """Write a closed question as the released checkpoints learnt it."""
    listed = " ".join(f"{each}. {text}" for each, text in zip(LETTERS, choices, strict=True))
    return f"{question} Choices: {listed}"


def caption(*key: object) -> str:
    """Ask for a report."""
    return pick(templates()["caption"]["questions"], "caption", *key)


def presence(term: Term, *key: object, absent: bool) -> Turn:
    """Ask whether a structure is there; yes or no."""
    return _turn("presence", term, key, absent=absent)


def rec(term: Term, box: Box | None, *key: object, described: bool = False) -> Turn:
    """Ask for the box of a word or of a description; None: it is absent."""
    section = "rec_description" if described else "rec_word"
    return _turn(section, term, key, absent=box is None, box=box)


def reg(term: Term, box: Box, *key: object, explained: bool = False) -> Turn:
    """Ask what is in a box."""
    section = "reg_description" if explained else "reg_word"
    return _turn(section, term, key, absent=False, box=box)


def reg_absent(term: Term, other: Term, box: Box, *key: object) -> Turn:
    """Ask whether a box, which is that of the `other`, holds what is absent."""
    return _turn("reg_absent", term, key, absent=True, box=box, other=other)


def segmentation(term: Term, *key: object, absent: bool) -> Turn:
    """Ask for the mask of a word."""
    return _turn("segmentation", term, key, absent=absent)


def referring(term: Term, *key: object, absent: bool) -> Turn:
    """Ask for the mask of a description."""
    return _turn("referring", term, key, absent=absent)


@cache
def templates() -> dict[str, dict[str, tuple[str, ...]]]:
    """Read the templates.

    Raises
    ------
    ModelError
        A template names a side, puts in what it must not, or shows what is absent.
    """
    read = {
        section: {part: tuple(lines) for part, lines in parts.items()}
        for section, parts in wording(TEMPLATES).items()
    }
    if {section: set(parts) for section, parts in read.items()} != {
        section: set(parts) for section, parts in SLOTS.items()
    }:
        raise ModelError(f"{TEMPLATES}.toml: expected the parts {SLOTS}, got {sorted(read)}")
    for section, parts in read.items():
        for part, lines in parts.items():
            for line in lines:
                _check(section, part, line)
    return read


def _check(section: str, part: str, line: str) -> None:
    place = f"{TEMPLATES}.toml, {section}.{part}, {line!r}"
    allowed, used = set(SLOTS[section][part].split()), re.findall(r"{(\w*)}", line)
    if not set(used) <= allowed or len(used) > len(set(used)) + line.count("{what}"):
        raise ModelError(f"{place}: expected {sorted(allowed)} each once, got {used}")
    if re.search(r"\b(left|right)\b", line, re.IGNORECASE):
        raise ModelError(f"{place}: expected no side in a template")
    marks = 1 if section in OUTLINED and part == "present" else 0
    boxes = 1 if "box" in allowed else 0
    if line.count(SEG) != marks or used.count("box") != boxes:
        raise ModelError(f"{place}: expected {marks} {SEG} and {boxes} box")


def _turn(
    section: str,
    term: Term,
    key: tuple[object, ...],
    *,
    absent: bool,
    box: Box | None = None,
    other: Term | None = None,
) -> Turn:
    parts = templates()[section]
    words = {"what": term.name, "the": term.the}
    if "description" in " ".join(SLOTS[section].values()):
        if not term.descriptions:
            raise ModelError(f"{term.name} has no description in the dictionary")
        words["description"] = pick(term.descriptions, section, "description", *key)
    if box is not None:
        words["box"] = box_text(box)
    if other is not None:
        words["other"] = other.the
    question = pick(parts["questions"], section, "question", *key).format(**words)
    answers = parts["absent" if absent else "present"]
    answer = pick(answers, section, "answer", *key).format(**words)
    return Turn(_sentence(question), _sentence(answer))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
