"""Segments -> Comprehensive 3D SR, TID 1500: the numbers a machine reads.

One volumetric group (TID 1411) for each segment, referring to the SEG. Without a segment there
is nothing to measure and no such object: TID 1500 must hold a measurement or a coded evaluation,
and "the model outlined nothing" is neither. The draft report says that in words.
"""

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from .document import MEASUREMENTS, Document
from .grid import aligned
from .profile import Profile
from .provenance import coded, in_report, observer
from .segmentation import Outlines, Segment, Written

MILLILITRE = Code("mL", "UCUM", "milliliter")
HOUNSFIELD = Code("[hnsf'U]", "UCUM", "Hounsfield unit")
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


def encode_measurements(
    outlines: Outlines,
    written: Written,
    image: hd.Volume | None,
    document: Document,
    profile: Profile,
    *,
    label: str = "",
) -> Dataset:
    """Measure each segment and write the numbers.

    `image` holds modality units on the grid of the masks, in any orientation; None: volumes only.

    Raises
    ------
    TemplateError
        The image does not lie on the grid of the masks.
    """
    turned = None if image is None else aligned(image, outlines.labels)
    groups = [_group(each, outlines, written, turned, document) for each in outlines.segments]
    content = hd.sr.MeasurementReport(
        observation_context=observer(document.algorithm),
        procedure_reported=coded(document.protocol.procedure),
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
        language_of_content_item_and_descendants=document.language,
    )
    evidence = [*document.sources, *written.objects.values()]
    return document.report(MEASUREMENTS, hd.sr.Comprehensive3DSR, evidence, content[0], label=label)


def _group(
    segment: Segment,
    outlines: Outlines,
    written: Written,
    image: hd.Volume | None,
    document: Document,
) -> hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    target = segment.target
    segmentation, number = written.places[segment.question_id]
    laterality = coded(target.laterality) if target.laterality else None
    values = None if image is None else image.array[outlines.labels.array == segment.number]
    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(
            uid=segment.tracking_uid, identifier=segment.tracking_id
        ),
        referenced_segment=hd.sr.ReferencedSegment(
            sop_class_uid=segmentation.SOPClassUID,
            sop_instance_uid=segmentation.SOPInstanceUID,
            segment_number=number,
            source_series=hd.sr.SourceSeriesForSegmentation(document.series_uid),
        ),
        finding_category=coded(target.category),
        finding_type=coded(target.type),
        finding_sites=[hd.sr.FindingSite(coded(target.region or target.type), laterality)],
        algorithm_id=in_report(document.algorithm),
        measurements=_measure(segment, values, document.protocol.modality),
    )


def _measure(segment: Segment, values: object, modality: str) -> list[hd.sr.Measurement]:
    measured = [
        hd.sr.Measurement(name=codes.SCT.Volume, value=round(segment.volume_ml, 3), unit=MILLILITRE)
    ]
    if values is None:
        return measured
    name, unit = INTENSITIES[modality]
    return measured + [
        hd.sr.Measurement(
            name=name,
            # float64: the sum of a lung's voxels is beyond the digits of float32.
            value=round(float(statistic(np.asarray(values, np.float64))), 2),
            unit=unit,
            derivation=derivation,
        )
        for derivation, statistic in STATISTICS
    ]
