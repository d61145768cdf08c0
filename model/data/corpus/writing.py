"""The corpus on disk, in the layouts of M3D-Data, for our readers and for anybody's.

    M3D_Cap.json                     images and reports: {"train", "validation", "test"}
    M3D_VQA_<split>.csv              four-choice questions; M3D_VQA_open_ and M3D_VQA_yn_ the others
    M3D_RefSeg_<split>.csv           planted findings that are described
    anatomy/anatomy.json             organs and findings by name, and which are absent
    ct_case, mr_case/<patient>/      image and report
    anatomy/<patient>/               the same image, masks/mask_<i>.npz
    M3D_RefSeg/<patient>/            the same image, mask.npy: a map of findings; text.json
    manifest.json, README.md         what this is
    patients.jsonl                   all that is true of each patient, all that was said of them,
                                     and where it went

A patient is done when its stamp in ``.patients`` says how it was made; a run that was killed goes
on with those that have none. Lists are written last. All paths begin in the one folder.
"""

import csv
import io
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from model.data import splits
from model.data.processes import each_of
from model.data.seg import box_of
from model.data.shelf import Shelf
from model.errors import ModelError
from model.preprocess import Shape

from . import rows, scene
from . import scan as scanning
from .case import Case
from .scan import Scan
from .scene import Scene
from .telling import Turn, report, sentence, turns

VERSION: Final = 1  # of what is written; a higher one makes every patient anew
PHANTOM, SCAN = "phantom", "scan"
NAMES: Final = {"train": "train", "validation": "val", "test": "test"}  # of a split, in file names
STAMPS: Final = ".patients"
LICENCE_FILE: Final = "LICENSE.scan"
ABSENT: Final = np.zeros((1, 1, 1, 1), np.bool_)  # the mask of an absent class, as published

