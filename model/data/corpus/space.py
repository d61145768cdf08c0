"""A patient's own space: where each voxel lies in the template, bent as no two patients are alike.

Knows grids and a smooth deformation; draws solids into masks. Knows no organs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .shapes import Array, Inside, Point, Solid

Shape = tuple[int, int, int]
WAVES = 4  # of the deformation along each axis of displacement


@dataclass(frozen=True)
class Space:
    """The template coordinates (head, posterior, left) in mm of every voxel of a volume.

    `spacing_mm` is between slices, rows and columns.
    """

    at: tuple[Array, Array, Array]
    spacing_mm: Point

    @property
    def shape(self) -> Shape:
        """Slices, rows, columns."""
        slices, rows, columns = self.at[0].shape
        return slices, rows, columns

    def draw(self, solid: Solid) -> Inside:
        """Give the mask of a solid; only the part of the volume where it can be is looked at."""
        mask = np.zeros(self.shape, bool)
        box = self.box(solid)
        mask[box] = solid.inside(*(each[box] for each in self.at))
        return mask

    def box(self, solid: Solid) -> tuple[slice, slice, slice]:
        """Give the voxels among which a solid lies."""
        limits = []
        for axis in range(3):
            others = tuple(each for each in range(3) if each != axis)
            low, high = self.at[axis].min(axis=others), self.at[axis].max(axis=others)
            near = np.flatnonzero((high >= solid.low[axis]) & (low <= solid.high[axis]))
            limits.append(slice(int(near[0]), int(near[-1]) + 1) if len(near) else slice(0, 0))
        return limits[0], limits[1], limits[2]


def bend(
    random: np.random.Generator,
    shape: Shape,
    spacing_mm: Point,
    middle: Point,
    *,
    sway_mm: float,
    size: float,
) -> Space:
    """Make a patient's space.

    Parameters
    ----------
    middle
        The template point in the middle of the volume.
    sway_mm
        How far a point is moved at most by the deformation, on each axis.
    size
        How much larger than the template the patient is.
    """
    grid = np.meshgrid(
        *(
            (np.arange(count, dtype=np.float32) - (count - 1) / 2) * np.float32(step)
            for count, step in zip(shape, spacing_mm, strict=True)
        ),
        indexing="ij",
        sparse=True,
    )
    turned = _turn(random, grid)
    z, y, x = (
        each / np.float32(size) + np.float32(m) + _sway(random, turned, sway_mm)
        for each, m in zip(turned, middle, strict=True)
    )
    return Space((z, y, x), spacing_mm)


def _turn(random: np.random.Generator, grid: Sequence[Array]) -> list[Array]:
    """Turn by a few degrees about each axis: nobody lies quite straight."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(random.normal(0, 2.5, 3))):
        turn, (a, b) = np.eye(3), [each for each in range(3) if each != axis]
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return [
        np.asarray(sum(np.float32(part) * each for part, each in zip(row, grid, strict=True)))
        for row in matrix
    ]


def _sway(random: np.random.Generator, at: list[Array], limit_mm: float) -> Array:
    """Give a smooth displacement: waves of 120 mm and more."""
    moved = np.zeros_like(at[0])
    for _ in range(WAVES):
        direction = random.normal(size=3)
        direction *= 2 * np.pi / random.uniform(120, 360) / np.linalg.norm(direction)
        phase = sum(np.float32(part) * each for part, each in zip(direction, at, strict=True))
        moved += np.sin(phase + np.float32(random.uniform(0, 2 * np.pi)))
    return np.asarray(moved * np.float32(limit_mm / WAVES))
