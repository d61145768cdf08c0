"""Into the network's grid and back: nothing moves, nothing is lost, nothing is guessed."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import reference
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from monai.transforms import Compose, CropForeground, Resize, ScaleIntensityRangePercentiles
from numpy.typing import NDArray
from safetensors.numpy import load_file

from model import ModelError
from model.preprocess import OUTSIDE, Placement, Prepared, prepare

Array = NDArray[Any]
Shape = tuple[int, int, int]
REAL = (32, 256, 256)
SMALL = (8, 16, 12)


def random(shape: Shape, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(40, 100, shape).astype(np.float32)


def interpolated(volume: Array, size: Shape) -> Array:
    """Trilinear, edges aligned: by hand, one axis after the other."""
    for axis, (old, new) in enumerate(zip(volume.shape, size, strict=True)):
        centre = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.floor(centre).astype(int)
        share = (centre - low).reshape([-1 if each == axis else 1 for each in range(3)])
        high = np.minimum(low + 1, old - 1)
        volume = (1 - share) * volume.take(low, axis) + share * volume.take(high, axis)
    return volume


@st.composite
def shapes(draw: st.DrawFn, most: int = 40) -> Shape:
    z, y, x = (draw(st.integers(1, most)) for _ in range(3))
    return z, y, x


@st.composite
def placements(draw: st.DrawFn) -> Placement:
    """A box of foreground anywhere in a source grid, as small as one voxel."""
    shape = draw(shapes())
    ends = [sorted((draw(st.integers(0, n - 1)), draw(st.integers(1, n)))) for n in shape]
    (z0, z1), (y0, y1), (x0, x1) = ((a, max(a + 1, b)) for a, b in ends)
    return Placement(shape, (z0, y0, x0), (z1, y1, x1))


def box(placement: Placement) -> tuple[slice, ...]:
    return tuple(slice(*each) for each in zip(placement.start, placement.stop, strict=True))


def planted(placement: Placement, seed: int = 0) -> Array:
    """A volume whose foreground is that box: dark outside, 1 to 2 inside, bright in its corners."""
    volume = np.zeros(placement.shape, np.float32)
    inside = np.random.default_rng(seed).uniform(1, 2, placement.size)
    volume[box(placement)] = inside
    return volume


def centres(source: int, start: int, stop: int, grid: int) -> Array:
    """Give where the grid's voxel centres lie, in source voxels."""
    assert 0 <= start < stop <= source
    return start - 0.5 + (np.arange(grid) + 0.5) * (stop - start) / grid


def distance(axes: Sequence[Array], centre: Array, radii: Array) -> Array:
    z, y, x = np.meshgrid(*axes, indexing="ij")
    away = np.stack([z, y, x], axis=-1)
    return np.sqrt((((away - centre) / radii) ** 2).sum(axis=-1))


