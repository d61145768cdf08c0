"""How images vary in training, and what must not: no mirror under words that name a side.

Knows MONAI's transforms, scenes and samples. Of two that get the same random state both are the
same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import radians
from typing import Any

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

Random = np.random.Generator


@dataclass(frozen=True)
class Augment:
    """What varies: `none`, `mild` (places and intensities a little, no mirror) or `reference`.

    `reference` is what the paper's training did (turns by 90 degrees, mirrors, intensities), with
    turns and mirrors left out where words name a side or a box.
    """

    kind: str = "none"

    def __call__(self, scene: Scene, random: Random) -> Scene:
        """Vary a scene; organs and findings move with the image."""
        if self.kind == "none":
            return scene
        arrays: dict[str, NDArray[Any]] = {
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
        there = [each for each in masks if each is not None]
        arrays = {"image": image, "masks": np.stack([*there, np.zeros(image.shape[1:], bool)])}
        if not any(each.sided or each.box for each in group):
            arrays = self._run(self._turns, arrays, random)
        arrays = self._run(self._intensities, arrays, random)
        moved = iter(arrays["masks"])
        return (
            np.ascontiguousarray(arrays["image"], np.float32),
            [None if each is None else np.ascontiguousarray(next(moved) > 0) for each in masks],
        )

    def _run(
        self, transform: Compose, arrays: dict[str, NDArray[Any]], random: Random
    ) -> dict[str, NDArray[Any]]:
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
    def _turns(self) -> Compose:
        keys = ("image", "masks")
        return Compose(
            [
                RandRotate90d(keys, prob=0.5, spatial_axes=(1, 2)),
                *(RandFlipd(keys, prob=0.1, spatial_axis=axis) for axis in range(3)),
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
