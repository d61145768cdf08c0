"""Answers -> Enhanced SR, TID 2000: the draft a person reads.

Rows of TID 2000, 2001 and 2002 (PS3.16 2026a); they are not extensible, so nothing else is
written. The model's words are carried as text and never read for their meaning: a coded finding
would state that it is present, also where the answer says that it is absent.
"""

from collections.abc import Iterator, Sequence

import highdicom as hd
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from . import foreign
from .document import NO_KNOWLEDGE, REPORT, Document, Finding
from .profile import Profile
from .protocol import Protocol
from .provenance import coded, observer
from .segmentation import Outlines, Segment, Written

CONTAINS = hd.sr.RelationshipTypeValues.CONTAINS
INFERRED_FROM = hd.sr.RelationshipTypeValues.INFERRED_FROM
HAS_CONCEPT_MOD = hd.sr.RelationshipTypeValues.HAS_CONCEPT_MOD
# Headings (PS3.16 CID 7001), elements (CID 7002) and what codes.cid7001 names ambiguously.
SUMMARY = Code("55112-7", "LN", "Summary")
PROCEDURES = Code("55111-9", "LN", "Current Procedure Descriptions")
FINDINGS = Code("59776-5", "LN", "Findings")
IMPRESSIONS = Code("19005-8", "LN", "Impressions")
MODALITIES = {  # PS3.16 CID 29
    "CT": Code("CT", "DCM", "Computed Tomography"),
    "MR": Code("MR", "DCM", "Magnetic Resonance"),
}
MAXIMUM_TEXT = 4000  # characters of one answer
SMALL_ML = 10  # below it, volumes are shown with two decimals
LIMITS = (
    "Limits: the model answered fixed questions about this one series, reduced to a coarse grid. "
    "It saw no other series, no earlier exam and no clinical data, and it does not say when it is "
    "unsure. An answer is no evidence that a finding is present or absent."
)


def encode_draft(
    answers: Sequence[Finding],
    outlines: Outlines | None,
    written: Written | None,
    document: Document,
    profile: Profile,
    *,
    label: str = "",
) -> Dataset:
    """Write the answers in the order of the protocol; what was not answered is said too."""
    protocol = document.protocol
    root = hd.sr.ContainerContentItem(
        name=coded(protocol.document_title), is_content_continuous=False, template_id="2000"
    )
    root.ContentSequence = hd.sr.ContentSequence()
    root.ContentSequence.extend(_modifiers(protocol))
    root.ContentSequence.extend(document.language)
    root.ContentSequence.extend(observer(document.algorithm))
    given = {each.question.id: each for each in answers}
    sections = (
        (SUMMARY, _summary(document)),
        (PROCEDURES, _procedure(document)),
        (FINDINGS, _findings(document, given, outlines, written)),
        (IMPRESSIONS, _impressions(document, given)),
    )
    # Without an item a section would have an empty Content Sequence, which is none (PS3.3 C.17.3.2).
    filled = [(heading, found) for heading, items in sections if (found := list(items))]
    root.ContentSequence.extend(_section(*each) for each in filled)
    evidence = [*document.sources, *(written.objects.values() if written else ())]
    return document.report(REPORT, hd.sr.EnhancedSR, evidence, root, label=label)


def _modifiers(protocol: Protocol) -> Iterator[hd.sr.CodeContentItem]:
    """Rows 2-4 of TID 2000."""
    for name, value in (
        (codes.DCM.ProcedureReported, coded(protocol.procedure)),
        (codes.DCM.AcquisitionDeviceType, MODALITIES[protocol.modality]),
        (codes.DCM.TargetRegion, coded(protocol.region)),
    ):
        yield hd.sr.CodeContentItem(name=name, value=value, relationship_type=HAS_CONCEPT_MOD)


def _section(heading: Code, items: Sequence[hd.sr.ContentItem]) -> hd.sr.ContainerContentItem:
    # SEPARATE: continuous items would be run together into one paragraph by viewers.
    section = hd.sr.ContainerContentItem(
        name=heading, is_content_continuous=False, relationship_type=CONTAINS
    )
    section.ContentSequence = hd.sr.ContentSequence(items)
    return section


def _text(name: Code, value: str) -> hd.sr.TextContentItem:
    return hd.sr.TextContentItem(name=name, value=value, relationship_type=CONTAINS)


