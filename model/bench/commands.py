"""The command line `lamed-model bench`: ask, score, report.

Knows words of a command; the work is done elsewhere, and imported when it is asked for.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from model.data.commands import KINDS
from model.data.sample import Task
from model.errors import ModelError

if TYPE_CHECKING:
    from model.lamed import LaMed

    from .asking import Progress
    from .items import Source

RESULTS: Final = "results.json"
REPORT: Final = "report.html"


def add_to(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `bench` to the verbs of `lamed-model`."""
    parser = verbs.add_parser(
        "bench", help="M3D-Bench: eight tasks, with the image and without, as JSON and HTML"
    )
    parser.set_defaults(command=bench)
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="answers, results.json, report.html; a killed run goes on from here",
    )
    parser.add_argument("--clip", type=Path, metavar="DIR", help="M3D-CLIP, for retrieval")
    parser.add_argument("--bertscore", type=Path, metavar="DIR", help="roberta-large, say")
    parser.add_argument(
        "--mode",
        choices=("own", "reference"),
        default="own",
        help="reference: as the published scripts score, for comparison",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    _add_sources(parser)


def _add_sources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cases", type=int, default=300, metavar="N", help="images (default 300)")
    parser.add_argument(
        "--limit",
        nargs=2,
        action="append",
        default=[],
        metavar=("TASK", "N"),
        help="questions of a task for one image; tasks: " + ", ".join(each.value for each in Task),
    )
    corpus = parser.add_argument_group("the anatomy corpus (default)")
    corpus.add_argument("--corpus", action="store_true", help="ask patients that never were")
    corpus.add_argument(
        "--first-seed",
        type=int,
        metavar="N",
        help="of the patients; training has those below the default, 1000000",
    )
    corpus.add_argument(
        "--scans",
        nargs=2,
        metavar=("CACHE", "N"),
        help="and N patients bent from the real CT in (or fetched to) CACHE",
    )
    folders = parser.add_argument_group("prepared folders of M3D-Data")
    folders.add_argument(
        "--folder",
        nargs=2,
        action="append",
        default=[],
        metavar=("KIND", "FILE"),
        help=f"a list of it, again for more; kinds: {', '.join(KINDS)}",
    )
    folders.add_argument("--root", type=Path, metavar="DIR", help="where paths in lists begin")
    folders.add_argument("--split", default="test", help="of lists with several (default test)")


def bench(arguments: argparse.Namespace) -> dict[str, object]:
    """Ask what is not answered yet, score all, write results and report."""
    from model.checkpoint import load

    from .asking import Run, ask
    from .bertscore import find
    from .reporting import report

    _check(arguments)
    bert = find(arguments.bertscore)
    if arguments.bertscore and bert is None:
        raise ModelError(f"{arguments.bertscore} is no folder with weights for BERTScore")
    lamed = load(arguments.checkpoint, device=arguments.device, dtype=arguments.dtype)
    clip, digest = _clip(arguments, lamed)
    source = _source(arguments, lamed)
    run = Run(lamed, source, clip, digest)
    with _progress("images", quiet=arguments.json) as on_progress:
        entries = ask(run, arguments.out, on_progress)
    results = _results(arguments, run.identity, lamed, entries, bert)
    _write(arguments.out, RESULTS, json.dumps(results, indent=1, allow_nan=False) + "\n")
    with _progress("examples", quiet=arguments.json) as on_progress:
        page = report(results, entries, source, on_progress)
    _write(arguments.out, REPORT, page)
    return _told(results, arguments.out)


def _check(arguments: argparse.Namespace) -> None:
    if arguments.cases < 0 or (not arguments.cases and not arguments.scans):
        raise ModelError(f"cases must be 1 or more, not {arguments.cases}")
    if arguments.folder and (arguments.corpus or arguments.scans or arguments.first_seed):
        raise ModelError("ask the corpus or folders, not both in one run")
    if bool(arguments.folder) != bool(arguments.root):
        raise ModelError("folders need --root, and --root needs --folder")


def _clip(arguments: argparse.Namespace, lamed: "LaMed") -> tuple[Any, str | None]:
    if arguments.clip is None:
        return None, None
    from model import clip

    loaded = clip.load(arguments.clip, device=lamed.device)
    ours, theirs = (each.network.config.vision.image_size for each in (lamed, loaded))
    if ours != theirs:
        raise ModelError(f"{arguments.clip} sees images of {theirs}, the checkpoint of {ours}")
    return loaded, loaded.card.sha256


def _source(arguments: argparse.Namespace, lamed: "LaMed") -> "Source":
    grid = lamed.network.config.vision.image_size
    limits = _limits(arguments.limit)
    if arguments.folder:
        from .folders import Folders, Part

        parts = [
            Part(kind, Path(file), arguments.root, arguments.split)
            for kind, file in arguments.folder
        ]
        return Folders(parts, grid, arguments.cases, limits)
    from .patients import FIRST_SEED, Patients

    first = FIRST_SEED if arguments.first_seed is None else arguments.first_seed
    if first < 0:
        raise ModelError(f"first-seed must be 0 or more, not {first}")
    if not arguments.scans:
        return Patients(grid, arguments.cases, limits, first_seed=first)
    from model.data.corpus.scan import Scan

    cache, count = Path(arguments.scans[0]), _number("scans", arguments.scans[1])
    return Patients(grid, arguments.cases, limits, Scan.load(cache), count, first)


def _limits(told: list[list[str]]) -> Mapping[Task, int]:
    from .items import LIMITS

    found = dict(LIMITS)
    for name, count in told:
        if name not in set(Task):
            raise ModelError(f"a task is one of {', '.join(Task)}, not {name!r}")
        found[Task(name)] = _number(f"the limit of {name}", count)
    return found


def _number(what: str, told: str) -> int:
    if not told.isdecimal():
        raise ModelError(f"{what} must be 0 or more, not {told!r}")
    return int(told)


def _results(
    arguments: argparse.Namespace,
    identity: Mapping[str, Any],
    lamed: "LaMed",
    entries: list[Any],
    bert: Any,  # noqa: ANN401 - BERTScore's own class needs transformers
) -> dict[str, Any]:
    from dataclasses import asdict

    from .scoring import RESAMPLES, SCHEMA, notes, score

    begun = monotonic()
    found = score(entries, reference=arguments.mode == "reference", bert=bert)
    asking = sum(each.get("seconds", 0.0) for each in entries)
    return {
        "schema": SCHEMA,
        "mode": arguments.mode,
        "checkpoint": asdict(lamed.card),
        "clip": identity["clip"],
        "data": {name: each for name, each in identity.items() if name not in _SETTINGS},
        "settings": {
            **{name: identity[name] for name in _SETTINGS if name in identity},
            "device": str(lamed.device),
            "resamples": RESAMPLES,
            "bertscore": None if bert is None else bert.folder.name,
            "decoding": "greedy",
        },
        "seconds": {"asking": round(asking, 1), "scoring": round(monotonic() - begun, 1)},
        **found,
        "notes": notes(identity, found, bert=bert is not None),
    }


_SETTINGS: Final = ("format", "checkpoint", "clip", "dtype", "tolerance_mm")


def _write(folder: Path, name: str, text: str) -> None:
    from model.data.shelf import Shelf

    Shelf(folder).text(name, text)


def _told(results: Mapping[str, Any], out: Path) -> dict[str, object]:
    """Give a line for each task."""
    told: dict[str, object] = {"folder": str(out), "images": results["counts"]["images"]}
    for task, each in results["tasks"].items():
        if not each["measured"]:
            told[task] = f"not measured: {each['why']}"
        elif each["primary"] in each["scores"]:
            one = each["scores"][each["primary"]]
            blind = "nothing" if one["blind"] is None else f"{one['blind']:.3f}"
            told[task] = f"{each['primary']} {one['value']:.3f}, blind {blind}"
        else:
            told[task] = f"not measured: nothing to count {each['primary']} of"
    return told


@contextmanager
def _progress(what: str, *, quiet: bool) -> Iterator["Progress"]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    columns: list[Any] = [what, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
