"""What came of a run, counted: pass rates by category, reasons of drops, where answers stand.

Knows outcomes; neither the endpoint nor the journal.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from .checking import CHANCE, Guesses, Verdict, without_guessable
from .pairs import Pair
from .questions import Kind, Plan, Question, Report, T, Written

Counts = dict[str, object]
TOTAL = "total"


@dataclass(frozen=True)
class Unit:
    """What is kept or dropped as one: a four-choice question, or the twins of a pair."""

    name: str
    kind: Kind
    questions: tuple[Question, ...]
    verdict: Verdict
    guesses: Guesses

    @property
    def image(self) -> str:
        """The image it is about."""
        return self.name.rpartition("#")[0]

    @property
    def passed(self) -> bool:
        """Whether the self-check agreed."""
        return self.verdict is Verdict.AGREES


@dataclass(frozen=True)
class Outcome:
    """What came of one report."""

    report: Report
    questions: Written[Question]
    pairs: Written[Pair]
    four_choice: tuple[Unit, ...]
    twins: tuple[Unit, ...]


def kept(units: Iterable[Unit], seed: int) -> list[Unit]:
    """Select what passed the self-check and needs the image, in the same order."""
    passed = [each for each in units if each.passed]
    marks = [(each.name, each.kind, each.guesses.always) for each in passed]
    keep = without_guessable(marks, seed)
    return [each for each, stays in zip(passed, keep, strict=True) if stays]


def count(
    written: Sequence[Written[T]], units: Sequence[Unit], chosen: Sequence[Unit], plan: Plan
) -> Counts:
    """Count by kind and in total, and for what faults questions were refused."""
    groups = {kind.value: {kind} for kind in plan} | {TOTAL: set(plan)}
    faults = Counter(fault.value for each in written for fault, _ in each.refused)
    return {
        "by_kind": {
            name: {
                "wanted": len(written) * sum(plan[kind] for kind in kinds),
                "not_stated": sum(len(each.not_stated & kinds) for each in written),
                **_row(
                    [u for u in units if u.kind in kinds], [u for u in chosen if u.kind in kinds]
                ),
            }
            for name, kinds in groups.items()
        },
        "refused": dict(sorted(faults.items())),
        "surplus": sum(each.surplus for each in written),
    }


def _row(units: Sequence[Unit], chosen: Sequence[Unit]) -> Counts:
    verdicts = Counter(each.verdict for each in units)
    tried = [each for each in units if each.guesses.right]
    first = sum(each.guesses.right[0] for each in tried)
    always = sum(each.guesses.always for each in tried)
    passed = verdicts[Verdict.AGREES]
    return {
        "written": len(units),
        "self_check": {each.value: verdicts[each] for each in Verdict}
        | {"pass_rate": _rate(passed, len(units))},
        "blind_check": {
            "tried": len(tried),
            "declined": sum(each.guesses.declined for each in tried),
            "right_at_first": first,
            "first_rate": _rate(first, len(tried)),
            "chance": CHANCE,
            "always_right": always,
            "dropped": passed - len(chosen),
        },
        "kept": len(chosen),
    }


def _rate(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def letters(questions: Iterable[Question]) -> dict[str, int]:
    """Count where the answers stand."""
    return dict(sorted(Counter(each.letter for each in questions).items()))


def answers(questions: Iterable[Question]) -> dict[str, int]:
    """Count the answers, for those that are few: yes and no."""
    return dict(sorted(Counter(each.answer for each in questions).items()))


def table(report: Mapping[str, Any]) -> Table:
    """Show the counts as people read them."""
    columns = ("", "wanted", "written", "self-check", "blind, 1st try", "guessable", "kept")
    shown = Table(title="Questions", caption=f"a blind guess is right in {CHANCE:.0%} by chance")
    for each in columns:
        shown.add_column(each, justify="right" if each else "left")
    for part in ("four_choice", "yes_no_pairs"):
        shown.add_section()
        for name, row in report[part]["by_kind"].items():
            shown.add_row(f"{part.replace('_', ' ')}: {name}", *_cells(row))
    return shown


def _cells(row: Mapping[str, Any]) -> Iterable[str]:
    blind = row["blind_check"]
    yield from (str(row["wanted"]), str(row["written"]))
    for rate in (row["self_check"]["pass_rate"], blind["first_rate"]):
        yield "-" if rate is None else f"{rate:.1%}"
    yield from (str(blind["always_right"]), str(row["kept"]))
