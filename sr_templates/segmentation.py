"""Masks -> one SEG on the source grid: what was outlined, by whom, in which colour.

Knows the Segmentation IOD (PS3.3 A.51). The segments are exclusive, because viewers merge or
hide overlapping ones: where two masks meet, the voxel goes to the one of higher confidence, and
among equals to the one that the protocol asks for first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from .document import SEG, Document, Finding
from .profile import Profile
from .protocol import Target, TemplateError
from .provenance import LONG_STRING, coded, in_segmentation, uid

MAXIMUM_SEGMENTS = 255


@dataclass(frozen=True)
class Segment:
    """One segment of the SEG and the mask's volume after overlaps are resolved.

    `key_slice`: on which slice of the grid it is largest, from 0 on. `slices`: on how many it is.
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


@dataclass(frozen=True)
class Outlines:
    """The exclusive segments of one job: `labels` holds segment numbers, 0 where there is none."""

    labels: hd.Volume
    segments: tuple[Segment, ...]

    def of(self, question_id: str) -> Segment | None:
        """Return the segment that answers a question; None if nothing of it remained."""
        return next((each for each in self.segments if each.question_id == question_id), None)


@dataclass(frozen=True)
class Written:
    """The SEG objects of one profile: one, or several if it is split.

    `places`: for each question the object that holds its segment, and the segment's number there.
    """

    objects: Mapping[str, Dataset]  # by label
    places: Mapping[str, tuple[Dataset, int]]


def outline(answers: Sequence[Finding], document: Document) -> Outlines | None:
    """Resolve overlaps and number what remains, in the order of the protocol.

    None: no mask holds a voxel, so there is nothing to write.

    Raises
    ------
    TemplateError
        Masks lie on different grids, or are not of the source's size.
    """
    masked = [
        (each, each.question.target, each.mask)
        for each in answers
        if each.question.target is not None and each.mask is not None
    ]
    if not masked:
        return None
    masks = [mask for _, _, mask in masked]
    _check_grids(masks, document)
    labels = _exclusive(masks, [each.confidence for each, _, _ in masked])
    areas = _areas(labels, len(masks))
    counts = areas.sum(axis=0)
    kept = [index for index, count in enumerate(counts) if count]
    if not kept:
        return None
    numbers = np.zeros(len(masks) + 1, np.uint8)
    voxel_ml = float(np.prod(masks[0].spacing)) / 1000
    segments = []
    for number, index in enumerate(kept, 1):
        answer, target, _ = masked[index]
        numbers[index + 1] = number
        segments.append(
            Segment(
                number=number,
                question_id=answer.question.id,
                target=target,
                tracking_id=f"{target.label} {document.job_id[:8]}"[:LONG_STRING],
                tracking_uid=uid(document.job_id, "tracking", answer.question.id),
                voxels=int(counts[index]),
                volume_ml=int(counts[index]) * voxel_ml,
                key_slice=int(areas[:, index].argmax()),
                slices=int(np.count_nonzero(areas[:, index])),
            )
        )
    return Outlines(masks[0].with_array(numbers[labels]), tuple(segments))


def variant(outlines: Outlines, profile: Profile) -> str:
    """Return what marks the label of the SEG: nothing if it is the one that most get.

    A limit that the object keeps by itself makes no other object.
    """
    frames = sum(each.slices for each in outlines.segments)
    is_limited = (0 < profile.maximum_frames < frames) or (
        0 < profile.maximum_segments < len(outlines.segments)
    )
    name = profile.variant("segmentation", "omit_empty_frames")
    return profile.name if is_limited else name


def encode_segmentation(
    outlines: Outlines, document: Document, profile: Profile, mark: str = ""
) -> Written:
    """Write the segments as `profile` wants them: SEG objects on the grid of the source.

    Patient, study and positions are the source's.
    """
    made = _segmentation(outlines, document)
    return Written(
        {SEG.name: made},
        {each.question_id: (made, each.number) for each in outlines.segments},
    )


def _segmentation(outlines: Outlines, document: Document) -> Dataset:
    made = hd.seg.Segmentation(
        source_images=document.sources,
        pixel_array=outlines.labels,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_describe(each, document) for each in outlines.segments],
        content_label="AI_DRAFT",
        content_description=document.notice,
        omit_empty_frames=True,
        **document.modules(SEG),
    )
    # highdicom draws this UID at random; a repeated job must make the same bytes.
    dimensions = uid(document.job_id, SEG.name, "dimensions")
    for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimensions
    return document.sign(made)


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
    labels = np.zeros(masks[0].spatial_shape, np.uint8)
    # The sort is stable: among equals the protocol's order stands.
    for index in sorted(range(len(masks)), key=ranks.__getitem__):
        labels[(labels == 0) & (masks[index].array != 0)] = index + 1
    return labels


def _areas(labels: NDArray[np.uint8], count: int) -> NDArray[np.int64]:
    """Count the voxels of each label on each slice: (slices, labels)."""
    return np.stack([np.bincount(each.ravel(), minlength=count + 1)[1:] for each in labels])


def _describe(segment: Segment, document: Document) -> hd.seg.SegmentDescription:
    target = segment.target
    described = hd.seg.SegmentDescription(
        segment_number=segment.number,
        segment_label=target.label,
        segmented_property_category=coded(target.category),
        segmented_property_type=coded(target.type),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=in_segmentation(document.algorithm),
        tracking_uid=segment.tracking_uid,
        tracking_id=segment.tracking_id,
        anatomic_regions=[coded(target.region)] if target.region else None,
        display_color=hd.color.CIELabColor.from_rgb(*target.colour_rgb),
    )
    described.SegmentDescription = document.notice
    if target.laterality:
        # PS3.3 C.8.20.4.2: the side modifies the type. PS3.16 CID 244.
        kind = described.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [coded(target.laterality)]
    return described
