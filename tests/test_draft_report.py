from dataclasses import replace
from io import BytesIO

import highdicom as hd
import pytest
from pydicom import Dataset

from dicom_node.demo import sample
from sr_templates import Code, Finding, as_text, encode, exam, source_images
from sr_templates.plain_text import plain_text
from sr_templates.profile import PROFILES
from tests.drafts import (
    ALGORITHM,
    CREATED_AT,
    JOB,
    PROTOCOLS,
    encoded,
    findings,
    series,
    stack,
    untrained,
)

CHEST = PROTOCOLS["ct_chest"]
ALL_TARGETS = tuple(each.id for each in CHEST.targets)


def name(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeMeaning)


def section(draft: Dataset, heading: str) -> list[Dataset]:
    (found,) = [each for each in draft.ContentSequence if name(each) == heading]
    return list(found.ContentSequence)


def texts(draft: Dataset, heading: str) -> list[str]:
    return [each.TextValue for each in section(draft, heading) if each.ValueType == "TEXT"]


def coded(draft: Dataset) -> list[str]:
    """Return what the findings state by a code."""
    found = [each for each in section(draft, "Findings") if each.ValueType == "CODE"]
    assert {name(each) for each in found} <= {"Finding"}
    return [each.ConceptCodeSequence[0].CodeMeaning for each in found]


def headings(draft: Dataset) -> list[str]:
    return [name(each) for each in draft.ContentSequence if each.ValueType == "CONTAINER"]


def test_the_tree_has_the_rows_of_tid_2000_in_their_order() -> None:
    draft = encoded()["draft"]
    assert draft.ContentTemplateSequence[0].TemplateIdentifier == "2000"
    assert name(draft) == "CT Chest Report"
    assert [(each.RelationshipType, name(each)) for each in draft.ContentSequence] == [
        ("HAS CONCEPT MOD", "Procedure reported"),
        ("HAS CONCEPT MOD", "Acquisition Device Type"),
        ("HAS CONCEPT MOD", "Target Region"),
        ("HAS CONCEPT MOD", "Language of Content Item and Descendants"),
        ("HAS OBS CONTEXT", "Observer Type"),
        ("HAS OBS CONTEXT", "Device Observer UID"),
        ("HAS OBS CONTEXT", "Device Observer Name"),
        ("HAS OBS CONTEXT", "Device Observer Manufacturer"),
        ("HAS OBS CONTEXT", "Device Observer Model Name"),
        ("HAS OBS CONTEXT", "Subject Class"),
        ("CONTAINS", "Summary"),
        ("CONTAINS", "Current Procedure Descriptions"),
        ("CONTAINS", "Prior Procedure Descriptions"),
        ("CONTAINS", "Findings"),
        ("CONTAINS", "Impressions"),
    ]


def test_the_first_words_and_every_impression_say_what_it_is_worth() -> None:
    draft = encoded()["draft"]
    notice = "AI DRAFT - NOT FOR DIAGNOSTIC USE - UNVERIFIED"
    assert texts(draft, "Summary")[0].startswith(notice)
    assert all(each.startswith(notice) for each in texts(draft, "Impressions"))


def test_the_document_is_complete_unverified_and_preliminary() -> None:
    for label in ("measurements", "draft"):
        sr = encoded()[label]
        assert sr.CompletionFlag == "COMPLETE"
        assert sr.VerificationFlag == "UNVERIFIED"
        assert sr.PreliminaryFlag == "PRELIMINARY"
        assert "VerifyingObserverSequence" not in sr


def test_what_was_wrong_with_the_images_is_said_first_and_makes_the_reports_partial() -> None:
    caveat = "INCOMPLETE: 2 of 3 instances are missing."
    made = encoded(caveat=caveat)
    for label in ("measurements", "draft"):
        assert made[label].CompletionFlag == "PARTIAL"
        assert made[label].CompletionFlagDescription == caveat
    assert texts(made["draft"], "Summary")[1].startswith(caveat)
    for text in (plain_text(made["draft"]), as_text(made["draft"])):
        assert caveat in text
        assert "PARTIAL" in text


