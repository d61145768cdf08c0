"""Which protocol reads a study, which of its series, and why; and why not the others.

Knows rules, and what each series says about itself. Pure: reads nothing, writes nothing, asks
nobody. Must not know how protocols are written. What is not clear is refused, not guessed: a
refused study is seen by a person, a study read as another region is not.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from pydicom.uid import UID

from dicom_node.errors import NoRoute

from .regions import LETTER, Rule, apart, named, plain, regions_in, regions_of
from .series import VOLUMES, SeriesSummary, summarize

__all__ = [
    "Choice",
    "NoFit",
    "Route",
    "Rule",
    "SeriesSummary",
    "route",
    "summarize",
]

LOCALIZER = re.compile(
    rf"(?<!{LETTER})(locali[sz]\w*|lokalis\w*|loc|scouts?|topo|topogram\w*|surview|survey|scanogra\w*"
    rf"|tripilot|ubersicht\w*|топограм\w*|локала\w*)(?!{LETTER})|(定位|位置決)"
)
PROJECTION = re.compile(
    rf"(?<!{LETTER})((?:m|min|max|mean|avg)[ _-]?ips?|mprs?|cpr|vrt|projection\w*|reformat\w*"
    rf"|render\w*)(?!{LETTER})"
)
# Siemens names kernels by a letter and a sharpness, Canon by FC and a number.
SHARP_KERNEL = re.compile(r"\b[a-z]{1,2}(5[5-9]|[6-9]\d)[a-z]?\b|fc[358]\d", re.IGNORECASE)
SHARP = re.compile(r"lung|pulm|bone|knochen|sharp|edge", re.IGNORECASE)
MAP = re.compile(r"adc|trace|dwi|dti|diff|perf|phase|swi|map\b|tof|angio", re.IGNORECASE)
MERITS = (
    "original images",
    "axial slices",
    "a softer kernel or plainer contrast",
    "more slices",
    "thinner slices",
)


@dataclass(frozen=True)
class Choice:
    """What became of one series."""

    series_uid: str
    chosen: bool
    reason: str
    description: str = ""


@dataclass(frozen=True)
class Route:
    """The decision about one study."""

    protocol: str
    series_uid: str
    choices: tuple[Choice, ...]
    reason: str


class NoFit(NoRoute):
    """No protocol or no series fits; ``choices`` says of each series why."""

    def __init__(self, message: str, choices: Sequence[Choice]) -> None:
        super().__init__(message)
        self.choices = tuple(choices)


class _Strength(IntEnum):
    """How surely a series is of a rule's region."""

    FALLBACK = 0
    STUDY = 1  # only the study as a whole, or the protocol of the scanner, says so
    DESCRIPTION = 2  # the series says so
    BODY_PART = 3


@dataclass(frozen=True)
class _Claim:
    """A series that a rule may read."""

    series: SeriesSummary
    rule: Rule
    strength: _Strength
    why: str

    @property
    def merit(self) -> tuple[bool, bool, bool, bool, int, float]:
        """Rank: surely of this region first, then what `_merit` says."""
        return (self.strength > _Strength.STUDY, *_merit(self.series))


def route(series: Sequence[SeriesSummary], rules: Sequence[Rule], *, fallback: str = "") -> Route:
    """Decide which protocol reads which series.

    Body Part Examined of a series counts most, then its own description, then what is said of
    the study as a whole. Among the series that a rule may read, original ones come before derived
    ones, axial before others, soft kernels before sharp ones, then the most and the thinnest.

    Parameters
    ----------
    fallback
        The protocol for a study whose region nothing names; empty refuses it. If the rules are of
        this protocol alone, somebody asks for it, and what the series are called does not count.

    Raises
    ------
    NoFit
        Says what was seen, and what would have been needed.
    """
    series = sorted(series, key=lambda each: each.uid)
    asked = all(rule.protocol == fallback for rule in rules)
    refused = {each.uid: next(refusals(each, rules, asked=asked), "") for each in series}
    readable = [each for each in series if not refused[each.uid]]
    claims = [claim for each in readable for claim in _claims(each, rules)]
    if not claims:
        rules_left = [rule for rule in rules if rule.protocol == fallback]
        claims = [c for each in readable for c in _last_claims(each, rules_left, asked=asked)]
    fitting = [each for each in claims if each.series.slices >= each.rule.minimum_slices]
    if not fitting:
        refused |= {each.uid: _unfit(each, claims) for each in readable}
        choices = _choices(series, refused)
        raise NoFit(_told(choices, rules), choices)
    first = min(fitting, key=lambda each: (-each.strength, rules.index(each.rule)))
    best = max((each for each in fitting if each.rule == first.rule), key=lambda each: each.merit)
    for each in readable:
        refused[each.uid] = _passed_over(each, best, [c for c in claims if c.series == each])
    return Route(
        best.rule.protocol,
        best.series.uid,
        _choices(series, refused, best.series.uid),
        f"{best.rule.protocol}: {first.why}{_also(fitting, first)}",
    )


