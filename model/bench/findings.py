"""What a CT or MR report says, finding by finding, and how far two reports say the same.

Knows our own small language of findings: a finding (`lexicon.toml`), the organ it is in, its side,
and whether it is there (`negation`). A report says each finding of an organ once, however often
it repeats it: left and right make bilateral, and a mention without side or organ adds nothing to
one that has them.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import pairwise

from .clauses import PREPOSITION, VERB, Span, clauses, sentences
from .lexicon import FINDING, ORGAN, Mark, marks
from .negation import Polarity, missing, polarities

LEFT, RIGHT, BILATERAL = "left", "right", "bilateral"
ABSENCE = "absence"  # the finding that an organ is not there

_SIDE = re.compile(
    r"\b(?P<bilateral>bilateral(?:ly)?|(?:either|each|both) sides?|both (?:\w+ ){0,2}?(?:lungs"
    r"|kidneys|lobes|breasts|adrenals?|adrenal glands|adnexae?|ovaries|ribs|hila|eyes|hemispheres"
    r"|ureters|hips|orbits|bases|apices)"
    r"|(?:left|right) (?:greater|larger|more|less|smaller) than (?:on )?(?:the )?(?:left|right))\b"
    r"|\b(?P<left>left)\b(?! (?:in place|behind|untreated|open))|\b(?P<right>right)\b"
)
# Where something is pushed to is not where it is.
_TOWARDS = re.compile(
    r"\b(?:shift|deviat|displac|push)\w*(?: \w+){0,3}? (?:to|towards?)(?: the)? (?:left|right)\b"
)
_SAME_PLACE = re.compile(r"(?: \w+){0,4}?(?: ,| and| or| , and)(?: (?:in|on|of|at|the))* ")
_JOINED = re.compile(r"[,:]|\b(?:and|or|nor|with|plus|but)\b")
_LIST = re.compile(r",|\b(?:and|or|nor|without)\b")


@dataclass(frozen=True, order=True)
class Statement:
    """One finding as a report has it; `organ` and `side` are "" where the report names none."""

    finding: str
    organ: str = ""
    side: str = ""
    present: bool = True


@dataclass(frozen=True)
class Comparison:
    """How one report, or many, agree with what is true.

    `found`, `extra` and `missed` count findings that are there; `sided` those found with a side in
    both reports, `right_side` those of them with the same; `contradictions` what one report affirms
    and the other denies.
    """

    found: int = 0
    extra: int = 0
    missed: int = 0
    sided: int = 0
    right_side: int = 0
    contradictions: int = 0

    def __add__(self, other: "Comparison") -> "Comparison":
        return Comparison(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def precision(self) -> float | None:
        """The part of the findings said that is true; None if none was said."""
        return _part(self.found, self.found + self.extra)

    @property
    def recall(self) -> float | None:
        """The part of the true findings that was said; None if there is none."""
        return _part(self.found, self.found + self.missed)

    @property
    def f1(self) -> float | None:
        """The harmonic mean of both; None if neither report holds a finding."""
        return _part(2 * self.found, 2 * self.found + self.extra + self.missed)

    @property
    def laterality(self) -> float | None:
        """The part of the findings with a side in both reports that has the same one."""
        return _part(self.right_side, self.sided)


def read(report: str) -> frozenset[Statement]:
    """Read what a report says is there, and what it says is not."""
    said = [each for sentence in sentences(report) for each in _sentence(sentence)]
    return frozenset(_merged(said))


def compare(said: str, truth: str) -> Comparison:
    """Compare the findings of a report with those of the true one.

    A finding is the same if its organ is, or if one of the reports names none. Add the comparisons
    of many reports to score them together.
    """
    ours, theirs = read(said), read(truth)
    pairs = _pairs(_there(ours), _there(theirs))
    sided = [(a, b) for a, b in pairs if a.side and b.side]
    return Comparison(
        found=len(pairs),
        extra=len(_there(ours)) - len(pairs),
        missed=len(_there(theirs)) - len(pairs),
        sided=len(sided),
        right_side=sum(a.side == b.side for a, b in sided),
        contradictions=sum(_contradicted(each, theirs) for each in ours),
    )


def by_finding(said: str, truth: str) -> dict[str, Comparison]:
    """Compare two reports for each finding that one of them affirms; together they are `compare`.

    Contradictions are not told apart.
    """
    ours, theirs = _there(read(said)), _there(read(truth))
    found: dict[str, Comparison] = {}
    for name in sorted({each.finding for each in (*ours, *theirs)}):
        a, b = ([each for each in some if each.finding == name] for some in (ours, theirs))
        pairs = _pairs(a, b)
        sided = [(one, other) for one, other in pairs if one.side and other.side]
        right = sum(one.side == other.side for one, other in sided)
        found[name] = Comparison(
            len(pairs), len(a) - len(pairs), len(b) - len(pairs), len(sided), right
        )
    return found


def agree(said: str, truth: str) -> bool | None:
    """Tell whether an answer says what the true one says, sides included, and no finding more.

    What the true answer denies must be denied. None if the true answer says nothing of findings.
    """
    ours, theirs = read(said), read(truth)
    if not theirs:
        return None
    there = _pairs(_there(ours), _there(theirs))
    whole = len(there) == len(_there(ours)) == len(_there(theirs))
    denied = [each for each in theirs if not each.present]
    return (
        whole
        and all(a.side == b.side for a, b in there)
        and all(any(_covers(a, b) for a in ours if not a.present) for b in denied)
    )


def _part(count: int, of: int) -> float | None:
    return count / of if of else None


# Reading


@dataclass(frozen=True)
class _Place:
    """Where a finding is, as far as its own words say."""

    side: str = ""
    organ: str = ""


def _sentence(sentence: str) -> list[Statement]:
    """Read the clauses of one sentence."""
    found = marks(sentence)
    said: list[Statement] = []
    for start, stop in clauses(sentence, found):
        held = [each for each in found if start <= each.start < stop]
        clause = sentence[start:stop]
        moved = [Mark(each.term, each.start - start, each.stop - start) for each in held]
        said += _clause(clause, moved) or _absences(clause, moved)
    return said


def _clause(clause: str, held: Sequence[Mark]) -> list[Statement]:
    """Read the findings of one clause; what is neither affirmed nor denied is left out."""
    found = [each for each in held if each.term.kind == FINDING]
    if not found:
        return []
    said = polarities(clause, [(each.start, each.stop) for each in found])
    places = _places(clause, found, [each for each in held if each.term.kind == ORGAN])
    return [
        Statement(
            mark.term.name, place.organ, place.side if mark.term.sided else "", _true(polarity)
        )
        for mark, place, polarity in zip(found, places, said, strict=True)
        if polarity is not Polarity.UNSURE
    ]


def _true(polarity: Polarity) -> bool:
    return polarity is Polarity.PRESENT


def _absences(clause: str, organs: Sequence[Mark]) -> list[Statement]:
    """Read whether an organ is missing, in a clause without findings."""
    said = []
    ends = [0, *(each.stop for each in organs)]
    starts = [*(each.start for each in organs), len(clause)]
    for index, organ in enumerate(organs):
        gone = missing(clause, (organ.start, organ.stop))
        if gone is not None:
            before = _sides(clause, (ends[index], organ.start))
            after = _sides(clause, (organ.stop, starts[index + 1]))
            side = (before[-1:] or after[:1] or [""])[0] if organ.term.sided else ""
            said.append(Statement(ABSENCE, organ.term.name, side, gone))
    return said


def _places(clause: str, found: Sequence[Mark], organs: Sequence[Mark]) -> list[_Place]:
    """Find side and organ of each finding of a clause.

    Its own words come first: those just before it, those after it, those at the beginning of the
    clause. What is listed beside another finding shares that one's words: "a stone or a cyst in
    the left kidney", "right nodule and mass".
    """
    windows = [_windows(clause, found, index) for index in range(len(found))]
    before = [_named(clause, organs, near, last=True) for near, _, _ in windows]
    after = [_named(clause, organs, post, last=False) for _, post, _ in windows]
    far = [_beginning(clause, organs, far) for _, _, far in windows]
    places = [
        _settled(_filled(_filled(near, post), start), mark)
        for mark, near, post, start in zip(found, before, after, far, strict=True)
    ]
    placed = [bool(each.side) for each in after]
    gaps = [clause[a.stop : b.start] for a, b in pairwise(found)]
    listed = [bool(_LIST.search(gap) and not _broken(gap)) for gap in gaps]
    for index in reversed(range(len(gaps))):
        if listed[index]:
            places[index] = _shared(places[index], after[index + 1], found[index])
            after[index] = after[index + 1]
    for index in range(len(gaps)):
        if listed[index] and not placed[index + 1]:
            start = _filled(before[index], far[index])
            places[index + 1] = _shared(places[index + 1], start, found[index + 1])
            before[index + 1] = _filled(before[index + 1], start)
    return places


def _windows(clause: str, found: Sequence[Mark], index: int) -> tuple[Span, Span, Span]:
    """Give the words just before a finding, those after it, and those that begin the clause."""
    mark = found[index]
    start = found[index - 1].stop if index else 0
    cut = _cut(clause, (start, mark.start), first=not index)
    if index + 1 < len(found):
        end = _cut(clause, (mark.stop, found[index + 1].start), first=False)
    else:
        end = len(clause)
    return (cut, mark.start), (mark.stop, end), (start, cut) if not index else (0, 0)


def _cut(clause: str, gap: Span, *, first: bool) -> int:
    """Tell where the words of a finding end and those before the next one begin."""
    words = clause[slice(*gap)]
    joints = list(_JOINED.finditer(words))
    # "left and right nodules": what joins two sides parts nothing.
    joints = [each for each in joints if not _between_sides(words, each)]
    if joints:
        return gap[0] + joints[-1].end()
    beginning = PREPOSITION.match(words.lstrip())
    return gap[1] if beginning and not first else gap[0]


def _between_sides(words: str, joint: re.Match[str]) -> bool:
    sides = list(_SIDE.finditer(words))
    return any(
        a.end() <= joint.start() < b.start() and _SAME_PLACE.fullmatch(words[a.end() : b.start()])
        for a, b in pairwise(sides)
    )


def _named(clause: str, organs: Sequence[Mark], window: Span, *, last: bool) -> _Place:
    """Give the side and the organ that a window names first, or last."""
    named = [
        each.term.name for each in organs if window[0] <= each.start and each.stop <= window[1]
    ]
    pick = -1 if last else 0
    sides = _sides(clause, window)
    return _Place(sides[pick] if sides else "", named[pick] if named else "")


def _beginning(clause: str, organs: Sequence[Mark], window: Span) -> _Place:
    """Give what the beginning of a clause names; of "kidneys and ureters: a stone" neither."""
    place = _named(clause, organs, window, last=True)
    named = {each.term.name for each in organs if window[0] <= each.start < window[1]}
    return place if len(named) == 1 else replace(place, organ="")


def _sides(clause: str, window: Span) -> list[str]:
    """Give the sides in a window, those of one place together."""
    words = _TOWARDS.sub(lambda match: "~" * len(match[0]), clause)[slice(*window)]
    groups: list[set[str]] = []
    end = 0
    for match in _SIDE.finditer(words):
        if groups and _SAME_PLACE.fullmatch(words[end : match.start()]):
            groups[-1].add(str(match.lastgroup))
        else:
            groups.append({str(match.lastgroup)})
        end = match.end()
    return [each.pop() if len(each) == 1 else BILATERAL for each in groups]


def _settled(place: _Place, mark: Mark) -> _Place:
    """Set the organ of a finding that has but one: a pneumothorax of the right lung is pleural."""
    return replace(place, organ=mark.term.organ or place.organ)


def _filled(place: _Place, other: _Place) -> _Place:
    """Take from another place what a place lacks, if it may be the same."""
    if place.organ and other.organ and not _beside(place.organ, other.organ):
        return place
    return _Place(place.side or other.side, place.organ or other.organ)


def _shared(place: _Place, other: _Place, mark: Mark) -> _Place:
    """Share the words of a neighbour, a side only if nothing speaks against it."""
    said_here = place.organ and place.organ != mark.term.organ
    if said_here and not (other.organ and _beside(place.organ, other.organ)):
        return place  # "hepatic cyst and nodule on the right": whose side that is, is not said
    return _filled(place, other)


def _beside(a: str, b: str) -> bool:
    """Tell whether two organs share a side: what is said of the lung holds for its pleura."""
    return a == b or {a, b} == {"lung", "pleura"}


def _broken(gap: str) -> bool:
    """Tell whether two findings are apart: one has a verb or a place of its own between them."""
    return bool(VERB.search(gap) or PREPOSITION.search(gap))


def _merged(said: Iterable[Statement]) -> list[Statement]:
    """Say each finding of an organ once.

    "The nodule on the left" repeats a nodule of the lung, and adds its side if there is but one;
    "no nodule" says more than "no nodule in the liver", and stays.
    """
    sides: dict[Statement, set[str]] = {}
    for each in said:
        sides.setdefault(replace(each, side=""), set()).add(each.side)
    for each in [each for each in sides if each.present and not each.organ]:
        placed = [other for other in sides if replace(other, organ="") == each and other.organ]
        if placed:
            mentioned = sides.pop(each)
            if len(placed) == 1 and not _one(sides[placed[0]]):
                sides[placed[0]] |= mentioned
    return [replace(each, side=_one(named)) for each, named in sides.items()]


def _one(sides: set[str]) -> str:
    named = sides - {""}
    return named.pop() if len(named) == 1 else BILATERAL if named else ""


# Comparing


def _there(said: Iterable[Statement]) -> list[Statement]:
    return sorted(each for each in said if each.present)


def _pairs(
    ours: Sequence[Statement], theirs: Sequence[Statement]
) -> list[tuple[Statement, Statement]]:
    """Pair the same findings, those on the same side first where an organ is left open."""
    pairs = []
    left, open_ = list(ours), list(theirs)
    for sides in (True, False):
        for each in list(left):
            match = next((b for b in open_ if _same(each, b, sides=sides)), None)
            if match is not None:
                pairs.append((each, match))
                left.remove(each)
                open_.remove(match)
    return pairs


def _same(a: Statement, b: Statement, *, sides: bool) -> bool:
    organ = not a.organ or not b.organ or a.organ == b.organ
    return a.finding == b.finding and organ and (a.side == b.side or not sides)


def _covers(a: Statement, b: Statement) -> bool:
    """Tell whether two statements may be about the same finding of the same place."""
    return _same(a, b, sides=False) and (
        not a.side or not b.side or a.side == b.side or BILATERAL in (a.side, b.side)
    )


def _contradicted(each: Statement, theirs: Iterable[Statement]) -> bool:
    """Tell whether the other report denies what this one affirms, or the reverse, and only that."""
    same = {other.present for other in theirs if _covers(each, other)}
    return same == {not each.present}
