"""Yes/no questions in twins: the same sentence with one detail right, and with it wrong.

Whatever is dropped is dropped by the pair, so there are always as many answers yes as no.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from . import faults
from .faults import Fault, Faulty
from .questions import (
    KIND,
    WORDS,
    Ask,
    Kind,
    Plan,
    Question,
    Report,
    Sort,
    Written,
    gather,
    kind_of,
    shape,
    text_of,
)
from .replies import Object

YES, NO = "Yes", "No"
PLAN: Plan = dict.fromkeys(Kind, 1)
SHARED = 0.5  # of the words of two twins, at least

VERB = re.compile(
    r"(is|are|was|were|does|do|did|has|have|can|could|may|will|would|should)\b", re.IGNORECASE
)
NEGATIVE = re.compile(r"\b(no|not|never|neither|nor)\b|n't\b", re.IGNORECASE)


@dataclass(frozen=True)
class Pair:
    """Two questions of which the first is to be answered yes, the second no."""

    kind: Kind
    yes: str
    no: str

    @property
    def text(self) -> str:
        """The words that no other pair may have."""
        return self.yes

    @property
    def questions(self) -> tuple[Question, Question]:
        """The pair as two questions with the choices Yes and No."""
        choices = (YES, NO)
        yes = Question(self.kind, self.yes, choices, YES)
        return yes, Question(self.kind, self.no, choices, NO)


async def write(report: Report, ask: Ask) -> Written[Pair]:
    """Have one pair of each kind written; what is missing or faulty is asked for again."""
    return await gather(report, ask, TWINS, PLAN)


def read(told: Object, _: Report) -> Pair:
    """Make a pair of what a model wrote.

    Raises
    ------
    Faulty
        It cannot be used.
    """
    pair = Pair(kind_of(told), text_of(told, "yes"), text_of(told, "no"))
    for text in (pair.yes, pair.no):
        faults.check_wording(text)
        if not VERB.match(text) or NEGATIVE.search(text):
            raise Faulty(Fault.YES_NO)
    yes, no = set(_words(pair.yes)), set(_words(pair.no))
    if yes == no or len(yes & no) < SHARED * max(len(yes), len(no)):
        raise Faulty(Fault.TWINS)
    return pair


def _words(text: str) -> Iterator[str]:
    return iter(faults.normal(text.rstrip("?")).split())


TWINS: Sort[Pair] = Sort(
    name="pairs", key="yes", schema=shape(kind=KIND, yes=WORDS, no=WORDS), read=read
)
