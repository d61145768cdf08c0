"""What makes a question unusable, judged by its words alone.

Knows strings; neither reports nor endpoints, nor whether an answer is true.
"""

import re
from collections.abc import Sequence
from enum import StrEnum

QUESTION_LENGTH = (10, 200)
CHOICE_LENGTH = 80
STANDS_OUT = (20, 2)  # characters more than the longest other choice, and times as long


class Fault(StrEnum):
    """Why a question is refused; each is explained to the model in `instructions/report.toml`."""

    SHAPE = "shape"
    KIND = "kind"
    LENGTH = "length"
    CHOICES = "choices"
    POINTING = "pointing"
    ANSWER = "answer"
    REPORT = "report"
    GIVEN_AWAY = "given_away"
    STANDS_OUT = "stands_out"
    PLANE = "plane"
    REPEATED = "repeated"
    YES_NO = "yes_no"
    TWINS = "twins"


class Faulty(Exception):
    """A question that cannot be used."""

    def __init__(self, fault: Fault, text: str = "") -> None:
        super().__init__(fault.value)
        self.fault = fault
        self.text = text


# "described" alone speaks of a text; "best described as" speaks of the image.
REPORT = re.compile(
    r"\b(reports?|reported|reporting|radiologists?|passages?|captions?|transcripts?|dictat\w+)\b"
    r"|\b(file ?names?|series names?|study findings)\b"
    r"|\b(the|this|that|given|above|provided|following) (\w+ )?(text|description|document|note)\b"
    r"|\bthe impression\b|\bfindings section\b|\baccording to\b|\b(mentioned|stated)\b"
    r"|(?<!\bbest )(?<!\bbetter )\bdescribed\b"
    r"|\bas (noted|indicated|documented|written)\b"
    r"|\b(noted|documented|written) (above|below|here)\b",
    re.IGNORECASE,
)
POINTING = re.compile(
    r"\b(all|none|any|both|neither|either|two) of (the|these|those|them)\b"
    r"|\b(both|neither|either) [A-D]\b|\b[A-D] (and|or|&) [A-D]\b"
    r"|\b(other|more than one) (choices?|options?|answers?)\b",
    re.IGNORECASE,
)
# What tables read as a missing value (pandas.read_csv does).
MISSING = {"", "na", "n/a", "nan", "null", "none", "not available"}
LABEL = re.compile(r"^\(?([A-E])[.):]\s*(?=\S)", re.IGNORECASE)
LETTER = re.compile(r"^\(?([A-E])[.):]?$", re.IGNORECASE)
PLANES = {"axial": "axial|transverse|transaxial", "coronal": "coronal", "sagittal": "sagittal"}
ANY_PLANE = re.compile(rf"\b({'|'.join(PLANES.values())}|oblique)\b", re.IGNORECASE)
FILLERS = {
    *("a", "an", "and", "are", "as", "at", "by", "for", "from", "has", "have", "in", "is", "it"),
    *("of", "on", "or", "seen", "shown", "that", "the", "there", "this", "to"),
    *("what", "where", "which", "with"),
}


def normal(text: str) -> str:
    """Leave out what does not tell two sentences apart: case, blanks, punctuation at the ends."""
    return " ".join(re.sub(r"[^\w.%<>+/-]+", " ", text.casefold()).split()).strip(".-/")


def unlabelled(choices: Sequence[str]) -> list[str]:
    """Take off the letters A. to D., where all choices have them in their order.

    In order only: a single "C. difficile colitis" is no label.
    """
    labels = [LABEL.match(each) for each in choices]
    if [label and label[1].upper() for label in labels] == list("ABCD"[: len(choices)]):
        choices = [LABEL.sub("", each) for each in choices]
    return [each.strip() for each in choices]


def find_answer(told: str, choices: Sequence[str]) -> str:
    """Find which choice is meant, by its words or its letter.

    Raises
    ------
    Faulty
        None of them.
    """
    by_words = {normal(each): each for each in choices}
    for words in (told, LABEL.sub("", told.strip())):
        if normal(words) in by_words:
            return by_words[normal(words)]
    letter = LETTER.match(told.strip())
    place = "ABCDE".index(letter[1].upper()) if letter else len(choices)
    if place >= len(choices):
        raise Faulty(Fault.ANSWER)
    return choices[place]


def check_wording(text: str) -> None:
    """Raise Faulty for a question of the wrong length or form, or one that speaks of a text."""
    shortest, longest = QUESTION_LENGTH
    if not (shortest <= len(text) <= longest and text.endswith("?")):
        raise Faulty(Fault.LENGTH)
    if REPORT.search(text):
        raise Faulty(Fault.REPORT)


def check_choices(choices: Sequence[str]) -> None:
    """Raise Faulty for choices that are not four different ones, each complete in itself."""
    normals = {normal(each) for each in choices}
    if len(choices) != len("ABCD") or len(normals) != len(choices) or normals & MISSING:
        raise Faulty(Fault.CHOICES)
    if any(len(each) > CHOICE_LENGTH for each in choices):
        raise Faulty(Fault.CHOICES)
    if any(POINTING.search(each) for each in choices):
        raise Faulty(Fault.POINTING)
    if any(REPORT.search(each) for each in choices):
        raise Faulty(Fault.REPORT)


def check_answer(text: str, choices: Sequence[str], answer: str) -> None:
    """Raise Faulty where the answer can be told by the words of the question, or by its length."""
    others = [each for each in choices if each != answer]
    asked = _words(text)
    if len(_words(answer) & asked) > max(len(_words(each) & asked) for each in others):
        raise Faulty(Fault.GIVEN_AWAY)
    more, times = STANDS_OUT
    longest = max(map(len, others))
    if len(answer) > longest + more and len(answer) > longest * times:
        raise Faulty(Fault.STANDS_OUT)


def check_plane(answer: str, series: str) -> None:
    """Raise Faulty for an answer that is no plane, or another one than that of the series."""
    named = [words for plane, words in PLANES.items() if re.search(words, series, re.IGNORECASE)]
    fits = ANY_PLANE.search(answer)
    if not fits or (len(named) == 1 and not re.search(named[0], answer, re.IGNORECASE)):
        raise Faulty(Fault.PLANE)


def _words(text: str) -> set[str]:
    words = set(re.findall(r"[\w.]+", text.casefold())) - FILLERS
    return {re.sub(r"(?<=\w{3})s$", "", each.strip(".")) for each in words}
