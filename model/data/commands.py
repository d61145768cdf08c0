"""The command line `lamed-model data`: prepare raw downloads, check, write questions and a corpus.

Knows words of a command; the work is done elsewhere, and imported when it is asked for.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from model.errors import ModelError

from . import generation

if TYPE_CHECKING:
    from .sample import Sample

KINDS: Final = ("cap", "vqa-closed", "vqa-open", "vqa-yes-no", "seg", "refseg")
SHOWN: Final = 20  # pairs of a kind that are told; --out has them all


def add_to(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> "argparse._SubParsersAction[argparse.ArgumentParser]":
    """Add `data` to the verbs of `lamed-model`; gives its own verbs, for others to add theirs."""
    data = verbs.add_parser("data", help="M3D-Data: prepare and check")
    own = data.add_subparsers(required=True, metavar="COMMAND")
    _add_prepare(own)
    _add_check(own)
    _add_corpus(own)
    generation.add_to(own)
    return own


def _add_prepare(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = verbs.add_parser("prepare", help="raw downloads -> prepared folders")
    parser.set_defaults(command=_prepare)
    parser.add_argument("kind", choices=("cap", "seg", "refseg"))
    parser.add_argument("source", type=Path, metavar="SOURCE", help="the folder of the download")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--mode",
        choices=("reference", "canonical"),
        default="canonical",
        help="equal to the reference, or one orientation and normalisation (default)",
    )
    parser.add_argument("--masks", choices=("linear", "nearest"), default="linear")
    parser.add_argument("--window", type=float, nargs=2, metavar=("LEVEL", "WIDTH"), help="in HU")
    parser.add_argument("--axes", help="how arrays without a header lie, such as RAS")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes")
    parser.add_argument("--json", action="store_true", help="machine-readable output")


def _add_check(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = verbs.add_parser("check", help="read two splits, and what leaks from one to the other")
    parser.set_defaults(command=_check)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("root", type=Path, metavar="ROOT", help="where the paths of lists begin")
    parser.add_argument(
        "--list",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="M3D_Cap.json, <code>/<code>.json, or the CSV files of train and test",
    )
    parser.add_argument("--splits", nargs=2, default=("train", "test"), metavar=("TRAIN", "TEST"))
    parser.add_argument("--skip", action="store_true", help="leave out what is broken, and tell")
    parser.add_argument("--no-images", action="store_true", help="do not read every image")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the whole report as JSON")
    parser.add_argument("--json", action="store_true", help="machine-readable output")


def _add_corpus(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = verbs.add_parser("corpus", help="synthetic patients in the published layouts")
    parser.set_defaults(command=_corpus)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--seeds", type=int, nargs=2, required=True, metavar=("FIRST", "COUNT"), help="of patients"
    )
    parser.add_argument(
        "--grid", type=int, nargs=3, required=True, metavar=("D", "H", "W"), help="of the images"
    )
    parser.add_argument(
        "--scans",
        nargs=2,
        metavar=("CACHE", "COUNT"),
        help="so many more bent out of a real scan (38 MB), which is fetched into CACHE once",
    )
    parser.add_argument("--seed", type=int, default=0, help="of splits and of words")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes")
    parser.add_argument("--json", action="store_true", help="machine-readable output")


def _prepare(arguments: argparse.Namespace) -> dict[str, object]:
    from .prepare import prepare
    from .studies import Options

    window = tuple(arguments.window) if arguments.window else None
    options = Options(arguments.mode, arguments.masks, window, arguments.axes)
    if arguments.workers < 1:
        raise ModelError(f"workers must be 1 or more, not {arguments.workers}")
    with _progress("studies", quiet=arguments.json) as on_progress:
        summary = prepare(
            arguments.kind,
            arguments.source,
            arguments.out,
            options,
            workers=arguments.workers,
            on_progress=on_progress,
        )
    summary.check()
    return summary.told | {"folder": str(arguments.out)}


def _check(arguments: argparse.Namespace) -> dict[str, object]:
    import json

    from .shelf import Shelf
    from .splits import leakage

    train, test = (_read(arguments, index) for index in (0, 1))
    with _progress("images", quiet=arguments.json) as on_progress:
        found = leakage(train, test, images=not arguments.no_images, on_progress=on_progress)
    told = found.told | {"train_samples": len(train)}
    if arguments.out:
        Shelf(arguments.out.parent).text(arguments.out.name, json.dumps(told, indent=1))
    if arguments.json:
        return told
    return {key: _shown(value) for key, value in told.items()}


def _corpus(arguments: argparse.Namespace) -> dict[str, object]:
    from .corpus.writing import Plan, write

    first, count = arguments.seeds
    cache, scans = arguments.scans or (None, "0")
    if not scans.isdecimal():
        raise ModelError(f"--scans takes a folder and a count, not {scans!r}")
    depth, height, width = arguments.grid
    plan = Plan(
        (depth, height, width),
        range(first, first + count),
        range(first, first + int(scans)),
        cache=Path(cache) if cache else None,
        seed=arguments.seed,
    )
    with _progress("patients", quiet=arguments.json) as on_progress:
        told = write(plan, arguments.out, workers=arguments.workers, on_progress=on_progress)
    return told | {"folder": str(arguments.out)}


def _read(arguments: argparse.Namespace, index: int) -> "list[Sample]":
    """Read one of the two splits: of one list, or of the table that is theirs."""
    from . import cap, refseg, seg, vqa

    lists, splits = arguments.list, arguments.splits
    root, skip = arguments.root, arguments.skip
    if arguments.kind in {"cap", "seg"}:
        if len(lists) != 1:
            raise ModelError(f"{arguments.kind} has one list, not {len(lists)}")
        if arguments.kind == "cap":
            return cap.read(lists[0], splits[index], root=root, skip=skip)
        return seg.read(root, lists[0].stem, splits[index], skip=skip)
    if len(lists) != len(splits):
        raise ModelError(f"{arguments.kind} has a table for train and for test, not {len(lists)}")
    readers: dict[str, Callable[..., list[Sample]]] = {
        "vqa-closed": vqa.read_closed,
        "vqa-open": vqa.read_open,
        "vqa-yes-no": vqa.read_yes_no,
        "refseg": refseg.read,
    }
    return readers[arguments.kind](lists[index], root=root, skip=skip)


def _shown(value: object) -> object:
    """Show pairs as lines, the first of them."""
    if not isinstance(value, list):
        return value
    lines = [f"{each['train']}  {each['test']}  {each['why']}" for each in value[:SHOWN]]
    more = [f"and {len(value) - SHOWN} more"] if len(value) > SHOWN else []
    return "\n           ".join([str(len(value)), *lines, *more])


@contextmanager
def _progress(what: str, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns: Sequence[Any] = (what, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as bar:
        task = bar.add_task(what, total=None)

        def on_progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield on_progress
