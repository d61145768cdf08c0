"""Arrays onto the network's grid: intensities to 0..1, crop to the foreground, resize.

Knows (slices, rows, columns) and nothing of patients. `reference_*` give what the reference's
preparation gives; `Canonical` goes the way of `model.preprocess`, which is how the
network reads a study, and takes masks along.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
from monai.transforms.utils import generate_spatial_bounding_box
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from model.errors import ModelError
from model.preprocess import Placement, Shape, prepare

PERCENTILES: Final = (0.5, 99.5)
TINY: Final = 1e-8  # what the reference divides a flat image by
HALF: Final = 0.5

Image = NDArray[np.float32]
Masks = Literal["nearest", "linear"]


@dataclass(frozen=True)
class Canonical:
    """One image on the grid, (1, D, H, W) float32 0..1, and the box of voxels it was cut from."""

    image: Image
    placement: Placement

    @classmethod
    def of(
        cls, voxels: NDArray[Any], grid: Shape, window: tuple[float, float] | None = None
    ) -> "Canonical":
        """Window, or clip to the percentiles of units-free images; scale, crop, resize."""
        made = prepare(voxels, grid, window=window, percentiles=None if window else PERCENTILES)
        return cls(made.image[0].numpy(), made.placement)

    def mask(self, mask: NDArray[np.bool_], masks: Masks) -> NDArray[np.bool_]:
        """Take a mask along, (1, D, H, W)."""
        inside = cut(mask, self.placement.start, self.placement.stop)
        if masks == "nearest":
            return resized(inside, self.image.shape[1:], "nearest-exact") > 0
        return resized(inside, self.image.shape[1:], "trilinear") > HALF

    def labels(self, labels: NDArray[np.integer[Any]], masks: Masks) -> NDArray[np.uint16]:
        """Take a map of labels along, (1, D, H, W); no voxel gets a label between two."""
        inside = cut(labels, self.placement.start, self.placement.stop)
        size = self.image.shape[1:]
        if masks == "nearest":
            return resized(inside, size, "nearest-exact").astype(np.uint16)
        best = np.zeros((1, *size), dtype=np.float32)
        found = np.zeros((1, *size), dtype=np.uint16)
        for label in np.unique(inside):  # from 0: a tie goes to the background
            share = resized(inside == label, size, "trilinear")
            found[share > best] = label
            best = np.maximum(best, share)
        return found


def reference_pictures(voxels: Image, grid: Shape) -> Image:
    """M3D-Cap: a stack of pictures (slices, rows, columns), by its range."""
    return _image(_ranged(voxels), grid)


def reference_classes(
    voxels: NDArray[Any], grid: Shape
) -> tuple[Image, tuple[Sequence[int], Sequence[int]]]:
    """M3D-Seg: (x, y, z) turned to (z, y, x), by its range; and the box to cut masks by."""
    scaled = _ranged(np.swapaxes(voxels, 0, 2))
    return _image(scaled, grid), _foreground(scaled)


def reference_class(
    mask: NDArray[np.bool_], box: tuple[Sequence[int], Sequence[int]], grid: Shape
) -> NDArray[np.generic]:
    """M3D-Seg: one class, (1, D, H, W) boolean; an empty one is a single zero."""
    found = resized(cut(np.swapaxes(mask, 0, 2), *box), grid, "nearest") > 0
    return found if found.any() else np.zeros((1, 1, 1, 1), dtype=np.int8)


def reference_scan(
    voxels: NDArray[Any], labels: NDArray[Any], grid: Shape
) -> tuple[Image, NDArray[np.float32]]:
    """M3D-RefSeg: (x, y, z) turned to (z, x, y), by its percentiles; and its labels."""
    turned = np.asarray(voxels, dtype=np.float64).transpose(2, 0, 1)
    low, high = np.percentile(turned, PERCENTILES)
    if high <= low:
        raise ModelError(f"an image has contrast; its percentiles are {low:g} and {high:g}")
    scaled = np.clip((turned - low) / (high - low), 0, 1).astype(np.float32)
    inside = cut(np.asarray(labels).transpose(2, 0, 1), *_foreground(scaled))
    return _image(scaled, grid), resized(inside, grid, "nearest")


def cut(array: NDArray[Any], start: Sequence[int], stop: Sequence[int]) -> NDArray[Any]:
    """Cut the box [start, stop) out."""
    return array[tuple(map(slice, start, stop))]


def resized(array: NDArray[Any], size: Sequence[int], mode: str) -> Image:
    """Resize (D, H, W) to (1, *size), edges on edges."""
    tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    made: Image = interpolate(tensor[None, None], size=tuple(size), mode=mode)[0].numpy()
    return made


def _ranged(voxels: NDArray[Any]) -> Image:
    wide = voxels.astype(np.result_type(voxels.dtype, np.float32), copy=False)
    scaled = wide - wide.min()
    if not np.isfinite(scaled).all():
        raise ModelError("an image has finite voxels; NaN or infinity came")
    return np.asarray(scaled / np.clip(scaled.max(), TINY, None), dtype=np.float32)


def _foreground(scaled: Image) -> tuple[Sequence[int], Sequence[int]]:
    start, stop = generate_spatial_bounding_box(scaled[None], allow_smaller=True)
    if any(last <= first for first, last in zip(start, stop, strict=True)):
        raise ModelError("an image has contrast; every voxel is the same")
    return start, stop


def _image(scaled: Image, grid: Shape) -> Image:
    return resized(cut(scaled, *_foreground(scaled)), grid, "trilinear")
