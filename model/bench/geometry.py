"""Boxes, masks and surfaces against those that are right.

Knows arrays; axes are (slices, rows, columns) throughout. A box is (z0, y0, x0, z1, y1, x1), parts
of the grid from 0 to 1, half open: a box of all voxels is (0, 0, 0, 1, 1, 1). Published boxes end
at their last voxel and pass through `half_open` first.

What is not there has no Dice: refusing it is right and finding it is wrong, and both are counted
beside the Dice, never in it.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import prod
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt
from scipy.special import expit

from model.errors import ModelError

Box = tuple[float, float, float, float, float, float]
Mask = NDArray[np.bool_]
NUMBER = r"-?\d*\.?\d+"
PUBLISHED_BOX = re.compile(r"\[" + ", ".join([f"({NUMBER})"] * 6) + r"\]")
WRITTEN_BOX = re.compile(r"\[\s*" + r"\s*[,;\s]\s*".join([f"({NUMBER})"] * 6) + r"\s*\]")


class Outcome(StrEnum):
    """What became of a target that is there or is not."""

    FOUND = "found"
    MISSED = "missed"
    DECLINED = "declined"
    FALSE_ALARM = "false_alarm"


@dataclass(frozen=True)
class Overlap:
    """How well one answer covers its target; `score` is None if there is no target."""

    outcome: Outcome
    score: float | None


@dataclass(frozen=True)
class Surface:
    """How far two surfaces are apart; `dice` is the part of both within the tolerance."""

    mean_mm: float
    hd95_mm: float
    dice: float


# Boxes


def half_open(box: Sequence[float], shape: Sequence[int]) -> Box:
    """Move the end of a published box behind its last voxel."""
    z0, y0, x0, *last = box
    z1, y1, x1 = (min(end + 1 / size, 1.0) for end, size in zip(last, shape, strict=True))
    return z0, y0, x0, z1, y1, x1


def box_of(mask: Mask) -> Box | None:
    """Give the box around a mask; None for an empty one."""
    found = _corners(mask)
    if found is None:
        return None
    first, last = found
    z0, y0, x0 = (float(each) for each in first / mask.shape)
    z1, y1, x1 = (float(each) for each in (last + 1) / mask.shape)
    return z0, y0, x0, z1, y1, x1


def published_box(mask: Mask) -> list[float] | None:
    """Give the box as M3D-Data writes it: the last voxel as the end, three decimals."""
    found = _corners(mask)
    if found is None:
        return None
    return [round(float(each), 3) for each in (np.array(found) / mask.shape).ravel()]


def read_box(text: str) -> list[float] | None:
    """Read the first box in a text as it is written; None if it is no box inside of the grid."""
    match = WRITTEN_BOX.search(text)
    box = [float(each) for each in match.groups()] if match else []
    if not box or not all(0 <= start <= end <= 1 for start, end in zip(box, box[3:], strict=False)):
        return None
    return box


def reference_read_box(text: str) -> list[float] | None:
    """Read the first box in a text as the published script does: any six numbers."""
    match = PUBLISHED_BOX.search(text)
    return [float(each) for each in match.groups()] if match else None


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two half-open boxes; 0 if a box holds nothing."""
    shared = _shared(a, b)
    return shared / (_content(a) + _content(b) - shared) if shared else 0.0


