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
from .document import NO_KNOWLEDGE, NOTICE, REPORT, Answered, Document
from .protocol import Protocol
from .provenance import coded, observer
from .segmentation import Outlines

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
LIMITS = (
    "Limits: the model answered fixed questions about this one series, reduced to a coarse grid. "
    "It saw no other series, no earlier exam and no clinical data, and it does not say when it is "
    "unsure. An answer is no evidence that a finding is present or absent."
)


def encode_draft(
    answers: Sequence[Answered],
    outlines: Outlines | None,
    segmentation: Dataset | None,
    document: Document,
) -> Dataset:
    """Write the answers in the order of the protocol; what was not answered is said too."""
    protocol = document.protocol
    root = hd.sr.ContainerContentItem(name=coded(protocol.document_title), template_id="2000")
    root.ContentSequence = hd.sr.ContentSequence()
    root.ContentSequence.extend(_modifiers(protocol))
    root.ContentSequence.extend(document.language)
    root.ContentSequence.extend(observer(document.algorithm))
    given = {each.question.id: each for each in answers}
    sections = (
        (SUMMARY, _summary(document)),
        (PROCEDURES, _procedure(document)),
        (FINDINGS, _findings(protocol, given, outlines, segmentation)),
        (IMPRESSIONS, _impressions(protocol, given)),
    )
    root.ContentSequence.extend(_section(heading, list(items)) for heading, items in sections)
    evidence = [*document.sources, *([segmentation] if segmentation else [])]
    return document.report(REPORT, hd.sr.EnhancedSR, evidence, root)


def _modifiers(protocol: Protocol) -> Iterator[hd.sr.CodeContentItem]:
    """Rows 2-4 of TID 2000."""
    for name, value in (
        (codes.DCM.ProcedureReported, coded(protocol.procedure)),
        (codes.DCM.AcquisitionDeviceType, MODALITIES[protocol.modality]),
        (codes.DCM.TargetRegion, coded(protocol.region)),
    ):
        yield hd.sr.CodeContentItem(name=name, value=value, relationship_type=HAS_CONCEPT_MOD)


def _section(heading: Code, items: Sequence[hd.sr.ContentItem]) -> hd.sr.ContainerContentItem:
    section = hd.sr.ContainerContentItem(name=heading, relationship_type=CONTAINS)
    section.ContentSequence = hd.sr.ContentSequence(items)
    return section


def _text(name: Code, value: str) -> hd.sr.TextContentItem:
    return hd.sr.TextContentItem(name=name, value=value, relationship_type=CONTAINS)


def _summary(document: Document) -> Iterator[hd.sr.TextContentItem]:
    yield _text(
        SUMMARY,
        f"{NOTICE}. Written by a computer program and checked by nobody. "
        "A radiologist must read the images and write the report.",
    )
    if document.algorithm.untrained:
        yield _text(SUMMARY, NO_KNOWLEDGE)


def _procedure(document: Document) -> Iterator[hd.sr.TextContentItem]:
    algorithm, name = document.algorithm, codes.DCM.ProcedureDescription
    yield _text(name, f"Read: {_series(document)}")
    yield _text(
        name,
        f"Read by: {algorithm.model}, version {algorithm.release}, of {algorithm.source}. "
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
    protocol: Protocol,
    given: dict[str, Answered],
    outlines: Outlines | None,
    segmentation: Dataset | None,
) -> Iterator[hd.sr.TextContentItem]:
    finding = codes.DCM.Finding
    for question in protocol.questions:
        answer = given.get(question.id)
        if question.target:
            segment = outlines.of(question.id) if outlines else None
            if segment is None or segmentation is None:
                yield _text(finding, _not_seen(question.target.label, answer))
                continue
            item = _text(
                finding,
                f"{question.heading} - {question.target.label}: {segment.volume_ml:.0f} mL "
                f"(segment {segment.number}).",
            )
            item.ContentSequence = hd.sr.ContentSequence(
                [_illustration(segmentation, segment.number)]
            )
            yield item
        elif not question.caption:
            yield _text(finding, f"{question.heading} - {question.text}\nAnswer: {_words(answer)}")


def _illustration(segmentation: Dataset, number: int) -> hd.sr.ImageContentItem:
    """Row 1 of TID 2001, with a purpose of reference of CID 7003."""
    return hd.sr.ImageContentItem(
        name=codes.DCM.IllustrationOfROI,
        referenced_sop_class_uid=segmentation.SOPClassUID,
        referenced_sop_instance_uid=segmentation.SOPInstanceUID,
        referenced_segment_numbers=number,
        relationship_type=INFERRED_FROM,
    )


def _impressions(protocol: Protocol, given: dict[str, Answered]) -> Iterator[hd.sr.TextContentItem]:
    captions = [each for each in protocol.questions if each.caption]
    for question in captions:
        yield _text(codes.DCM.Impression, f"{NOTICE}.\n{_words(given.get(question.id))}")
    if not captions:
        yield _text(codes.DCM.Impression, "This protocol asks for no impression.")


def _not_seen(label: str, answer: Answered | None) -> str:
    words = foreign.text(answer.text, MAXIMUM_TEXT) if answer else ""
    said = f' The model wrote: "{words}"' if words else ""
    return (
        f"{label}: the model outlined nothing. That does not say that it is absent or normal.{said}"
    )


def _words(answer: Answered | None) -> str:
    if answer is None:
        return "not asked."
    return foreign.text(answer.text, MAXIMUM_TEXT) or "the model gave no answer."