def refusals(series: SeriesSummary, rules: Sequence[Rule], *, asked: bool) -> Iterator[str]:
    """Say why a series can be read by no protocol at all; nothing if one might."""
    wanted = sorted({rule.modality for rule in rules})
    if series.sop_class_uid not in VOLUMES:
        yield f"{UID(series.sop_class_uid).name}: not a CT or MR image"
    if series.unreadable:
        yield f"cannot be read: {series.unreadable}"
    if series.modality not in wanted:
        yield f"modality {series.modality or 'unknown'}, protocols exist for {', '.join(wanted)}"
    yield from _oddities(series)
    if not asked and _contradicts(
        series, [rule for rule in rules if rule.modality == series.modality]
    ):
        said = f"yet the series is called {series.description!r}"
        yield f"Body Part Examined is {series.body_part!r}, {said}"


def _oddities(series: SeriesSummary) -> Iterator[str]:
    """Say why a series is no plain stack of original slices."""
    for pattern, what in ((LOCALIZER, "a localizer"), (PROJECTION, "reformatted or projected")):
        found = _found(pattern, (*series.image_type, series.description))
        if found:
            yield f"{what} ({found})"
    if series.positions is None:
        yield "its images do not say where in the patient they lie"
    elif series.positions < series.slices:
        several = f"{series.slices} images at {series.positions} places"
        yield f"{several}: several phases, echoes or b-values"


def _claims(series: SeriesSummary, rules: Sequence[Rule]) -> list[_Claim]:
    """Find the rules that may read a series, by the surest thing it says."""
    mine = [rule for rule in rules if rule.modality == series.modality]
    body, said = named(series.body_part, mine), named(series.description, mine)
    if body:
        # Of several regions in Body Part Examined the series may be one.
        both = [rule for rule in body if rule in said] or body
        why = f"Body Part Examined is {series.body_part!r}"
        return [_Claim(series, rule, _Strength.BODY_PART, why) for rule in both]
    if said:
        why = f"the series is called {series.description!r}"
        return [_Claim(series, rule, _Strength.DESCRIPTION, why) for rule in said]
    study = of_study(series)
    own = regions_in(f"{series.body_part} {series.description}")
    why = f"the study is called {study!r}"
    return [
        _Claim(series, rule, _Strength.STUDY, why)
        for rule in named(study, mine)
        if own <= regions_of(rule)
    ]


def _last_claims(series: SeriesSummary, rules: Sequence[Rule], *, asked: bool) -> list[_Claim]:
    """Let the fallback read what names no region, or another one if somebody asks for it."""
    told = regions_in(f"{series.body_part} {series.description} {of_study(series)}")
    why = "it is asked for" if asked else "the region is unknown, this is the fallback"
    return [
        _Claim(series, rule, _Strength.FALLBACK, why)
        for rule in rules
        if rule.modality == series.modality and (asked or told <= regions_of(rule))
    ]


def of_study(series: SeriesSummary) -> str:
    """Give what a series says of its study as a whole."""
    return f"{series.study_description} {series.protocol_name}".strip()


def _contradicts(series: SeriesSummary, rules: Sequence[Rule]) -> bool:
    """Tell whether a series is called otherwise than its Body Part Examined.

    That is often set once for a whole exam: it says too little then, and the wrong thing of some.
    """
    body, said = named(series.body_part, rules), named(series.description, rules)
    part, told = regions_in(series.body_part), regions_in(series.description)
    if body and said:
        return not any(rule in body for rule in said)
    own = frozenset().union(*map(regions_of, body or said))
    # A rule may know words that are of no region, such as a sequence.
    return bool(told - own) if body else bool(own and part and not part & (told | own))


