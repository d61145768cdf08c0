"""Where measuring is done: rounds in which the subjects take turns, processes alone, sample files.

Knows nothing of what is measured. A row holds one value for each round; the median counts.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import ROOT
from .alone import Values, measure

OURS = "LaMed Node"
MORE_IS_BETTER = {"images/s", "events/s"}

Subject = Callable[[], Values]


class Missing(Exception):
    """A program that a subject needs is not on this machine."""


@dataclass(frozen=True)
class Row:
    """What one subject did in one case, once for each round."""

    bench: str
    case: str
    subject: str
    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)


@dataclass
class Lab:
    """One run of the benches.

    Parameters
    ----------
    folder
        For whatever is written; on the disk that durability is paid to.
    quick
        Everything once and small: it shows that the benches work, not how fast anything is.
    """

    folder: Path
    quick: bool
    rounds: int
    tell: Callable[[str], None]
    checkpoint: Path | None = None  # None: the untrained tiny one is made
    rows: list[Row] = field(default_factory=list)
    missing: set[str] = field(default_factory=set)
    failed: list[str] = field(default_factory=list)

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def turns(
        self, bench: str, case: str, subjects: Mapping[str, Subject], *, rounds: int = 0
    ) -> None:
        """Measure A B C, B C A, C A B, ...: what disturbs the machine disturbs all of them."""
        names = list(subjects)
        seen: dict[tuple[str, str], list[float]] = {}
        for turn in range(rounds or self.rounds):
            first = turn % len(names)
            for name in (*names[first:], *names[:first]):
                self.tell(f"{bench}: {case}: {name}, round {turn + 1} of {self.rounds}")
                os.sync()  # nobody pays for what another one left to be written
                for unit, value in subjects[name]().items():
                    seen.setdefault((name, unit), []).append(value)
        units = dict.fromkeys(unit for _, unit in seen)
        self.rows += [
            Row(bench, case, name, unit, tuple(seen[name, unit]))
            for unit in units
            for name in names
            if (name, unit) in seen
        ]

    def alone(self, function: Callable[..., Any], *arguments: object) -> Values:
        """Measure in a process of its own; if quick, in this one: loading torch takes longer."""
        return (
            measure(function, *map(str, arguments))
            if self.quick
            else in_process(function, *arguments)
        )

    def scratch(self) -> "tempfile.TemporaryDirectory[str]":
        """Make a folder that is gone after its `with`."""
        return tempfile.TemporaryDirectory(dir=self.folder)

    def ct(self, slices: int, size: int) -> Path:
        """Make a CT series once; file names are in slice order."""
        from dicom_node.demo import sample

        folder = self.folder / f"ct-{slices}x{size}"
        if not folder.exists():
            self.tell(f"making {slices} slices of {size} x {size}")
            partial = folder.with_suffix(".partial")
            partial.mkdir()
            for index, each in enumerate(sample.series(shape=(slices, size, size))):
                each.save_as(partial / f"{index:04}.dcm", enforce_file_format=True)
            partial.rename(folder)
        return folder


def in_process(function: Callable[..., object], *arguments: object) -> Values:
    """Run `function` of a bench in a process of its own; return seconds and peak memory.

    `function` prepares and returns the work that is measured.
    """
    command = [sys.executable, "-m", "tests.bench.alone", function.__module__, function.__name__]
    done = subprocess.run(
        [*command, *map(str, arguments)], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    return {unit: float(value) for unit, value in json.loads(done.stdout).items()}


def files(folder: Path) -> Iterator[Path]:
    return iter(sorted(folder.iterdir()))
