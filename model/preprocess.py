"""Voxels to the network's grid, and the exact way back for masks and boxes.

Knows arrays: intensities, foreground, resizing. Every step is recorded in a `Placement`, which
undoes it. Has never heard of orientation: axes come and go in the order (slices, rows, columns).
"""

from dataclasses import dataclass
from math import inf, isfinite
from typing import Any, TypeVar

import numpy as np
import torch
from monai.transforms.utils import generate_spatial_bounding_box
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from .errors import ModelError

Shape = tuple[int, int, int]
Volume = NDArray[np.float32]
Number = TypeVar("Number", bound=np.integer[Any])
OUTSIDE = -100.0  # logit of what the network has not seen: certainly not in the mask
DIMENSIONS = 3
HUNDRED = 100


@dataclass(frozen=True)
class Placement:
    """Where the network's grid lies in the source grid: the box [start, stop) of voxels."""

    shape: Shape
    start: Shape
    stop: Shape

    @property
    def size(self) -> Shape:
        """Voxels of the box along each axis."""
        z, y, x = (stop - start for start, stop in zip(self.start, self.stop, strict=True))
        return z, y, x

    def restore(self, logits: Tensor) -> Volume:
        """Bring mask logits (depth, height, width) of the network's grid back to the source grid.

        Returns
        -------
        float32 (slices, rows, columns); trilinear inside the box, `OUTSIDE` elsewhere.
        """
        whole = np.full(self.shape, OUTSIDE, dtype=np.float32)
        inside = tuple(slice(*each) for each in zip(self.start, self.stop, strict=True))
        whole[inside] = _resize(logits.detach().to("cpu", torch.float32), self.size).numpy()
        return whole

    def gather(self, labels: NDArray[Number], grid: Shape) -> NDArray[Number]:
        """Bring a map of labels of the source grid to the network's grid, the nearest voxel each.

        Raises
        ------
        ModelError
            `labels` is not on the source grid.
        """
        if labels.shape != self.shape:
            raise ModelError(f"labels must be of shape {self.shape}, not {labels.shape}")
        # The centre of each voxel of the grid, as resizing without aligned corners places it.
        axes = [
            start + (np.arange(count) + 0.5) * size / count
            for start, size, count in zip(self.start, self.size, grid, strict=True)
        ]
        gathered: NDArray[Number] = labels[np.ix_(*(each.astype(int) for each in axes))]
        return gathered

    def place(self, point: tuple[float, float, float]) -> tuple[float, float, float]:
        """Bring a normalised point (0..1 along each axis of the grid) to source voxels.

        Edges, not centres: voxel i of the source is i to i + 1.
        """
        z, y, x = (
            start + each * size
            for start, each, size in zip(self.start, point, self.size, strict=True)
        )
        return z, y, x


@dataclass(frozen=True)
class Prepared:
    """What the network gets, (1, 1, depth, height, width) in 0..1, and where it came from."""

    image: Tensor
    placement: Placement


def prepare(
    voxels: NDArray[np.floating],
    grid: Shape,
    *,
    window: tuple[float, float] | None = None,
    percentiles: tuple[float, float] | None = None,
) -> Prepared:
    """Window, scale to 0..1, crop to the foreground, resize to the network's grid.

    Parameters
    ----------
    voxels
        (slices, rows, columns).
    window
        Level and width in the units of the voxels (HU for CT).
    percentiles
        Low and high, for intensities without units; without a window or percentiles the range is
        that of the volume, as in the reference.

    Raises
    ------
    ModelError
        No three axes, not finite, or all one value; a window without width, percentiles that are
        not 0 to 100 and rising.
    """
    scaled = _scale(_checked(voxels), *_range(voxels, window, percentiles))
    start, stop = generate_spatial_bounding_box(scaled[None], allow_smaller=True)
    placement = Placement(_triple(scaled.shape), _triple(start), _triple(stop))
    box = tuple(slice(*each) for each in zip(placement.start, placement.stop, strict=True))
    return Prepared(_resize(torch.from_numpy(scaled[box]), grid)[None, None], placement)


def _checked(voxels: NDArray[np.floating]) -> NDArray[np.floating]:
    if voxels.dtype.kind not in "iuf":
        raise ModelError(f"a volume holds numbers, not {voxels.dtype}")
    if voxels.ndim != DIMENSIONS or 0 in voxels.shape:
        raise ModelError(f"a volume is (slices, rows, columns), not of shape {voxels.shape}")
    if not np.isfinite(voxels).all():
        raise ModelError("a volume has finite voxels; NaN or infinity came")
    return voxels


def _range(
    voxels: NDArray[np.floating],
    window: tuple[float, float] | None,
    percentiles: tuple[float, float] | None,
) -> tuple[float, float]:
    if window is not None:
        level, width = window
        if not (isfinite(level) and 0 < width < inf):
            raise ModelError(f"a window has a level and a width above 0, not {level} and {width}")
        return level - width / 2, level + width / 2
    if percentiles is not None:
        low, high = percentiles
        if not 0 <= low < high <= HUNDRED:
            raise ModelError(f"percentiles rise within 0 to {HUNDRED}, not {low} and {high}")
        least, most = np.percentile(voxels, (low, high))
        return float(least), float(most)
    return float(voxels.min()), float(voxels.max())


def _scale(voxels: NDArray[np.floating], low: float, high: float) -> Volume:
    # float32 at least, wider only for what does not fit: a small contrast far from 0 must stay.
    wide = voxels.astype(np.result_type(voxels.dtype, np.float32), copy=False)
    clipped = np.clip(wide, low, high)
    # After clipping, the range is that of what is left: an image all inside its window fills 0..1.
    least, most = float(clipped.min()), float(clipped.max())
    if most <= least:
        raise ModelError(f"a volume has contrast; every voxel is {least:g} in [{low:g}, {high:g}]")
    scaled: Volume = ((clipped - least) / (most - least)).astype(np.float32)
    return scaled


def _resize(volume: Tensor, size: Shape) -> Tensor:
    # align_corners=False on both ways: the edges of the box stay where they are.
    resized = interpolate(volume[None, None], size=size, mode="trilinear", align_corners=False)
    return resized[0, 0]


def _triple(values: object) -> Shape:
    z, y, x = (int(each) for each in values)  # type: ignore[attr-defined]
    return z, y, x
