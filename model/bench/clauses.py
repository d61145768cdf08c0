"""Reports cut into sentences and clauses, each of which speaks of its own findings.

Knows the words that join and part; not what is denied. A sentence is in lower case with single
spaces, hyphens and brackets gone, so that the patterns here and in `negation` can be plain.
"""

import re
from collections.abc import Iterator, Sequence

from .lexicon import FINDING, Mark

Span = tuple[int, int]

VERB = re.compile(
    r"\b(?:is|are|was|were|has|have|had|shows?|contains?|demonstrates?|measures?|appears?|remains?"
    r"|persists?|lies|extends?|occupies)\b"
)
SINGULAR = re.compile(
    r"\b(?:is|was|has|shows|contains|demonstrates|measures|appears|remains|persists|lies|extends"
    r"|occupies)\b"
)
PREPOSITION = re.compile(r"\b(?:in|on|of|at|within|near|beside|adjacent|involving|along|from|to)\b")

_ABBREVIATION = re.compile(r"\b(approx|ca|vs|e\.g|i\.e|dr|fig|cf)\.", re.IGNORECASE)
# "nodule.No effusion" is two sentences; so is a line that begins like one.
_SENTENCE = re.compile(
    r"(?<=[.!?])\s+|(?<=[a-z)])\.(?=[A-Z])|;|\n\s*\n|\n(?=\s*(?:[A-Z•*-]|\d+[.)]))"
)
# Why and how one looked is not what one saw.
_BEFORE_FINDINGS = re.compile(
    r"(?:\A|(?<=[.!?\n]))\s*(?:clinical (?:indication|information|data|history|details)"
    r"|indications?|history|technique|comparison|reason for (?:exam\w*|study))[ \t]*[:\n].*?"
    r"(?=\bfindings[ \t]*[:\n])",
    re.IGNORECASE | re.DOTALL,
)
_SPELLED = (
    (re.compile(r"\band/or\b"), "or"), (re.compile(r"\br/o\b"), "rule out"),
    (re.compile(r"\bw/o\b"), "without"), (re.compile(r"\bs/p\b"), "status post"),
    (re.compile(r"n['\u2019]t\b"), " not"), (re.compile(r"\bcannot\b"), "can not"),
    (re.compile(r"/"), " or "), (re.compile(r"&"), " and "),
    # "Pleural or pericardial effusion" is two findings with one noun.
    (re.compile(r"\b(pleural|pericardial) (or|and) (pleural|pericardial) effusion"),
     r"\1 effusion \2 \3 effusion"),
)  # fmt: skip
_TOKEN = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+|[,:]")
_JOINT = re.compile(
    r"\b(?P<hard>but|however|although|though|except|yet|whereas|while|nevertheless|despite"
    r"|other than|aside from|apart from|with the exception of|otherwise)\b|(?:, )?\band\b|,"
)
_OWN_CLAUSE = re.compile(r" ?(?:there|no|without|neither)\b")
_DETERMINED = re.compile(r" ?(?:an?|the|this|that|these|those|its|another|one)\b")
_ARTICLE = re.compile(r" ?(?:an?|one|two|three|several|multiple|some|few)\b")
_DENIAL = re.compile(r"\b(?:no|without|not|nor|neither|absence|negative|free)\b")
_ASSERTED = re.compile(
    r"\b(?:small|tiny|large|huge|moderate|mild|minimal|trace|left|right|bilateral|stable|unchanged"
    r"|known|old|chronic|persistent|residual|multiple|several|\d+(?:\.\d+)?|increasing|again"
    r"|remains?|persists?|measures?|measuring)\b"
)
_LIST_END = re.compile(r"\b(?:no|without|there|is|are|was|were|has|have)\b")
_OR = re.compile(r"\b(?:or|nor)\b")


def sentences(text: str) -> Iterator[str]:
    """Give the sentences of a report, plainly spelled."""
    seen = _BEFORE_FINDINGS.sub("", text)
    for each in _SENTENCE.split(_ABBREVIATION.sub(r"\1", seen)):
        lowered = each.lower()
        for pattern, spelled in _SPELLED:
            lowered = pattern.sub(spelled, lowered)
        plain = " ".join(_TOKEN.findall(lowered))
        if plain:
            yield plain


def clauses(sentence: str, marks: Sequence[Mark]) -> list[Span]:
    """Cut a sentence where something else begins to be said.

    "But" always parts. "And" and the comma part where both sides have a verb, where the second
    has its own "no" or "there", or where, after a denial, the second affirms: in "no pneumothorax,
    small left effusion" the effusion is there; in "no pneumothorax, large effusion or mass" not.
    """
    findings = [each.start for each in marks if each.term.kind == FINDING]
    starts = [0]
    joints = list(_JOINT.finditer(sentence))
    for index, joint in enumerate(joints):
        if joint["hard"]:
            starts.append(joint.start())
            continue
        # The list goes on to the next "but", the chunk only to the next joint.
        later = joints[index + 1 :]
        end = next((each.start() for each in later if each["hard"]), len(sentence))
        chunk = (joint.end(), later[0].start() if later else len(sentence))
        before = (starts[-1], joint.start())
        held = [any(start <= each < stop for each in findings) for start, stop in (before, chunk)]
        if _parts(
            sentence[slice(*before)], sentence[slice(*chunk)], sentence[chunk[0] : end], held
        ):
            starts.append(joint.end())
    return list(zip(starts, [*starts[1:], len(sentence)], strict=True))


def _parts(before: str, chunk: str, rest: str, held: Sequence[bool]) -> bool:
    """Tell whether a chunk behind "and" or a comma says something of its own."""
    spoken, speaks = VERB.search(before), VERB.search(chunk)
    if not spoken and not held[0]:
        return False  # "in the left kidney, there is": the beginning belongs to what follows
    if _OWN_CLAUSE.match(chunk):
        return True
    if speaks and (spoken or (_DETERMINED.match(chunk) and SINGULAR.search(chunk))):
        return True
    return bool(_DENIAL.search(before)) and held[1] and _affirms(chunk, rest)


def _affirms(chunk: str, rest: str) -> bool:
    listed = rest[: match.start()] if (match := _LIST_END.search(rest)) else rest
    if _OR.search(listed):
        return False
    return bool(_ARTICLE.match(chunk) or _ASSERTED.search(chunk))
