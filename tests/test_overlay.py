from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dicom_node import volume
from dicom_node.demo import sample
from dicom_node.overlay import ALARM, BANNER, HEAD, INK, MARGIN, TILE, Layer, montage

RED, BLUE = (200, 0, 10), (0, 60, 220)
CUBE_MM = (1.0, 1.0, 1.0)
Voxels = NDArray[np.float32]
Pixels = NDArray[np.uint8]
# Directions of slices, rows and columns of other stacks of the same patient, as matrix columns.
TURNED = {
    "feet first, left to right": [(0, 0, 1), (0, 1, 0), (1, 0, 0)],
    "head first": [(0, 0, -1), (0, 1, 0), (1, 0, 0)],
    "right and left exchanged": [(0, 0, -1), (0, 1, 0), (-1, 0, 0)],
    "prone": [(0, 0, 1), (0, -1, 0), (-1, 0, 0)],
    "sagittal": [(1, 0, 0), (0, 0, -1), (0, 1, 0)],
    "coronal": [(0, 1, 0), (0, 0, -1), (1, 0, 0)],
}


def flat(shape: tuple[int, int, int] = (8, 30, 30), value: float = 0) -> Voxels:
    return np.full(shape, value, np.float32)


def masked(voxels: Voxels, *place: slice | int) -> NDArray[np.bool_]:
    mask = np.zeros(voxels.shape, bool)
    mask[place] = True
    return mask


def drawn(voxels: Voxels, *layers: Layer, spacing_mm: tuple[float, float, float] = CUBE_MM,
          window: tuple[float, float] | None = (0, 100), note: str = "") -> Pixels:  # fmt: skip
    return np.array(montage(voxels, spacing_mm, layers, window=window, note=note))


def tile(sheet: Pixels, index: int) -> Pixels:
    top, left = HEAD + index // 4 * (TILE + MARGIN), MARGIN + index % 4 * (TILE + MARGIN)
    return sheet[top : top + TILE, left : left + TILE]


def is_colour(pixels: Pixels, colour: tuple[int, int, int]) -> NDArray[np.bool_]:
    return (pixels == np.array(colour)).all(axis=-1)


def is_tinted(pixels: Pixels) -> NDArray[np.bool_]:
    return np.ptp(pixels.astype(int), axis=-1) > 20


# --- which side is which ------------------------------------------------------------------------


def test_the_patient_s_right_is_on_the_left_and_the_letters_say_so() -> None:
    voxels = flat()
    right = Layer("right", RED, masked(voxels, slice(None), slice(10, 20), slice(8, 13)))
    for index in range(8):
        pixels = tile(drawn(voxels, right), index)
        _, columns = np.nonzero(is_colour(pixels, RED))
        assert 75 < columns.min() < columns.max() < TILE / 2
        assert letter(pixels[:, :30]) == "R"
        assert letter(pixels[:, -30:]) == "L"


def letter(pixels: Pixels) -> str:
    """Tell an R from an L: at its upper right there is ink."""
    ink = (pixels[..., 0] > 180) & (pixels[..., 2] < 100)
    rows, columns = np.nonzero(ink)
    upper = ink[rows.min() : rows.min() + 5, int(columns.mean()) + 1 :]
    return "R" if upper.any() else "L"


