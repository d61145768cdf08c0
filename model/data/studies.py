"""One raw study of M3D-Cap, -Seg or -RefSeg, and what is made of it.

    cap      <group>/<case>/<plane>/<n>.png, text.txt   -> <group>/<case>/<plane>.npy, text.txt
    seg      <code>/<case>/image.npy, mask_(C, x, y, z).npz, or image and label as NIfTI
                                                -> <code>/<case>/image.npy, masks/mask_<i>.npy|npz
    refseg   <case>/ct.nii.gz, mask.nii.gz, text.json   -> <case>/ct.npy, mask.npy, text.json

Images are (1, D, H, W) float32 in 0..1. In `reference` mode values, shapes and types are those
of the reference's preparation. In `canonical` mode every NIfTI volume lies slices foot to head,
rows anterior to posterior, columns right to left, and goes onto the grid as the network reads a
study; masks of M3D-Seg are boolean ``.npz``, those of M3D-RefSeg labels in ``.npy``. Arrays of
M3D-Seg say nothing of their orientation, so canonical needs `axes` for them, or NIfTI. Pictures
of M3D-Cap stay as they are displayed: which way their slices go is not known, and is not guessed.

Knows one study; `prepare` runs many.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from model.errors import ModelError
from model.preprocess import DIMENSIONS, Shape

from . import grid, raw
from .grid import Canonical, Masks
from .published import NAMES, content, listing, located
from .sample import DataError
from .seg import box_of
from .shelf import Shelf

Kind = Literal["cap", "seg", "refseg"]
Mode = Literal["reference", "canonical"]
SPLITS: Final = ("train", "test")
NIFTI: Final = (".nii", ".nii.gz")
Labels = NDArray[np.uint16]
GRID: Final = (32, 256, 256)
LETTERS: Final = ({"L", "R"}, {"P", "A"}, {"S", "I"})


@dataclass(frozen=True)
class Options:
    """How to prepare.

    Parameters
    ----------
    mode
        Equal to the reference, or canonical.
    masks
        How canonical masks are resized: by the nearest voxel, or each label by its share.
    window
        Level and width in HU for canonical NIfTI; None: percentiles 0.5 and 99.5.
    axes
        How the arrays of M3D-Seg lie, such as RAS: the way each axis goes.
    grid
        Depth, height, width.
    """

    mode: Mode = "canonical"
    masks: Masks = "linear"
    window: tuple[float, float] | None = None
    axes: str | None = None
    grid: Shape = GRID

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode) or self.masks not in get_args(Masks):
            known = f"{get_args(Mode)} and {get_args(Masks)}"
            raise ModelError(f"mode and masks must be of {known}, not {self.mode}, {self.masks}")
        if self.axes is not None:
            letters = [pair for each in self.axes for pair in LETTERS if each in pair]
            if len(self.axes) != DIMENSIONS or sorted(map(sorted, letters)) != sorted(
                map(sorted, LETTERS)
            ):
                raise ModelError(f"axes must name each direction once, as RAS, not {self.axes!r}")
        if self.mode == "reference" and (self.window or self.axes):
            raise ModelError("a window and axes are for canonical mode; the reference has neither")


@dataclass(frozen=True)
class Study:
    """One study: its folder, its name below source and target, and what it is read from.

    `classes` are the numbers that labels of M3D-Seg may have, `split` the list it stands in.
    """

    kind: Kind
    name: str
    folder: Path
    sources: tuple[Path, ...]
    classes: tuple[int, ...] = ()
    split: str = ""


def studies(kind: Kind, source: Path) -> list[Study]:
    """Find the studies of a raw download, in the order of its lists or names.

    Raises
    ------
    DataError
        There is none, or a list cannot be read.
    """
    found = list(FIND[kind](source))
    if not found:
        raise DataError(source, None, f"studies of {kind}", "none")
    names = Counter(each.name for each in found)
    for name, count in names.items():
        if count > 1:
            raise DataError(source, None, "a folder for each study", f"{count} in {name}")
        if not (source / name).resolve().is_relative_to(source.resolve()):
            raise DataError(source, None, "studies below this folder", name)
    return found


def make(study: Study, shelf: Shelf, options: Options) -> dict[str, Any]:
    """Prepare one study; tells its entries for the lists and what was left out."""
    return MAKE[study.kind](study, shelf, options)


def _folders(source: Path) -> Iterator[Path]:
    if not source.is_dir():
        raise DataError(source, None, "a folder", "none")
    for each in sorted(source.iterdir()):
        if each.is_dir() and not each.name.startswith("."):
            yield each


def _find_cap(source: Path) -> Iterator[Study]:
    for group in _folders(source):
        for case in _folders(group):
            files = tuple(sorted(each for each in case.rglob("*") if each.is_file()))
            yield Study("cap", f"{group.name}/{case.name}", case, files)


def _find_refseg(source: Path) -> Iterator[Study]:
    for case in _folders(source):
        files = (case / "ct.nii.gz", case / "mask.nii.gz")
        text = case / "text.json"
        yield Study("refseg", case.name, case, (*files, text) if text.exists() else files)


def _find_seg(source: Path) -> Iterator[Study]:
    for folder in _folders(source):
        path = folder / f"{folder.name}.json"
        held = content(path, root=source)
        numbers = [int(each) for each in held.get("labels") or () if str(each).isdecimal()]
        classes = tuple(sorted(each for each in numbers if each))
        for split in SPLITS:
            if any(name in held for name in NAMES.get(split, (split,))):
                for row in listing(path, split, root=source):
                    image = located(source, row.text("image"), folder.name)
                    label = located(source, row.text("label"), folder.name)
                    name = Path(os.path.relpath(image.parent, source)).as_posix()
                    yield Study("seg", name, image.parent, (image, label), classes, split)


def _make_cap(study: Study, shelf: Shelf, options: Options) -> dict[str, Any]:
    left_out = dict[str, list[str]]()
    for each in sorted(study.folder.iterdir()):
        if each.suffix == ".txt":
            shelf.text(each.name, raw.report(each.read_text(encoding="utf-8")))
        elif each.is_dir():
            stack, name = raw.pictures(each), f"{raw.without_accents(each.name)}.npy"
            if name in shelf.names:
                raise DataError(each, None, "another name for each plane", name)
            shelf.array(name, _picture(stack.voxels, options))
            if stack.left_out:
                left_out[each.name] = list(stack.left_out)
    if not shelf.names:
        raise DataError(study.folder, None, "folders of pictures and a report", "nothing")
    return {"left_out": left_out}


def _picture(voxels: grid.Image, options: Options) -> grid.Image:
    if options.mode == "reference":
        return grid.reference_pictures(voxels, options.grid)
    if options.window:
        raise ModelError("pictures have no HU that a window could be laid on")
    return Canonical.of(voxels, options.grid).image


def _make_refseg(study: Study, shelf: Shelf, options: Options) -> dict[str, Any]:
    image, mask, *texts = study.sources
    for each in (image, mask):
        if not each.exists():
            raise DataError(each, None, "a NIfTI file", "none")
    made, labels, found, told = _referred(image, mask, options)
    shelf.array("ct.npy", made)
    shelf.array("mask.npy", found)
    for each in texts:
        shelf.copy(each.name, each)
    return told | {"left_out": [int(each) for each in np.setdiff1d(labels, found) if each]}


def _referred(
    image: Path, mask: Path, options: Options
) -> tuple[grid.Image, Labels, NDArray[np.generic], dict[str, Any]]:
    """Give the image, its labels before and after, and what to tell."""
    if options.mode == "canonical":
        canonical, labels, told = _scan(image, mask, options)
        return canonical.image, labels, canonical.labels(labels, options.masks), told
    voxels, labels = raw.nifti(image).voxels, _labels(mask, raw.nifti(mask).voxels)
    if voxels.shape != labels.shape:
        raise DataError(mask, None, f"shape {voxels.shape}", f"{labels.shape}")
    made, found = grid.reference_scan(voxels, labels, options.grid)
    return made, labels, found, {}


def _make_seg(study: Study, shelf: Shelf, options: Options) -> dict[str, Any]:
    image, mask = study.sources
    scan = image.name.endswith(NIFTI)
    if options.mode == "reference":
        if scan:
            raise DataError(image, None, "image.npy in reference mode", image.name)
        return _reference_seg(image, mask, shelf, options)
    return (_canonical_nifti if scan else _canonical_array)(study, shelf, options)


def _canonical_nifti(study: Study, shelf: Shelf, options: Options) -> dict[str, Any]:
    image, mask = study.sources
    canonical, labels, told = _scan(image, mask, options)
    known = {0, *study.classes}
    strange = set(map(int, np.unique(labels))) - known
    if strange:
        raise DataError(mask, None, f"labels of {sorted(known)}", f"{sorted(strange)}")
    found = canonical.labels(labels, options.masks)
    pairs = ((each - 1, labels == each, found == each) for each in study.classes)
    return told | _keep(pairs, canonical, shelf)


def _canonical_array(study: Study, shelf: Shelf, options: Options) -> dict[str, Any]:
    image, mask = study.sources
    axes = options.axes
    if axes is None:
        raise DataError(image, None, "NIfTI, or axes that say how the array lies", image.name)
    voxels = raw.array(image)
    canonical = Canonical.of(raw.oriented(voxels, axes), options.grid, options.window)
    turned = (raw.oriented(each, axes) for each in raw.classes(mask, voxels.shape))
    pairs = (
        (number, each, canonical.mask(each, options.masks)) for number, each in enumerate(turned)
    )
    return _keep(pairs, canonical, shelf)


def _keep(
    pairs: Iterator[tuple[int, NDArray[np.bool_], NDArray[np.bool_]]],
    canonical: Canonical,
    shelf: Shelf,
) -> dict[str, Any]:
    """Keep each class; what is there but too small for the grid is neither present nor absent."""
    shelf.array("image.npy", canonical.image)
    entries, lost = [], []
    for number, before, after in pairs:
        name, box = f"masks/mask_{number}.npz", box_of(after)
        if box is None and before.any():
            lost.append(number)
            continue
        shelf.mask(name, after if box else np.zeros((1, 1, 1, 1), dtype=np.bool_))
        entries.append({"image": "image.npy", "label": name, "box": box})
    return {"entries": entries, "left_out": lost}


def _reference_seg(image: Path, mask: Path, shelf: Shelf, options: Options) -> dict[str, Any]:
    voxels = raw.array(image)
    made, box = grid.reference_classes(voxels, options.grid)
    shelf.array("image.npy", made)
    entries = []
    for number, each in enumerate(raw.classes(mask, voxels.shape)):
        name = f"masks/mask_{number}.npy"
        shelf.array(name, grid.reference_class(each, box, options.grid))
        entries.append({"image": "image.npy", "label": name})
    return {"entries": entries}


def _scan(image: Path, mask: Path, options: Options) -> tuple[Canonical, Labels, dict[str, Any]]:
    """Read an image and its labels, both turned to the canonical axes."""
    scan, labels = raw.placed(image).turned(), raw.placed(mask).turned()
    raw.same_place(mask, labels, scan)
    made = Canonical.of(scan.voxels, options.grid, options.window)
    place = made.placement
    told = {
        "axes": raw.CANONICAL,
        "spacing_mm": scan.spacing_mm,
        "cut": {"shape": place.shape, "start": place.start, "stop": place.stop},
    }
    return made, _labels(mask, labels.voxels), told


def _labels(path: Path, voxels: NDArray[Any]) -> Labels:
    numbers = np.unique(voxels)
    # A NaN is no number from 0 to anywhere.
    if not (numbers[0] >= 0 and numbers[-1] <= np.iinfo(np.uint16).max):
        raise DataError(path, None, "labels of 16 bits", f"{numbers[0]} to {numbers[-1]}")
    if np.any(numbers != numbers.astype(np.uint16)):
        raise DataError(path, None, "whole numbers as labels", f"{numbers[:9]}")
    return voxels.astype(np.uint16)


FIND: Final[Mapping[Kind, Callable[[Path], Iterator[Study]]]] = {
    "cap": _find_cap,
    "seg": _find_seg,
    "refseg": _find_refseg,
}
MAKE: Final[Mapping[Kind, Callable[[Study, Shelf, Options], dict[str, Any]]]] = {
    "cap": _make_cap,
    "seg": _make_seg,
    "refseg": _make_refseg,
}
