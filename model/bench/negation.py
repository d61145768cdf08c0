"""Which findings of a clause are there, which are not, and of which nothing is said.

Knows cues and how far they reach, in the manner of NegEx (Chapman et al. 2001): forward to the end
of the clause, backward over a subject and what is listed with it. "No change in the nodule"
denies a change. What is to be excluded, was once, or cannot be excluded is neither there nor not;
what is possible, probable or suspicious counts as there, because the report raises it.
"""

import re
from collections.abc import Sequence
from enum import StrEnum

from .clauses import PREPOSITION, VERB, Span

_SEEN = (
    r"(?:seen|visuali[sz]ed|identified|present|detected|evident|demonstrated|noted|found"
    r"|appreciated|observed|apparent|shown|visible|detectable|recogni[sz]ed|included)"
)
_CHANGE = (
    r"(?:changes?|increase|decrease|growth|enlargement|progression|worsening|improvement|reduction"
    r"|difference|displacement)"
)
_CHANGED = (
    r"(?:changed?|grown?|increased?|decreased?|enlarged?|progress(?:ed)?|worsened|improved?"
    r"|displaced|resolved?|cleared)"
)
# Denials that deny no finding.
_IDLE = re.compile(
    r"\bno (?:(?:significant|interval|substantial|appreciable|further|definite|relevant|major|size"
    rf"|evidence|sign|of|obvious|clear|real|short|term) )*{_CHANGE}\b"
    r"|\bno (?:larger|smaller|more|less|greater|bigger) than\b|\bno doubt\b|\bnot only\b"
    r"|\bwithout (?:(?:intravenous|iv|oral|and|with|or|any|the|administration|use|of) )*"
    r"(?:contrast|gadolinium)\b"
    rf"|\bnot (?:(?:yet|been|further|\w+ly) )*{_CHANGED}\b"
    rf"|\bnot (?:well|clearly|fully|completely|entirely|optimally) {_SEEN}\b"
    rf"|\b(?:not|no longer) {_SEEN} (?:\w+ ){{0,3}}?(?:before|previous(?:ly)?|prior|earlier)\b"
    r"|\b(?:partially|partly|incompletely|almost|nearly|largely) (?:resolved|cleared)\b"
    r"|\bnot (?:absent|missing)\b"
)
_NOT_MISSING = re.compile(r"\bnot (?:absent|missing)\b")
_UNSURE_AFTER = re.compile(
    r"\b(?:can|could|does|do|did|to) not (?:\w+ly )?(?:exclude|rule out)\b|\brule out\b"
    r"|\bto exclude\b|\bexclusion of\b|\b(?:evaluat|assess)\w* for\b|\bquestion of\b|\bhistory of\b"
    r"|\brisk of\b|\bif\b|\bunlikely (?:to|for)\b|\bno (?:new|other|additional|further|more)\b"
)
_UNSURE_BEFORE = re.compile(
    r"\bnot (?:be |been )?(?:\w+ly )?(?:excluded|ruled out)\b|\b(?:unlikely|doubtful)\b(?! to| for)"
)
_DENIED_AFTER = re.compile(
    r"\b(?:no|without|not|nor|neither|never|absence of|lack of|lacks?|negative for|free of"
    r"|clear of|devoid of|denies|fails? to (?:show|demonstrate))\b"
)
_DENIED_BEFORE = re.compile(
    rf"\bnot (?:(?:be|been|currently|now) )*{_SEEN}\b|\bno longer(?: {_SEEN})?\b"
    r"|\b(?:absent|missing|resolved|disappeared|gone|nonexistent)\b|\bhas cleared\b"
    r"|\b(?:has|have|is|are|was|were)(?: been)? (?:excluded|ruled out|removed|resected)\b"
    r"|\b(?:been|surgically) (?:excluded|ruled out|removed|resected)\b"
    r"|: (?:none|no|absent|negative|nil)(?= ?,|$)|\b(?:is|are) (?:none|negative)\b"
)
_BETWEEN_SUBJECTS = re.compile(r",|\b(?:and|or|nor)\b")
_ALTERNATIVE = re.compile(r"\b(?:or|nor)\b")
# "in the", "of the known": what is spoken of as given is not denied with what is denied of it ...
_GIVEN = re.compile(
    r"\b(?:in|of|within|around|by|at|from|to|near|with|about|into|beside)"
    r" (?:the|this|that|these|those|its|known|previous(?:ly)?|prior)"
    r"(?: (?!and\b|or\b|nor\b)[^\W\d_]+){0,3} $"
)
# ... unless it is the evidence for it that is denied.
_EVIDENCE = re.compile(r"\b(?:evidence|signs?|indication|trace|remnants?|residual|suggestion)\b")
_ORGAN_ALONE = re.compile(r"(?: (?:the|an?|any|left|right|evidence|of|show|see|contain|have))* $")
# "The spleen is", "both the spleen and the left kidney are", "gallbladder: surgically"; not
# "intracranial enhancement was", which speaks of the enhancement.
_TO_CUE = re.compile(
    r"(?: and(?: the| both)?(?: left| right)?(?: [^\W\d_]+){1,2})?"
    r"(?: (?:on|the|left|right|side|is|are|was|were|has|have|been|being|both|surgically|also|again"
    r"|still|clearly|congenitally|:))* ?$"
)
_AFTER_ORGAN = re.compile(r" (?:is|are|was|were|seen|visible|identified|on|or|and)\b|$")


