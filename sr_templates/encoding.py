"""Answers -> the DICOM objects that go back to the PACS: the story of this package."""

import warnings
from collections.abc import Sequence
from datetime import datetime

import highdicom as hd
from pydicom.dataset import Dataset

from .document import MEASUREMENTS, REPORT, SEG, Document, Finding
from .draft_report import encode_draft
from .measurements import encode_measurements
from .protocol import Protocol, TemplateError
from .provenance import Algorithm
from .segmentation import encode_segmentation, outline


def encode(  # noqa: PLR0913 - the job's facts, each by its name
    protocol: Protocol,
    sources: Sequence[Dataset],
    answers: Sequence[Finding],
    algorithm: Algorithm,
    *,
    job_id: str,
    image: hd.Volume | None,
    created_at: datetime,
) -> dict[str, Dataset]:
    """Write the answers as SEG, TID 1500 and TID 2000, each alone in a series of its own.

    Parameters
    ----------
    sources
        The instances of the series that was read (pixels are not needed); one, if multi-frame.
    answers
        One for each question that was asked, masks on the source grid.
    job_id
        What every UID is derived from: the same job makes the same objects, byte for byte.
    image
        Modality units (HU for CT) on the source's voxels, in any orientation, for the intensities
        in the measurements; None: volumes only.
    created_at
        Date and time of the content.

    Returns
    -------
    The objects by label: ``seg``, ``measurements`` and ``draft``; the draft report alone if no mask
    holds a voxel.

    Raises
    ------
    TemplateError
        An answer belongs to another protocol, or a mask or the image to another grid.
    """
    asked = {each.id: index for index, each in enumerate(protocol.questions)}
    for answer in answers:
        if answer.question not in protocol.questions:
            raise TemplateError(f"{answer.question.id!r} is no question of {protocol.name}")
    ordered = sorted(answers, key=lambda each: asked[each.question.id])
    with warnings.catch_warnings():
        # The header is the source's: what is odd in it is not ours to mend, nor news to the log.
        warnings.simplefilter("ignore", UserWarning)
        return _objects(
            Document.about(protocol, sources, algorithm, job_id, created_at), ordered, image
        )


def _objects(
    document: Document, answers: Sequence[Finding], image: hd.Volume | None
) -> dict[str, Dataset]:
    outlines = outline(answers, document)
    if outlines is None:
        return {REPORT.name: encode_draft(answers, None, None, document)}
    segmentation = encode_segmentation(outlines, document)
    return {
        SEG.name: segmentation,
        MEASUREMENTS.name: encode_measurements(outlines, segmentation, image, document),
        REPORT.name: encode_draft(answers, outlines, segmentation, document),
    }