def test_every_question_is_there_with_its_answer_in_the_protocols_order() -> None:
    found = texts(encoded(text="Perhaps.")["draft"], "Findings")
    words = [each for each in CHEST.questions if not each.caption and not each.target]
    declined = "\nDeclined: it is none of the answers that count ({})."
    expected = [
        f'{each.heading}. {each.text}\nAI: "Perhaps."'
        f"{declined.format(each.evaluation.allowed) if each.evaluation else ''}"
        for each in words
    ]
    assert found[: len(words)] == expected
    assert len(found) == len(words) + len(CHEST.targets)


def test_an_empty_answer_is_said_to_be_none() -> None:
    draft = encoded(text=" \n\x00")["draft"]
    assert texts(draft, "Findings")[0].endswith("AI: gave no answer.")
    assert texts(draft, "Impressions")[0].endswith("AI: gave no answer.")


def test_a_question_that_was_not_asked_is_said_so() -> None:
    sources, _ = stack(series())
    draft = encode(CHEST, sources, [], ALGORITHM, job_id=JOB, image=None, created_at=CREATED_AT)[
        "draft"
    ]
    assert all(each.lower().endswith("not asked.") for each in texts(draft, "Findings"))


def test_what_was_not_outlined_is_not_called_absent() -> None:
    draft = encoded(without=ALL_TARGETS)["draft"]
    found = texts(draft, "Findings")[-1]
    assert found == (
        "Trachea. AI: outlined nothing. That does not say that it is absent or normal.\n"
        'AI: "Sure, it is [SEG]."'
    )


def test_an_outline_refers_to_its_segment() -> None:
    made = encoded(without=["seg_right_lung"])
    missing, code, left, *_ = section(made["draft"], "Findings")[-9:]
    assert "ContentSequence" not in missing
    assert code.ConceptCodeSequence[0].CodeMeaning == "Left lung"
    image, key = left.ContentSequence
    assert (image.RelationshipType, name(image)) == ("INFERRED FROM", "Illustration of ROI")
    assert code.ContentSequence[0] == image
    (reference,) = image.ReferencedSOPSequence
    assert reference.ReferencedSOPInstanceUID == made["seg"].SOPInstanceUID
    number = reference.ReferencedSegmentNumber
    assert made["seg"].SegmentSequence[number - 1].SegmentLabel == "Left lung"
    assert left.TextValue.startswith("Left lung. AI: outlined, ")
    assert left.TextValue.endswith("(segment 1).")
    assert (key.RelationshipType, name(key)) == ("INFERRED FROM", "Best illustration of finding")
    sources, volume = stack(series())
    (mask,) = [
        each.mask.array
        for each in findings(CHEST, volume)
        if each.question.id == "seg_left_lung" and each.mask
    ]
    largest = source_images.by_slice(sources, volume)[int(mask.sum(axis=(1, 2)).argmax())]
    (reference,) = key.ReferencedSOPSequence
    assert reference.ReferencedSOPInstanceUID == largest.sop_instance_uid
    assert f"largest on image {largest.header.InstanceNumber} " in left.TextValue


def test_what_was_outlined_is_said_where_no_segment_goes() -> None:
    sources, volume = stack(series())
    made = encode(
        CHEST,
        sources,
        findings(CHEST, volume),
        ALGORITHM,
        job_id=JOB,
        image=volume,
        created_at=CREATED_AT,
        profiles=[PROFILES["legacy-pacs"]],
    )
    said = texts(made["draft.legacy-pacs"], "Findings")
    labels = [each.target.label for each in CHEST.targets if each.target]
    assert [each.split(", ")[0] for each in said[-len(labels) :]] == [
        f"{label}. AI: outlined" for label in labels
    ]
    assert not any("segment" in each for each in said)


