"""Answers -> the DICOM objects that go back to the PACS: the story of this package."""

import warnings
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

import highdicom as hd
from pydicom.dataset import Dataset

from . import drawing, grid, key_slices, source_images
from .document import Document, Finding, Predecessor
from .draft_report import encode_draft
from .key_images import encode_key_images
from .key_objects import encode_key_objects
from .measurements import encode_measurements
from .pdf import encode_pdf
from .presentation import encode_presentation
from .profile import GENERIC, KEY_IMAGES, KEY_OBJECTS, PDF, PRESENTATION, Profile
from .protocol import Protocol, TemplateError
from .provenance import Algorithm
from .segmentation import Outlines, Written, encode_segmentation, outline, variant

# The page cites no segments: they have other numbers for other destinations.
NO_SEGMENTS = GENERIC.like(segmentation=None, measurements=None, report="basic")


def encode(  # noqa: PLR0913 - the job's facts, each by its name
    protocol: Protocol,
    sources: Sequence[Dataset],
    answers: Sequence[Finding],
    algorithm: Algorithm,
    *,
    job_id: str,
    image: hd.Volume | None,
    created_at: datetime,
    profiles: Sequence[Profile] = (GENERIC,),
    predecessors: Mapping[str, Predecessor] | None = None,
    caveat: str = "",
) -> dict[str, Dataset]:
    """Write the answers as SEG, TID 1500 and TID 2000, and as what the profiles want besides.

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
        in the measurements and for what is drawn; None: volumes only, and no pictures.
    created_at
        Date and time of the content.
    profiles
        What the destinations can show. Each object is made once, however many want it.
    predecessors
        The objects of an earlier job that these replace, by label.
    caveat
        What was wrong with the images as a whole, as a sentence of up to 64 characters, such as
        that some are missing: the reports are partial then, and say so first. Empty: nothing was.

    Returns
    -------
    The objects by label, in the order in which they are to be sent; `profile.chosen` tells which
    of them a destination gets. Without a voxel in any mask there is nothing but the reports.

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
        about = Document.about(protocol, sources, algorithm, job_id, created_at, predecessors)
        document = replace(about, caveat=caveat)
        outlines = outline(ordered, document)
        made: dict[str, Dataset] = {}
        written: dict[str, Written] = {}
        for profile in profiles:
            made |= _objects(document, ordered, image, outlines, profile, written)
        extras = {each for profile in profiles for each in profile.extras}
        return made | _extras(document, ordered, image, outlines, extras)


def _objects(
    document: Document,
    answers: Sequence[Finding],
    image: hd.Volume | None,
    outlines: Outlines | None,
    profile: Profile,
    written: dict[str, Written],
) -> dict[str, Dataset]:
    made: dict[str, Dataset] = {}
    segments, mark = None, ""
    if outlines is not None and profile.segmentation:
        mark = variant(outlines, profile)
        if mark not in written:
            written[mark] = encode_segmentation(outlines, document, profile, mark)
        segments = written[mark]
        made |= segments.objects
    if profile.measurements:
        # Without an outline there is nothing to draw, and so but one form of it.
        label = _label(
            "measurements", mark or (profile.variant("measurements") if segments else "")
        )
        measured = encode_measurements(
            answers, outlines, segments, image, document, profile, label=label
        )
        made |= {} if measured is None else {label: measured}
    # A report that cites no segment, where that of the others does, is another one.
    is_other = outlines is not None and not profile.segmentation
    label = _label("draft", mark or (profile.name if is_other else profile.variant("report")))
    made[label] = encode_draft(answers, outlines, segments, document, profile, label=label)
    return made


def _extras(
    document: Document,
    answers: Sequence[Finding],
    image: hd.Volume | None,
    outlines: Outlines | None,
    wanted: Container[str],
) -> dict[str, Dataset]:
    """Write what some destinations get besides: the same for all of them.

    Without an outline there is no key slice, and without an image nothing to draw one on.
    """
    made: dict[str, Dataset] = {}
    turned = None if image is None else _turned(image, outlines, document)
    slices = key_slices.find(outlines, document) if outlines else ()
    if PDF in wanted:
        draft = encode_draft(answers, outlines, None, document, NO_SEGMENTS)
        made[PDF] = encode_pdf(draft, outlines, turned, document)
    if KEY_IMAGES in wanted and slices and turned is not None:
        made |= encode_key_images(slices, turned, document)
    if PRESENTATION in wanted and slices:
        window = None if turned is None else drawing.limits(turned, document.protocol)
        made[PRESENTATION] = encode_presentation(slices, window, document)
    if KEY_OBJECTS in wanted and slices:
        made[KEY_OBJECTS] = encode_key_objects(slices, document)
    return made


def _turned(image: hd.Volume, outlines: Outlines | None, document: Document) -> hd.Volume:
    if outlines is not None:
        return grid.aligned(image, outlines.labels)
    return grid.as_stored(image, source_images.cosines(document.sources[0]))


def _label(kind: str, mark: str) -> str:
    return f"{kind}.{mark}" if mark else kind
