"""The command line: `python -m tests.validation [--quick] [--json PATH]`."""

import argparse
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

from rich.console import Console

from . import report
from .judges import BENCHES, JUDGES
from .judging import Court
from .matrix import cases

QUICK = {"PixelMed": 2}
TABLES = {
    "Each object (12 ok 3e: 12 objects, 3 explained complaints)": [each.name for each in JUDGES],
    "All objects of a job together": [each.name for each in BENCHES],
}
WIDTH = 100  # the least in which the tables can be read


def main() -> int:
    """Judge everything; 1: something is unexplained, or explained for nothing."""
    parser = argparse.ArgumentParser(prog="python -m tests.validation", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one series instead of the matrix")
    parser.add_argument("--json", type=Path, default=Path("run/validation.json"), help="where to")
    arguments = parser.parse_args()
    # The images are dirty on purpose; what is odd in them is no news.
    warnings.simplefilter("ignore", UserWarning)
    start, console = time.monotonic(), Console()
    console = Console(width=max(WIDTH, console.width))
    with tempfile.TemporaryDirectory(prefix="lamed-validate-") as folder:
        court = Court(Path(folder), limits=QUICK if arguments.quick else None)
        with console.status("making the first objects") as status:
            for case in cases(quick=arguments.quick):
                began = time.monotonic()
                court.hear(case, status.update)
                took = time.monotonic() - began
                console.print(f"{case.name}: {len(case.objects)} objects, {took:.0f} s")
    outcome, whole = court.outcome, not arguments.quick
    report.show(outcome, TABLES, console, whole=whole)
    seconds = round(time.monotonic() - start)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    report.write(outcome, arguments.json, quick=arguments.quick, seconds=seconds)
    console.print(f"{sum(outcome.seen.values())} verdicts in {seconds} s; {arguments.json}")
    is_incomplete = bool(outcome.missing) and os.environ.get("CI") == "true"
    return int(bool(outcome.unexplained() or (whole and outcome.dead()) or is_incomplete))


if __name__ == "__main__":
    sys.exit(main())