Record = dict[str, Any]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What is written: seeds of phantoms and of patients out of the scan, and on which grid.

    `cache` is the folder the scan is fetched into; `seed` decides on words and on splits.
    """

    grid: Shape
    phantoms: range
    scans: range = range(0)
    cache: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.grid) < 1:
            raise ModelError(f"a grid has 1 voxel or more along each axis, not {self.grid}")
        for each in (self.phantoms, self.scans):
            if each.start < 0 or each.stop < each.start:
                raise ModelError(f"seeds are 0 or more, not {each.start} to {each.stop}")
        if not self.patients:
            raise ModelError("there must be a patient: with seeds 0 COUNT, or with scans")
        if self.scans and self.cache is None:
            raise ModelError("patients out of the scan need the folder that it is kept in")

    @property
    def patients(self) -> list[tuple[str, int]]:
        """The source and the seed of every patient."""
        return [(PHANTOM, each) for each in self.phantoms] + [(SCAN, each) for each in self.scans]


@dataclass(frozen=True)
class Outcome:
    """What became of one patient: made now, made before, or an error."""

    name: str
    made: bool = False
    error: str = ""


def write(
    plan: Plan,
    out: Path,
    *,
    workers: int = 1,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Record:
    """Write the corpus and tell what was written.

    Raises
    ------
    ModelError
        The scan cannot be had, a process died, or patients could not be made: each is named with
        its seed, and the others are done.
    """
    if workers < 1:
        raise ModelError(f"workers must be 1 or more, not {workers}")
    if plan.scans and plan.cache:  # once, not in every process
        Shelf(out).text(LICENCE_FILE, scanning.licence(plan.cache))
    outcomes: list[Outcome] = []
    for outcome in each_of(partial(_outcome, plan=plan, out=out), plan.patients, workers):
        outcomes.append(outcome)
        on_progress(len(outcomes), len(plan.patients))
    failed = sorted((each for each in outcomes if each.error), key=lambda each: each.name)
    if failed:
        lines = [f"{each.name}: {each.error}" for each in failed]
        count = f"{len(failed)} of {len(outcomes)} patients could not be made"
        raise ModelError("\n  ".join([f"{count}; the others are done", *lines]))
    counts = _lists(plan, out)
    made = sum(each.made for each in outcomes)
    return {"patients": len(outcomes), "made": made, "before": len(outcomes) - made, **counts}


def patient(source: str, seed: int) -> str:
    """Name a patient; the name tells its seed."""
    return f"{source}-{seed:07d}"


def split_of(source: str, seed: int, plan: Plan) -> str:
    """Give the split of a patient.

    Everyone out of the scan is one real person, and one person is in one split: train.
    """
    if source == SCAN:
        return "train"
    return splits.assign(patient(source, seed), seed=plan.seed)


def asked(case: Case, source: str, seed: int) -> list[Turn]:
    """Ask about a patient in words that follow from the seeds."""
    return list(
        turns(case.truth, np.random.default_rng([20_260_103, seed, case.seed, *source.encode()]))
    )


def _outcome(who: tuple[str, int], *, plan: Plan, out: Path) -> Outcome:
    source, seed = who
    name = patient(source, seed)
    before = _record(out, name)
    files = list(before["files"]) if before else []
    if before and before["made_of"] == _made_of(plan) and _there(out, files):
        return Outcome(name)
    try:
        for each in (
            f"{STAMPS}/{name}.json",
            *files,
        ):  # the stamp first: what is left is no patient
            (out / each).unlink(missing_ok=True)
        _make(who, plan, out)
    except Exception as error:  # the edge of a loop: the others go on, and this one is told
        log.debug("patient.failed", extra={"patient": name}, exc_info=True)
        named = isinstance(error, ModelError)
        why = f"{error}" if named else f"{type(error).__name__}: {error}"
        return Outcome(name, error=f"seed {seed}: {why}")
    return Outcome(name, made=True)


def _make(who: tuple[str, int], plan: Plan, out: Path) -> None:
    source, seed = who
    name = patient(source, seed)
    case = _scan(plan.cache).case(seed) if source == SCAN and plan.cache else Case.make(seed)
    seen, said, shelf = Scene.of(case, plan.grid), asked(case, source, plan.seed), Shelf(out)
    folder = f"{case.modality.lower()}_case/{name}"
    image, told = f"{folder}/Axial_{case.phase.replace(' ', '_')}.npy", report(case)
    shelf.array(image, seen.image[None])
    shelf.text(f"{folder}/text.txt", told)
    _link(shelf, image, f"{rows.CODE}/{name}/image.npy")
    record: dict[str, Any] = {
        "made_of": _made_of(plan),
        "patient": name,
        "source": source,
        "truth": asdict(seen.truth),
        "spacing_mm": case.spacing_mm,
        "image": image,
        "report": told,
        "outlines": _masks(seen, name, shelf),
        "too_small": rows.lost(seen),
        "turns": [asdict(each) | {"where": rows.place(each, seen)} for each in said],
        "rows": _rows(said, seen, image, name),
    }
    if record["rows"][rows.REFSEG]:
        _link(shelf, image, f"{rows.REFSEG}/{name}/ct.npy")
        shelf.array(f"{rows.REFSEG}/{name}/mask.npy", seen.planted[None])
        texts = {each.number: sentence(each) for each in seen.truth.findings if each.number}
        shelf.text(f"{rows.REFSEG}/{name}/text.json", json.dumps(texts))
    record["files"] = list(shelf.names)
    shelf.text(f"{STAMPS}/{name}.json", json.dumps(record))


def _masks(seen: Scene, name: str, shelf: Shelf) -> list[Record]:
    """Keep the mask of each class, and give their entries of the list."""
    entries = []
    for each, mask in rows.outlined(seen):
        path, box = f"{rows.CODE}/{name}/masks/mask_{each.number - 1}.npz", box_of(mask)
        shelf.mask(path, mask[None] if box else ABSENT)
        entries.append({"image": f"{rows.CODE}/{name}/image.npy", "label": path, "box": box})
    return entries


def _rows(said: list[Turn], seen: Scene, image: str, name: str) -> dict[str, list[list[str]]]:
    made: dict[str, list[list[str]]] = {each: [] for each in rows.COLUMNS}
    told, folder = report(seen.truth), f"{rows.REFSEG}/{name}"
    for turn in said:
        table = rows.place(turn, seen)
        if table == rows.REFSEG:
            made[table].append(rows.refseg_row(turn, f"{folder}/ct.npy", f"{folder}/mask.npy"))
        elif table in made:
            made[table].append(rows.vqa_row(turn, image, told))
    return made


@cache
def _scan(cache: Path) -> Scan:
    return Scan.load(cache)  # once in a process


def _link(shelf: Shelf, source: str, name: str) -> None:
    """Give an image a second name, or a copy where the disk has no links."""
    path = shelf.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    try:
        os.link(shelf.folder / source, path)
        shelf.names.append(name)
    except OSError:
        shelf.copy(name, shelf.folder / source)


def _made_of(plan: Plan) -> Record:
    """Say how patients are made, as JSON gives it back."""
    return {
        "version": VERSION,
        "corpus_version": scene.VERSION,
        "grid": list(plan.grid),
        "seed": plan.seed,
    }


def _record(out: Path, name: str) -> Record | None:
    """Read the stamp of a patient; none: it is not done."""
    with suppress(OSError, ValueError):
        record: Record = json.loads((out / STAMPS / f"{name}.json").read_text(encoding="utf-8"))
        if {"made_of", "files"} <= set(record):
            return record
    return None


def _there(out: Path, names: Iterable[str]) -> bool:
    return all((out / each).is_file() for each in names)


# --- lists ----------------------------------------------------------------------------------------


def _lists(plan: Plan, out: Path) -> Record:
    """Write every list, and count what is in them."""
    shelf = Shelf(out)
    split = {patient(*who): split_of(*who, plan) for who in plan.patients}
    counts = {name: sum(each == name for each in split.values()) for name in NAMES}
    reports: dict[str, list[Record]] = {name: [] for name in NAMES}
    outlines: dict[str, list[Record]] = {name: [] for name in NAMES}
    for each in _records(plan, out):
        text = str(Path(each["image"]).with_name("text.txt"))
        reports[split[each["patient"]]].append({"image": each["image"], "text": text})
        outlines[split[each["patient"]]] += each["outlines"]
    shelf.text(f"{rows.CAP}.json", json.dumps(reports, indent=1))
    labels = {str(each.number): each.name for each in rows.classes()}
    shelf.text(
        f"{rows.CODE}/{rows.CODE}.json", json.dumps({"labels": labels, **outlines}, indent=1)
    )
    found = {rows.CAP: sum(map(len, reports.values())), rows.CODE: sum(map(len, outlines.values()))}
    for table in rows.COLUMNS:
        found[table] = sum(_table(table, name, split, plan, out) for name in NAMES)
    lines = (_told(each, split[each["patient"]]) for each in _records(plan, out))
    shelf.text("patients.jsonl", "".join(f"{json.dumps(each)}\n" for each in lines))
    manifest = _manifest(plan) | {"splits": counts, "rows": found}
    shelf.text("manifest.json", json.dumps(manifest, indent=1))
    shelf.text("README.md", _readme(manifest))
    return {"splits": counts, "rows": found}


def _records(plan: Plan, out: Path) -> Iterator[Record]:
    for who in plan.patients:
        record = _record(out, patient(*who))
        if record is None:
            raise ModelError(f"seed {who[1]}: the stamp of {patient(*who)} has gone")
        yield record


def _table(table: str, name: str, split: Mapping[str, str], plan: Plan, out: Path) -> int:
    text, count = io.StringIO(newline=""), 0
    lines = csv.writer(text)
    lines.writerow(rows.COLUMNS[table])
    for each in _records(plan, out):
        if split[each["patient"]] == name:
            lines.writerows(each["rows"][table])
            count += len(each["rows"][table])
    Shelf(out).text(f"{table}_{NAMES[name]}.csv", text.getvalue())
    return count


def _told(record: Record, split: str) -> Record:
    hidden = {"made_of", "files", "rows", "outlines"}
    return {"split": split} | {key: each for key, each in record.items() if key not in hidden}


def _manifest(plan: Plan) -> Record:
    scans = {
        "source": f"{scanning.SDIST} (PyPI), {scanning.IMAGE} and {scanning.LABELS}",
        "sha256": scanning.SDIST_SHA256,
        "licence": f"Apache-2.0, see {LICENCE_FILE}; changed: bent, cropped, re-painted",
    }
    return {
        "what": "the anatomy corpus of LaMed Node: patients that never were, not for clinical use",
        **_made_of(plan),
        "phantoms": {"first": plan.phantoms.start, "count": len(plan.phantoms)},
        "scans": {"first": plan.scans.start, "count": len(plan.scans)}
        | (scans if plan.scans else {}),
        "axes": "foot to head, anterior to posterior, right to left",
        "question_types": rows.TYPES,
        "classes": {str(each.number): each.name for each in rows.classes()},
    }


def _readme(manifest: Record) -> str:
    grid = " x ".join(map(str, manifest["grid"]))
    phantoms, scans = manifest["phantoms"], manifest["scans"]
    real = (
        f"- Patients out of a scan: {scans['count']}, seeds from {scans['first']}. Made of "
        f"{scans['source']},\n  sha256 {scans['sha256']}, {scans['licence']}.\n"
        "  They are one real person, so all of them are in train.\n"
        if scans["count"]
        else ""
    )
    return README.format(
        grid=grid,
        phantoms=f"{phantoms['count']}, seeds from {phantoms['first']}",
        real=real,
        splits=", ".join(f"{count} {name}" for name, count in manifest["splits"].items()),
        rows="\n".join(f"- {name}: {count}" for name, count in manifest["rows"].items()),
        seed=manifest["seed"],
        version=f"{manifest['version']}, corpus version {manifest['corpus_version']}",
    )


README: Final = """# The anatomy corpus

Synthetic CT and MR with everything that is true of them, in the layouts of M3D-Data. Nobody was
scanned so, and nothing diagnostic can be learnt from it: it teaches a small network to look, and
shows whether it does. Not for clinical use.

- Phantoms: {phantoms}. Drawn by the program that wrote this; nobody's images are in them.
{real}- Grid {grid}; image axes foot to head, anterior to posterior, right to left; values 0 to 1.
- Splits by patient, seed {seed}: {splits}.
- Layout version {version}. The same seeds and versions make the same files.

Rows:

{rows}

All paths in lists begin in this folder. `M3D_VQA_*.csv` holds four-choice questions alone;
`M3D_VQA_open_*.csv` those without choices, `M3D_VQA_yn_*.csv` those for yes or no. The M3D-Seg set
is `anatomy`; classes from 101 are findings. An entry whose box is null is absent from the image.

`patients.jsonl` has a line for each patient: what is true of it (phase or sequence, findings with
side and place), the report, and every question in the corpus' own words with the list it went to.
A reader asks for captions, outlines and boxes in words of its own. What is too small for the grid
is in no list: `too_small` names it.
"""
