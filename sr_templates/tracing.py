"""A mask of one slice -> the lines around it, along the edges of its pixels.

Knows grids of pixels and nothing of patients or of objects. The coordinates are those of spatial
coordinates in reports (PS3.3 C.18.6.1.1) with row first: 0, 0 is the outer corner of the first
pixel, whose centre is at 0.5, 0.5.
"""

import numpy as np
from numpy.typing import NDArray

Contour = NDArray[np.float64]  # (vertices, 2): row, column; the last vertex is the first again
STEPS = ((0, 1), (1, 0), (0, -1), (-1, 0))  # right, down, left, up; the pixel lies on the right
RIGHT_AHEAD_LEFT = (1, 0, 3)


def contours(mask: NDArray[np.bool_]) -> list[Contour]:
    """Trace all outlines of a mask (rows, columns), that of the largest area first.

    Outer outlines run clockwise as seen on a screen, those of holes the other way: `area` tells.
    Pixels that touch at a corner only have outlines of their own, so none crosses itself. Vertices
    stand only where the direction changes. No pixel, no outline.
    """
    edges = _edges(mask)
    found = []
    while edges:
        found.append(_follow(edges, next(iter(edges))))
    return sorted(found, key=lambda each: -abs(area(each)))


def area(contour: Contour) -> float:
    """Return the area within a contour in pixels, negative for the outline of a hole."""
    rows, columns = contour.T
    return float(columns[:-1] @ rows[1:] - columns[1:] @ rows[:-1]) / 2


def simplified(contour: Contour, maximum: int) -> Contour:
    """Leave out what matters least to the area until `maximum` vertices remain (4 at the least).

    By the rule of Visvalingam and Whyatt: the vertex of the smallest triangle goes first. The
    last vertex, which is the first again, counts.
    """
    ring = contour[:-1]
    while len(ring) + 1 > max(maximum, 4):
        before, after = np.roll(ring, 1, axis=0) - ring, np.roll(ring, -1, axis=0) - ring
        triangles = np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0])
        ring = np.delete(ring, triangles.argmin(), axis=0)
    return np.concatenate([ring, ring[:1]])


def _edges(mask: NDArray[np.bool_]) -> dict[tuple[int, int, int], None]:
    """Return where an edge between inside and outside starts, and its direction, in order."""
    padded = np.pad(np.asarray(mask, bool), 1)
    inside = padded[1:-1, 1:-1]
    rows, columns = mask.shape
    edges: dict[tuple[int, int, int], None] = {}
    for direction, (down, right) in enumerate(STEPS):
        # Who walks to the right has the outside above, and so on around.
        outside = ~padded[1 - right :, 1 + down :][:rows, :columns]
        corner = (int(direction in (2, 3)), int(direction in (1, 2)))
        starts = np.argwhere(inside & outside) + corner
        edges |= dict.fromkeys((row, column, direction) for row, column in starts.tolist())
    return edges


def _follow(edges: dict[tuple[int, int, int], None], start: tuple[int, int, int]) -> Contour:
    """Take one closed line out of the edges; its vertices are its corners."""
    row, column, direction = start
    taken, corners = [start], []
    while True:
        row, column = row + STEPS[direction][0], column + STEPS[direction][1]
        turns = ((direction + turn) % len(STEPS) for turn in RIGHT_AHEAD_LEFT)
        turned = next(each for each in turns if (row, column, each) in edges)
        if turned != direction:
            corners.append((row, column))
        direction = turned
        if (row, column, direction) == start:
            break
        taken.append((row, column, direction))
    for each in taken:
        del edges[each]
    return np.array([*corners, corners[0]], np.float64)