@pytest.mark.parametrize("shape", [(5, 7, 9), (40, 20, 31), (1, 16, 12), (8, 16, 12), (3, 300, 2)])
def test_the_image_is_scaled_and_resized_as_by_hand(shape: Shape) -> None:
    volume = random(shape)
    volume.flat[0] = volume.min() - 1  # so that the crop leaves all
    volume.flat[-1] = volume.max() + 1
    placed = prepare(volume, SMALL)
    start, stop = np.array(placed.placement.start), np.array(placed.placement.stop)
    scaled = (volume - volume.min()) / (volume.max() - volume.min())
    expected = interpolated(scaled[tuple(map(slice, start, stop))].astype(float), SMALL)
    np.testing.assert_allclose(placed.image[0, 0].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("percentiles", [(0.5, 99.5), (0, 100), (5, 80)])
def test_crop_and_resize_are_those_of_monai(percentiles: tuple[float, float]) -> None:
    low, high = percentiles
    monai = Compose(
        [
            ScaleIntensityRangePercentiles(low, high, 0, 1, clip=True),
            CropForeground(allow_smaller=True),
            Resize(REAL, mode="trilinear"),
        ]
    )
    volume = np.zeros((20, 90, 70), np.float32)
    volume[3:17, 20:80, 9:60] = random((14, 60, 51))
    image = prepare(volume, REAL, percentiles=percentiles).image
    np.testing.assert_allclose(image[0].numpy(), np.asarray(monai(volume[None])), atol=2e-5)


def test_the_image_is_a_plain_tensor_of_the_network_s_shape() -> None:
    image = prepare(random((5, 30, 30)), REAL).image
    assert type(image) is torch.Tensor
    assert image.shape == (1, 1, *REAL)
    assert image.dtype == torch.float32
    assert 0 <= image.min() < image.max() <= 1


@pytest.mark.parametrize(
    ("key", "sample", "axes", "percentiles"),
    [
        ("cap_slices_u8", "cap_sample", (0, 1, 2), None),
        ("seg_image_1xyz_f32", "seg_image_sample", (2, 1, 0), None),
        ("refseg_ct_xyz_i16", "refseg_ct_sample", (2, 0, 1), (0.5, 99.5)),
    ],
)
def test_the_three_preparations_of_the_reference_come_out_the_same(
    key: str, sample: str, axes: Shape, percentiles: tuple[float, float] | None
) -> None:
    folder = reference.folder("preproc")
    raw = load_file(folder / "inputs.safetensors")[key]
    expected = load_file(folder / "expected.safetensors")[sample]
    cases = json.loads((folder / "cases.json").read_text())
    volume = raw.reshape(raw.shape[-3:]).transpose(axes)
    image = prepare(volume, REAL, percentiles=percentiles).image[0].numpy()
    np.testing.assert_allclose(image[:, ::4, ::16, ::16], expected, atol=1e-5)
    assert image.sum(dtype=float) == pytest.approx(cases[key.split("_", 1)[0]]["sum"], rel=1e-5)


@settings(max_examples=80, deadline=None)
@given(placement=placements())
@example(Placement((9, 9, 9), (4, 5, 6), (5, 6, 7)))
@example(Placement((1, 1, 2), (0, 0, 0), (1, 1, 1)))
def test_the_crop_is_recorded_to_the_voxel(placement: Placement) -> None:
    assume(placement.size != placement.shape)
    assert prepare(planted(placement), SMALL).placement == placement


@settings(max_examples=80, deadline=None)
@given(placement=placements(), grid=shapes(20))
def test_a_mask_comes_back_in_the_shape_of_the_source_and_only_inside_the_crop(
    placement: Placement, grid: Shape
) -> None:
    restored = placement.restore(torch.ones(grid))
    inside = np.zeros(placement.shape, bool)
    inside[box(placement)] = True
    assert restored.dtype == np.float32
    assert restored.shape == placement.shape
    assert (restored[inside] == 1).all()
    assert (restored[~inside] == OUTSIDE).all()


@settings(max_examples=60, deadline=None)
@given(placement=placements(), grid=shapes(20), axis=st.integers(0, 2))
def test_every_voxel_comes_back_to_its_place(placement: Placement, grid: Shape, axis: int) -> None:
    """The logits say where they are, along one axis, in source voxels; so must what comes back."""
    ends = list(zip(placement.shape, placement.start, placement.stop, grid, strict=True))
    told = centres(*ends[axis]).reshape([-1 if each == axis else 1 for each in range(3)])
    logits = torch.from_numpy(np.broadcast_to(told, grid).astype(np.float32))
    restored = np.moveaxis(placement.restore(logits)[box(placement)], axis, 0)
    places = np.arange(placement.start[axis], placement.stop[axis])
    # Beyond the outermost centres trilinear interpolation keeps the last value.
    expected = np.clip(places, told.min(), told.max())
    assert np.abs(restored - expected[:, None, None]).max() < 1e-3


@settings(max_examples=60, deadline=None)
@given(
    placement=placements(),
    grid=shapes(24),
    where=st.tuples(*[st.floats(0.3, 0.7)] * 3),
    wide=st.tuples(*[st.floats(0.2, 0.45)] * 3),
)
def test_a_planted_ellipsoid_comes_back_less_than_a_voxel_away(
    placement: Placement, grid: Shape, where: Sequence[float], wide: Sequence[float]
) -> None:
    size = np.array(placement.size)
    coarser = np.maximum(size / grid, 1)
    centre = placement.start + np.array(where) * size - 0.5
    radii = np.maximum(wide * size, 1.5 * coarser)
    ends = zip(placement.shape, placement.start, placement.stop, grid, strict=True)
    logits = 1 - distance([centres(*each) for each in ends], centre, radii)
    mask = placement.restore(torch.from_numpy(logits.astype(np.float32))) > 0
    exact = distance([np.arange(n) for n in placement.shape], centre, radii) < 1
    cropped = np.zeros_like(exact)
    cropped[box(placement)] = exact[box(placement)]
    assume(cropped.any())
    moved = np.argwhere(mask).mean(axis=0) - np.argwhere(cropped).mean(axis=0)
    assert (np.abs(moved) < coarser).all()


@pytest.mark.parametrize(
    ("shape", "low", "high"),
    [
        ((120, 64, 64), (30, 20, 12), (75, 44, 23)),  # many thin slices
        ((6, 200, 180), (2, 60, 100), (4, 130, 150)),  # few thick ones
        ((9, 10, 11), (3, 2, 4), (6, 7, 9)),  # smaller than the grid
    ],
)
def test_what_the_network_sees_comes_back_where_it_was(
    shape: Shape, low: Shape, high: Shape
) -> None:
    """The way there and the way back together: the mask is the bright box in the image itself."""
    volume = np.zeros(shape, np.float32)
    volume[tuple(slice(1, n - 1) for n in shape)] = 1
    volume[tuple(map(slice, low, high))] = 3
    prepared = prepare(volume, REAL)
    mask = prepared.placement.restore(prepared.image[0, 0] - 2 / 3) > 0
    bright = np.argwhere(volume == 3)
    coarser = np.maximum(np.array(prepared.placement.size) / REAL, 1)
    assert (np.abs(np.argwhere(mask).mean(axis=0) - bright.mean(axis=0)) < coarser).all()
    assert (np.abs(np.argwhere(mask).min(axis=0) - low) <= coarser).all()
    assert (np.abs(np.argwhere(mask).max(axis=0) + 1 - high) <= coarser).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_flipped_volume_gives_a_flipped_image_and_a_flipped_mask(axis: int) -> None:
    volume = np.zeros((10, 24, 20), np.float32)
    volume[2:7, 3:19, 1:15] = random((5, 16, 14)) + 1000
    seen, flipped = prepare(volume, SMALL), prepare(np.flip(volume, axis), SMALL)
    torch.testing.assert_close(flipped.image, seen.image.flip(2 + axis))
    logits = torch.from_numpy(random(SMALL, seed=1))
    mirrored = np.flip(flipped.placement.restore(logits.flip(axis)), axis)
    np.testing.assert_allclose(mirrored, seen.placement.restore(logits), atol=1e-3)


@settings(max_examples=80, deadline=None)
@given(placement=placements(), point=st.tuples(*[st.floats(0, 1)] * 3))
def test_placing_a_point_is_inverse_to_the_crop(
    placement: Placement, point: tuple[float, float, float]
) -> None:
    placed = np.array(placement.place(point))
    back = (placed - placement.start) / placement.size
    np.testing.assert_allclose(back, point, atol=1e-9)
    assert placement.place((0, 0, 0)) == placement.start
    assert placement.place((1, 1, 1)) == placement.stop


def test_the_corners_of_something_in_the_image_are_placed_on_it_in_the_source() -> None:
    volume = np.zeros((40, 100, 120), np.float32)
    volume[4:36, 10:90, 20:110] = 1
    volume[12:20, 30:50, 60:90] = 3
    prepared = prepare(volume, REAL)
    seen = np.argwhere(prepared.image[0, 0].numpy() > 2 / 3)
    low, high = seen.min(axis=0) / REAL, (seen.max(axis=0) + 1) / REAL
    place = prepared.placement.place
    np.testing.assert_allclose(place((low[0], low[1], low[2])), (12, 30, 60), atol=1)
    np.testing.assert_allclose(place((high[0], high[1], high[2])), (20, 50, 90), atol=1)


def test_a_window_cuts_and_fills_0_to_1() -> None:
    volume = np.linspace(-1000, 1000, 5 * 6 * 7, dtype=np.float32).reshape(5, 6, 7)
    expected = (np.clip(volume, -160, 240) + 160) / 400
    seen = prepare(volume, volume.shape, window=(40, 400))
    inside = expected[box(seen.placement)]
    np.testing.assert_allclose(seen.image[0, 0].numpy(), interpolated(inside, (5, 6, 7)), atol=1e-5)


def test_an_image_all_inside_its_window_fills_0_to_1_too() -> None:
    volume = random((5, 6, 7)) / 100
    assert prepare(volume, (5, 6, 7), window=(0, 4000)).image.max() == 1


def test_a_window_comes_before_percentiles() -> None:
    volume = random((5, 6, 7))
    both = prepare(volume, SMALL, window=(40, 100), percentiles=(10, 90))
    torch.testing.assert_close(both.image, prepare(volume, SMALL, window=(40, 100)).image)


def test_air_around_the_patient_is_cropped_by_the_window() -> None:
    volume = np.full((6, 20, 20), -1000, np.float32)
    volume[1:5, 4:15, 6:18] = random((4, 11, 12))
    volume[1:5, 4:15, 6] = volume[1:5, 4:15, 17] = 100
    volume[1:5, 4, 6:18] = volume[1:5, 14, 6:18] = 100
    placement = prepare(volume, SMALL, window=(40, 400)).placement
    assert (placement.start, placement.stop) == ((1, 4, 6), (5, 15, 18))


def _same(one: Prepared, other: Prepared) -> bool:
    torch.testing.assert_close(one.image, other.image, atol=1e-6, rtol=0)
    return one.placement == other.placement


@pytest.mark.parametrize("dtype", ["<i2", "<u2", "i4", "u1", ">i2", ">f4", "f8", "f2"])
def test_every_type_of_number_gives_the_same_image(dtype: str) -> None:
    volume = np.random.default_rng(0).integers(0, 200, (6, 20, 18)).astype(np.float32)
    assert _same(prepare(volume.astype(dtype), SMALL), prepare(volume, SMALL))
    assert _same(
        prepare(volume.astype(dtype), SMALL, window=(90, 63)),
        prepare(volume, SMALL, window=(90, 63)),
    )


def test_every_layout_in_memory_gives_the_same_image() -> None:
    volume = random((6, 20, 18))
    expected = prepare(volume, SMALL)
    assert _same(prepare(np.asfortranarray(volume), SMALL), expected)
    assert _same(prepare(np.flip(np.flip(volume).copy()), SMALL), expected)
    frozen = volume.copy()
    frozen.flags.writeable = False
    assert _same(prepare(frozen, SMALL), expected)


def test_the_caller_s_voxels_stay_as_they_are() -> None:
    volume = random((6, 20, 18))
    before = volume.tobytes()
    seen = prepare(volume, volume.shape)
    seen.image.zero_()
    assert volume.tobytes() == before


def test_a_small_contrast_far_from_zero_is_kept_in_float64() -> None:
    contrast = np.random.default_rng(0).uniform(0, 1, (4, 8, 8))
    assert _same(prepare(contrast + 1e9, SMALL), prepare(np.round(contrast * 2**23) / 2**23, SMALL))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_voxel_that_is_no_number_is_refused(bad: float) -> None:
    volume = random((4, 5, 6))
    volume[2, 3, 1] = bad
    with pytest.raises(ModelError, match="finite"):
        prepare(volume, SMALL)


@pytest.mark.parametrize("shape", [(4, 5), (1, 4, 5, 6), (0, 5, 6), ()])
def test_another_shape_than_three_axes_is_refused_and_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"\(slices, rows, columns\)") as caught:
        prepare(np.ones(shape, np.float32), SMALL)
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize("dtype", [bool, complex, object, "U3"])
def test_voxels_that_are_no_numbers_are_refused_and_named(dtype: Any) -> None:
    with pytest.raises(ModelError, match=f"holds numbers, not {np.dtype(dtype)}"):
        prepare(np.ones((4, 5, 6)).astype(dtype), SMALL)


