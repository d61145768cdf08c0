"""Which series of a study a protocol reads: what cannot be read is told, the rest has points.

Knows what each series says about itself, and the points of each thing that speaks for one. Pure.
Must not know how a rule of a site is written.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from .comparing import Value
from .expression import Condition, Values
from .regions import Rule, named, regions_in, regions_of
from .routing import Choice, is_original, is_plain, of_study, refusals
from .series import SeriesSummary

# Names that a condition may use besides those of PS3.6.
FACTS: Final = ("plane", "slices", "coverage_mm", "contrast", "original", "sharp", "region")

BODY_PART, DESCRIPTION, STUDY = 30, 25, 10  # who names the region
ORIGINAL, PLAIN = 20, 12
AXIAL, UNSAID_PLANE = 15, 5
# Up to so many mm: thin slices show more, up to what the network's grid resolves.
THICKNESS: Final = ((0.5, 6), (1.5, 10), (3.0, 8), (5.0, 5))
THICK, UNSAID_THICKNESS = 1, 3
CONTRAST: Final = {"venous": 4, "contrast": 3, "plain": 3, "arterial": 2, "delayed": 1}
MM_A_POINT, MOST_OF_COVERAGE = 30.0, 10
SLICES_A_POINT, MOST_OF_SLICES = 40, 5
PREFERRED: Final = 25  # what a preference of a rule counts if it does not say

PHASES: Final = {
    "plain": r"nativ\w*|plain|non[ -]?contrast|without( iv)? contrast|unenhanced|ohne km|sans iv",
    "arterial": r"arter\w*|art|cta",
    "venous": r"ven|venous|venös\w*|venoso|venosa|veineux|portal\w*|pv|pvp",
    "delayed": r"delay\w*|late|spät\w*|excret\w*|urogra\w*",
    "contrast": r"contrast\w*|km|kontrast\w*|with iv|gd|gado\w*|c\+|post|enhanced",
}


@dataclass(frozen=True)
class Preference:
    """A series for which this holds has so many points more, or fewer."""

    when: Condition
    points: int = PREFERRED


@dataclass(frozen=True)
class Wish:
    """What is looked for: for which protocol, and what a rule of the site says besides."""

    rule: Rule
    only: Condition | None = None  # None: any series
    prefer: tuple[Preference, ...] = ()
    must_name_region: bool = False  # else a series that names none will do
    any_region: bool = False  # also a series that names another one
    minimum_slices: int | None = None  # None: as the protocol has it


@dataclass(frozen=True)
class Scored(Choice):
    """What became of one series, with its points; those of one that cannot be read are none."""

    score: int | None = None


def select(
    series: Sequence[SeriesSummary],
    wish: Wish,
    rules: Sequence[Rule],
    passed: Mapping[str, str] | None = None,
) -> tuple[Scored, ...]:
    """Choose the series with the most points; of equal ones the longer, the thinner, the first.

    Parameters
    ----------
    rules
        Those of all protocols: what a series is called may speak of another one's region.
    passed
        By UID, why a series is out of the question for a reason of others.

    Returns
    -------
    One for each series, in the order of their UIDs; at most one is chosen.
    """
    series = sorted(series, key=lambda each: each.uid)
    against = {
        each.uid: (passed or {}).get(each.uid) or _against(each, wish, rules) for each in series
    }
    points = {each.uid: list(_points(each, wish)) for each in series if not against[each.uid]}
    totals = {uid: sum(count for count, _ in told) for uid, told in points.items()}
    best = max(
        (each for each in series if each.uid in totals),
        key=lambda each: (totals[each.uid], each.slices, -(each.slice_thickness_mm or 99.0)),
        default=None,
    )
    return tuple(
        Scored(
            each.uid,
            each is best,
            against[each.uid] or _told(totals[each.uid], points[each.uid]),
            each.description,
            totals.get(each.uid),
        )
        for each in series
    )


def values_of(series: SeriesSummary) -> Values:
    """Give what a condition may ask of a series: attributes of an image, and facts."""
    known: dict[str, Sequence[Value]] = {**series.values}
    known.update({name: (value,) for name, value in _facts(series).items() if value != ""})
    known["region"] = sorted(regions_in(f"{series.body_part} {series.description}"))
    return lambda name: known.get(name, ())


def phase(series: SeriesSummary) -> str:
    """Tell the phase of contrast that a series names; empty if nothing is said."""
    said = series.description.casefold()
    for name, words in PHASES.items():
        if re.search(rf"(?<![^\W\d_])({words})(?![^\W\d_])", said):
            return name
    return "contrast" if series.contrast_agent else ""


def _facts(series: SeriesSummary) -> dict[str, Value]:
    return {
        "plane": series.plane,
        "slices": float(series.slices),
        "coverage_mm": "" if series.coverage_mm is None else series.coverage_mm,
        "contrast": phase(series),
        "original": "yes" if is_original(series) else "",
        "sharp": "" if is_plain(series) else "yes",
    }


def _against(series: SeriesSummary, wish: Wish, rules: Sequence[Rule]) -> str:
    return next(_reasons_against(series, wish, rules), "")


def _reasons_against(series: SeriesSummary, wish: Wish, rules: Sequence[Rule]) -> Iterator[str]:
    """Say why a series is not to be read for this wish."""
    yield from refusals(series, rules, asked=wish.any_region)
    protocol, least = wish.rule.protocol, wish.minimum_slices
    least = wish.rule.minimum_slices if least is None else least
    if series.modality != wish.rule.modality:
        yield f"modality {series.modality}, {protocol} is for {wish.rule.modality}"
    if wish.only is not None:
        reason = wish.only.why_not(values_of(series))
        if reason:
            yield f"the rule takes no such series: {reason}"
    if series.slices < least:
        yield f"{series.slices} slices, {protocol} needs {least}"
    yield from _other_region(series, wish)


def _other_region(series: SeriesSummary, wish: Wish) -> Iterator[str]:
    strength, _ = _region(series, wish.rule)
    if strength or wish.any_region:
        return
    own = regions_in(f"{series.body_part} {series.description}")
    if own:
        yield f"it shows another region than {wish.rule.protocol}: {', '.join(sorted(own))}"
    if wish.must_name_region:
        yield f"nothing names the region of {wish.rule.protocol}"


def _region(series: SeriesSummary, rule: Rule) -> tuple[int, str]:
    """Tell how surely a series is of a rule's region, and who says so."""
    if named(series.body_part, [rule]):
        return BODY_PART, f"Body Part Examined is {series.body_part!r}"
    if named(series.description, [rule]):
        return DESCRIPTION, f"the series is called {series.description!r}"
    own = regions_in(f"{series.body_part} {series.description}")
    if named(of_study(series), [rule]) and own <= regions_of(rule):
        return STUDY, f"the study is called {of_study(series)!r}"
    return 0, "nothing names its region"


