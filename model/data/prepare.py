"""Raw downloads to prepared folders: many studies, in processes, across kills.

A study is done when its stamp, ``.prepared.json``, says what it was made of and how. A killed run
goes on with the studies that have none; a changed source or other options make a study anew. No
file is ever half under its name. A study that cannot be prepared is told at the end, and the
others are done. Lists are written last: M3D-Seg's names what is there, the others are copied.

M3D-VQA needs no preparation: its tables name the images of M3D-Cap.
"""

import json
import logging
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from model.errors import ModelError

from .processes import each_of
from .published import content
from .shelf import Shelf
from .studies import SPLITS, Kind, Options, Study, make, studies

STAMP: Final = ".prepared.json"
VERSION: Final = 1  # of what is made; a higher one makes every study anew

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What became of one study: made now, made before, or an error."""

    study: str
    made: bool = False
    error: str = ""
    left_out: bool = False


@dataclass(frozen=True)
class Summary:
    """What became of all of them."""

    outcomes: tuple[Outcome, ...]

    @property
    def failed(self) -> list[Outcome]:
        """The studies that could not be prepared."""
        return [each for each in self.outcomes if each.error]

    @property
    def told(self) -> dict[str, object]:
        """What to tell: counts, and studies of which something was left out."""
        return {
            "studies": len(self.outcomes),
            "made": sum(each.made for each in self.outcomes),
            "before": sum(not each.made and not each.error for each in self.outcomes),
            "failed": len(self.failed),
            "left_out": [each.study for each in self.outcomes if each.left_out],
        }

    def check(self) -> None:
        """Raise what went wrong.

        Raises
        ------
        ModelError
            Names every study that failed, each with its reason.
        """
        if self.failed:
            lines = [f"{each.study}: {each.error}" for each in self.failed]
            count = f"{len(lines)} of {len(self.outcomes)} studies could not be prepared"
            raise ModelError("\n  ".join([f"{count}; the others are done", *lines]))


def prepare(
    kind: Kind,
    source: Path,
    target: Path,
    options: Options | None = None,
    *,
    workers: int = 1,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Summary:
    """Prepare every study below `source`, and write the lists.

    Parameters
    ----------
    kind
        cap, seg or refseg.
    workers
        Processes; 1: this one.
    on_progress
        Is told how many studies are done, and of how many.

    Raises
    ------
    ModelError
        There are no studies, a list cannot be read, the target is the source, or a process died.
    """
    if target.resolve().is_relative_to(source.resolve()):
        raise ModelError(f"the target must lie outside of {source}, not at {target}")
    found, options = studies(kind, source), options or Options()
    run = partial(_outcome, target=target, options=options)
    outcomes = dict[str, Outcome]()
    for outcome in each_of(run, found, workers):
        outcomes[outcome.study] = outcome
        on_progress(len(outcomes), len(found))
    _lists(kind, source, target, options, found)
    return Summary(tuple(outcomes[each.name] for each in found))


def _outcome(study: Study, *, target: Path, options: Options) -> Outcome:
    folder = target / study.name
    made_of = _made_of(study, options)
    before = _stamp(folder)
    if before is not None and before["made_of"] == made_of and _there(folder, before["files"]):
        return Outcome(study.name, left_out=bool(before["told"].get("left_out")))
    try:
        _forget(folder, before)
        shelf = Shelf(folder)
        told = make(study, shelf, options)
        stamp = {"made_of": made_of, "files": list(shelf.names), "told": told}
        shelf.text(STAMP, json.dumps(stamp, indent=1))
    except Exception as error:  # the edge of a loop: the others go on, and this one is told
        log.debug("study.failed", extra={"study": study.name}, exc_info=True)
        named = isinstance(error, ModelError)
        return Outcome(
            study.name, error=f"{error}" if named else f"{type(error).__name__}: {error}"
        )
    return Outcome(study.name, made=True, left_out=bool(told.get("left_out")))


def _made_of(study: Study, options: Options) -> dict[str, Any]:
    """Say what a study is made of and how, as JSON gives it back."""
    files = {}
    for each in study.sources:
        with suppress(OSError):  # a missing file is told by who reads it
            stat = each.stat()
            files[os.path.relpath(each, study.folder)] = [stat.st_size, stat.st_mtime_ns]
    made: dict[str, Any] = json.loads(
        json.dumps(
            {
                "version": VERSION,
                "options": asdict(options),
                "classes": study.classes,
                "files": files,
            }
        )
    )
    return made


def _stamp(folder: Path) -> dict[str, Any] | None:
    """Read the stamp of a study; none: it is not done."""
    with suppress(OSError, ValueError):
        stamp: dict[str, Any] = json.loads((folder / STAMP).read_text(encoding="utf-8"))
        if {"made_of", "files", "told"} <= set(stamp):
            return stamp
    return None


def _there(folder: Path, names: Iterable[str]) -> bool:
    return all((folder / each).is_file() for each in names)


def _forget(folder: Path, stamp: dict[str, Any] | None) -> None:
    """Take away what was made before: first the stamp, so that what is left is not taken for it."""
    (folder / STAMP).unlink(missing_ok=True)
    for name in stamp["files"] if stamp else ():
        (folder / name).unlink(missing_ok=True)


def _lists(
    kind: Kind, source: Path, target: Path, options: Options, found: Iterable[Study]
) -> None:
    if kind == "seg":
        for code, some in groupby(found, key=lambda each: each.name.partition("/")[0]):
            _seg_list(code, source, target, options, list(some))
        return
    for each in sorted(source.iterdir()):
        if each.suffix in {".json", ".csv"}:
            Shelf(target).copy(each.name, each)


def _seg_list(
    code: str, source: Path, target: Path, options: Options, found: Iterable[Study]
) -> None:
    """Write the list of a set; as the reference does with paths of this machine."""
    held = content(source / code / f"{code}.json", root=source)
    held.pop("training", None)
    held |= {split: [] for split in SPLITS}
    for study in found:
        stamp = _stamp(target / study.name)
        if stamp is None:
            continue
        start = study.name if options.mode == "canonical" else f"{target}/{study.name}"
        for entry in stamp["told"]["entries"]:
            paths = {each: f"{start}/{entry[each]}" for each in ("image", "label")}
            held[study.split].append(entry | paths)
    Shelf(target).text(f"{code}/{code}.json", json.dumps(held, indent=4))
