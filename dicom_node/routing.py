"""Which protocol reads a study, which of its series, and why; and why not the others.

Knows rules and what the headers say about each series. Pure: no file is written, nothing is
asked of a peer; `summarize` alone reads headers. Must not know how protocols are written.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset

from .errors import NoRoute
from .instance import Instance

# PS3.4 B.5: the image storage classes of CT and MR; what else has these modalities is no volume.
VOLUMES = {
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.2.1": "CT",  # Enhanced CT
    "1.2.840.10008.5.1.4.1.1.4": "MR",
    "1.2.840.10008.5.1.4.1.1.4.1": "MR",  # Enhanced MR
}
KEYWORDS = (
    "Modality",
    "SOPClassUID",
    "SeriesDescription",
    "StudyDescription",
    "ProtocolName",
    "BodyPartExamined",
    "ImageType",
    "NumberOfFrames",
    "SliceThickness",
    "ImageOrientationPatient",
    "ConvolutionKernel",
    "ContentTime",
)
AXIAL = 0.8  # cosine between the slice normal and the patient's long axis
SHARP = re.compile(r"lung|bone|sharp|edge|\bb[67]\d|\bhr|fc5\d", re.IGNORECASE)
LOCALIZERS = {"LOCALIZER", "SCOUT", "TOPOGRAM"}
FIRST_CJK = "\u2e80"
PROJECTIONS = {"MPR", "MIP", "MINIP", "PROJECTION IMAGE", "REFORMATTED", "CSA MIP"}


@dataclass(frozen=True)
class Rule:
    """Which studies a protocol is for.

    ``body_parts`` are values of Body Part Examined (PS3.16 Annex L), ``keywords`` words of
    descriptions; a study needs one of either.
    """

    protocol: str
    modality: str
    body_parts: tuple[str, ...]
    keywords: tuple[str, ...]
    minimum_slices: int


@dataclass(frozen=True)
class SeriesSummary:
    """What one series says about itself."""

    uid: str
    modality: str
    sop_class_uid: str
    description: str = ""
    study_description: str = ""
    protocol_name: str = ""
    body_part: str = ""
    image_type: tuple[str, ...] = ()
    slices: int = 0
    slice_thickness_mm: float | None = None  # None: not said
    axial: bool | None = None  # None: no orientation
    kernel: str = ""


@dataclass(frozen=True)
class Choice:
    """What became of one series."""

    series_uid: str
    description: str
    chosen: bool
    reason: str


@dataclass(frozen=True)
class Route:
    """The decision about one study."""

    protocol: str
    series_uid: str
    reason: str
    choices: tuple[Choice, ...]


class NoFit(NoRoute):
    """No protocol or no series fits; ``choices`` says of each series why."""

    def __init__(self, message: str, choices: Sequence[Choice]) -> None:
        super().__init__(message)
        self.choices = tuple(choices)


def route(series: Sequence[SeriesSummary], rules: Sequence[Rule], *, fallback: str = "") -> Route:
    """Decide which protocol reads which series.

    Parameters
    ----------
    fallback
        The protocol for a study that no rule fits; empty refuses it.

    Raises
    ------
    NoFit
        Says what was seen, and what would have been needed.
    """
    refused = {each.uid: _refusal(each, rules) for each in series}
    readable = [each for each in series if not refused[each.uid]]
    if not readable:
        choices = _choices(series, refused, chosen="")
        seen = "; ".join(
            f"{each.description or each.series_uid}: {each.reason}" for each in choices
        )
        raise NoFit(f"no series can be read: {seen or 'the study is empty'}", choices)
    found = _rule(readable, rules, fallback)
    if found is None:
        choices = _choices(series, refused, chosen="")
        raise NoFit(_unknown_region(readable, rules), choices)
    rule, why = found
    for each in readable:
        refused[each.uid] = _unfit(each, rule)
    fitting = [each for each in readable if not refused[each.uid]]
    if not fitting:
        choices = _choices(series, refused, chosen="")
        seen = "; ".join(
            f"{each.description or each.series_uid}: {each.reason}" for each in choices
        )
        raise NoFit(f"protocol {rule.protocol} ({why}) finds no series: {seen}", choices)
    best = max(fitting, key=_merit)
    return Route(
        rule.protocol, best.uid, f"{rule.protocol}: {why}", _choices(series, refused, best.uid)
    )


def summarize(instances: Sequence[Instance]) -> list[SeriesSummary]:
    """Read what routing needs from one header of each series, the middle one of its instances."""
    ordered = sorted(instances, key=lambda each: (each.series_uid, each.sop_uid))
    summaries = []
    for uid, members in groupby(ordered, key=lambda each: each.series_uid):
        group = list(members)
        summaries.append(_summary(uid, _header(group[len(group) // 2]), len(group)))
    return summaries


def _header(instance: Instance) -> Dataset:
    tags = [tag for tag in map(tag_for_keyword, KEYWORDS) if tag is not None]
    # Enhanced objects keep orientation and thickness in the functional groups.
    functional = (0x5200_9229, 0x5200_9230)
    return pydicom.dcmread(
        instance.path, stop_before_pixels=True, specific_tags=[*tags, *functional]
    )


def _summary(uid: str, header: Dataset, count: int) -> SeriesSummary:
    frames = int(header.get("NumberOfFrames") or 1)
    return SeriesSummary(
        uid=uid,
        modality=str(header.get("Modality") or ""),
        sop_class_uid=str(header.get("SOPClassUID") or ""),
        description=str(header.get("SeriesDescription") or ""),
        study_description=str(header.get("StudyDescription") or ""),
        protocol_name=str(header.get("ProtocolName") or ""),
        body_part=str(header.get("BodyPartExamined") or ""),
        image_type=_strings(header.get("ImageType")),
        slices=count * frames,
        slice_thickness_mm=_number(header.get("SliceThickness")),
        axial=_axial(header),
        kernel=" ".join(_strings(header.get("ConvolutionKernel"))),
    )


def _strings(value: Any) -> tuple[str, ...]:  # noqa: ANN401 - pydicom's str, MultiValue or None
    if not value:
        return ()
    return (value,) if isinstance(value, str) else tuple(map(str, value))


def _number(value: Any) -> float | None:  # noqa: ANN401 - pydicom's DS, str or None
    try:
        return None if value in {None, ""} else float(value)
    except (TypeError, ValueError):
        return None


def _axial(header: Dataset) -> bool | None:
    orientation = header.get("ImageOrientationPatient")
    if orientation is None and "SharedFunctionalGroupsSequence" in header:
        shared = header.SharedFunctionalGroupsSequence[0]
        planes = shared.get("PlaneOrientationSequence")
        orientation = planes[0].get("ImageOrientationPatient") if planes else None
    try:
        x1, y1, _, x2, y2, _ = map(float, orientation or ())
    except (TypeError, ValueError):
        return None
    return abs(x1 * y2 - y1 * x2) > AXIAL


def _refusal(series: SeriesSummary, rules: Sequence[Rule]) -> str:
    """Say why a series can be read by no protocol at all; empty if one might."""
    kinds = set(map(str.upper, series.image_type))
    wanted = sorted({rule.modality for rule in rules})
    if series.sop_class_uid not in VOLUMES:
        return f"{series.modality or 'unknown modality'} object, not a CT or MR image"
    if series.modality not in wanted:
        return f"modality {series.modality or 'unknown'}, protocols exist for {', '.join(wanted)}"
    if kinds & LOCALIZERS or _words(series.description) & {
        "scout",
        "localizer",
        "topogram",
        "surview",
    }:
        return "a localizer"
    if kinds & PROJECTIONS:
        return f"reformatted ({', '.join(sorted(kinds & PROJECTIONS)).lower()})"
    if "SECONDARY" in kinds and "DERIVED" in kinds:
        return "derived, secondary images"
    return ""


def _unfit(series: SeriesSummary, rule: Rule) -> str:
    if series.modality != rule.modality:
        return f"modality {series.modality}, protocol {rule.protocol} is for {rule.modality}"
    if series.slices < rule.minimum_slices:
        return f"{series.slices} slices, protocol {rule.protocol} needs {rule.minimum_slices}"
    return ""


def _rule(
    series: Sequence[SeriesSummary], rules: Sequence[Rule], fallback: str
) -> tuple[Rule, str] | None:
    """Find the rule: what Body Part Examined says counts before words of descriptions."""
    modalities = {each.modality for each in series}
    for rule in rules:
        if rule.modality in modalities:
            for each in series:
                if _word(each.body_part) in set(map(_word, rule.body_parts)):
                    return rule, f"Body Part Examined is {each.body_part}"
    named = [
        (rule, word)
        for rule in rules
        if rule.modality in modalities
        for word in _named(series, rule)
    ]
    if named:
        rule, word = named[0]
        others = sorted({other.protocol for other, _ in named} - {rule.protocol})
        also = f"; {', '.join(others)} would fit too and comes later" if others else ""
        return rule, f"the description says {word!r}{also}"
    for rule in rules:
        if rule.protocol == fallback and rule.modality in modalities:
            return rule, "the region is unknown, this is the fallback"
    return None


def _named(series: Sequence[SeriesSummary], rule: Rule) -> list[str]:
    said = " ".join(
        f"{each.study_description} {each.description} {each.protocol_name}" for each in series
    )
    words, text = _words(said), _word(said)
    # Chinese and Japanese are written without spaces: there a keyword may stand anywhere.
    return [
        word
        for word in rule.keywords
        if (_word(word) in text if max(word) >= FIRST_CJK else _words(word) <= words)
    ]


def _unknown_region(series: Sequence[SeriesSummary], rules: Sequence[Rule]) -> str:
    first = series[0]
    known = ", ".join(f"{rule.protocol} ({rule.modality})" for rule in rules)
    return (
        f"no protocol fits: {first.modality}, Body Part Examined {first.body_part or 'empty'!r}, "
        f"study {first.study_description!r}, series {first.description!r}; protocols: {known}"
    )


def _merit(series: SeriesSummary) -> tuple[bool, bool, bool, int, float]:
    """Rank: original, axial, soft kernel, then most slices, then the thinnest."""
    original = "ORIGINAL" in map(str.upper, series.image_type)
    soft = not SHARP.search(f"{series.kernel} {series.description}")
    thickness = series.slice_thickness_mm or 99.0
    return original, series.axial is not False, soft, series.slices, -thickness


def _choices(
    series: Sequence[SeriesSummary], refused: Mapping[str, str], chosen: str
) -> tuple[Choice, ...]:
    return tuple(
        Choice(
            each.uid,
            each.description,
            each.uid == chosen,
            refused[each.uid]
            or (_praise(each) if each.uid == chosen else f"{_praise(each)}; another serves better"),
        )
        for each in series
    )


def _praise(series: SeriesSummary) -> str:
    original, axial, soft, slices, _ = _merit(series)
    thickness = series.slice_thickness_mm
    facts = [
        "original" if original else "derived",
        "axial" if axial else "not axial",
        "soft kernel" if soft else "sharp kernel",
        f"{slices} slices",
        *([f"{thickness:g} mm"] if thickness else []),
    ]
    return ", ".join(facts if series.modality == "CT" else [*facts[:2], *facts[3:]])


def _words(text: str) -> set[str]:
    """Split into lower-case words without accents; ``_`` and digits separate words too."""
    return set(re.findall(r"[^\W\d_]+", _word(text)))


def _word(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text.strip().casefold())
    return "".join(each for each in plain if not unicodedata.combining(each))