def reference_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over the box around both, which the published script calls IoU."""
    hull = [*map(min, a[:3], b[:3]), *map(max, a[3:], b[3:])]
    return _shared(a, b) / (_content(hull) + 1e-6)


def box_overlap(said: Sequence[float] | None, truth: Sequence[float] | None) -> Overlap:
    """Judge a box, or none, against the half-open box of the target, or none."""
    outcome = _outcome(there=truth is not None, said=said is not None)
    if truth is None:
        return Overlap(outcome, None)
    return Overlap(outcome, iou(said, truth) if said is not None else 0.0)


# Masks


def mask_overlap(said: Mask, truth: Mask) -> Overlap:
    """Judge a mask by its Dice; a target that is missed has 0, one that is not there has none."""
    _check_masks(said, truth)
    outcome = _outcome(there=bool(truth.any()), said=bool(said.any()))
    return Overlap(outcome, dice(said, truth) if truth.any() else None)


def dice(said: Mask, truth: Mask) -> float:
    """Twice the shared voxels over all voxels of both masks, one of which must not be empty."""
    _check_masks(said, truth)
    count = int(said.sum()) + int(truth.sum())
    if not count:
        raise ModelError("two empty masks have no Dice; count them as declined")
    return 2 * int((said & truth).sum()) / count


def reference_dice(logits: NDArray[np.floating[Any]], truth: NDArray[Any]) -> float:
    """Soft Dice as the published script has it: (batch, ...), 1 in the denominator only.

    An empty target scores 0, whatever the answer was.
    """
    _check(logits, truth)
    p, t = (np.reshape(each, (len(each), -1)).astype(np.float64) for each in (expit(logits), truth))
    return float((2 * (p * t).sum(1) / (p.sum(1) + t.sum(1) + 1)).mean())


def surface(
    said: Mask, truth: Mask, spacing_mm: Sequence[float], *, tolerance_mm: float = 2.0
) -> Surface | None:
    """Measure between the border voxels of two masks; None if a mask is empty.

    The mean is over the borders of both, HD95 the larger of the two directions, and the Dice of
    the surfaces that of Nikolov et al. 2018, all as in MONAI.
    """
    _check_masks(said, truth)
    if not said.any() or not truth.any():
        return None
    corners = _corners(said | truth)
    if corners is None:
        return None
    # Beyond the box around both there is nothing, neither mask nor nearest border.
    crop = tuple(slice(start, last + 1) for start, last in zip(*corners, strict=True))
    ours, theirs = _border(said[crop]), _border(truth[crop])
    there, back = _distances(ours, theirs, spacing_mm), _distances(theirs, ours, spacing_mm)
    both = np.concatenate([there, back])
    return Surface(
        mean_mm=float(both.mean()),
        hd95_mm=float(max(np.percentile(there, 95), np.percentile(back, 95))),
        dice=float((both <= tolerance_mm).mean()),
    )


# Many of them


def mean_score(overlaps: Iterable[Overlap]) -> float | None:
    """Average over the targets that are there, missed ones with 0; None if none is."""
    scores = [each.score for each in overlaps if each.score is not None]
    return fmean(scores) if scores else None


def accuracy_at(overlaps: Iterable[Overlap], threshold: float) -> float | None:
    """Give the part of the targets that are there whose score reaches the threshold."""
    scores = [each.score for each in overlaps if each.score is not None]
    return fmean(each >= threshold for each in scores) if scores else None


def decline_rate(overlaps: Iterable[Overlap]) -> float | None:
    """Give the part of the absent targets that were refused; None if all are there."""
    count = Counter(each.outcome for each in overlaps)
    absent = count[Outcome.DECLINED] + count[Outcome.FALSE_ALARM]
    return count[Outcome.DECLINED] / absent if absent else None


def _outcome(*, there: bool, said: bool) -> Outcome:
    if there:
        return Outcome.FOUND if said else Outcome.MISSED
    return Outcome.FALSE_ALARM if said else Outcome.DECLINED


def _check(said: NDArray[Any], truth: NDArray[Any]) -> None:
    if said.shape != truth.shape:
        raise ModelError(f"two masks must have one shape, not {said.shape} and {truth.shape}")


def _check_masks(said: Mask, truth: Mask) -> None:
    _check(said, truth)
    # Of label maps "&" would compare bits and "~" would not invert: wrong numbers, no error.
    if said.dtype != np.bool_ or truth.dtype != np.bool_:
        raise ModelError(f"masks must be boolean, not {said.dtype} and {truth.dtype}")


def _corners(mask: Mask) -> tuple[NDArray[np.int_], NDArray[np.int_]] | None:
    """Give the first and the last voxel along each axis; None for an empty mask."""
    if not mask.any():
        return None
    axes = range(mask.ndim)
    held = [np.flatnonzero(mask.any(axis=tuple(set(axes) - {axis}))) for axis in axes]
    return np.array([each[0] for each in held]), np.array([each[-1] for each in held])


def _content(box: Sequence[float]) -> float:
    return prod(max(0.0, end - start) for start, end in zip(box[:3], box[3:], strict=True))


def _shared(a: Sequence[float], b: Sequence[float]) -> float:
    return _content([*map(max, a[:3], b[:3]), *map(min, a[3:], b[3:])])


def _border(mask: Mask) -> Mask:
    """Voxels of the mask with a neighbour, or the edge of the grid, outside of it."""
    return np.asarray(mask & ~binary_erosion(mask))


def _distances(of: Mask, to: Mask, spacing_mm: Sequence[float]) -> NDArray[np.float64]:
    """Distance of each border voxel of one mask to the nearest of the other, in mm."""
    return np.asarray(distance_transform_edt(~to, sampling=spacing_mm)[of])
