"""Draft and key slices -> Encapsulated PDF: a report page for systems that show nothing else.

Knows the Encapsulated PDF IOD (PS3.3 A.45.1) and what goes where on the page. The words are those
of the draft report: it says nothing that the SR does not say.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import EncapsulatedPDFStorage

from . import drawing, key_slices
from .document import PDF, Document
from .draft_report import FINDINGS, IMPRESSIONS, SUMMARY
from .key_slices import KeySlice
from .page import Picture, Sheet, Words, lay_out
from .plain_text import Section, meaning, sections, shown_date, shown_name, shown_time
from .provenance import coded
from .segments import Outlines

PIXELS = 560  # the longer side of a slice on the page, some 200 to an inch
EVENLY = 4  # slices that are shown where nothing was outlined


def encode_pdf(
    draft: Dataset, outlines: Outlines | None, image: hd.Volume | None, document: Document
) -> Dataset:
    """Write the report page.

    Parameters
    ----------
    draft
        The draft report whose words are set; it cites no segments, which have other numbers for
        other destinations.
    image
        Modality units on the grid of the masks, as `grid.aligned` turns it, or in any orientation
        if there are none; None: the page has no pictures.
    """
    sheet = _sheet(draft, outlines, image, document)
    made = hd.base.SOPClass(
        sop_class_uid=EncapsulatedPDFStorage,
        modality="DOC",
        **_patient(document.sources[0]),
        **document.modules(PDF),
    )
    made.copy_patient_and_study_information(document.sources[0])
    made.ConversionType = "WSD"
    made.AcquisitionDateTime = ""
    made.BurnedInAnnotation = "YES"  # whose page it is stands on it
    made.DocumentTitle = document.description(PDF)
    made.ConceptNameCodeSequence = [coded(document.protocol.document_title)]
    made.VerificationFlag = "UNVERIFIED"
    made.SourceInstanceSequence = [_reference(each) for each in document.sources]
    made.MIMETypeOfEncapsulatedDocument = "application/pdf"
    page = lay_out(sheet)
    made.EncapsulatedDocumentLength = len(page)
    made.EncapsulatedDocument = page + b"\0" * (len(page) % 2)
    return document.sign(made)


def _patient(source: Dataset) -> dict[str, Any]:
    return {
        "study_instance_uid": source.StudyInstanceUID,
        "patient_id": source.PatientID,
        "patient_name": source.PatientName,
        "patient_birth_date": source.PatientBirthDate,
        "patient_sex": source.PatientSex,
        "accession_number": source.AccessionNumber,
        "study_id": source.StudyID,
        "study_date": source.StudyDate,
        "study_time": source.StudyTime,
        "referring_physician_name": source.ReferringPhysicianName,
    }


def _reference(source: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = source.SOPClassUID
    item.ReferencedSOPInstanceUID = source.SOPInstanceUID
    return item


def _sheet(
    draft: Dataset, outlines: Outlines | None, image: hd.Volume | None, document: Document
) -> Sheet:
    parts = {each.code: _words(each) for each in sections(draft)}
    known = {code.value: parts.pop(code.value, None) for code in (SUMMARY, IMPRESSIONS, FINDINGS)}
    nothing = Words("", ())
    pictures = () if image is None else tuple(_pictures(outlines, image, document))
    return Sheet(
        notice=document.notice,
        title=f"{meaning(draft)} - AI draft",
        author=f"{document.algorithm.model} {document.algorithm.release}",
        written=document.created_at,
        facts=tuple(_facts(document)),
        warning=known[SUMMARY.value] or nothing,
        first=_without_notice(known[IMPRESSIONS.value] or nothing, document.notice),
        findings=known[FINDINGS.value] or nothing,
        about=(*parts.values(), Words("", (f"Weights SHA-256 {document.algorithm.sha256}",))),
        pictures=pictures,
        legend=tuple(_legend(outlines)) if outlines and pictures else (),
    )


def _words(section: Section) -> Words:
    return Words(section.heading, section.paragraphs)


def _without_notice(words: Words, notice: str) -> Words:
    """Leave out what stands at the head of the page in letters three times as large."""
    shown = (each.removeprefix(f"{notice}.").strip() for each in words.paragraphs)
    return Words(words.heading, tuple(shown))


def _facts(document: Document) -> Iterator[tuple[str, str]]:
    source = document.sources[0]
    at = f"{shown_date(source.StudyDate)} {shown_time(source.StudyTime)}".strip()
    written = document.created_at.isoformat(sep=" ", timespec="minutes")
    yield "Patient", shown_name(source.PatientName)
    yield "Patient ID", str(source.PatientID or "")
    yield "Born", shown_date(source.PatientBirthDate)
    yield "Sex", str(source.PatientSex or "")
    yield "Study", str(source.get("StudyDescription") or "")
    yield "Accession number", str(source.AccessionNumber or "")
    yield "Study of", at
    yield "Draft of", written


def _pictures(outlines: Outlines | None, image: hd.Volume, document: Document) -> Iterator[Picture]:
    seen = drawing.scene(image, document.protocol)
    for each in _shown(outlines, image, document):
        caption = each.shown if each.largest else each.name
        yield Picture(drawing.picture(seen, each, PIXELS), drawing.capital(caption))


def _shown(outlines: Outlines | None, image: hd.Volume, document: Document) -> Sequence[KeySlice]:
    if outlines is not None:
        return key_slices.find(outlines, document)
    count = image.spatial_shape[0]
    places = np.linspace(0, count - 1, EVENLY + 2)[1:-1].round().astype(int)
    return key_slices.bare(dict.fromkeys(places.tolist()), image, document)


def _legend(outlines: Outlines) -> Iterator[tuple[drawing.Colour, str]]:
    for each in outlines.segments:
        yield each.target.colour_rgb, f"{each.target.label} {key_slices.volume(each)}"