def test_a_volume_without_contrast_is_refused_with_its_value() -> None:
    with pytest.raises(ModelError, match="contrast; every voxel is 7 "):
        prepare(np.full((4, 5, 6), 7, np.int16), SMALL)


def test_a_window_beside_all_voxels_is_refused_with_its_ends() -> None:
    with pytest.raises(ModelError, match=r"every voxel is 2800 in \[2800, 3200\]"):
        prepare(random((4, 5, 6)), SMALL, window=(3000, 400))


@pytest.mark.parametrize(
    "window", [(40.0, 0.0), (40.0, -1.0), (float("nan"), 400.0), (40.0, float("inf"))]
)
def test_a_window_that_is_none_is_refused(window: tuple[float, float]) -> None:
    with pytest.raises(ModelError, match=f"a width above 0, not {window[0]} and {window[1]}"):
        prepare(random((4, 5, 6)), SMALL, window=window)


@pytest.mark.parametrize("percentiles", [(-1, 99), (1, 101), (50, 50), (99, 1)])
def test_percentiles_that_are_none_are_refused(percentiles: tuple[float, float]) -> None:
    with pytest.raises(ModelError, match=f"0 to 100, not {percentiles[0]} and {percentiles[1]}"):
        prepare(random((4, 5, 6)), SMALL, percentiles=percentiles)
