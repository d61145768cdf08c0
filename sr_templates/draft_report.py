"""Answers -> Enhanced SR, TID 2000: the draft a person reads.

Rows of TID 2000, 2001 and 2002 (PS3.16 2026a); they are not extensible, so nothing else is
written, and an organ is named by the words of a finding. The model's words are carried as text and
never read for their meaning: a coded finding states that it is present, also where the answer says
that it is absent. There is a code only for what was outlined, and for an answer that the protocol
allows and whose code is "Present".
"""

from collections.abc import Iterator, Mapping, Sequence

import highdicom as hd
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from . import exam, foreign
from .basic_text import basic_text_sr
from .document import NO_KNOWLEDGE, REPORT, Document, Finding
from .image_library import MODALITIES
from .profile import Profile
from .protocol import Protocol, Question, Target
from .provenance import coded, observer
from .segmentation import Outlines, Segment, Written
from .source_images import SourceImage, by_slice

CONTAINS = hd.sr.RelationshipTypeValues.CONTAINS
INFERRED_FROM = hd.sr.RelationshipTypeValues.INFERRED_FROM
HAS_CONCEPT_MOD = hd.sr.RelationshipTypeValues.HAS_CONCEPT_MOD
# Headings (PS3.16 CID 7001), elements (CID 7002) and what codes.cid7001 names ambiguously.
SUMMARY = Code("55112-7", "LN", "Summary")
PROCEDURES = Code("55111-9", "LN", "Current Procedure Descriptions")
FINDINGS = Code("59776-5", "LN", "Findings")
IMPRESSIONS = Code("19005-8", "LN", "Impressions")
INDICATIONS = Code("18785-6", "LN", "Indications for Procedure")
PRIORS = Code("55114-3", "LN", "Prior Procedure Descriptions")
REQUEST = Code("55115-0", "LN", "Request")
PRESENT = ("SCT", "52101004")
# A side is no modifier of a code in these templates: the code itself must have it (SNOMED CT).
SIDED = {
    ("39607008", "24028007"): Code("3341006", "SCT", "Right lung"),
    ("39607008", "7771000"): Code("44029006", "SCT", "Left lung"),
    ("64033007", "24028007"): Code("9846003", "SCT", "Right kidney"),
    ("64033007", "7771000"): Code("18639004", "SCT", "Left kidney"),
}
NOT_SEEN = "What the missing images show is not in this draft."
NO_PRIORS = "No earlier exam was looked at: nothing is compared."
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
    root = hd.sr.ContainerContentItem(
        name=coded(document.protocol.document_title),
        is_content_continuous=False,
        template_id="2000",
    )
    root.ContentSequence = hd.sr.ContentSequence()
    root.ContentSequence.extend(_modifiers(document.protocol))
    root.ContentSequence.extend(document.language)
    root.ContentSequence.extend(observer(document.algorithm))
    is_basic = profile.report == "basic"
    given = {each.question.id: each for each in answers}
    sections = (
        (SUMMARY, _summary(document, given)),
        (INDICATIONS, (_text(REQUEST, each) for each in exam.request(document.sources[0]))),
        (PROCEDURES, _procedure(document)),
        (PRIORS, [_text(codes.DCM.ProcedureDescription, NO_PRIORS)]),
        (FINDINGS, _Findings(document, given, outlines, written, is_coded=not is_basic).items()),
        (IMPRESSIONS, _impressions(document, given)),
    )
    # Without an item a section would have an empty sequence, which is none (PS3.3 C.17.3.2).
    filled = [(heading, found) for heading, items in sections if (found := list(items))]
    root.ContentSequence.extend(_section(*each) for each in filled)
    evidence = [*document.sources, *(written.objects.values() if written else ())]
    storage = basic_text_sr if is_basic else hd.sr.EnhancedSR
    return document.report(REPORT, storage, evidence, root, label=label)


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


def _summary(document: Document, given: Mapping[str, Finding]) -> Iterator[hd.sr.TextContentItem]:
    yield _text(
        SUMMARY,
        f"{document.notice}. Written by a computer program and checked by nobody. "
        "A radiologist must read the images and write the report.",
    )
    if document.algorithm.untrained:
        yield _text(SUMMARY, NO_KNOWLEDGE)
    if document.caveat:
        yield _text(SUMMARY, f"{document.caveat} {NOT_SEEN}")
    asked = [each for each in document.protocol.questions if not each.target]
    open_ones = [each for each in asked if _is_open(each, given.get(each.id))]
    if open_ones:
        headings = "; ".join(dict.fromkeys(each.heading for each in open_ones))
        yield _text(
            SUMMARY,
            f"No answer that counts to {len(open_ones)} of {len(asked)} questions: {headings}.",
        )


def _is_open(question: Question, answer: Finding | None) -> bool:
    """Whether a question was not asked, not answered, or not by one of the allowed answers."""
    if answer is None or not exam.quoted(answer.text, MAXIMUM_TEXT):
        return True
    return question.evaluation is not None and question.evaluation.code(answer.text) is None


def _procedure(document: Document) -> Iterator[hd.sr.TextContentItem]:
    algorithm, name = document.algorithm, codes.DCM.ProcedureDescription
    yield _text(name, f"Images: {_series(document)}")
    made = exam.technique(document.sources[0], document.protocol.modality)
    yield _text(name, f"Technique: {made}")
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


