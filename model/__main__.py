"""The command line `lamed-model`, the research half.

Exit codes: 0 done, 2 usage, 3 bad input, 5 internal.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from .bench import commands as bench
from .data import commands
from .errors import ModelError
from .training import commands as training

BAD_INPUT, INTERNAL = 3, 5

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        told = arguments.command(arguments)
    except ModelError as error:
        return _fail(arguments, str(error), BAD_INPUT)
    except Exception as error:  # the edge: whoever called gets a reason and a code
        log.exception("command.error")
        return _fail(arguments, f"{type(error).__name__}: {error}", INTERNAL)
    if arguments.json:
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
    else:
        sys.stdout.writelines(f"{key:<9}  {value}\n" for key, value in told.items())
    return 0


def _fail(arguments: argparse.Namespace, message: str, code: int) -> int:
    sys.stderr.write(f"lamed-model: {message}\n")
    if arguments.json:
        sys.stdout.write(json.dumps({"error": message, "exit_code": code}) + "\n")
    return code


def _init(arguments: argparse.Namespace) -> dict[str, object]:
    from . import small, tiny

    sizes = {"tiny": tiny.init, "small": small.init}
    card = sizes[arguments.size](arguments.out, seed=arguments.seed)
    return vars(card) | {"folder": str(arguments.out)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lamed-model", description="M3D-LaMed, the research half")
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")
    init = verbs.add_parser("init", help="write an untrained checkpoint")
    init.set_defaults(command=_init)
    init.add_argument("--size", choices=("tiny", "small"), required=True)
    init.add_argument("--out", type=Path, required=True, metavar="DIR")
    init.add_argument("--seed", type=int, default=0)
    init.add_argument("--json", action="store_true", help="machine-readable output")
    commands.add_to(verbs)
    training.add_to(verbs)
    bench.add_to(verbs)
    return parser


if __name__ == "__main__":
    sys.exit(main())