@pytest.mark.parametrize("directions", TURNED.values(), ids=TURNED)
def test_the_liver_is_on_the_left_of_the_picture_however_the_slices_were_cut(
    directions: list[tuple[int, int, int]],
) -> None:
    axes = np.array(directions, float).T
    source = volume.load(sample.series(shape=(24, 24, 24), spacing_mm=(9, 9, 9), directions=axes))
    sheet = drawn(source.image.array, spacing_mm=source.spacing_mm, window=(50, 60))
    grey = tile(sheet, 0)[..., 0].astype(float)
    rows = slice(TILE // 2 - 40, TILE // 2 - 20)
    liver, other = grey[rows, 90:130].mean(), grey[rows, 170:210].mean()
    assert liver > other + 40  # 15 of 60 HU are 64 of 255
    back = tile(sheet, 4)[..., 0]
    assert back[212:228, 144:156].mean() > 240  # the spine is below, at the patient's back


# --- words --------------------------------------------------------------------------------------


def test_the_picture_says_what_it_is() -> None:
    assert BANNER.startswith("AI DRAFT")
    assert "not for diagnostic use" in BANNER
    plain, noted = drawn(flat()), drawn(flat(), note="UNTRAINED")
    assert is_colour(plain[:30], ALARM).sum() > 300
    assert is_colour(plain[30:HEAD], INK).sum() == 0
    assert is_colour(noted[30:HEAD], INK).sum() > 50
    assert np.array_equal(plain[:30], noted[:30])


@pytest.mark.parametrize("count", [1, 2, 3, 8, 20])
def test_the_banner_is_whole_however_few_tiles_there_are(count: int) -> None:
    widest = is_colour(drawn(flat((20, 30, 30)))[:30], ALARM)
    sheet = drawn(flat((count, 30, 30)), note="a very long note " * 20)
    assert np.array_equal(is_colour(sheet[:30], ALARM), widest[:, : sheet.shape[1]])
    assert widest[:, sheet.shape[1] :].sum() == 0
    assert is_colour(sheet[30:HEAD, -MARGIN:], INK).sum() == 0


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_every_mask_is_in_the_legend_however_few_tiles_there_are(count: int) -> None:
    voxels = flat((count, 30, 30))
    colours = [(200, number * 20, 10) for number in range(6)]
    layers = [Layer("x" * 64, each, masked(voxels, 0, 1, 1)) for each in colours]
    sheet = drawn(voxels, *layers)
    legend = sheet[HEAD + -(-count // 4) * (TILE + MARGIN) :]
    assert [is_colour(legend, each).sum() for each in colours] == [15 * 15] * 6


def test_a_legend_tells_of_no_mask_and_of_a_mask_of_nothing() -> None:
    def words(*layers: Layer) -> int:
        return int(is_colour(drawn(flat(), *layers)[HEAD + 2 * (TILE + MARGIN) :], INK).sum())

    empty = Layer("aorta", RED, masked(flat(), slice(0, 0)))
    full = Layer("aorta", RED, masked(flat(), 0))
    assert words() > 50
    assert words(empty) > words(full) + 50


# --- masks --------------------------------------------------------------------------------------


def test_colour_is_where_the_mask_is_and_nowhere_else() -> None:
    voxels = flat()
    box = masked(voxels, slice(2, 4), slice(12, 18), slice(3, 9))
    sheet = drawn(voxels, Layer("box", RED, box))
    for index in range(8):
        pixels = tile(sheet, index)
        if index not in {2, 3}:
            pixels = pixels[:, 30:-30]  # without the letters
            assert not is_tinted(pixels).any()
            continue
        inside = np.zeros((TILE, TILE), bool)
        inside[120:180, 30:90] = True  # ten pixels for a voxel
        inside_middle = inside.copy()
        inside_middle[122:178, 32:88] = False
        assert np.array_equal(is_colour(pixels, RED), inside_middle)
        assert np.array_equal(is_tinted(pixels)[:, 30:-30], inside[:, 30:-30])


def test_two_masks_have_their_own_colours() -> None:
    voxels = flat()
    first = Layer("a", RED, masked(voxels, 0, slice(5, 10), slice(5, 10)))
    second = Layer("b", BLUE, masked(voxels, 0, slice(20, 25), slice(20, 25)))
    pixels = tile(drawn(voxels, first, second), 0)
    for colour, start in ((RED, 50), (BLUE, 200)):
        rows, columns = np.nonzero(is_colour(pixels, colour))
        assert (rows.min(), rows.max() + 1) == (start, start + 50)
        assert (columns.min(), columns.max() + 1) == (start, start + 50)


def test_a_mask_of_one_voxel_of_a_large_slice_is_seen() -> None:
    voxels = flat((3, 512, 512))
    dot = Layer("dot", RED, masked(voxels, 1, 300, 201))
    rows, columns = np.nonzero(is_colour(tile(drawn(voxels, dot), 1), RED))
    assert 1 <= len(rows) <= 4
    assert abs(rows.mean() - 300.5 / 512 * TILE) < 1
    assert abs(columns.mean() - 201.5 / 512 * TILE) < 1


# --- which slices -------------------------------------------------------------------------------


def shown(count: int, *masks: NDArray[np.bool_]) -> list[int]:
    """Tell the slices by the grey that each has."""
    voxels = flat((count, 30, 30)) + np.arange(count, dtype=np.float32)[:, None, None]
    layers = [Layer("mask", RED, each) for each in masks]
    sheet = drawn(voxels, *layers, window=((count - 1) / 2, count - 1))
    step = 255 / (count - 1)
    return [round(tile(sheet, index)[290, 150, 0] / step) for index in range(min(8, count))]


def test_without_masks_the_slices_are_spread_evenly() -> None:
    assert shown(8) == list(range(8))
    assert shown(5) == list(range(5))
    found = shown(91)
    assert found == [10, 20, 30, 40, 50, 60, 70, 80]


def test_the_fullest_slice_of_each_mask_is_shown() -> None:
    small, large = np.zeros((2, 100, 30, 30), bool)
    small[90:97, :5, :5] = True
    large[:50, :2, :2] = True
    small[93, :9, :9] = True
    large[3, :9, :9] = True
    found = shown(100, small, large)
    assert {93, 3} < set(found)
    assert found == sorted(set(found))
    assert len(found) == 8


def test_of_many_masks_no_more_slices_are_shown_than_there_is_room_for() -> None:
    masks = [masked(flat((100, 30, 30)), number, 1, 1) for number in range(50, 70)]
    assert shown(100, *masks) == list(range(50, 58))


# --- greys and shapes ---------------------------------------------------------------------------


def test_pixels_that_are_not_square_keep_the_shape_of_the_patient() -> None:
    voxels = flat((3, 20, 40), value=-1000)
    voxels[:, 5:15, 10:30] = 1000
    pixels = tile(drawn(voxels, spacing_mm=(5.0, 2.0, 0.5)), 1)[..., 0]
    rows, columns = np.nonzero(pixels[30:, 30:-30] > 127)
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert abs(height / width - (10 * 2.0) / (20 * 0.5)) < 0.05
    assert abs(height - TILE / 2) < 3


def test_a_window_is_level_and_width() -> None:
    voxels = np.repeat(np.array([-61.0, -60, 40, 140, 141], np.float32), 900).reshape(5, 30, 30)
    sheet = drawn(voxels, window=(40, 200))
    assert [int(tile(sheet, index)[200, 150, 0]) for index in range(5)] == [0, 0, 127, 255, 255]


def test_without_a_window_the_percentiles_are_dark_and_bright() -> None:
    voxels = np.linspace(0, 1000, 8 * 900, dtype=np.float32).reshape(8, 30, 30)
    voxels[0, 0, 0], voxels[7, -1, -1] = -1e6, 1e6
    sheet = drawn(voxels, window=None)
    assert tile(sheet, 0)[250, 150, 0] > 10
    assert tile(sheet, 3)[150, 150, 0] == pytest.approx(127, abs=20)
    assert tile(sheet, 7)[250, 150, 0] > 245


def test_a_volume_of_one_value_is_drawn() -> None:
    assert drawn(flat(value=7), window=None).shape == (HEAD + 2 * (TILE + MARGIN) + 32, 1240, 3)


def test_the_picture_of_the_synthetic_patient_can_be_kept(tmp_path: Path) -> None:
    source = volume.load(sample.series(shape=(16, 48, 48)))
    lungs = (source.image.array < -700) & (source.image.array > -950)
    right = lungs & (np.arange(48) < 24)
    picture = montage(
        source.image.array, source.spacing_mm, [Layer("Right lung", RED, right)], window=(40, 400)
    )
    picture.save(tmp_path / "overlay.png")
    with Image.open(tmp_path / "overlay.png") as kept:
        assert np.array_equal(np.array(kept), np.array(picture))
    sides = np.nonzero(is_colour(np.array(picture)[HEAD : HEAD + TILE], RED))[1] - MARGIN
    assert (sides % (TILE + MARGIN)).max() < TILE / 2
