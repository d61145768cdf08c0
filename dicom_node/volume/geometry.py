"""Planes in the patient -> one regular grid, or the reason why there is none.

Knows positions, orientations and spacings (PS3.3 C.7.6.2). Geometry alone decides which slice
comes where: nothing ties Instance Number to position. Knows nothing of files or pixels. Refuses
rather than guesses: a volume that is put together wrongly looks like a good one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dicom_node.errors import UnusableSeries

Array = NDArray[np.float64]

GRID_TOLERANCE: Final = 0.1
"""How far a voxel may lie from where the regular grid puts it, in voxels.

A tenth shows in no mask drawn on this grid. It is wider than the rounding of positions to 0.01 mm
that scanners write (0.625 mm slices come as 0.62 and 0.63), and far below a missing slice (1.0).
"""

DIRECTION_TOLERANCE: Final = 1e-3
"""How far a direction cosine may be off: cosines are written with three decimals at worst."""

SAME_PLACE_MM: Final = 0.01
"""Closer planes are at one position: no CT or MR has slices of a hundredth of a millimetre."""

MINIMUM_SLICES: Final = 3
"""Two positions cannot show whether the spacing is regular."""


@dataclass(frozen=True)
class Plane:
    """One slice: where its first pixel is, in mm, and how its rows and columns run."""

    position: tuple[float, ...]
    cosines: tuple[float, ...]  # of a row (column index increasing), then of a column
    spacing_mm: tuple[float, ...]  # between rows, between columns
    shape: tuple[int, int]  # rows, columns
    frame_of_reference_uid: str


@dataclass(frozen=True)
class Grid:
    """A regular grid through all planes.

    `affine` maps (slice, row, column) to patient coordinates in mm (left, posterior, head).
    `order` holds the index of the plane that is at each slice; slices ascend along the normal,
    which is the cross product of row and column direction.
    """

    affine: Array
    shape: tuple[int, int, int]
    order: tuple[int, ...]

    def position(self, index: int) -> Array:
        """Return the place of the first pixel of a slice, in mm."""
        place: Array = self.affine[:3, 3] + index * self.affine[:3, 0]
        return place

    @property
    def cosines(self) -> Array:
        """Return the directions of a row and of a column: Image Orientation (Patient)."""
        directions = self.affine[:3, 1:3] / np.linalg.norm(self.affine[:3, 1:3], axis=0)
        return np.concatenate([directions[:, 1], directions[:, 0]])


def regular_grid(planes: Sequence[Plane]) -> Grid:
    """Put planes in order and fit the grid.

    Raises
    ------
    UnusableSeries
        two-grids, no-frame-of-reference, no-geometry, too-few-slices, several-stacks,
        duplicate-position, gantry-tilt, missing-slice, irregular-spacing.
    """
    _check_one_grid(planes)
    row, column = _directions(planes[0])
    normal = np.cross(row, column)
    positions = np.array([each.position for each in planes], float)
    order = np.argsort(positions @ normal, kind="stable")
    offsets = positions[order] - positions[order[0]]
    heights = offsets @ normal
    _check_places(heights)
    _check_spacing(heights)
    _check_upright(offsets - heights[:, None] * normal, heights, planes[0])
    spacing = heights[-1] / (len(planes) - 1)
    affine = np.eye(4)
    affine[:3, 0] = normal * spacing
    affine[:3, 1] = column * planes[0].spacing_mm[0]
    affine[:3, 2] = row * planes[0].spacing_mm[1]
    affine[:3, 3] = positions[order[0]]
    return Grid(affine, (len(planes), *planes[0].shape), tuple(map(int, order)))


def _check_one_grid(planes: Sequence[Plane]) -> None:
    """Compare every plane with the first; rows, columns, spacing, directions, reference."""
    first = planes[0]
    if not all(each.frame_of_reference_uid for each in planes):
        raise UnusableSeries(
            "no-frame-of-reference", "a slice has no Frame of Reference UID to place it in"
        )
    # At the far edge of the slice the difference adds up to this many voxels.
    far = max(first.shape)
    for each in planes:
        if each.frame_of_reference_uid != first.frame_of_reference_uid:
            raise UnusableSeries("two-grids", "slices lie in different frames of reference")
        if each.shape != first.shape:
            raise UnusableSeries(
                "two-grids", f"slices of {each.shape} and {first.shape} rows and columns"
            )
        if not _close(each.spacing_mm, first.spacing_mm, rtol=GRID_TOLERANCE / far):
            raise UnusableSeries(
                "two-grids", f"pixels of {each.spacing_mm} and {first.spacing_mm} mm"
            )
        if not _close(each.cosines, first.cosines, atol=DIRECTION_TOLERANCE):
            raise UnusableSeries(
                "two-grids", f"slices cut along {each.cosines} and {first.cosines}"
            )
    if len(planes) < MINIMUM_SLICES:
        raise UnusableSeries(
            "too-few-slices", f"expected at least {MINIMUM_SLICES} slices, got {len(planes)}"
        )


def _close(one: Sequence[float], other: Sequence[float], rtol: float = 0, atol: float = 0) -> bool:
    # Most are the same, and numpy takes its time to see that.
    return one == other or np.allclose(one, other, rtol=rtol, atol=atol)


def _directions(plane: Plane) -> tuple[Array, Array]:
    """Return unit vectors along a row and along a column, at right angles to the last digit."""
    row, column = np.array(plane.cosines[:3]), np.array(plane.cosines[3:])
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if not np.allclose([*lengths, 1 + row @ column], 1, rtol=0, atol=DIRECTION_TOLERANCE):
        raise UnusableSeries(
            "no-geometry", f"{plane.cosines} are not the cosines of two directions at right angles"
        )
    row = row / lengths[0]
    column = column - (column @ row) * row
    return row, column / np.linalg.norm(column)


def _check_places(heights: Array) -> None:
    """Refuse planes on top of each other."""
    starts = np.flatnonzero(np.diff(heights, prepend=-np.inf) > SAME_PLACE_MM)
    counts = np.diff(starts, append=len(heights))
    if counts.max() == 1:
        return
    if counts.min() == counts.max():
        raise UnusableSeries(
            "several-stacks",
            f"{counts[0]} slices at each of {len(counts)} positions: several points in time, "
            "echoes or contrasts in one series",
        )
    raise UnusableSeries(
        "duplicate-position", f"{len(heights)} slices at {len(counts)} different positions"
    )


def _check_spacing(heights: Array) -> None:
    """Refuse gaps of different width; where they are whole slices wide, slices are missing."""
    gaps = np.diff(heights)
    # The smaller middle one: of two gaps, one of them double, the wide one is the odd one.
    step = np.sort(gaps)[(len(gaps) - 1) // 2]
    steps = gaps / step
    odd = np.abs(steps - 1) > GRID_TOLERANCE
    if odd.any():
        whole = np.rint(steps[odd])
        if (whole > 1).all() and (np.abs(steps[odd] - whole) <= GRID_TOLERANCE).all():
            raise UnusableSeries(
                "missing-slice",
                f"expected a slice every {step:.3f} mm, {int((whole - 1).sum())} missing in "
                f"{odd.sum()} gaps, the first after slice {np.flatnonzero(odd)[0] + 1}",
            )
        raise UnusableSeries(
            "irregular-spacing", f"gaps between {gaps.min():.3f} and {gaps.max():.3f} mm"
        )
    even = np.linspace(0, heights[-1], len(heights))
    drift = np.abs(heights - even).max()
    if drift > GRID_TOLERANCE * step:
        raise UnusableSeries(
            "irregular-spacing", f"slices lie up to {drift:.3f} mm off a spacing of {step:.3f} mm"
        )


def _check_upright(aside: Array, heights: Array, plane: Plane) -> None:
    """Refuse a stack that leans: its slices do not lie straight above each other."""
    tolerance = GRID_TOLERANCE * min(plane.spacing_mm)
    if np.linalg.norm(aside, axis=1).max() <= tolerance:
        return
    lean = aside[-1] / heights[-1]
    if np.linalg.norm(aside - heights[:, None] * lean, axis=1).max() <= tolerance:
        angle = np.degrees(np.arctan(np.linalg.norm(lean)))
        raise UnusableSeries("gantry-tilt", f"slices lean by {angle:.2f} degrees")
    raise UnusableSeries("two-grids", "slices do not lie above each other")