def _summary(document: Document) -> Iterator[hd.sr.TextContentItem]:
    yield _text(
        SUMMARY,
        f"{document.notice}. Written by a computer program and checked by nobody. "
        "A radiologist must read the images and write the report.",
    )
    if document.algorithm.untrained:
        yield _text(SUMMARY, NO_KNOWLEDGE)


def _procedure(document: Document) -> Iterator[hd.sr.TextContentItem]:
    algorithm, name = document.algorithm, codes.DCM.ProcedureDescription
    yield _text(name, f"Images: {_series(document)}")
    yield _text(
        name,
        f"AI model: {algorithm.model}, version {algorithm.release}, of {algorithm.source}. "
        f"Weights SHA-256 {algorithm.sha256[:16]}..., protocol {document.protocol.name}.",
    )
    yield _text(name, LIMITS)


def _series(document: Document) -> str:
    source = document.sources[0]
    described = foreign.line(str(source.get("SeriesDescription") or "")) or "without description"
    number = source.get("SeriesNumber")
    return (
        f"{document.protocol.title}, series {number or 'without number'} "
        f'"{described}", {document.slices} slices.'
    )


def _findings(
    document: Document,
    given: dict[str, Finding],
    outlines: Outlines | None,
    written: Written | None,
) -> Iterator[hd.sr.TextContentItem]:
    voice = document.voice
    for question in document.protocol.questions:
        answer = given.get(question.id)
        if question.target:
            segment = outlines.of(question.id) if outlines else None
            if segment is None:
                yield _text(codes.DCM.Finding, _not_seen(question.target.label, voice, answer))
            elif written is None:
                yield _text(codes.DCM.Finding, f"{_size(segment, voice)}.")
            else:
                yield _outlined(segment, voice, *written.places[question.id])
        elif not question.caption:
            yield _text(
                codes.DCM.Finding, f"{question.heading}. {question.text}\n{voice}: {_words(answer)}"
            )


def _outlined(
    segment: Segment, voice: str, segmentation: Dataset, number: int
) -> hd.sr.TextContentItem:
    """Rows 3 and 4 of TID 2002, with row 1 of TID 2001 and a purpose of CID 7003."""
    item = _text(codes.DCM.Finding, f"{_size(segment, voice)} (segment {number}).")
    illustration = hd.sr.ImageContentItem(
        name=codes.DCM.IllustrationOfROI,
        referenced_sop_class_uid=segmentation.SOPClassUID,
        referenced_sop_instance_uid=segmentation.SOPInstanceUID,
        referenced_segment_numbers=number,
        relationship_type=INFERRED_FROM,
    )
    item.ContentSequence = hd.sr.ContentSequence([illustration])
    return item


def _impressions(document: Document, given: dict[str, Finding]) -> Iterator[hd.sr.TextContentItem]:
    captions = [each for each in document.protocol.questions if each.caption]
    for question in captions:
        # Some lists show the impression alone: what it is worth must be in it.
        words = _words(given.get(question.id))
        yield _text(codes.DCM.Impression, f"{document.notice}.\n{document.voice}: {words}")
    if not captions:
        yield _text(codes.DCM.Impression, f"{document.notice}. No impression was asked for.")


def _size(segment: Segment, voice: str) -> str:
    digits = 0 if segment.volume_ml >= SMALL_ML else 2
    return f"{segment.target.label}. {voice}: outlined, {segment.volume_ml:.{digits}f} mL"


def _not_seen(label: str, voice: str, answer: Finding | None) -> str:
    if answer is None:
        return f"{label}. Not asked."
    outcome = "outlined nothing. That does not say that it is absent or normal."
    if answer.mask is not None and answer.mask.array.any():
        outcome = "its outline lies wholly within those of other structures and is left out."
    words = _quoted(answer.text)
    return f"{label}. {voice}: {outcome}" + (f"\n{voice}: {words}" if words else "")


def _words(answer: Finding | None) -> str:
    return "not asked." if answer is None else _quoted(answer.text) or "gave no answer."


def _quoted(words: str) -> str:
    """Quote the model, so that its words cannot pass for the document's own."""
    plain = foreign.text(words, MAXIMUM_TEXT).replace('"', "'")
    return f'"{plain}"' if plain else ""