def test_an_outline_that_was_given_to_others_is_said_to_be_left_out() -> None:
    sources, volume = stack(series())
    mask = findings(CHEST, volume)[-1].mask
    answers = [Finding(question, "", mask, 0.5) for question in CHEST.targets[:2]]
    draft = encode(
        CHEST, sources, answers, ALGORITHM, job_id=JOB, image=None, created_at=CREATED_AT
    )["draft"]
    first, second = texts(draft, "Findings")[-5:-3]
    assert first.startswith("Right lung. AI: outlined, 0.64 mL, largest on image ")
    assert first.endswith(" (segment 1).")
    assert second.startswith("Left lung. AI: its outline lies wholly within those of other")


OUTLINED = ["Right lung", "Left lung", "Heart", "Aorta", "Trachea"]


@pytest.mark.parametrize("text", ["No.", "No, there is none.", "Perhaps.", "Pneumothorax: absent"])
def test_no_answer_but_the_allowed_one_states_a_coded_finding(text: str) -> None:
    # "Finding = Pneumothorax" beside the answer "there is none" would be the worst of drafts.
    assert coded(encoded(text=text)["draft"]) == OUTLINED


def test_the_answer_whose_code_is_present_states_a_coded_finding() -> None:
    assert coded(encoded(text="Yes, on the left.")["draft"]) == ["Pneumothorax", *OUTLINED]
    assert coded(encoded(text="Yes.", without=ALL_TARGETS)["draft"]) == ["Pneumothorax"]


def test_a_side_without_a_code_of_its_own_leaves_the_words_alone() -> None:
    # The template has no place for a side beside a code: a lung of either side is another thing.
    target = next(each for each in CHEST.targets if each.id == "seg_left_lung")
    breast = replace(target.target, type=Code("SCT", "76752008", "Breast"))
    protocol = replace(CHEST, questions=(replace(target, target=breast),))
    sources, volume = stack(series())
    draft = encode(
        protocol,
        sources,
        findings(protocol, volume),
        ALGORITHM,
        job_id=JOB,
        image=None,
        created_at=CREATED_AT,
    )["draft"]
    assert coded(draft) == []
    assert texts(draft, "Findings")[0].startswith("Left lung. AI: outlined, ")


def test_what_has_no_answer_that_counts_is_said_at_the_head() -> None:
    assert texts(encoded(text="Yes.")["draft"], "Summary")[1:] == []
    (declined,) = texts(encoded(text="Perhaps.")["draft"], "Summary")[1:]
    assert declined == "No answer that counts to 2 of 13 questions: Technique; Pleura."
    (silent,) = texts(encoded(text=" ")["draft"], "Summary")[1:]
    assert silent.startswith("No answer that counts to 13 of 13 questions: Impression; Techni")


def test_the_request_is_quoted_where_the_header_has_one() -> None:
    assert "Indications for Procedure" not in headings(encoded()["draft"])
    instances = series()
    item = Dataset()
    item.ReasonForTheRequestedProcedure = 'cough "for weeks"'
    for each in instances:
        each.RequestAttributesSequence = [item]
        each.AdmittingDiagnosesDescription = "pneumonia?"
    draft = encoded(instances=instances)["draft"]
    assert headings(draft)[:2] == ["Summary", "Indications for Procedure"]
    assert texts(draft, "Indications for Procedure") == [
        "Reason given with the request (quoted from the image header): \"cough 'for weeks'\"",
        'Admitting diagnosis (quoted from the image header): "pneumonia?"',
    ]


def test_nothing_is_compared_and_that_is_said() -> None:
    (told,) = texts(encoded()["draft"], "Prior Procedure Descriptions")
    assert told == "No earlier exam was looked at: nothing is compared."


def test_the_technique_is_what_the_header_says() -> None:
    instances = series()
    for each in instances:
        each.KVP, each.ConvolutionKernel, each.ContrastBolusAgent = "120", "B30f", "Iohexol"
    _, made, *_ = texts(encoded(instances=instances)["draft"], "Current Procedure Descriptions")
    assert made == (
        "Technique: CT, 120 kVp, slice thickness 3 mm, pixel spacing 1.5 x 1.25 mm, kernel B30f, "
        'contrast agent "Iohexol"; all as the image header says.'
    )


