"""Solids in template millimetres: what the anatomy and the findings are made of.

Coordinates are (head, posterior, left), so axes ascend from foot to head, from anterior to
posterior and from right to left, like the slices, rows and columns of a volume. Knows geometry,
no organs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Inside = NDArray[np.bool_]
Point = tuple[float, float, float]
EVERYWHERE = 1e6


@dataclass(frozen=True)
class Solid:
    """A set of points within the box from `low` to `high`; `inside` takes three coordinates."""

    low: Point
    high: Point
    inside: Callable[[Array, Array, Array], Inside]

    def __and__(self, other: "Solid") -> "Solid":
        low = _point(map(max, self.low, other.low))
        high = _point(map(min, self.high, other.high))
        return Solid(low, high, lambda *at: self.inside(*at) & other.inside(*at))

    def __or__(self, other: "Solid") -> "Solid":
        low = _point(map(min, self.low, other.low))
        high = _point(map(max, self.high, other.high))
        return Solid(low, high, lambda *at: self.inside(*at) | other.inside(*at))

    def __sub__(self, other: "Solid") -> "Solid":
        return Solid(self.low, self.high, lambda *at: self.inside(*at) & ~other.inside(*at))


def ellipsoid(middle: Point, radii: Point, *, power: float = 2.0) -> Solid:
    """Make an ellipsoid; a `power` above 2 makes it boxier."""
    low = _point(m - r for m, r in zip(middle, radii, strict=True))
    high = _point(m + r for m, r in zip(middle, radii, strict=True))

    def inside(*at: Array) -> Inside:
        parts = [np.abs((a - m) / r) ** power for a, m, r in zip(at, middle, radii, strict=True)]
        return np.asarray(parts[0] + parts[1] + parts[2] < 1)

    return Solid(low, high, inside)


def column(middle: tuple[float, float], radii: tuple[float, float], *, power: float = 2.0) -> Solid:
    """Make a column along the body without ends; `middle` and `radii` are (posterior, left)."""
    (y, x), (ry, rx) = middle, radii
    low, high = (-EVERYWHERE, y - ry, x - rx), (EVERYWHERE, y + ry, x + rx)

    def inside(_: Array, b: Array, c: Array) -> Inside:
        return np.asarray(np.abs((b - y) / ry) ** power + np.abs((c - x) / rx) ** power < 1)

    return Solid(low, high, inside)


def slab(axis: int, low: float, high: float) -> Solid:
    """Make all between two planes."""
    lows, highs = [-EVERYWHERE] * 3, [EVERYWHERE] * 3
    lows[axis], highs[axis] = low, high
    return Solid(
        _point(lows), _point(highs), lambda *at: np.asarray((at[axis] >= low) & (at[axis] < high))
    )


def tube(points: Sequence[Point], radius: float) -> Solid:
    """Make all within `radius` of a line through `points`."""
    line = np.asarray(points, np.float32)
    low, high = line.min(axis=0) - radius, line.max(axis=0) + radius

    def inside(*at: Array) -> Inside:
        found = np.zeros(np.broadcast_shapes(*(each.shape for each in at)), bool)
        for start, stop in pairwise(line):
            found |= _squared_distance(at, start, stop) < radius**2
        return found

    return Solid(_point(low), _point(high), inside)


def lumpy(middle: Point, radii: Point, lumps: Sequence[tuple[Point, float, float]]) -> Solid:
    """Make an ellipsoid whose surface waves; `lumps` are (direction, waves around it, height)."""
    reach = 1 + sum(height for _, _, height in lumps)
    hull = ellipsoid(middle, _point(each * reach for each in radii))

    def inside(*at: Array) -> Inside:
        local = [(a - m) / r for a, m, r in zip(at, middle, radii, strict=True)]
        length = np.sqrt(local[0] ** 2 + local[1] ** 2 + local[2] ** 2) + np.float32(1e-6)
        surface = np.ones_like(length)
        for direction, waves, height in lumps:
            along = sum(each * part for each, part in zip(local, direction, strict=True)) / length
            surface += np.float32(height) * np.sin(np.float32(waves) * along)
        return np.asarray(length < surface)

    return Solid(hull.low, hull.high, inside)


def _squared_distance(at: Sequence[Array], start: Array, stop: Array) -> Array:
    """Squared distance of points from a stretch of a line."""
    way = stop - start
    local = [each - part for each, part in zip(at, start, strict=True)]
    dot = sum(each * part for each, part in zip(local, way, strict=True))
    share = np.clip(dot / np.float32(way @ way), 0, 1)
    return np.asarray(
        sum((each - share * part) ** 2 for each, part in zip(local, way, strict=True))
    )


def _point(values: object) -> Point:
    z, y, x = (float(each) for each in values)  # type: ignore[attr-defined]
    return z, y, x
