"""The command line: `python -m tests.breaking fuzz|crash|soak`."""

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
    arguments = parser.parse_args()
    run = importlib.import_module(f"{__package__}.{arguments.kind}").run
    return int(run(arguments))


if __name__ == "__main__":
    sys.exit(main())
