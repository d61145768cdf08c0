"""Diameters of shapes whose size is known, in mm."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sr_templates import diameters
from sr_templates.diameters import Diameters


def plane(shape: tuple[int, int], spacing_mm: tuple[float, float]) -> tuple[np.ndarray, ...]:
    """Return where the middles of pixels lie in mm from the middle of the plane: down, right."""
    rows, columns = (
        (np.arange(size) + 0.5 - size / 2) * step
        for size, step in zip(shape, spacing_mm, strict=True)
    )
    return np.meshgrid(rows, columns, indexing="ij")


def turned(down: np.ndarray, right: np.ndarray, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    angle = np.radians(degrees)
    return (
        right * np.cos(angle) + down * np.sin(angle),
        down * np.cos(angle) - right * np.sin(angle),
    )


@pytest.mark.parametrize("degrees", [0, 17, 45, 90, 133])
@pytest.mark.parametrize("spacing_mm", [(0.7, 0.7), (0.9, 0.4)])
def test_an_ellipse_has_its_two_axes(degrees: float, spacing_mm: tuple[float, float]) -> None:
    along, across = turned(*plane((220, 300), spacing_mm), degrees)
    mask = ((along / 40) ** 2 + (across / 15) ** 2 <= 1)[None]
    found = diameters.measure(mask, spacing_mm)
    assert found.long_mm == pytest.approx(80, abs=1)
    assert found.short_mm == pytest.approx(30, abs=1)


@pytest.mark.parametrize("degrees", [0, 30, 90])
def test_a_turned_box_has_its_diagonal_and_the_extent_across_it(degrees: float) -> None:
    spacing_mm = (0.5, 0.8)
    along, across = turned(*plane((200, 130), spacing_mm), degrees)
    mask = ((np.abs(along) <= 30) & (np.abs(across) <= 10))[None]
    found = diameters.measure(mask, spacing_mm)
    assert found.long_mm == pytest.approx(np.hypot(60, 20), abs=1)
    assert found.short_mm == pytest.approx(2 * 60 * 20 / np.hypot(60, 20), abs=1.5)


def test_one_voxel_is_as_long_as_its_longer_edge() -> None:
    mask = np.zeros((3, 4, 5), bool)
    mask[1, 2, 3] = True
    assert diameters.measure(mask, (0.5, 2.0)) == Diameters(2.0, 0.5, 1)


def test_a_row_of_pixels_is_measured_from_edge_to_edge() -> None:
    mask = np.zeros((1, 4, 9), bool)
    mask[0, 1, 2:8] = True
    assert diameters.measure(mask, (3.0, 1.5)) == Diameters(9.0, 3.0, 0)


def test_the_slice_with_the_longest_diameter_counts_and_not_the_largest() -> None:
    mask = np.zeros((4, 40, 40), bool)
    mask[1, 5:25, 5:25] = True
    mask[3, 0, :] = True
    assert diameters.measure(mask, (1.0, 1.0)).slice_index == 3


def test_an_empty_mask_has_none() -> None:
    with pytest.raises(ValueError, match="expected a mask with a voxel"):
        diameters.measure(np.zeros((2, 3, 3), bool), (1.0, 1.0))


def edges(mask: np.ndarray) -> list[tuple[int, float, float]]:
    """Return the middle of each edge between inside and outside: slice, row, column."""
    found = []
    for index, row, column in np.argwhere(mask):
        for down, right in ((0.5, 0), (0.5, 1), (0, 0.5), (1, 0.5)):
            beyond = (row + int(2 * down) - 1, column + int(2 * right) - 1)
            inside = all(0 <= at < size for at, size in zip(beyond, mask.shape[1:], strict=True))
            if not inside or not mask[(index, *beyond)]:
                found.append((int(index), row + down, column + right))
    return found


@given(
    arrays(bool, st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7))),
    st.sampled_from([(1.0, 1.0), (0.7, 2.3)]),
)
def test_no_two_edges_of_a_slice_are_farther_apart(
    mask: np.ndarray, spacing_mm: tuple[float, float]
) -> None:
    mask[0, 0, 0] = True
    found = edges(mask)
    longest = max(
        np.hypot((row - other) * spacing_mm[0], (column - beside) * spacing_mm[1])
        for index, row, column in found
        for same, other, beside in found
        if index == same
    )
    assert diameters.measure(mask, spacing_mm).long_mm == pytest.approx(longest)
