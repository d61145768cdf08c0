"""Boxes, masks and surfaces against numbers by hand, by MONAI and by the reference."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import missing
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.metrics import (
    compute_average_surface_distance,
    compute_hausdorff_distance,
    compute_surface_dice,
)
from numpy.typing import NDArray

from model.bench import geometry
from model.bench.geometry import Outcome, Overlap, Surface
from model.errors import ModelError

PARITY = Path(__file__).parents[2] / "shared" / "parity" / "text"
SHAPE = (4, 5, 6)
MASKS = arrays(np.bool_, SHAPE)
PARTS = st.integers(0, 16).map(lambda each: each / 16)
BOXES = st.tuples(*[st.tuples(PARTS, PARTS).map(sorted)] * 3).map(
    lambda pairs: tuple(pair[end] for end in (0, 1) for pair in pairs)
)

unhurried = settings(deadline=None)  # a busy machine is no slow function
FULL = (0.0, 0.0, 0.0, 1.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    if not PARITY.is_dir():
        missing("the golden numbers of the reference")
    told: dict[str, Any] = json.loads((PARITY / "metrics.json").read_text())
    return told


def block(*slices: tuple[int, int], shape: tuple[int, ...] = (10, 10, 10)) -> NDArray[np.bool_]:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*each) for each in slices)] = True
    return mask


# Boxes


def test_two_shifted_cubes_share_what_they_share() -> None:
    a, b = (0, 0, 0, 0.6, 0.6, 0.6), (0.4, 0.4, 0.4, 1, 1, 1)
    assert geometry.iou(a, b) == pytest.approx(0.008 / (2 * 0.216 - 0.008))
    assert geometry.iou(FULL, (0.25, 0.25, 0.25, 0.75, 0.75, 0.75)) == pytest.approx(0.125)
    assert geometry.iou((0, 0, 0, 0.5, 1, 1), (0.5, 0, 0, 1, 1, 1)) == 0


@unhurried
@given(BOXES, BOXES)
def test_iou_is_symmetric_bounded_and_not_above_what_shares_less(
    a: Sequence[float], b: Sequence[float]
) -> None:
    assert geometry.iou(a, b) == geometry.iou(b, a)
    assert 0 <= geometry.reference_iou(a, b) <= geometry.iou(a, b) + 1e-12 <= 1 + 1e-12


@unhurried
@given(BOXES, BOXES)
def test_iou_is_that_of_the_voxels_in_the_boxes(a: Sequence[float], b: Sequence[float]) -> None:
    grid = [np.zeros((16, 16, 16), bool) for _ in range(2)]
    for mask, box in zip(grid, (a, b), strict=True):
        z0, y0, x0, z1, y1, x1 = (round(16 * each) for each in box)
        mask[z0:z1, y0:y1, x0:x1] = True
    union = int((grid[0] | grid[1]).sum())
    expected = int((grid[0] & grid[1]).sum()) / union if union else 0
    assert geometry.iou(a, b) == pytest.approx(expected)


def test_a_box_turned_inside_out_holds_nothing() -> None:
    inverted = (0.5, 0.5, 0.5, 0.2, 0.9, 0.9)
    assert geometry.iou(inverted, inverted) == geometry.iou(inverted, FULL) == 0


@unhurried
@given(MASKS)
def test_a_box_around_a_mask_holds_it_and_not_a_slice_more(mask: NDArray[np.bool_]) -> None:
    assume(mask.any())
    box = geometry.box_of(mask)
    assert box is not None
    places = np.argwhere(mask)
    assert [each * size for each, size in zip(box, SHAPE * 2, strict=True)] == pytest.approx(
        [*places.min(0), *(places.max(0) + 1)]
    )


@unhurried
@given(MASKS)
def test_a_published_box_made_half_open_is_the_box_around_the_mask(
    mask: NDArray[np.bool_],
) -> None:
    assume(mask.any())
    published, box = geometry.published_box(mask), geometry.box_of(mask)
    assert published is not None
    assert box is not None
    # Three decimals are all that is lost.
    assert geometry.half_open(published, SHAPE) == pytest.approx(box, abs=0.000501)


def test_a_published_box_of_one_voxel_holds_that_voxel() -> None:
    mask = block((2, 3), (4, 5), (6, 7))
    published = geometry.published_box(mask)
    assert published == [0.2, 0.4, 0.6, 0.2, 0.4, 0.6]
    assert geometry.iou(published, published) == 0, "taken as half open it is empty"
    box = geometry.half_open(published, mask.shape)
    assert geometry.iou(box, box) == 1
    assert box == pytest.approx(geometry.box_of(mask))


def test_a_published_box_does_not_end_beyond_the_grid() -> None:
    assert geometry.half_open([0, 0, 0, 0.969, 0.996, 1.0], (32, 256, 256)) == pytest.approx(
        (0, 0, 0, 1, 1, 1), abs=6e-4
    )
    assert geometry.half_open([0, 0, 0, 1, 1, 1], (2, 2, 2)) == FULL


def test_an_empty_mask_has_no_box() -> None:
    empty = np.zeros(SHAPE, bool)
    assert geometry.box_of(empty) is None
    assert geometry.published_box(empty) is None


def test_golden_boxes_of_masks(golden: dict[str, Any]) -> None:
    for each in golden["mask2box"]:
        mask = np.zeros(each["shape"], bool)
        mask[tuple(each["min_index"])] = mask[tuple(each["max_index"])] = True
        assert geometry.published_box(mask) == each["box"]


def test_golden_overlaps_of_boxes_true_and_published(golden: dict[str, Any]) -> None:
    for each in golden["iou"]:
        assert geometry.iou(each["a"], each["b"]) == pytest.approx(each["true_iou"], abs=1e-12)
        assert geometry.reference_iou(each["a"], each["b"]) == pytest.approx(
            each["upstream"], abs=1e-12
        )


def test_golden_boxes_read_from_text(golden: dict[str, Any]) -> None:
    for text, box in golden["extract"]:
        assert geometry.reference_read_box(text) == box


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("It is [0.1, 0.25, 0.3, 0.4, 0.5, 0.6].", [0.1, 0.25, 0.3, 0.4, 0.5, 0.6]),
        ("<bx_start>[0.1,0.2,0.3,0.4,0.5,0.6]<bx_end>", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]),
        ("[ 0 0 0 1 1 1 ]", [0, 0, 0, 1, 1, 1]),
        ("[0, 0, 0, 1, 1, 1] or [0.5, 0, 0, 1, 1, 1]", [0, 0, 0, 1, 1, 1]),
        ("[0.5, 0, 0, 0.4, 1, 1]", None),
        ("[0, 0, 0, 1, 1, 2]", None),
        ("[-0.1, 0, 0, 1, 1, 1]", None),
        ("[0.1, 0.2, 0.3]", None),
        ("[0, 0, 0, 1, 1, 1, 1]", None),
        ("", None),
    ],
)
def test_only_a_box_inside_of_the_grid_is_read(text: str, box: list[float] | None) -> None:
    assert geometry.read_box(text) == box


def test_boxes_are_judged_with_those_that_are_not_there_apart() -> None:
    half = (0.0, 0.0, 0.0, 0.5, 1.0, 1.0)
    judged = [
        geometry.box_overlap(half, FULL),
        geometry.box_overlap(None, FULL),
        geometry.box_overlap(FULL, FULL),
        geometry.box_overlap(None, None),
        geometry.box_overlap(half, None),
        geometry.box_overlap(None, None),
    ]
    assert [each.outcome for each in judged] == [
        *(Outcome.FOUND, Outcome.MISSED, Outcome.FOUND),
        *(Outcome.DECLINED, Outcome.FALSE_ALARM, Outcome.DECLINED),
    ]
    assert geometry.mean_score(judged) == pytest.approx((0.5 + 0 + 1) / 3)
    assert geometry.accuracy_at(judged, 0.5) == pytest.approx(2 / 3)
    assert geometry.accuracy_at(judged, 0.51) == pytest.approx(1 / 3)
    assert geometry.decline_rate(judged) == pytest.approx(2 / 3)


# Masks


def test_dice_by_hand() -> None:
    a, b = block((0, 2), (0, 2), (0, 2)), block((1, 3), (0, 2), (0, 2))
    assert geometry.dice(a, b) == pytest.approx(2 * 4 / 16)
    assert geometry.dice(a, block((5, 6), (5, 6), (5, 6))) == 0


@unhurried
@given(MASKS, MASKS)
def test_dice_is_symmetric_bounded_and_one_for_itself(
    a: NDArray[np.bool_], b: NDArray[np.bool_]
) -> None:
    assume(a.any())
    assert geometry.dice(a, b) == geometry.dice(b, a)
    assert 0 <= geometry.dice(a, b) <= 1
    assert geometry.dice(a, a) == 1
    assert (geometry.dice(a, b) == 1) == bool((a == b).all())


def test_refusing_what_is_not_there_is_right_and_in_no_mean() -> None:
    there, empty = block((0, 2), (0, 2), (0, 2)), np.zeros((10, 10, 10), bool)
    assert geometry.mask_overlap(empty, empty) == Overlap(Outcome.DECLINED, None)
    assert geometry.mask_overlap(there, empty) == Overlap(Outcome.FALSE_ALARM, None)
    assert geometry.mask_overlap(empty, there) == Overlap(Outcome.MISSED, 0)
    assert geometry.mask_overlap(there, there) == Overlap(Outcome.FOUND, 1)
    judged = [geometry.mask_overlap(a, b) for a in (there, empty) for b in (there, empty)]
    assert geometry.mean_score(judged) == 0.5
    assert geometry.decline_rate(judged) == 0.5
    with pytest.raises(ModelError, match="count them as declined"):
        geometry.dice(empty, empty)


def test_what_was_never_asked_has_no_number() -> None:
    declined = [Overlap(Outcome.DECLINED, None)]
    assert geometry.mean_score(declined) is geometry.accuracy_at(declined, 0.5) is None
    assert geometry.decline_rate([Overlap(Outcome.FOUND, 0.7)]) is None


def test_label_maps_and_other_shapes_are_refused() -> None:
    mask = block((0, 2), (0, 2), (0, 2))
    for measure in (geometry.dice, geometry.mask_overlap):
        with pytest.raises(ModelError, match="boolean, not uint8"):
            measure(mask.astype(np.uint8) * 3, mask)
        with pytest.raises(ModelError, match="one shape"):
            measure(mask[:5], mask)


def test_golden_soft_dice(golden: dict[str, Any]) -> None:
    cases = [each for each in golden["dice"] if "logits" in each]
    assert len(cases) == 3
    for each in cases:
        logits, target = (
            np.array(each[key]).reshape(each["shape"]) for key in ("logits", "target")
        )
        found = geometry.reference_dice(logits, target)
        assert found == pytest.approx(each["BinaryDice"], abs=1e-6)
        assert 1 - found == pytest.approx(each["BinaryDiceLoss"], abs=1e-6)


def test_golden_soft_dice_of_a_right_refusal_is_zero(golden: dict[str, Any]) -> None:
    (refusal,) = [each for each in golden["dice"] if "logits" not in each]
    assert "-inf" in refusal["note"]
    logits = np.full((1, 1, 2, 2, 2), -np.inf)
    assert geometry.reference_dice(logits, np.zeros_like(logits)) == refusal["BinaryDice"] == 0


# Surfaces


def test_two_parallel_plates_are_as_far_apart_as_they_are() -> None:
    a = block((2, 3), (0, 10), (0, 10))
    b = block((5, 6), (0, 10), (0, 10))
    assert geometry.surface(a, b, (2.5, 1, 1), tolerance_mm=7.5) == Surface(7.5, 7.5, 1.0)
    assert geometry.surface(a, b, (2.5, 1, 1), tolerance_mm=7.4) == Surface(7.5, 7.5, 0.0)
    # The same masks on another grid: now the rows are thick, and the distance is along slices.
    assert geometry.surface(a, b, (1, 2.5, 1)) == Surface(3.0, 3.0, 0.0)


def test_one_stray_voxel_is_in_the_mean_and_not_in_hd95() -> None:
    a = block((2, 3), (0, 10), (0, 10))
    b = a.copy()
    b[8, 4, 4] = True
    found = geometry.surface(b, a, (1, 1, 1), tolerance_mm=1)
    assert found == Surface(
        mean_mm=pytest.approx(6 / 201), hd95_mm=0.0, dice=pytest.approx(200 / 201)
    )


@unhurried
@given(MASKS, MASKS, st.tuples(*[st.sampled_from([0.5, 1.0, 2.5, 5.0])] * 3))
def test_surfaces_are_symmetric_and_nothing_apart_from_themselves(
    a: NDArray[np.bool_], b: NDArray[np.bool_], spacing: tuple[float, float, float]
) -> None:
    assume(a.any() and b.any())
    there, back = (geometry.surface(*pair, spacing, tolerance_mm=1) for pair in ((a, b), (b, a)))
    assert there is not None
    assert back is not None
    assert there.mean_mm == pytest.approx(back.mean_mm)
    assert (there.hd95_mm, there.dice) == (back.hd95_mm, back.dice)
    assert 0 <= there.dice <= 1
    assert geometry.surface(a, a, spacing, tolerance_mm=0) == Surface(0, 0, 1)


@unhurried
@given(MASKS, MASKS, st.permutations(range(3)))
def test_axes_carry_their_spacing_along(
    a: NDArray[np.bool_], b: NDArray[np.bool_], axes: list[int]
) -> None:
    assume(a.any() and b.any())
    spacing = (5.0, 0.7, 1.1)
    turned = geometry.surface(
        a.transpose(axes), b.transpose(axes), [spacing[each] for each in axes]
    )
    straight = geometry.surface(a, b, spacing)
    assert turned is not None
    assert straight is not None
    assert turned.mean_mm == pytest.approx(straight.mean_mm)
    assert turned.hd95_mm == pytest.approx(straight.hd95_mm)


def test_an_empty_mask_has_no_surface() -> None:
    there, empty = block((0, 2), (0, 2), (0, 2)), np.zeros((10, 10, 10), bool)
    assert geometry.surface(there, empty, (1, 1, 1)) is None
    assert geometry.surface(empty, there, (1, 1, 1)) is None


# MONAI 1.6 calls its own deprecated argument.
@pytest.mark.filterwarnings("ignore:monai.metrics.utils get_mask_edges:FutureWarning")
@pytest.mark.parametrize("seed", range(6))
def test_surfaces_are_those_of_monai(seed: int) -> None:
    random = np.random.default_rng(seed)
    spacing = tuple(float(each) for each in random.uniform(0.5, 5, 3))
    a, b = (_blobs(random) for _ in range(2))
    ours = geometry.surface(a, b, spacing, tolerance_mm=2.0)
    assert ours is not None
    one_hot = [
        torch.from_numpy(np.stack([~each, each])[None].astype(np.float32)) for each in (a, b)
    ]
    mean = compute_average_surface_distance(*one_hot, symmetric=True, spacing=spacing)
    hd95 = compute_hausdorff_distance(*one_hot, percentile=95, spacing=spacing)
    dice = compute_surface_dice(*one_hot, class_thresholds=[2.0], spacing=spacing)
    assert ours.mean_mm == pytest.approx(float(mean), rel=1e-5)
    assert ours.hd95_mm == pytest.approx(float(hd95), rel=1e-5)
    assert ours.dice == pytest.approx(float(dice), rel=1e-5)


def _blobs(random: np.random.Generator) -> NDArray[np.bool_]:
    """Two overlapping ellipsoids, one of which the edge of the grid cuts."""
    mask = np.zeros((14, 24, 20), bool)
    places = np.indices(mask.shape)
    for centre in (random.uniform(5, 9, 3), random.uniform(0, 3, 3)):
        radius = random.uniform(3, 6, 3)[:, None, None, None]
        mask |= (((places - centre[:, None, None, None]) / radius) ** 2).sum(0) <= 1
    return mask