def _found(pattern: re.Pattern[str], texts: Sequence[str]) -> str:
    """Give what a pattern finds in texts, as they are written and with CamelCase apart."""
    forms = [form for each in texts for form in (plain(each), plain(apart(each)))]
    found = {match.group() for form in forms for match in pattern.finditer(form)}
    return ", ".join(sorted(found))


def _unfit(series: SeriesSummary, claims: Sequence[_Claim]) -> str:
    """Say why a series that could be read is read by no protocol."""
    for claim in claims:
        if claim.series == series:
            least, protocol = claim.rule.minimum_slices, claim.rule.protocol
            return f"{series.slices} slices, protocol {protocol} needs {least} ({claim.why})"
    return (
        f"no protocol is for its region: Body Part Examined {series.body_part!r}, "
        f"series {series.description!r}, study {series.study_description!r}"
    )


def _passed_over(series: SeriesSummary, best: _Claim, claims: Sequence[_Claim]) -> str:
    """Say why a series that could be read is not the one; of the best, why it is."""
    if series == best.series:
        return f"{_praise(series)}; {best.why}"
    mine = next((each for each in claims if each.rule == best.rule), None)
    if series.modality != best.rule.modality:
        return f"modality {series.modality}, {best.rule.protocol} is for {best.rule.modality}"
    if mine is None:
        others = ", ".join(each.rule.protocol for each in claims)
        return f"another region, {others}" if others else "another region than the protocol's"
    if series.slices < best.rule.minimum_slices:
        return f"{series.slices} slices, {best.rule.protocol} needs {best.rule.minimum_slices}"
    reasons = zip(("a surer region", *MERITS), best.merit, mine.merit, strict=True)
    better = next(
        (name for name, his, own in reasons if his != own), "nothing more, but came first"
    )
    return f"{_praise(series)}; the chosen one has {better}"


def _also(fitting: Sequence[_Claim], first: _Claim) -> str:
    """Name the protocols that would have fitted, and what decided."""
    others = sorted({each.rule.protocol for each in fitting} - {first.rule.protocol})
    if not others:
        return ""
    return f"; {', '.join(others)} would fit too: surer words decide, then the order of protocols"


def _told(choices: Sequence[Choice], rules: Sequence[Rule]) -> str:
    if not choices:
        return "the study has no series"
    if not rules:
        return "there is no protocol"
    seen = "; ".join(f"{each.description or each.series_uid}: {each.reason}" for each in choices)
    known = ", ".join(f"{each.protocol} ({each.modality})" for each in rules)
    return f"no series can be read. {seen}. Protocols: {known}"


def _choices(
    series: Sequence[SeriesSummary], reasons: Mapping[str, str], chosen: str = ""
) -> tuple[Choice, ...]:
    return tuple(
        Choice(each.uid, each.uid == chosen, reasons[each.uid], each.description) for each in series
    )


def _merit(series: SeriesSummary) -> tuple[bool, bool, bool, int, float]:
    """Rank series of one region; the places are named in `MERITS`."""
    thickness_mm = series.slice_thickness_mm or 99.0
    return (
        is_original(series),
        series.axial is not False,
        is_plain(series),
        series.slices,
        -thickness_mm,
    )


def is_original(series: SeriesSummary) -> bool:
    """Tell whether its images are as the scanner made them (PS3.3 C.7.6.1.1.2)."""
    return "ORIGINAL" in map(str.upper, series.image_type)


def is_plain(series: SeriesSummary) -> bool:
    """Tell whether a CT has a soft kernel, and an MR is no map."""
    if series.modality != "CT":
        return not MAP.search(f"{series.description} {' '.join(series.image_type)}")
    # "Lung" in a description is the region as often as the kernel.
    said = series.kernel or series.description
    return not (SHARP_KERNEL.search(series.kernel) or SHARP.search(said))


def _praise(series: SeriesSummary) -> str:
    original, _, fitting, slices, _ = _merit(series)
    kind = ("soft kernel", "sharp kernel") if series.modality == "CT" else ("plain", "a map")
    facts = [
        "original" if original else "derived",
        {True: "axial", False: "not axial", None: "orientation unknown"}[series.axial],
        kind[0] if fitting else kind[1],
        f"{slices} slices",
    ]
    if series.slice_thickness_mm:
        facts.append(f"{series.slice_thickness_mm:g} mm")
    return ", ".join(facts)
