"""Read M3D-Seg, prepared: masks of named classes, and what can be asked about them.

    <code>/<code>.json                {"labels": {"1": name, ...}, "train": [...], "test": [...]}
                                      of {"image": ..., "label": ...} and, from our preparation,
                                      "box": [z0, y0, x0, z1, y1, x1] or null
    <code>/<case>/image.npy           one prepared image
    <code>/<case>/masks/mask_<i>.npy  a boolean mask (or .npz, as "mask") of class i + 1

A class whose mask is empty is absent: its answers say so. Without "box" in the list, every mask
is read once to know. Knows the layout; the words are those of `prompts` and `terms`.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from . import prompts
from .prompts import Turn
from .published import Row, case, content, gather, listing, located
from .sample import BOX_NUMBERS, Box, DataError, Sample, Task, load_array
from .terms import Term, corrected, term

TASKS: Final = (
    Task.SEMANTIC_SEGMENTATION,
    Task.REFERRING_SEGMENTATION,
    Task.REC,
    Task.REG,
    Task.OPEN_VQA,
)
MASK: Final = re.compile(r"mask_(\d+)\.np[yz]$")
YES_NO: Final = ("Yes", "No")
OTHER_AXES: Final = ((1, 2), (0, 2), (0, 1))


@dataclass(frozen=True)
class Entry:
    """One class of one image; without a box it is absent, or its mask is `lost`."""

    row: Row
    term: Term
    image: Path
    mask: Path
    patient: str
    box: Box | None
    lost: bool


def read(
    root: Path,
    code: str,
    split: str,
    *,
    tasks: Collection[Task] = TASKS,
    seed: int = 0,
    skip: bool = False,
) -> list[Sample]:
    """Read one split of the set `code`; OPEN_VQA among the `tasks` asks whether a class is there.

    `seed` chooses the words. With `skip`, what cannot be used is left out, and the log says so.

    Raises
    ------
    DataError
        The list or a row cannot be used, a class has no name, one image has two masks of one
        structure, or files are missing.
    """
    path = root / code / f"{code}.json"
    rows, names = listing(path, split, root=root), _names(path, code, root)
    known = _known(rows, root, code, names)
    present: dict[Path, list[Entry]] = defaultdict(list)
    for each in known.values():
        if each.box:
            present[each.image].append(each)

    def samples(row: Row) -> Iterator[Sample]:
        entry = known.get(row.id) or _entry(row, root, code, names)
        if entry.lost:
            yield _outline(entry, seed)  # it names the file, to be counted with the others
        elif not _repeated(entry, present[entry.image]):
            yield from _asked(entry, present[entry.image], tasks, seed)

    return gather(rows, samples, skip=skip)


def box_of(mask: NDArray[np.bool_]) -> Box | None:
    """Give the box of a mask (..., D, H, W) as `Sample.box`; nothing for an empty mask."""
    voxels = mask.reshape(mask.shape[-3:])
    if not voxels.any():
        return None
    (z0, z1), (y0, y1), (x0, x1) = (_ends(voxels, others) for others in OTHER_AXES)
    return z0, y0, x0, z1, y1, x1


def _ends(voxels: NDArray[np.bool_], others: tuple[int, int]) -> tuple[float, float]:
    inside = np.asarray(voxels.any(axis=others))
    first, last = np.flatnonzero(inside)[[0, -1]] / len(inside)
    return float(first), float(last)


def _known(
    rows: Sequence[Row], root: Path, code: str, names: Mapping[int, str]
) -> dict[str, Entry]:
    known: dict[str, Entry] = {}
    for row in rows:
        with suppress(DataError):  # it is read again later, where errors are gathered
            known[row.id] = _entry(row, root, code, names)
    return known


def _names(path: Path, code: str, root: Path) -> dict[int, str]:
    labels = content(path, root=root).get("labels")
    if not isinstance(labels, dict) or not all(str(each).isdecimal() for each in labels):
        raise DataError(path, None, '"labels": {number: name} of the classes', repr(labels))
    return {int(each): corrected(code, int(each), str(name)) for each, name in labels.items()}


def _entry(row: Row, root: Path, code: str, names: Mapping[int, str]) -> Entry:
    image = located(root, row.text("image"), code)
    mask = located(root, row.text("label"), code)
    match = MASK.search(mask.name)
    if match is None:
        raise row.error("a mask named mask_<class>.npy", mask.name)
    number = int(match[1]) + 1
    if number not in names:
        raise row.error(f"a class of {sorted(names)}", str(number))
    lost = "box" not in row.cells and not mask.exists()
    box = None if lost else _box(row, mask)
    return Entry(row, term(names[number]), image, mask, case(str(image)), box, lost)


def _box(row: Row, mask: Path) -> Box | None:
    if "box" not in row.cells:
        return box_of(load_array(mask, row.error) > 0)
    found = cast(list[float] | None, row.cells["box"])
    if found is None:
        return None
    try:
        z0, y0, x0, z1, y1, x1 = map(float, found)
    except (TypeError, ValueError) as error:
        raise row.error(f"a box of {BOX_NUMBERS} numbers or null", repr(found)) from error
    return z0, y0, x0, z1, y1, x1


def _repeated(entry: Entry, present: Sequence[Entry]) -> bool:
    """Whether the structure is there under another of its names, so that this mask says nothing.

    A set may spell one class in several ways, most of them empty in a case: it is not absent.
    """
    same = [each for each in present if each.term == entry.term and each.row != entry.row]
    if same and entry.box:
        raise entry.row.error(f"one mask of {entry.term.the}", f"another in row {same[0].row.id}")
    return bool(same)


def _asked(
    entry: Entry, present: Sequence[Entry], tasks: Collection[Task], seed: int
) -> Iterator[Sample]:
    if Task.SEMANTIC_SEGMENTATION in tasks:
        yield _outline(entry, seed)
    if Task.REFERRING_SEGMENTATION in tasks and entry.term.descriptions:
        yield _outline(entry, seed, described=True)
    if Task.REC in tasks:
        yield from _rec(entry, seed)
    if Task.REG in tasks:
        yield from _reg(entry, present, seed)
    if Task.OPEN_VQA in tasks:
        absent = entry.box is None
        turn = prompts.presence(entry.term, seed, entry.row.id, absent=absent)
        yield _sample(entry, Task.OPEN_VQA, turn, "presence")


def _outline(entry: Entry, seed: int, *, described: bool = False) -> Sample:
    absent = entry.box is None and not entry.lost
    ask = prompts.referring if described else prompts.segmentation
    task = Task.REFERRING_SEGMENTATION if described else Task.SEMANTIC_SEGMENTATION
    turn = ask(entry.term, seed, entry.row.id, absent=absent)
    mask = None if absent else entry.mask
    return _sample(entry, task, turn, entry.term.name, mask=mask, box=entry.box)


def _rec(entry: Entry, seed: int) -> Iterator[Sample]:
    for described in (False, True) if entry.term.descriptions else (False,):
        turn = prompts.rec(entry.term, entry.box, seed, entry.row.id, described=described)
        yield _sample(entry, Task.REC, turn, _kind(described=described), box=entry.box)


def _reg(entry: Entry, present: Sequence[Entry], seed: int) -> Iterator[Sample]:
    if entry.box is None:
        if not present:  # no box that could be asked about
            return
        other = prompts.pick(present, "other", seed, entry.row.id)
        if other.box:
            turn = prompts.reg_absent(entry.term, other.term, other.box, seed, entry.row.id)
            yield _sample(entry, Task.REG, turn, "absent")
        return
    for explained in (False, True) if entry.term.descriptions else (False,):
        turn = prompts.reg(entry.term, entry.box, seed, entry.row.id, explained=explained)
        yield _sample(entry, Task.REG, turn, _kind(described=explained), box=entry.box)


def _kind(*, described: bool) -> str:
    return "description" if described else "word"


def _sample(
    entry: Entry,
    task: Task,
    turn: Turn,
    kind: str,
    *,
    mask: Path | None = None,
    box: Box | None = None,
) -> Sample:
    return Sample(
        id=f"{entry.row.id}:{task}" + (f":{kind}" if task in (Task.REC, Task.REG) else ""),
        task=task,
        image=entry.image,
        question=turn.question,
        answer=turn.answer,
        patient=entry.patient,
        kind=kind,
        choices=YES_NO if task is Task.OPEN_VQA else (),
        box=box,
        mask=mask,
        absent=entry.box is None and mask is None,
        side=entry.term.side,
    )
