"""Segments and evaluated answers -> Comprehensive 3D SR, TID 1500: what a machine reads.

One volumetric group (TID 1411) for each segment, referring to the SEG, or where the profile wants
it a planar one (TID 1410) with the outline on its key slice; and one evaluation for each answer
that the protocol has a code for. With none of them there is no such object: TID 1500 must hold a
measurement or an evaluation, and "the model outlined nothing" is neither. The draft report says
that in words.
"""

from collections.abc import Iterable, Iterator, Sequence

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from . import diameters, tracing
from .document import MEASUREMENTS, Document, Finding
from .grid import aligned
from .image_library import library
from .profile import Profile
from .provenance import coded, in_report, observer
from .segmentation import Outlines, Segment, Written
from .source_images import SourceImage, by_slice

MILLILITRE = Code("mL", "UCUM", "milliliter")
MILLIMETRE = Code("mm", "UCUM", "millimeter")
SQUARE_MILLIMETRE = Code("mm2", "UCUM", "square millimeter")
PERCENT = Code("%", "UCUM", "Percent")
HOUNSFIELD = Code("[hnsf'U]", "UCUM", "Hounsfield unit")
LONG_AXIS = Code("103339001", "SCT", "Long Axis")  # PS3.16 CID 7470
SHORT_AXIS = Code("103340004", "SCT", "Short Axis")
# "The certainty that a device places upon an individual finding, where 0 equals no certainty and
# 100 equals certainty" (PS3.16 annex D): how sure of its words the model was, not how right.
CERTAINTY = codes.DCM.CertaintyOfFinding
# What the voxels of a modality measure (PS3.16 CID 7180) and in which unit.
INTENSITIES = {
    "CT": (codes.DCM.AttenuationCoefficient, HOUNSFIELD),
    "MR": (codes.DCM.MRSignalIntensity, codes.UCUM.NoUnits),
}
STATISTICS = (  # PS3.16 CID 7464
    (codes.SCT.Mean, np.mean),
    (codes.SCT.StandardDeviation, np.std),
    (codes.SCT.Minimum, np.min),
    (codes.SCT.Maximum, np.max),
)
EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")  # TID 1500, row 12
CONTAINS = hd.sr.RelationshipTypeValues.CONTAINS
HAS_CONCEPT_MOD = hd.sr.RelationshipTypeValues.HAS_CONCEPT_MOD
MAXIMUM_VERTICES = 200  # of a contour: viewers draw it as one annotation that can be moved
Volumetric = hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations
Planar = hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations


def encode_measurements(  # noqa: PLR0913 - the job's facts, as the draft has them
    answers: Sequence[Finding],
    outlines: Outlines | None,
    written: Written | None,
    image: hd.Volume | None,
    document: Document,
    profile: Profile,
    *,
    label: str = "",
) -> Dataset | None:
    """Measure each segment, evaluate each answer, and write the numbers and the codes.

    `image` holds modality units on the grid of the masks, in any orientation; None: sizes only.
    Without `outlines` or what was `written` of them there are only evaluations. None: neither.

    Raises
    ------
    TemplateError
        The image does not lie on the grid of the masks.
    """
    root = hd.sr.ContainerContentItem(name=codes.DCM.ImagingMeasurementReport, template_id="1500")
    root.ContentSequence = hd.sr.ContentSequence()
    root.ContentSequence.extend(document.language)
    root.ContentSequence.extend(observer(document.algorithm))
    root.ContentSequence.append(
        hd.sr.CodeContentItem(
            name=codes.DCM.ProcedureReported,
            value=coded(document.protocol.procedure),
            relationship_type=HAS_CONCEPT_MOD,
        )
    )
    evidence = list(document.sources)
    parts = hd.sr.ContentSequence()
    if outlines is not None and written is not None:
        images = by_slice(document.sources, outlines.labels)
        sure = {each.question.id: each.confidence for each in answers}
        turned = None if image is None else aligned(image, outlines.labels)
        found = (
            _Measured(each, outlines, turned, images, sure[each.question_id])
            for each in outlines.segments
        )
        parts.append(library(_cited(images, outlines), document))
        parts.append(_measurements(found, written, document, profile))
        evidence += written.objects.values()
    parts.extend(_evaluations(answers))
    if not parts:
        return None
    root.ContentSequence.extend(parts)
    _separate(root)
    return document.report(MEASUREMENTS, hd.sr.Comprehensive3DSR, evidence, root, label=label)


