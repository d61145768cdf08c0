"""Segments -> SEG objects on the source grid: what was outlined, by whom, in which colour.

Knows the Segmentation and the Label Map Segmentation IOD (PS3.3 A.51, A.101), and how a profile
wants them. Header and descriptions are highdicom's; its frames are not: it goes through the whole
volume once for each segment, and holds all of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import highdicom as hd
import numpy as np
from pydicom.charset import convert_encodings
from pydicom.dataset import Dataset
from pydicom.filewriter import correct_ambiguous_vr

from .document import SEG, Document
from .frames import PER_FRAME, functional_groups
from .parts import FULL, Part, parts
from .profile import Encoding, Profile
from .provenance import coded, in_segmentation, uid
from .segments import Outlines, Segment, number_segments, outline
from .source_images import SourceImage, by_slice

__all__ = [
    "Outlines",
    "Segment",
    "Written",
    "encode_segmentation",
    "number_segments",
    "outline",
    "variant",
]


@dataclass(frozen=True)
class Written:
    """The SEG objects of one profile: one, or several if it is split.

    `places`: for each question the object that holds its segment, and the segment's number there;
    the first such object, if the segment alone has more frames than one may have.
    """

    objects: Mapping[str, Dataset]  # by label
    places: Mapping[str, tuple[Dataset, int]]


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

    Patient, study and positions are the source's. Pixel Data is a stream: its frames are made
    when the object is written or read, from the labels of `outlines`.

    Raises
    ------
    TemplateError
        A slice lies on no source image, or probabilities are none or lie on another grid.
    """
    if profile.segmentation is None:
        return Written({}, {})
    images = by_slice(document.sources, outlines.labels)
    order = _along_normal(outlines.labels)
    several = parts(outlines, profile, order)
    label = f"{SEG.name}.{mark}" if mark else SEG.name
    objects: dict[str, Dataset] = {}
    places: dict[str, tuple[Dataset, int]] = {}
    for place, part in enumerate(several, 1):
        kind, own = SEG, label
        if len(several) > 1:
            kind = replace(SEG, title=f"{SEG.title} {place} of {len(several)}")
            own = f"{label}.{place}"
        modules = document.modules(kind, own)
        made = _header(part, outlines, document, profile.segmentation, modules)
        _fill(made, part, images, order)
        # highdicom draws this UID at random; a repeated job must make the same bytes.
        for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
            item.DimensionOrganizationUID = uid(document.job_id, own, "dimensions")
        objects[own] = document.sign(made)
        for number, segment in enumerate(part.segments, 1):
            places.setdefault(segment.question_id, (made, number))
    return Written(objects, places)


def _along_normal(grid: hd.Volume) -> range:
    """Return the slices in the direction in which highdicom counts planes."""
    slices = range(grid.spatial_shape[0])
    return slices if np.linalg.det(grid.affine[:3, :3]) > 0 else slices[::-1]


def _header(
    part: Part,
    outlines: Outlines,
    document: Document,
    encoding: Encoding,
    modules: Mapping[str, Any],
) -> Dataset:
    """Return the object with one frame of nothing."""
    first = outlines.labels[:1]
    fractional: dict[str, Any] = {"fractional_type": "PROBABILITY", "max_fractional_value": FULL}
    made = hd.seg.Segmentation(
        source_images=document.sources,
        pixel_array=first.with_array(np.zeros_like(first.array)),
        segmentation_type=encoding,
        segment_descriptions=[
            _describe(number, each, document) for number, each in enumerate(part.segments, 1)
        ],
        content_label="AI_DRAFT",
        content_description=document.notice,
        omit_empty_frames=False,
        **(fractional if encoding == "FRACTIONAL" else {}),
        **modules,
    )
    # Of one slice it does not know the distance to the next.
    (measures,) = made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    measures.SpacingBetweenSlices = first.get_pixel_measures()[0].SpacingBetweenSlices
    if encoding == "FRACTIONAL":
        made.SegmentsOverlap = "UNDEFINED"  # probabilities are not exclusive
    # Out of highdicom's class, which keeps a table of the frame that it made.
    header = Dataset(made)
    header.file_meta = made.file_meta
    return header


def _fill(header: Dataset, part: Part, images: Sequence[SourceImage], order: Sequence[int]) -> None:
    """Put the frames in."""
    correct_ambiguous_vr(header, is_little_endian=True)
    header.add_new("PixelData", "OB", part.pixels())
    header.NumberOfFrames = len(part.frames)
    header[PER_FRAME] = functional_groups(part.frames, images, order)
    # So the groups are written as they are, and not taken apart and encoded again.
    header.set_original_encoding(
        is_implicit_vr=False,
        is_little_endian=True,
        character_encoding=convert_encodings(header.SpecificCharacterSet),
    )
    steps = np.diff([order.index(each.place) for each in part.frames])
    # PS3.3 C.7.6.17: planes that differ in nothing but an even step.
    is_stack = len({each.segment for each in part.frames}) == 1 and len(set(steps)) == 1
    if is_stack:
        header.DimensionOrganizationType = "3D"
    elif "DimensionOrganizationType" in header:
        del header.DimensionOrganizationType


def _describe(number: int, segment: Segment, document: Document) -> hd.seg.SegmentDescription:
    target = segment.target
    described = hd.seg.SegmentDescription(
        segment_number=number,
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
