"""Whether a question is true, and whether it needs the image.

The self-check asks again with the report in hand and drops what is then answered otherwise; M3D
(arXiv 2404.00578) reports that 99.4 % of its test questions passed one. It cannot tell that a
question needs no image. The blind check can: the question is answered with neither image nor
report, several times with its choices in another order, and what is always answered right is
dropped.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from .completions import Prompt
from .faults import Faulty, find_answer
from .questions import (
    WORDS,
    Ask,
    Kind,
    Question,
    Report,
    fill,
    instruction,
    material,
    shape,
    shuffled,
)
from .replies import objects

CHECK_TOKENS = 1000
BLIND_TOKENS = 60
ROUNDS = 2
CHANCE = 0.25  # of one question among four choices, and of both questions of a pair

# Here the choices are always the same few words, and a guess is right as often as its word is
# common. To drop every right guess would leave a set in which the common word is never right. So
# as many are kept as a guesser may get by chance.
FEW_WORDS = {Kind.PLANE, Kind.PHASE}

LETTERS = "ABCDE"  # the fifth: the material does not tell
SAID = re.compile(r"^\W*([A-D])\b(?! ?[a-z])|\b(?:[Aa]nswer|[Ll]etter)\W+(?:is\W+)?([A-D])\b")


class Verdict(StrEnum):
    """What the self-check found."""

    AGREES = "agrees"
    DISAGREES = "disagrees"
    NOT_TOLD = "not_told"
    UNANSWERED = "unanswered"


@dataclass(frozen=True)
class Guesses:
    """What the blind check found: right or wrong, try by try, up to the first that was wrong."""

    right: tuple[bool, ...]
    declined: bool = False

    @property
    def always(self) -> bool:
        """Whether every try was right."""
        return bool(self.right) and all(self.right)


async def self_check(
    report: Report, questions: Sequence[Question], ask: Ask, seed: int
) -> list[Verdict]:
    """Have the questions answered from the report; what got no answer is asked once more."""
    verdicts = [Verdict.UNANSWERED] * len(questions)
    untold = instruction("check")["untold"]
    shown = [
        [*shuffled(each.choices, seed, report.image, each.text, "check"), untold]
        for each in questions
    ]
    for _ in range(ROUNDS):
        waiting = [n for n, each in enumerate(verdicts) if each is Verdict.UNANSWERED]
        if not waiting:
            break
        # Not in the order of writing, in which twins stand side by side.
        numbers = [int(each) for each in shuffled(map(str, waiting), seed, report.image)]
        reply = await ask(_check_prompt(report, questions, shown, numbers))
        for number, told in _numbered(reply).items():
            if number in waiting:
                verdicts[number] = _verdict(questions[number], shown[number], told)
    return verdicts


def _check_prompt(
    report: Report,
    questions: Sequence[Question],
    shown: Sequence[Sequence[str]],
    numbers: Sequence[int],
) -> Prompt:
    listed = [_put(questions[n].text, shown[n], f"{n + 1}. ") for n in numbers]
    user = fill(
        "check",
        material=material(report),
        questions="\n\n".join(listed),
        untold=instruction("check")["untold"],
    )
    entry = shape(number={"type": "integer"}, letter=WORDS)
    return Prompt(
        step="check",
        subject=report.image,
        system=instruction("report")["system"].strip(),
        user=user,
        schema=shape(answers={"type": "array", "items": entry}),
        keys=("letter",),
        max_tokens=CHECK_TOKENS,
    )


def _put(text: str, choices: Sequence[str], number: str = "") -> str:
    lines = [f"{letter}. {each}" for letter, each in zip(LETTERS, choices, strict=False)]
    return "\n".join((number + text, *lines))


def _numbered(reply: str) -> Mapping[int, str]:
    """Read what was told of each question, by its index; the first word counts."""
    found: dict[int, str] = {}
    for each in objects(reply, "letter"):
        number = str(each.get("number"))
        if number.isdecimal():
            found.setdefault(int(number) - 1, str(each["letter"]))
    return found


def _verdict(question: Question, shown: Sequence[str], told: str) -> Verdict:
    chosen = _chosen(told, shown)
    if chosen is None:
        return Verdict.UNANSWERED
    if chosen == question.answer:
        return Verdict.AGREES
    return Verdict.DISAGREES if chosen in question.choices else Verdict.NOT_TOLD


def _chosen(told: str, shown: Sequence[str]) -> str | None:
    """Tell which choice is meant by a letter or by its words; None for none of them."""
    try:
        return find_answer(told, shown)
    except Faulty:
        return None


async def blind_check(
    subject: str, questions: Sequence[Question], ask: Ask, *, tries: int, seed: int
) -> Guesses:
    """Have questions guessed until a guess is wrong, at most `tries` times.

    A try is right if the guesses of all questions are: two twins count as one. Each is asked alone:
    in company it would be given away more than it will be in use. The answer stands at another
    letter each time, so that no love of a letter is taken for knowledge.
    """
    right: list[bool] = []
    for turn in range(tries):
        for question in questions:
            shown = _turned(question, turn, subject, seed)
            chosen = _guess(await ask(_blind_prompt(subject, question, shown)), shown)
            if chosen != question.answer:
                return Guesses((*right, False), declined=chosen is None)
        right.append(True)
    return Guesses(tuple(right))


def _turned(question: Question, turn: int, subject: str, seed: int) -> list[str]:
    order = shuffled(question.choices, seed, subject, question.text, "blind")
    start = turn % len(order)
    return [*order[start:], *order[:start]]


def _guess(reply: str, shown: Sequence[str]) -> str | None:
    for each in objects(reply, "letter"):
        return _chosen(str(each["letter"]), shown)
    said = SAID.search(reply.strip())
    return _chosen(said[1] or said[2], shown) if said else None


def _blind_prompt(subject: str, question: Question, shown: Sequence[str]) -> Prompt:
    return Prompt(
        step="blind",
        subject=subject,
        system=instruction("blind")["system"].strip(),
        user=fill("blind", question=_put(question.text, shown)),
        schema=shape(letter=WORDS),
        keys=("letter",),
        max_tokens=BLIND_TOKENS,
    )


def without_guessable(items: Sequence[tuple[str, Kind, bool]], seed: int) -> list[bool]:
    """Tell which to keep, of (name, kind, always guessed); their order does not matter.

    Of a kind with few words, guessed ones are kept up to the share that chance would give.
    """
    keep = [not guessed for _, _, guessed in items]
    for kind in FEW_WORDS:
        needing = sum(k is kind and not guessed for _, k, guessed in items)
        room = int(needing * CHANCE / (1 - CHANCE))
        guessed_at = {
            name: n for n, (name, k, guessed) in enumerate(items) if guessed and k is kind
        }
        for name in shuffled(guessed_at, seed, kind)[:room]:
            keep[guessed_at[name]] = True
    return keep