def _separate(item: Dataset) -> None:
    """Let viewers set each item of a container by itself, with its name."""
    if "ContinuityOfContent" in item:
        item.ContinuityOfContent = "SEPARATE"
        for each in item.ContentSequence:
            _separate(each)


def _container(name: Code, items: hd.sr.ContentSequence) -> hd.sr.ContainerContentItem:
    container = hd.sr.ContainerContentItem(name=name, relationship_type=CONTAINS)
    container.ContentSequence = items
    return container


def _measurements(
    segments: Iterable["_Measured"], written: Written, document: Document, profile: Profile
) -> hd.sr.ContainerContentItem:
    """Rows 6 to 9 of TID 1500."""
    groups = hd.sr.ContentSequence()
    for each in segments:
        # OHIF 3.13 shows a blank viewport if but one group, wherever it stands, has no coordinates.
        is_planar = profile.measurements == "planar"
        groups.extend(
            _planar(each, document) if is_planar else _volumetric(each, written, document)
        )
    return _container(codes.DCM.ImagingMeasurements, groups)


def _evaluations(answers: Sequence[Finding]) -> Iterator[hd.sr.ContainerContentItem]:
    """Rows 12 and 13 of TID 1500: each answer that is one of those that the protocol allows.

    Nothing if there is none. The algorithm is the observer: here its name would stand as another
    evaluation.
    """
    items = hd.sr.ContentSequence()
    for answer in answers:
        evaluation = answer.question.evaluation
        code = evaluation.code(answer.text) if evaluation else None
        if evaluation and code:
            items.extend(hd.sr.QualitativeEvaluation(coded(evaluation.concept), coded(code)))
    if items:
        yield _container(EVALUATIONS, items)


def _cited(images: Sequence[SourceImage], outlines: Outlines) -> list[SourceImage]:
    """Return the key slices' images for the Image Library (TID 1600).

    Not all images: those are in the evidence, and hundreds of them would be most of the object.
    """
    return [images[key] for key in sorted({each.key_slice for each in outlines.segments})]


class _Measured:
    """One segment, where it lies, and what can be measured of it."""

    def __init__(
        self,
        segment: Segment,
        outlines: Outlines,
        image: hd.Volume | None,
        images: Sequence[SourceImage],
        confidence: float | None,
    ) -> None:
        self.segment, self.images, self.confidence = segment, images, confidence
        # Only the box around the segment is looked at: a hundred of them make one volume again.
        present = np.flatnonzero(outlines.areas[:, segment.number - 1])
        self.first = int(present[0])
        mask = outlines.labels.array[self.first : int(present[-1]) + 1] == segment.number
        shadow = mask.any(axis=0)
        box = tuple(
            slice(int(found[0]), int(found[-1]) + 1)
            for found in (np.flatnonzero(shadow.any(axis=axis)) for axis in (1, 0))
        )
        self.corner = (box[0].start, box[1].start)
        self.mask: NDArray[np.bool_] = mask[:, box[0], box[1]]
        self.values = None
        if image is not None:
            slices = slice(self.first, self.first + len(mask))
            # float64: the sum of a lung's voxels is beyond the digits of float32.
            self.values = image.array[slices][:, box[0], box[1]][self.mask].astype(np.float64)
        _, between_rows, between_columns = outlines.labels.spacing
        self.spacing_mm = (float(between_rows), float(between_columns))

    @property
    def key(self) -> NDArray[np.bool_]:
        """The mask on the key slice."""
        mask: NDArray[np.bool_] = self.mask[self.segment.key_slice - self.first]
        return mask

    def sizes(self) -> Iterator[hd.sr.Measurement]:
        """Give the volume and the diameters."""
        volume_ml = round(self.segment.volume_ml, 3)
        yield hd.sr.Measurement(name=codes.SCT.Volume, value=volume_ml, unit=MILLILITRE)
        yield from _axes(self.mask, self.spacing_mm)

    def area(self) -> hd.sr.Measurement:
        """Give the area on the key slice."""
        value = round(float(np.count_nonzero(self.key) * np.prod(self.spacing_mm)), 2)
        return hd.sr.Measurement(name=codes.SCT.Area, value=value, unit=SQUARE_MILLIMETRE)

    def intensities(self, modality: str) -> Iterator[hd.sr.Measurement]:
        """Give mean, deviation and extremes of the voxels; nothing without an image."""
        if self.values is None:
            return
        name, unit = INTENSITIES[modality]
        for derivation, statistic in STATISTICS:
            value = round(float(statistic(self.values)), 2)
            yield hd.sr.Measurement(name=name, value=value, unit=unit, derivation=derivation)

    def contour(self) -> hd.sr.ImageRegion:
        """Give the outline of the largest part on the key slice, without its holes.

        Column before row, 0 and 0 at the outer corner of the first pixel (PS3.3 C.18.6.1.1).
        """
        outline = tracing.simplified(tracing.contours(self.key)[0], MAXIMUM_VERTICES)
        image = self.images[self.segment.key_slice]
        return hd.sr.ImageRegion(
            graphic_type=hd.sr.GraphicTypeValues.POLYLINE,
            graphic_data=(outline + self.corner)[:, ::-1],
            source_image=hd.sr.SourceImageForRegion(
                image.sop_class_uid, image.sop_instance_uid, image.frames
            ),
        )


