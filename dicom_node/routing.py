"""Which protocol reads a study, which of its series, and why; and why not the others.

Knows rules, and what each series says about itself. Pure: reads nothing, writes nothing, asks
nobody. Must not know how protocols are written. What is not clear is refused, not guessed: a
refused study is seen by a person, a study read as another region is not.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from pydicom.uid import UID

from .errors import NoRoute
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

# PS3.16 Annex L: terms for several regions at once.
COMPOUNDS = {
    "ABDOMENPELVIS": "ABDOMEN PELVIS",
    "CHESTABDOMEN": "CHEST ABDOMEN",
    "CHESTABDPELVIS": "CHEST ABDOMEN PELVIS",
    "NECKCHEST": "NECK CHEST",
    "NECKCHESTABDOMEN": "NECK CHEST ABDOMEN",
    "NECKCHESTABDPELV": "NECK CHEST ABDOMEN PELVIS",
}
# Words for regions that a rule may not know: a series that names one is not read as something
# else because the study as a whole names that too ("CT neck and chest").
ELSEWHERE = frozenset(
    """
    neck hals cou cuello collo шея шеи spine cspine tspine lspine sspine cervical lumbar hws bws
    lws wirbelsaule rachis columna colonna позвоночник позвоночника pelvis becken bassin bacino
    таз таза hip hufte hanche cadera anca knee knie genou rodilla ginocchio колено shoulder
    schulter epaule hombro spalla плечо elbow wrist hand finger foot ankle toe leg calf thigh
    femur arm forearm humerus extremity heart breast sinus sinuses orbit face jaw
    """.split()  # noqa: SIM905 - words read better so
)
LOCALIZERS = frozenset(
    {"localizer", "localiser", "loc", "scout", "topogram", "surview", "scanogram", "топограмма"}
)
PROJECTIONS = frozenset(
    {"mip", "minip", "mpr", "vrt", "projection", "reformat", "reformats", "reformatted"}
)
# Siemens names kernels by a letter and a sharpness, Canon by FC and a number.
SHARP_KERNEL = re.compile(r"\b[a-z]{1,2}(5[5-9]|[6-9]\d)[a-z]?\b|fc[358]\d", re.IGNORECASE)
SHARP = re.compile(r"lung|pulm|bone|knochen|sharp|edge", re.IGNORECASE)
MAP = re.compile(r"adc|trace|dwi|dti|diff|perf|phase|swi|map\b|tof|angio", re.IGNORECASE)
FIRST_CJK = "\u2e80"
MERITS = (
    "original images",
    "axial slices",
    "a softer kernel or plainer contrast",
    "more slices",
    "thinner slices",
)


@dataclass(frozen=True)
class Rule:
    """Which studies a protocol is for.

    ``body_parts`` are values of Body Part Examined (PS3.16 Annex L), ``keywords`` words of
    descriptions; a series needs one of either. Of two rules that fit the earlier one is taken.
    """

    protocol: str
    modality: str
    body_parts: tuple[str, ...]
    keywords: tuple[str, ...]
    minimum_slices: int


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
        The protocol for a study that no rule fits; empty refuses it.

    Raises
    ------
    NoFit
        Says what was seen, and what would have been needed.
    """
    refused = {each.uid: next(_refusals(each, rules), "") for each in series}
    readable = [each for each in series if not refused[each.uid]]
    claims = [claim for each in readable for claim in _claims(each, rules)]
    if not claims:
        claims = [
            _Claim(each, rule, _Strength.FALLBACK, "the region is unknown, this is the fallback")
            for rule in rules
            for each in readable
            if rule.protocol == fallback and rule.modality == each.modality
        ]
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


