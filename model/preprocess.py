"""Voxels to the network's grid, and the exact way back for masks and boxes.

Knows arrays: intensities, foreground, resizing. Every step is recorded in a `Placement`, which
undoes it. Has never heard of orientation: axes come and go in the order (slices, rows, columns).
"""

from dataclasses import dataclass

import numpy as np
import torch
from monai.transforms.spatial.array import Resize
from monai.transforms.utils import generate_spatial_bounding_box
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from .errors import ModelError

Shape = tuple[int, int, int]
Volume = NDArray[np.float32]
OUTSIDE = -100.0  # logit of what the network has not seen: certainly not in the mask
DIMENSIONS = 3


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
        # align_corners=False on both ways: voxel centres stay where they are.
        small = interpolate(
            logits.detach().to("cpu", torch.float32)[None, None],
            size=self.size,
            mode="trilinear",
            align_corners=False,
        )
        whole = np.full(self.shape, OUTSIDE, dtype=np.float32)
        inside = tuple(slice(*each) for each in zip(self.start, self.stop, strict=True))
        whole[inside] = small[0, 0].numpy()
        return whole

    def place(self, point: tuple[float, float, float]) -> tuple[float, float, float]:
        """Bring a normalised point (0..1 along each axis of the grid) to source voxels."""
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
        that of the volume, as in the reference (m3d.md 4).

    Raises
    ------
    ModelError
        No three axes, not finite, or all one value.
    """
    scaled = _scale(_checked(voxels), *_range(voxels, window, percentiles))
    start, stop = generate_spatial_bounding_box(scaled[None], allow_smaller=True)
    box = tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
    inside = torch.from_numpy(scaled[box])[None]
    image = torch.as_tensor(Resize(grid, mode="trilinear")(inside), dtype=torch.float32)[None]
    shape = (scaled.shape[0], scaled.shape[1], scaled.shape[2])
    return Prepared(image, Placement(shape, _triple(start), _triple(stop)))


def _checked(voxels: NDArray[np.floating]) -> NDArray[np.floating]:
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
        if width <= 0:
            raise ModelError(f"a window is at least a little wide, not {width}")
        return level - width / 2, level + width / 2
    if percentiles is not None:
        low, high = np.percentile(voxels, percentiles)
        return float(low), float(high)
    return float(voxels.min()), float(voxels.max())


def _scale(voxels: NDArray[np.floating], low: float, high: float) -> Volume:
    clipped = np.clip(voxels, low, high).astype(np.float32)
    # After clipping, the range is that of what is left: an image all inside its window fills 0..1.
    least, most = float(clipped.min()), float(clipped.max())
    if most <= least:
        raise ModelError(f"a volume has contrast; every voxel is {least:g} in [{low:g}, {high:g}]")
    scaled: Volume = (clipped - least) / (most - least)
    return scaled


def _triple(values: object) -> Shape:
    z, y, x = (int(each) for each in values)  # type: ignore[attr-defined]
    return z, y, x