class Polarity(StrEnum):
    """What is said of a finding."""

    PRESENT = "present"
    ABSENT = "absent"
    UNSURE = "unsure"


def polarities(clause: str, findings: Sequence[Span]) -> list[Polarity]:
    """Tell for each finding of a clause, given in order, what is said of it."""
    cues = _cues(clause)
    found = [_forward(clause, cues, start) for start, _ in findings]
    for start, polarity in _backward(clause):
        for index in _subjects(clause, findings, start):
            found[index] = polarity
    return found


def missing(clause: str, organ: Span) -> bool | None:
    """Tell whether an organ itself is said to be missing; None if neither is said.

    The clause speaks of no finding.
    """
    start, stop = organ
    plain = _idle(clause)
    alone = any(
        _ORGAN_ALONE.match(clause[cue.end() : start]) and _AFTER_ORGAN.match(clause[stop:])
        for cue in _DENIED_AFTER.finditer(plain[:start])
    )
    gone = any(
        polarity is Polarity.ABSENT and stop <= where and _TO_CUE.match(clause[stop:where])
        for where, polarity in _backward(clause)
    )
    if _NOT_MISSING.search(clause[stop:]) or (alone and gone):  # "no organ is missing"
        return False
    return True if alone or gone else None


def _cues(clause: str) -> list[tuple[int, Polarity]]:
    """Give where each cue that reaches forward ends, in order."""
    clause = _idle(clause)
    unsure = list(_UNSURE_AFTER.finditer(clause))
    for pattern in (_UNSURE_AFTER, _UNSURE_BEFORE, _DENIED_BEFORE):
        clause = pattern.sub(_blank, clause)
    denied = _DENIED_AFTER.finditer(clause)
    return sorted(
        [(each.end(), Polarity.UNSURE) for each in unsure]
        + [(each.end(), Polarity.ABSENT) for each in denied]
    )


def _forward(clause: str, cues: Sequence[tuple[int, Polarity]], start: int) -> Polarity:
    reaching = [each for each in cues if each[0] <= start]
    if not reaching:
        return Polarity.PRESENT
    end, polarity = reaching[-1]
    between = clause[end:start]
    given = _GIVEN.search(between) and not _EVIDENCE.search(between)
    return Polarity.PRESENT if given and polarity is Polarity.ABSENT else polarity


def _backward(clause: str) -> list[tuple[int, Polarity]]:
    """Give where each cue that reaches backward begins."""
    clause = _idle(clause)
    unsure = list(_UNSURE_BEFORE.finditer(clause))
    denied = _DENIED_BEFORE.finditer(_UNSURE_BEFORE.sub(_blank, clause))
    return [(each.start(), Polarity.UNSURE) for each in unsure] + [
        (each.start(), Polarity.ABSENT) for each in denied
    ]


def _subjects(clause: str, findings: Sequence[Span], cue: int) -> list[int]:
    """Give the last finding before a cue and those that are listed with it."""
    before = [index for index, (_, stop) in enumerate(findings) if stop <= cue]
    chosen = before[-1:]
    for index in reversed(before[:-1]):
        gap = clause[findings[index][1] : findings[index + 1][0]]
        if not _listed(gap):
            break
        chosen.append(index)
    return chosen


def _listed(gap: str) -> bool:
    """Tell whether two findings are one subject: "effusion and a mass", "a mass in it or a"."""
    if VERB.search(gap) or not _BETWEEN_SUBJECTS.search(gap):
        return False
    return bool(_ALTERNATIVE.search(gap)) or not PREPOSITION.search(gap)


def _idle(clause: str) -> str:
    """Blank the denials that deny no finding; what stays, stays where it is."""
    return _IDLE.sub(_blank, clause)


def _blank(match: re.Match[str]) -> str:
    return "~" * len(match[0])
