"""What was complained of, what of it is explained, and how both are shown.

`explained.toml` says of each complaint that stays why it does. An explanation that explains nothing
any more has to go: it would hide the next fault that looks like it.
"""

import json
import re
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

TABLE: Final = Path(__file__).with_name("explained.toml")


@dataclass(frozen=True)
class Complaint:
    """What a judge said of one object of one case."""

    case: str
    label: str
    judge: str
    text: str


@dataclass(frozen=True)
class Explanation:
    """Why a complaint stays. `pattern` is searched in its text, `where` in ``case: label``."""

    judge: str
    pattern: str
    why: str
    where: str = ""

    def fits(self, complaint: Complaint) -> bool:
        return (
            complaint.judge == self.judge
            and re.search(self.pattern, complaint.text) is not None
            and re.search(self.where, f"{complaint.case}: {complaint.label}") is not None
        )


@dataclass
class Outcome:
    """All that was judged: how often each judge saw each kind of object, and what was said."""

    seen: Counter[tuple[str, str]] = field(default_factory=Counter)  # by label and judge
    complaints: list[Complaint] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)  # judges, and how to get them
    explanations: Sequence[Explanation] = ()

    def unexplained(self) -> list[Complaint]:
        return [
            each for each in self.complaints if not any(one.fits(each) for one in self.explanations)
        ]

    def dead(self) -> list[Explanation]:
        """Give the explanations that explain nothing, unless their judge was not there."""
        return [
            each
            for each in self.explanations
            if each.judge not in self.missing
            and not any(each.fits(complaint) for complaint in self.complaints)
        ]


def load(path: Path = TABLE) -> tuple[Explanation, ...]:
    with path.open("rb") as file:
        return tuple(Explanation(**each) for each in tomllib.load(file)["explained"])


def kind(label: str) -> str:
    """Return the label without the number of a part."""
    return re.sub(r"\.\d+$", "", label)


def show(
    outcome: Outcome, tables: Mapping[str, Sequence[str]], console: Console, *, whole: bool
) -> None:
    """Print a table of object x judge for each group of judges, and below what is wrong."""
    for title, judges in tables.items():
        console.print(_table(outcome, title, judges))
    for name, how in outcome.missing.items():
        console.print(f"[yellow]not asked: {name}[/]: {how}", soft_wrap=True)
    for (judge, text), found in _grouped(outcome.unexplained()).items():
        labels, cases = ({getattr(each, key): None for each in found} for key in ("label", "case"))
        console.print(f"[red]{judge}[/]: {', '.join(labels)} ({'; '.join(cases)})", soft_wrap=True)
        console.print(f"  {text}", soft_wrap=True, markup=False, highlight=False)
    for each in outcome.dead() if whole else ():
        console.print(f"[red]explains nothing any more[/]: {each.judge}", soft_wrap=True)
        console.print(f"  {each.pattern}", soft_wrap=True, markup=False, highlight=False)


def _table(outcome: Outcome, title: str, judges: Sequence[str]) -> Table:
    said = Counter((kind(each.label), each.judge) for each in outcome.complaints)
    wrong = Counter((kind(each.label), each.judge) for each in outcome.unexplained())
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), title=title, title_justify="left")
    table.add_column("object", no_wrap=True)
    for each in judges:
        table.add_column(each, no_wrap=True, justify="right")
    for label in dict.fromkeys(label for label, _ in outcome.seen):
        keys = [(label, judge) for judge in judges]
        table.add_row(label, *[_cell(outcome.seen[key], said[key], wrong[key]) for key in keys])
    return table


def _cell(seen: int, said: int, wrong: int) -> str:
    """Write how many objects were judged, and how many complaints about them are explained."""
    if wrong:
        return f"[red]{wrong} wrong[/]"
    if not seen:
        return "-"
    return f"{seen} ok" if not said else f"{seen} ok {said}e"


def _grouped(complaints: Iterable[Complaint]) -> dict[tuple[str, str], list[Complaint]]:
    grouped: dict[tuple[str, str], list[Complaint]] = defaultdict(list)
    for each in complaints:
        grouped[each.judge, each.text].append(each)
    return grouped


def write(outcome: Outcome, path: Path, **facts: Any) -> None:
    """Write all of it as JSON."""
    wrong = outcome.unexplained()
    told = {
        **facts,
        "judged": [
            {"object": label, "judge": judge, "count": count}
            for (label, judge), count in sorted(outcome.seen.items())
        ],
        "missing": outcome.missing,
        "unexplained": [asdict(each) for each in wrong],
        "dead": [asdict(each) for each in outcome.dead()],
        "explained": [
            {**asdict(each), "times": sum(map(each.fits, outcome.complaints))}
            for each in outcome.explanations
        ],
    }
    path.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
