"""Rows as a table for a person and as JSON for a program."""

import json
import math
import os
import platform
import subprocess
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .lab import MORE_IS_BETTER, Lab, Row

LIBRARIES = ("pydicom", "pynetdicom", "highdicom", "numpy", "torch", "sqlalchemy")


def show(lab: Lab) -> None:
    """Print one table for each bench: medians, and how many times better ours is."""
    console = Console(width=None if os.isatty(1) else 150)
    for bench in dict.fromkeys(row.bench for row in lab.rows):
        table = Table(title=bench, title_justify="left", caption_justify="left")
        for column in ("case", "subject", "median", "unit", "spread", "ours is"):
            right = column in {"median", "spread", "ours is"}
            table.add_column(column, justify="right" if right else "left")
        for last, cells in _cells([each for each in lab.rows if each.bench == bench]):
            table.add_row(*cells, end_section=last)
        console.print(table)
    for each in sorted(lab.missing):
        console.print(f"missing, left out: {each}")
    for each in lab.failed:
        console.print(f"FAILED {each}")


def _cells(rows: Sequence[Row]) -> Iterator[tuple[bool, tuple[str, ...]]]:
    for index, row in enumerate(rows):
        last = index + 1 == len(rows) or rows[index + 1].case != row.case
        first = index == 0 or rows[index - 1].case != row.case
        ours = ratio(rows, row)
        told = "" if ours is None else f"{ours:.2f} x"
        spread = f"{_number(min(row.values))} - {_number(max(row.values))}"
        case = row.case if first else ""
        yield last, (case, row.subject, _number(row.median), row.unit, spread, told)


def ratio(rows: Sequence[Row], row: Row) -> float | None:
    """Tell how many times better ours is than this one; None for ours, and where one is zero."""
    ours = next(each for each in rows if (each.case, each.unit) == (row.case, row.unit))
    if row is ours or not (row.median and ours.median):
        return None
    less = row.median / ours.median
    return 1 / less if row.unit in MORE_IS_BETTER else less


def write(lab: Lab, path: Path) -> None:
    """Write what was measured, where, and when."""
    rows = [
        vars(row) | {"median": row.median, "ours_is_times_better": ratio(_of(lab, row), row)}
        for row in lab.rows
    ]
    told: dict[str, Any] = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": lab.quick,
        "rounds": lab.rounds,
        "machine": machine(),
        "missing": sorted(lab.missing),
        "failed": lab.failed,
        "rows": rows,
    }
    path.write_text(json.dumps(told, indent=1) + "\n")


def machine() -> dict[str, Any]:
    """Tell what a number depends on besides the code."""
    return {
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "commit": _commit(),
        **{name: version(name) for name in LIBRARIES},
    }


def _of(lab: Lab, row: Row) -> list[Row]:
    return [each for each in lab.rows if each.bench == row.bench]


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], check=True, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def _number(value: float) -> str:
    """Write three significant digits, never in powers of ten."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"