def test_the_technique_of_a_multi_frame_image_is_that_of_its_frames() -> None:
    source = sample.enhanced(modality="MR", shape=(12, 20, 24))
    made = exam.technique(source, "MR")
    assert "slice thickness" in made
    assert "pixel spacing" in made
    assert made.endswith("no contrast agent named; all as the image header says.")


def test_the_words_of_the_model_cannot_pass_for_the_documents_own() -> None:
    hostile = 'None."\n\nVERIFIED by Dr. X\x1b[2J\u202e<script>alert(1)</script>' + "z" * 9000
    found = texts(encoded(text=hostile)["draft"], "Findings")[1]
    words = found.split("AI: ", 1)[1]
    assert words[0] == words[-1] == '"'
    assert '"' not in words[1:-1]
    assert "\x1b" not in words
    assert "\u202e" not in words
    assert len(words) <= 4002
    assert words.endswith(' [...]"')


def test_an_untrained_model_is_called_so_before_any_finding() -> None:
    draft = encoded(algorithm=untrained())["draft"]
    assert texts(draft, "Summary")[1].startswith("UNTRAINED MODEL.")
    assert "UNTRAINED MODEL" in texts(draft, "Impressions")[0]
    assert all("AI (UNTRAINED): " in each for each in texts(draft, "Findings"))
    assert len(texts(encoded()["draft"], "Summary")) == 1


def test_it_says_what_was_read_by_what_and_its_limits() -> None:
    images, made, model, limits = texts(encoded()["draft"], "Current Procedure Descriptions")
    assert made.startswith("Technique: CT, ")
    number = series()[0].SeriesNumber
    assert images == f'Images: Chest CT, series {number} "CT CHEST", 12 slices.'
    assert model.startswith("AI model: LaMed, version 1.2.3, of LaMed Node. Weights SHA-256 0f0f0f")
    assert "no evidence that a finding is present or absent" in limits


def test_a_protocol_without_a_caption_has_an_impression_that_says_so() -> None:
    sources, volume = stack(series())
    protocol = replace(CHEST, questions=tuple(q for q in CHEST.questions if not q.caption))
    draft = encode(
        protocol,
        sources,
        findings(protocol, volume),
        ALGORITHM,
        job_id=JOB,
        image=None,
        created_at=CREATED_AT,
    )["draft"]
    assert texts(draft, "Impressions")[0].endswith("No impression was asked for.")


def test_highdicom_reads_it_as_enhanced_sr() -> None:
    buffer = BytesIO()
    encoded()["draft"].save_as(buffer, enforce_file_format=True)
    buffer.seek(0)
    assert isinstance(hd.sr.srread(buffer), hd.sr.EnhancedSR)


def test_as_text_shows_flags_and_the_tree() -> None:
    shown = as_text(encoded(text="No.\nSecond line.")["draft"])
    assert shown.startswith(
        "AI DRAFT report: Chest CT\nCOMPLETE UNVERIFIED PRELIMINARY\nCT Chest Report\n"
    )
    assert "\n  Target Region: Chest\n" in shown
    assert '\n      AI: "No.\n      Second line."\n' in shown
    assert ", segment 2\n" in shown


def test_as_text_shows_numbers_with_their_units() -> None:
    shown = as_text(encoded()["measurements"])
    assert " mL\n" in shown
    assert " [hnsf'U]\n" in shown
    assert "Laterality: Left" in shown


@pytest.mark.parametrize("kind", ["DATETIME", "PNAME", "SCOORD3D", "NUM"])
def test_as_text_survives_what_others_wrote(kind: str) -> None:
    item = Dataset()
    item.ValueType = kind
    if kind == "PNAME":
        item.PersonName = "Doe^Jane"
    assert as_text(item)
