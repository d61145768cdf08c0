"""The command line: `python -m tests.bench [NAME ...] [--quick] [OPTION ...]`."""

import argparse
import importlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from . import report
from .lab import Lab

BENCHES = ("receiving", "sending", "volume", "segmentation", "reading", "ledger")


def main() -> int:
    arguments = _parser().parse_args()
    names = arguments.benches or BENCHES
    rounds = arguments.rounds or (1 if arguments.quick else 3)
    with (
        tempfile.TemporaryDirectory(prefix="lamed-bench-") as folder,
        _progress(len(names)) as tell,
    ):
        lab = Lab(Path(folder), arguments.quick, rounds, tell, arguments.checkpoint)
        for done, name in enumerate(names):
            tell(f"{name} ...", done)
            try:
                importlib.import_module(f"{__package__}.{name}").run(lab)
            except Exception as error:  # noqa: BLE001 - what was measured before is not lost
                lab.failed.append(f"{name}: {type(error).__name__}: {error}")
        tell("done", len(names))
    report.show(lab)
    if arguments.json:
        report.write(lab, arguments.json)
    return 1 if lab.failed else 0


@contextmanager
def _progress(total: int) -> Iterator[Callable[..., None]]:
    """Show on standard error which bench is at work and at what."""
    columns = (
        MofNCompleteColumn(),
        BarColumn(20),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(file=sys.stderr)) as progress:
        task = progress.add_task("", total=total)

        def tell(what: str, done: int | None = None) -> None:
            progress.update(task, description=what, completed=done)
            if not progress.console.is_terminal:
                progress.console.print(what, soft_wrap=True)

        yield tell


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "benches", nargs="*", choices=(*BENCHES, []), metavar="NAME", help=", ".join(BENCHES)
    )
    parser.add_argument(
        "--quick", action="store_true", help="everything once and small: does it work?"
    )
    parser.add_argument("--rounds", type=int, help="how often each subject takes its turn")
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="what `reading` reads with")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