class _Findings:
    """The items of the findings: one sentence for each question, and codes where they are sure."""

    def __init__(
        self,
        document: Document,
        given: Mapping[str, Finding],
        outlines: Outlines | None,
        written: Written | None,
        *,
        is_coded: bool,
    ) -> None:
        self.document, self.given, self.is_coded = document, given, is_coded
        self.outlines, self.written = outlines, written
        self.images = by_slice(document.sources, outlines.labels) if outlines else ()

    def items(self) -> Iterator[hd.sr.ContentItem]:
        """Give them in the order of the protocol."""
        for question in self.document.protocol.questions:
            if question.target:
                yield from self._target(question, question.target)
            elif not question.caption:
                yield from self._words(question)

    def _words(self, question: Question) -> Iterator[hd.sr.ContentItem]:
        answer = self.given.get(question.id)
        told = f"{question.heading}. {question.text}\n{self.document.voice}: {_words(answer)}"
        evaluation = question.evaluation
        if answer and evaluation and exam.quoted(answer.text, MAXIMUM_TEXT):
            code = evaluation.code(answer.text)
            if code is None:
                told += f"\nDeclined: it is none of the answers that count ({evaluation.allowed})."
            elif (code.scheme, code.value) == PRESENT and self.is_coded:
                yield _code(coded(evaluation.concept))
        yield _text(codes.DCM.Finding, told)

    def _target(self, question: Question, target: Target) -> Iterator[hd.sr.ContentItem]:
        voice = self.document.voice
        segment = self.outlines.of(question.id) if self.outlines else None
        if segment is None:
            told = _not_seen(target.label, voice, self.given.get(question.id))
            yield _text(codes.DCM.Finding, told)
            return
        place = self.written.places[question.id] if self.written else None
        image = self.images[segment.key_slice]
        item = _text(codes.DCM.Finding, _seen(segment, voice, place, image))
        item.ContentSequence = hd.sr.ContentSequence(
            [*([_segment(*place)] if place else []), _illustration(image)]
        )
        code = _of(target) if self.is_coded else None
        if code:
            named = _code(code)
            if place:
                named.ContentSequence = hd.sr.ContentSequence([_segment(*place)])
            yield named
        yield item


def _of(target: Target) -> hd.sr.CodedConcept | Code | None:
    """Return the code of a structure with its side; None if there is no such code."""
    if target.laterality is None:
        return coded(target.type)
    return SIDED.get((target.type.value, target.laterality.value))


def _code(value: hd.sr.CodedConcept | Code) -> hd.sr.CodeContentItem:
    """Rows 1 and 2 of TID 2002."""
    return hd.sr.CodeContentItem(name=codes.DCM.Finding, value=value, relationship_type=CONTAINS)


def _segment(segmentation: Dataset, number: int) -> hd.sr.ImageContentItem:
    """Refer to a segment: row 1 of TID 2001, with a purpose of CID 7003."""
    return hd.sr.ImageContentItem(
        name=codes.DCM.IllustrationOfROI,
        referenced_sop_class_uid=segmentation.SOPClassUID,
        referenced_sop_instance_uid=segmentation.SOPInstanceUID,
        referenced_segment_numbers=number,
        relationship_type=INFERRED_FROM,
    )


def _illustration(image: SourceImage) -> hd.sr.ImageContentItem:
    """Refer to the image on which a segment is largest."""
    return hd.sr.ImageContentItem(
        name=codes.DCM.BestIllustrationOfFinding,
        referenced_sop_class_uid=image.sop_class_uid,
        referenced_sop_instance_uid=image.sop_instance_uid,
        referenced_frame_numbers=image.frames,
        relationship_type=INFERRED_FROM,
    )


def _impressions(
    document: Document, given: Mapping[str, Finding]
) -> Iterator[hd.sr.TextContentItem]:
    captions = [each for each in document.protocol.questions if each.caption]
    for question in captions:
        # Some lists show the impression alone: what it is worth must be in it.
        words = _words(given.get(question.id))
        yield _text(codes.DCM.Impression, f"{document.notice}.\n{document.voice}: {words}")
    if not captions:
        yield _text(codes.DCM.Impression, f"{document.notice}. No impression was asked for.")


def _seen(
    segment: Segment, voice: str, place: tuple[Dataset, int] | None, image: SourceImage
) -> str:
    digits = 0 if segment.volume_ml >= SMALL_ML else 2
    number = image.header.get("InstanceNumber")
    where = f"frame {image.frame}" if image.frame is not None else f"image {number}"
    known = image.frame is not None or number is not None
    told = [
        f"{segment.target.label}. {voice}: outlined, {segment.volume_ml:.{digits}f} mL",
        f"largest on {where}" if known else "",
    ]
    cited = f" (segment {place[1]})" if place else ""
    return f"{', '.join(filter(None, told))}{cited}."


def _not_seen(label: str, voice: str, answer: Finding | None) -> str:
    if answer is None:
        return f"{label}. Not asked."
    outcome = "outlined nothing. That does not say that it is absent or normal."
    if answer.mask is not None and answer.mask.array.any():
        outcome = "its outline lies wholly within those of other structures and is left out."
    words = exam.quoted(answer.text, MAXIMUM_TEXT)
    return f"{label}. {voice}: {outcome}" + (f"\n{voice}: {words}" if words else "")


def _words(answer: Finding | None) -> str:
    if answer is None:
        return "not asked."
    return exam.quoted(answer.text, MAXIMUM_TEXT) or "gave no answer."