def _refusals(series: SeriesSummary, rules: Sequence[Rule]) -> Iterator[str]:
    """Say why a series can be read by no protocol at all; nothing if one might."""
    wanted = sorted({rule.modality for rule in rules})
    words = _words(f"{' '.join(series.image_type)} {series.description}")
    if series.sop_class_uid not in VOLUMES:
        yield f"{UID(series.sop_class_uid).name}: not a CT or MR image"
    if series.unreadable:
        yield f"cannot be read: {series.unreadable}"
    if series.modality not in wanted:
        yield f"modality {series.modality or 'unknown'}, protocols exist for {', '.join(wanted)}"
    if words & LOCALIZERS:
        yield f"a localizer ({', '.join(sorted(words & LOCALIZERS))})"
    if words & PROJECTIONS:
        yield f"reformatted or projected ({', '.join(sorted(words & PROJECTIONS))})"
    if series.positions is not None and series.positions < series.slices:
        several = f"{series.slices} images at {series.positions} places"
        yield f"{several}: several phases, echoes or b-values"


def _claims(series: SeriesSummary, rules: Sequence[Rule]) -> list[_Claim]:
    """Find the rules that may read a series, by the surest thing it says."""
    mine = [rule for rule in rules if rule.modality == series.modality]
    named = [rule for rule in mine if _names(series.body_part, rule)]
    if named and _contradicts(series.description, named, mine):
        why = f"Body Part Examined is {series.body_part!r}, yet the series is called"
        why = f"{why} {series.description!r}"
        return [_Claim(series, rule, _Strength.STUDY, why) for rule in named]
    sources = [
        (_Strength.BODY_PART, "Body Part Examined is", series.body_part),
        (_Strength.DESCRIPTION, "the series is called", series.description),
    ]
    if not _words(_expanded(f"{series.body_part} {series.description}")) & ELSEWHERE:
        said = f"{series.study_description} {series.protocol_name}".strip()
        sources.append((_Strength.STUDY, "the study is called", said))
    for strength, what, text in sources:
        named = [rule for rule in mine if _names(text, rule)]
        if named:
            return [_Claim(series, rule, strength, f"{what} {text!r}") for rule in named]
    return []


def _contradicts(description: str, named: Sequence[Rule], rules: Sequence[Rule]) -> bool:
    """Tell whether a description is of another region: one body part is set for a whole exam."""
    said = [rule for rule in rules if _names(description, rule)]
    if said:
        return not any(rule in named for rule in said)
    return bool(_words(_expanded(description)) & ELSEWHERE)


def _names(text: str, rule: Rule) -> bool:
    words, plain = _words(_expanded(text)), _plain(text)
    # Chinese and Japanese are written without spaces: there a keyword may stand anywhere.
    return any(
        _plain(each) in plain if max(each) >= FIRST_CJK else _words(each) <= words
        for each in (*rule.body_parts, *rule.keywords)
    )


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
    original = "ORIGINAL" in map(str.upper, series.image_type)
    if series.modality == "CT":
        said = f"{series.kernel} {series.description}"
        fitting = not (SHARP_KERNEL.search(series.kernel) or SHARP.search(said))
    else:
        fitting = not MAP.search(f"{series.description} {' '.join(series.image_type)}")
    thickness_mm = series.slice_thickness_mm or 99.0
    return original, series.axial is not False, fitting, series.slices, -thickness_mm


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


def _expanded(text: str) -> str:
    return " ".join(COMPOUNDS.get(each.upper(), each) for each in text.split())


def _words(text: str) -> set[str]:
    """Split into lower-case words without accents; ``_``, digits and CamelCase separate too."""
    apart = re.sub(r"(?<=[a-zà-öø-ÿа-яё])(?=[A-ZÀ-ÖØ-ÞА-ЯЁ])", " ", text)
    apart = re.sub(r"(?<=[A-Z])(?=[A-Z][a-z])", " ", apart)
    return set(re.findall(r"[^\W\d_]+", _plain(apart)))


def _plain(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text.strip().casefold())
    return "".join(each for each in plain if not unicodedata.combining(each))
