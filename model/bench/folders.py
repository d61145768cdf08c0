"""Prepared folders of M3D-Data as a benchmark, in the layouts they are published in.

Knows the readers of `model.data`. Everything is judged on the network's grid, the only one that
the published files have; how large its voxels are they do not say.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from model.data import cap, refseg, seg, vqa
from model.data.sample import Sample, Task, load_image, load_mask
from model.errors import ModelError
from model.preprocess import Placement, Prepared, Shape

from .geometry import Mask
from .items import OUTLINED, Item, Subject, chosen

KINDS: Final = ("cap", "vqa-closed", "vqa-open", "vqa-yes-no", "seg", "refseg")
_TABLES: Final[Mapping[str, Callable[..., list[Sample]]]] = {
    "vqa-closed": vqa.read_closed,
    "vqa-open": vqa.read_open,
    "vqa-yes-no": vqa.read_yes_no,
    "refseg": refseg.read,
}


@dataclass(frozen=True)
class Part:
    """One list of M3D-Data: its kind, its file, the folder its paths begin in, and the split."""

    kind: str
    file: Path
    root: Path
    split: str = "test"

    def read(self) -> list[Sample]:
        """Read its samples.

        Raises
        ------
        ModelError
            There is no such kind, or the reader says what is wrong with a row.
        """
        if self.kind not in KINDS:
            raise ModelError(f"a folder is of {', '.join(KINDS)}, not {self.kind!r}")
        if self.kind == "cap":
            return cap.read(self.file, self.split, root=self.root)
        if self.kind == "seg":
            return seg.read(self.root, self.file.stem, self.split)
        return _TABLES[self.kind](self.file, root=self.root)


@dataclass(frozen=True)
class Folders:
    """The images of some lists, `count` of them at most, drawn with a seed."""

    parts: Sequence[Part]
    grid: Shape
    count: int
    limits: Mapping[Task, int]
    seed: int = 0

    def __len__(self) -> int:
        return len(self._images)

    @property
    def told(self) -> dict[str, Any]:
        """Say which lists, and of what bytes."""
        return {
            "folders": [
                {"kind": each.kind, "split": each.split, "sha256": _digest(each.file)}
                for each in self.parts
            ],
            "images": [self.count, self.seed],
            "grid": list(self.grid),
            "limits": {task.value: count for task, count in self.limits.items()},
        }

    def name(self, number: int) -> str:
        """Give the path of an image, which is the same on every machine below its root."""
        return self._images[number][0]

    def subject(self, number: int) -> Subject:
        """Load an image and choose what is asked."""
        name, samples = self._images[number]
        image = load_image(samples[0][1])
        shape = image.shape[1:]
        if shape != self.grid:
            raise samples[0][1].error(f"an image of {self.grid}", f"{shape}")
        turned = [samples[index] for index in _order(len(samples), self.seed, number)]
        kept = chosen(turned, lambda each: _about(each[1]), self.limits, number)
        report = next((each.answer for _, each in samples if each.task is Task.CAPTION), "")
        zero: Shape = (0, 0, 0)
        return Subject(
            id=name,
            patient=samples[0][1].patient,
            prepared=Prepared(torch.from_numpy(image)[None], Placement(self.grid, zero, self.grid)),
            items=tuple(_item(each, name, kind) for kind, each in kept),
            masks={
                _id(kind, each): _mask(each, self.grid)
                for kind, each in kept
                if each.task in OUTLINED
            },
            spacing_mm=None,
            report=report,
        )

    @cached_property
    def _images(self) -> list[tuple[str, list[tuple[str, Sample]]]]:
        groups: dict[str, list[tuple[str, Sample]]] = {}
        for part in self.parts:
            for each in part.read():
                path = each.image
                name = path.relative_to(part.root) if path.is_relative_to(part.root) else path
                groups.setdefault(name.as_posix(), []).append((part.kind, each))
        named = sorted(groups.items())
        drawn = _order(len(named), self.seed, -1)[: self.count]
        return [named[index] for index in sorted(drawn)]


def _order(count: int, *seed: int) -> list[int]:
    random = np.random.default_rng([1 + each for each in seed])
    return [int(each) for each in random.permutation(count)]


def _about(sample: Sample) -> tuple[Task, str, bool]:
    return sample.task, sample.kind, sample.absent


def _item(sample: Sample, subject: str, kind: str) -> Item:
    placed = sample.task in OUTLINED
    groups = {
        "set": kind,
        "kind": "" if placed else sample.kind,
        "target": ("lesion" if kind == "refseg" else "organ") if placed else "",
        "organ": sample.kind if placed and kind == "seg" else "",
        "side": sample.side,
    }
    return Item.of(sample, _id(kind, sample), subject, groups)


def _id(kind: str, sample: Sample) -> str:
    """Tell the two readings of a row apart: it is a closed and an open question."""
    return f"{kind}:{sample.id}"


def _mask(sample: Sample, grid: Shape) -> Mask:
    """Load a true mask; nothing of what is absent."""
    if sample.mask is None:
        return np.zeros(grid, bool)
    mask: Mask = load_mask(sample)[0]
    if mask.shape != grid:
        raise sample.error(f"a mask of {grid}", f"{mask.shape}")
    return mask


def _digest(file: Path) -> str:
    try:
        return sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}") from error
