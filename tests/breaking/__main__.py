"""The command line: `python -m tests.breaking fuzz|coverage|crash|soak`."""

import argparse
import importlib
import sys
from pathlib import Path

from . import ROOT


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.breaking", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    fuzz = kinds.add_parser("fuzz", help="mutated PDUs, data sets, files and requests")
    fuzz.add_argument("--cases", type=int, default=10_000, help="of each target")
    fuzz.add_argument("--seed", type=int, default=1)
    fuzz.add_argument("--target", action="append", help="one of them; may be given again")
    fuzz.add_argument("--folder", type=Path, default=ROOT / "run" / "fuzz")
    fuzz.add_argument("--keep", action="store_true", help="add the telling ones to the corpus")
    crash = kinds.add_parser("crash", help="whole nodes with one fault each")
    crash.add_argument("--runs", type=int, default=300)
    crash.add_argument("--seed", type=int, default=1)
    crash.add_argument("--folder", type=Path, default=ROOT / "run" / "crash")
    soak = kinds.add_parser("soak", help="a department's peak for as long as you like")
    soak.add_argument("--minutes", type=float, default=60.0)
    soak.add_argument("--scanners", type=int, default=8)
    soak.add_argument("--folder", type=Path, default=ROOT / "run" / "soak")
    soak.add_argument("--disk", help="folder for what is received; the system's for what is brief")
    coverage = kinds.add_parser("coverage", help="one reader of bytes, guided by coverage")
    coverage.add_argument(
        "reader", choices=("proposal", "command", "explicit", "implicit", "frame")
    )
    coverage.add_argument("--runs", type=int, default=100_000)
    coverage.add_argument("--seed", type=int, default=1)
    coverage.add_argument("--folder", type=Path, default=ROOT / "run" / "coverage")
    arguments = parser.parse_args()
    run = importlib.import_module(f"{__package__}.{arguments.kind}").run
    return int(run(arguments))


if __name__ == "__main__":
    sys.exit(main())
