"""Outlines of masks: closed, along pixel edges, holes the other way round."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sr_templates import tracing


def filled(lines: list[tracing.Contour], shape: tuple[int, int]) -> np.ndarray:
    """Fill lines by counting crossings to the left of each pixel's centre."""
    inside = np.zeros(shape, int)
    columns = np.arange(shape[1]) + 0.5
    for line in lines:
        for (row, column), (other, same) in itertools.pairwise(line):
            if column == same:
                low, high = sorted((int(row), int(other)))
                inside[low:high] += columns > column
    return inside % 2 == 1


def test_one_pixel_is_a_square_from_corner_to_corner() -> None:
    mask = np.zeros((4, 5), bool)
    mask[2, 3] = True
    (line,) = tracing.contours(mask)
    assert sorted(line[:-1].tolist()) == [[2, 3], [2, 4], [3, 3], [3, 4]]
    assert line[0].tolist() == line[-1].tolist()
    assert tracing.area(line) == 1


def test_a_hole_runs_the_other_way_and_comes_after_the_outline_around_it() -> None:
    mask = np.ones((5, 6), bool)
    mask[2, 2:4] = False
    outer, hole = tracing.contours(mask)
    assert (tracing.area(outer), tracing.area(hole)) == (30, -2)
    assert len(outer) == len(hole) == 5


def test_pixels_that_touch_at_a_corner_have_outlines_of_their_own() -> None:
    assert [tracing.area(each) for each in tracing.contours(np.eye(3, dtype=bool))] == [1, 1, 1]


def test_without_a_pixel_there_is_no_outline() -> None:
    assert tracing.contours(np.zeros((3, 3), bool)) == []


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_filling_the_outlines_gives_the_mask_back(mask: np.ndarray) -> None:
    lines = tracing.contours(mask)
    assert np.array_equal(filled(lines, mask.shape), mask)
    assert sum(map(tracing.area, lines)) == mask.sum()


def test_the_outline_of_a_disk_keeps_its_area_when_it_is_made_simple() -> None:
    rows, columns = np.ogrid[:400, :400]
    disk = (rows - 200) ** 2 + (columns - 190) ** 2 < 150**2
    (line,) = tracing.contours(disk)
    simple = tracing.simplified(line, 200)
    assert len(line) > 400
    assert len(simple) == 200
    assert simple[0].tolist() == simple[-1].tolist()
    assert tracing.area(simple) == pytest.approx(disk.sum(), rel=0.005)


def test_a_line_that_is_short_enough_stays_as_it_is() -> None:
    (line,) = tracing.contours(np.ones((3, 3), bool))
    assert np.array_equal(tracing.simplified(line, 200), line)
    assert np.array_equal(tracing.simplified(line, 1)[:-1].shape, (3, 2))
