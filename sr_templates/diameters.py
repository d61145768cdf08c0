"""A mask -> its longest diameter within one slice, and the one across it.

As radiologists measure with a ruler on one image (RECIST 1.1; WHO's two diameters): from edge to
edge of the outline. The slices are those of the mask, along its first axis. Knows voxels and
millimetres, and nothing of reports.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DIRECTIONS = 32  # in which widths are compared before points are
ANGLES = np.arange(DIRECTIONS) * np.pi / DIRECTIONS
UNITS = np.stack([np.sin(ANGLES), np.cos(ANGLES)])
# No diameter is longer than the width in the nearest of these directions, by more than this.
SLACK = 1 / np.cos(np.pi / (2 * DIRECTIONS))


@dataclass(frozen=True)
class Diameters:
    """The longest diameter in mm, the extent at a right angle to it, and on which slice.

    `slice_index` counts from 0 on.
    """

    long_mm: float
    short_mm: float
    slice_index: int


def measure(mask: NDArray[np.bool_], spacing_mm: tuple[float, float]) -> Diameters:
    """Find the slice on which a diameter is longest, and measure there.

    Parameters
    ----------
    mask
        bool (slices, rows, columns); several parts are measured as one.
    spacing_mm
        Between rows, and between columns.

    Raises
    ------
    ValueError
        The mask holds no voxel.
    """
    points = {
        int(index): _ends(mask[index]) * spacing_mm
        for index in np.flatnonzero(mask.any(axis=(1, 2)))
    }
    if not points:
        raise ValueError("expected a mask with a voxel, got none")
    limits = {index: _widths(each).max() * SLACK for index, each in points.items()}
    best = Diameters(0.0, 0.0, -1)
    # What cannot be longer than the longest so far is not looked at.
    for index in sorted(limits, key=lambda each: (-limits[each], each)):
        if limits[index] <= best.long_mm:
            break
        long_mm, short_mm = _across(points[index])
        if long_mm > best.long_mm:
            best = Diameters(long_mm, short_mm, index)
    return best


def _ends(plane: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the middles of the outermost pixel edges of each row and of each column.

    The longest diameter of these points is that of all edges: a point between two is never an end.
    """
    found = []
    for image, order in ((plane, slice(None)), (plane.T, slice(None, None, -1))):
        lines = np.flatnonzero(image.any(axis=1))
        first = image[lines].argmax(axis=1)
        last = image.shape[1] - image[lines, ::-1].argmax(axis=1)
        found += [np.stack([lines + 0.5, edge], axis=1)[:, order] for edge in (first, last)]
    return np.concatenate(found)


def _widths(points: NDArray[np.float64]) -> NDArray[np.float64]:
    along = points @ UNITS
    widths: NDArray[np.float64] = np.ptp(along, axis=0)
    return widths


def _across(points: NDArray[np.float64]) -> tuple[float, float]:
    """Return the longest distance of two points, and the extent of all at a right angle to it."""
    squares = sum(np.subtract.outer(each, each) ** 2 for each in points.T)
    start, end = np.unravel_index(np.argmax(squares), np.shape(squares))
    step = points[end] - points[start]
    long_mm = float(np.hypot(*step))
    normal = np.array([-step[1], step[0]]) / long_mm
    return long_mm, float(np.ptp(points @ normal))
