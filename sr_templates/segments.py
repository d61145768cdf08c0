"""Masks -> exclusive segments: which voxel is whose, and what number each segment has.

Knows masks on one grid. The segments are exclusive, because viewers merge or hide overlapping
ones: where two masks meet, the voxel goes to the one of higher confidence, and among equals to the
one that the protocol asks for first. Knows nothing of how segments are written.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import highdicom as hd
import numpy as np
from numpy.typing import NDArray

from .document import Document, Finding
from .protocol import Target, TemplateError
from .provenance import LONG_STRING, uid

MAXIMUM_SEGMENTS = 255


@dataclass(frozen=True)
class Segment:
    """One segment of the SEG and the mask's volume after overlaps are resolved.

    `key_slice`: on which slice of the grid it is largest, from 0 on. `slices`: on how many it is.
    `probability` makes what the mask was cut from, or gives the mask where nothing else is known:
    0 to 1 on the grid, and not exclusive.
    """

    number: int
    question_id: str
    target: Target
    tracking_id: str
    tracking_uid: str
    voxels: int
    volume_ml: float
    key_slice: int
    slices: int
    probability: Callable[[], hd.Volume] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Outlines:
    """The exclusive segments of one job: `labels` holds segment numbers, 0 where there is none.

    `areas`: how many voxels each segment has on each slice, (slices, segments).
    """

    labels: hd.Volume
    segments: tuple[Segment, ...]
    areas: NDArray[np.int64] = field(repr=False, compare=False)

    def of(self, question_id: str) -> Segment | None:
        """Return the segment that answers a question; None if nothing of it remained."""
        return next((each for each in self.segments if each.question_id == question_id), None)


def outline(answers: Sequence[Finding], document: Document) -> Outlines | None:
    """Resolve overlaps and number what remains, in the order of the protocol.

    None: no mask holds a voxel, so there is nothing to write.

    Raises
    ------
    TemplateError
        Masks lie on different grids, or are not of the source's size.
    """
    masked = [each for each in answers if each.question.target and each.mask is not None]
    masks = [each.mask for each in masked if each.mask is not None]
    if not masks:
        return None
    _check_grids(masks, document)
    labels = _exclusive(masks, [each.confidence for each in masked])
    return number_segments(masks[0].with_array(labels), masked, document)


def number_segments(
    labels: hd.Volume, answers: Sequence[Finding], document: Document
) -> Outlines | None:
    """Make segments of voxels that are already told apart.

    Parameters
    ----------
    labels
        uint8 on the source's grid: the place in `answers` from 1 on, 0 where there is none. It is
        changed: numbers without a voxel close up.
    answers
        Each with a target; their masks are not looked at.

    Returns
    -------
    None if no voxel is labelled.
    """
    areas = _areas(labels.array, len(answers))
    kept = np.flatnonzero(areas.any(axis=0))
    if not kept.size:
        return None
    if kept.size < len(answers):
        numbers = np.zeros(len(answers) + 1, np.uint8)
        numbers[kept + 1] = np.arange(1, kept.size + 1)
        for plane in labels.array:
            plane[...] = numbers[plane]
    areas = areas[:, kept]
    segments = (
        _segment(number, answers[index], areas[:, number - 1], labels, document)
        for number, index in enumerate(kept.tolist(), 1)
    )
    return Outlines(labels, tuple(segments), areas)


def _segment(
    number: int,
    answer: Finding,
    areas: NDArray[np.int64],
    labels: hd.Volume,
    document: Document,
) -> Segment:
    target = answer.question.target
    if target is None:
        raise TemplateError(f"{answer.question.id!r} asks for no outline")
    return Segment(
        number=number,
        question_id=answer.question.id,
        target=target,
        tracking_id=f"{target.label} {document.job_id[:8]}"[:LONG_STRING],
        tracking_uid=uid(document.job_id, "tracking", answer.question.id),
        voxels=int(areas.sum()),
        volume_ml=int(areas.sum()) * float(np.prod(labels.spacing)) / 1000,
        key_slice=int(areas.argmax()),
        slices=int(np.count_nonzero(areas)),
        probability=answer.probability or _only(answer.mask, number, labels),
    )


def _only(mask: hd.Volume | None, number: int, labels: hd.Volume) -> Callable[[], hd.Volume]:
    """Return what gives the mask itself; without one, the voxels of its number."""
    return lambda: labels.with_array(labels.array == number) if mask is None else mask


def _check_grids(masks: Sequence[hd.Volume], document: Document) -> None:
    if len(masks) > MAXIMUM_SEGMENTS:
        raise TemplateError(f"expected at most {MAXIMUM_SEGMENTS} masks, got {len(masks)}")
    source = document.sources[0]
    expected = (document.slices, int(source.Rows), int(source.Columns))
    for mask in masks:
        if mask.spatial_shape != expected:
            raise TemplateError(
                f"expected masks of the source's {expected} voxels, got {mask.spatial_shape}"
            )
        if not mask.geometry_equal(masks[0]):
            raise TemplateError("expected all masks on one grid, got two")


def _exclusive(
    masks: Sequence[hd.Volume], confidences: Sequence[float | None]
) -> NDArray[np.uint8]:
    """Give each voxel to at most one mask: index + 1 of the winner, in a source-sized array."""
    ranks = [float("inf") if each is None else -each for each in confidences]
    # The sort is stable: among equals the protocol's order stands. The last to be drawn wins.
    order = sorted(range(len(masks)), key=ranks.__getitem__)[::-1]
    labels = np.zeros(masks[0].spatial_shape, np.uint8)
    # Slice by slice: what is compared stays small, whatever the size of the volume.
    for place, plane in enumerate(labels):
        for index in order:
            np.putmask(plane, masks[index].array[place], np.uint8(index + 1))
    return labels


def _areas(labels: NDArray[np.uint8], count: int) -> NDArray[np.int64]:
    """Count the voxels of each label on each slice: (slices, labels)."""
    return np.stack([np.bincount(each.ravel(), minlength=count + 1)[1:] for each in labels])