def _volumetric(found: _Measured, written: Written, document: Document) -> Volumetric:
    segment = found.segment
    segmentation, number = written.places[segment.question_id]
    return Volumetric(
        tracking_identifier=hd.sr.TrackingIdentifier(
            uid=segment.tracking_uid, identifier=segment.tracking_id
        ),
        referenced_segment=hd.sr.ReferencedSegment(
            sop_class_uid=segmentation.SOPClassUID,
            sop_instance_uid=segmentation.SOPInstanceUID,
            segment_number=number,
            source_series=hd.sr.SourceSeriesForSegmentation(document.series_uid),
        ),
        finding_category=coded(segment.target.category),
        finding_type=coded(segment.target.type),
        finding_sites=_sites(segment),
        algorithm_id=in_report(document.algorithm),
        measurements=[
            *found.sizes(),
            *found.intensities(document.protocol.modality),
            *_certainty(found.confidence),
        ],
    )


def _planar(found: _Measured, document: Document) -> Planar:
    """Write what is drawn on one slice, with the sizes on that slice alone."""
    segment = found.segment
    return Planar(
        tracking_identifier=hd.sr.TrackingIdentifier(
            uid=segment.tracking_uid, identifier=segment.tracking_id
        ),
        referenced_region=found.contour(),
        finding_category=coded(segment.target.category),
        finding_type=coded(segment.target.type),
        finding_sites=_sites(segment),
        algorithm_id=in_report(document.algorithm),
        measurements=[found.area(), *_axes(found.key[None], found.spacing_mm)],
    )


def _axes(mask: NDArray[np.bool_], spacing_mm: tuple[float, float]) -> list[hd.sr.Measurement]:
    found = diameters.measure(mask, spacing_mm)
    return [
        hd.sr.Measurement(name=name, value=round(value, 2), unit=MILLIMETRE)
        for name, value in ((LONG_AXIS, found.long_mm), (SHORT_AXIS, found.short_mm))
    ]


def _sites(segment: Segment) -> list[hd.sr.FindingSite]:
    target = segment.target
    laterality = coded(target.laterality) if target.laterality else None
    return [hd.sr.FindingSite(coded(target.region or target.type), laterality)]


def _certainty(confidence: float | None) -> list[hd.sr.Measurement]:
    """Give the model's confidence in percent; nothing if it is none or no part of 1."""
    if confidence is None or not 0 <= confidence <= 1:
        return []
    value = round(100 * confidence, 1)
    return [hd.sr.Measurement(name=CERTAINTY, value=value, unit=PERCENT)]