def _points(series: SeriesSummary, wish: Wish) -> Iterator[tuple[int, str]]:
    """Give points and what they are for."""
    yield _region(series, wish.rule)
    yield (ORIGINAL, "original") if is_original(series) else (0, "derived")
    yield _of_plane(series)
    yield _of_thickness(series.slice_thickness_mm)
    kind = (
        ("soft kernel", "sharp kernel") if series.modality == "CT" else ("plain sequence", "a map")
    )
    yield (PLAIN, kind[0]) if is_plain(series) else (0, kind[1])
    said = phase(series)
    yield (
        CONTRAST.get(said, 2),
        f"{said} phase" if said not in {"", "plain"} else said or "phase unsaid",
    )
    if series.coverage_mm is not None:
        covered = min(int(series.coverage_mm / MM_A_POINT), MOST_OF_COVERAGE)
        yield covered, f"covers {series.coverage_mm:.0f} mm"
    yield min(series.slices // SLICES_A_POINT, MOST_OF_SLICES), f"{series.slices} slices"
    for each in wish.prefer:
        if each.when.holds(values_of(series)):
            yield each.points, f"preferred: {each.when}"


def _of_plane(series: SeriesSummary) -> tuple[int, str]:
    if series.axial is None:
        return UNSAID_PLANE, "orientation unknown"
    return (AXIAL, "axial") if series.axial else (0, series.plane)


def _of_thickness(thickness_mm: float | None) -> tuple[int, str]:
    if not thickness_mm:
        return UNSAID_THICKNESS, "slice thickness unsaid"
    points = next((points for most, points in THICKNESS if thickness_mm <= most), THICK)
    return points, f"{thickness_mm:g} mm"


def _told(total: int, points: Collection[tuple[int, str]]) -> str:
    listed = ", ".join(f"{name} {count:+d}" for count, name in points)
    return f"{total} points: {listed}"
