"""How images vary in training, and what must not: no mirror under words that name a side.

Words are never changed, so an image is not mirrored or turned along an axis that its words speak
of. Knows MONAI's transforms, scenes and samples. Of two that get the same random state both are the
same.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import radians
from typing import Any, Final

import numpy as np
from monai.transforms.compose import Compose
from monai.transforms.intensity.dictionary import (
    RandAdjustContrastd,
    RandGaussianNoised,
    RandScaleIntensityd,
    RandShiftIntensityd,
)
from monai.transforms.spatial.dictionary import RandAffined, RandFlipd, RandRotate90d
from numpy.typing import NDArray

from model.data.corpus.scene import Scene
from model.data.sample import Sample
from model.errors import ModelError

Random = np.random.Generator
Arrays = dict[str, NDArray[Any]]
UP_AND_DOWN: Final = re.compile(
    r"\b((postero|antero|infero|supero)?(superior|inferior)(ly)?|upper(most)?|lower(most)?|top|bottom"
    r"|above|below|beneath|apex|apices|apical|bas(e|es|al|ilar)|cranial(ly)?|cephal\w+|caudal(ly)?"
    r"|craniocaudal|supra\w+|infra\w+|sub(phrenic|diaphragmatic|hepatic|pulmonic|carinal)"
    r"|ascending|descending|proximal(ly)?|distal(ly)?|dome|head|feet|foot)\b",
    re.IGNORECASE,
)
FRONT_AND_BACK: Final = re.compile(
    r"\b((supero|infero|medio|latero)?(anterior|posterior)(ly)?|(antero|postero)\w+|ventral(ly)?"
    r"|dorsal(ly)?|front|back|behind|retro\w+|pre(vertebral|sacral|aortic|carinal)|frontal"
    r"|occipital|dependent|supine|prone|layering)\b",
    re.IGNORECASE,
)
# The axis of each: slices, rows, columns of pictures as they are displayed.
PLANES: Final = {
    "axial": {UP_AND_DOWN: 0, FRONT_AND_BACK: 1},
    "coronal": {UP_AND_DOWN: 1, FRONT_AND_BACK: 0},
    "sagittal": {UP_AND_DOWN: 1, FRONT_AND_BACK: 2},
}
AXES: Final = (0, 1, 2)
IN_PLANE: Final = (1, 2)


@dataclass(frozen=True)
class Augment:
    """What varies: `none`, `mild` or `reference`.

    `mild` is for scenes: places and intensities a little, no mirror. `reference` is for samples,
    what the paper's training did: turns by 90 degrees, mirrors, intensities; but no turns and no
    mirrors where words name a side or a box, nor along an axis that words speak of.
    """

    kind: str = "none"

    def __call__(self, scene: Scene, random: Random) -> Scene:
        """Vary a scene; organs and findings move with the image."""
        if self.kind == "none":
            return scene
        if self.kind != "mild":
            raise ModelError(f"scenes vary none or mild, not {self.kind!r}")
        arrays: Arrays = {
            "image": scene.image[None],
            "labels": scene.labels[None],
            "planted": scene.planted[None],
        }
        moved = self._run(self._mild, arrays, random)
        return replace(
            scene,
            image=np.clip(moved["image"][0], 0, 1).astype(np.float32),
            labels=moved["labels"][0].astype(np.uint8),
            planted=moved["planted"][0].astype(np.uint8),
        )

    def samples(
        self,
        image: NDArray[np.float32],
        masks: Sequence[NDArray[np.bool_] | None],
        group: Sequence[Sample],
        random: Random,
    ) -> tuple[NDArray[np.float32], list[NDArray[np.bool_] | None]]:
        """Vary a sample's image (1, D, H, W) and its masks (D, H, W)."""
        if self.kind == "none":
            return image, list(masks)
        if self.kind != "reference":
            raise ModelError(f"samples vary none or reference, not {self.kind!r}")
        there = [each for each in masks if each is not None]
        arrays: Arrays = {
            "image": image,
            "masks": np.stack([*there, np.zeros(image.shape[1:], bool)]),
        }
        free = free_axes(group)
        if free:
            arrays = self._run(_turns(free), arrays, random)
        arrays = self._run(self._intensities, arrays, random)
        moved = iter(arrays["masks"])
        return (
            np.ascontiguousarray(arrays["image"], np.float32),
            [None if each is None else np.ascontiguousarray(next(moved) > 0) for each in masks],
        )

    def _run(self, transform: Compose, arrays: Arrays, random: Random) -> Arrays:
        transform.set_random_state(seed=int(random.integers(1 << 31)))
        return {key: np.asarray(value) for key, value in transform(arrays).items()}

    @cached_property
    def _mild(self) -> Compose:
        keys = ("image", "labels", "planted")
        small = radians(6)
        return Compose(
            [
                RandAffined(
                    keys,
                    prob=0.8,
                    rotate_range=(small, small, small),
                    translate_range=(1.5, 4, 4),
                    scale_range=(0.1, 0.1, 0.1),
                    mode=("bilinear", "nearest", "nearest"),
                    padding_mode="zeros",
                ),
                RandAdjustContrastd("image", prob=0.5, gamma=(0.75, 1.35)),
                RandScaleIntensityd("image", factors=0.12, prob=0.5),
                RandShiftIntensityd("image", offsets=0.05, prob=0.3),
                RandGaussianNoised("image", prob=0.4, std=0.04),
            ]
        )

    @cached_property
    def _intensities(self) -> Compose:
        return Compose(
            [
                RandScaleIntensityd("image", factors=0.1, prob=0.5),
                RandShiftIntensityd("image", offsets=0.1, prob=0.5),
            ]
        )


def free_axes(group: Sequence[Sample]) -> tuple[int, ...]:
    """Tell along which axes an image may be mirrored under all that is said about it.

    Which axis a word speaks of is known by the plane that the image's file names; where it names
    none, any word of place holds all axes.
    """
    if any(each.sided or each.box for each in group):
        return ()
    text = " ".join(f"{each.question} {each.answer}" for each in group)
    plane = re.match(r"[a-z]+", group[0].image.stem.lower())
    axes = PLANES.get(plane[0] if plane else "", {})
    spoken = [words for words in (UP_AND_DOWN, FRONT_AND_BACK) if words.search(text)]
    if any(words not in axes for words in spoken):
        return ()
    return tuple(axis for axis in AXES if axis not in {axes[words] for words in spoken})


def _turns(free: Sequence[int]) -> Compose:
    keys = ("image", "masks")
    turn = [RandRotate90d(keys, prob=0.5, spatial_axes=IN_PLANE)] if {*IN_PLANE} <= {*free} else []
    return Compose([*turn, *(RandFlipd(keys, prob=0.1, spatial_axis=axis) for axis in free)])
