"""Basic Text SR: the same words for a PACS that knows no other report."""

from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import BasicTextSRStorage, CTImageStorage

from sr_templates import PROFILES, encode
from tests.drafts import ALGORITHM, CREATED_AT, JOB, PROTOCOLS, findings, series, stack
from tests.test_encoding import complaints, dcmtk

CHEST = PROTOCOLS["ct_chest"]


@pytest.fixture
def reports() -> tuple[Dataset, Dataset]:
    """Return the draft as Enhanced SR and as Basic Text SR."""
    sources, volume = stack(series())
    made = encode(
        CHEST,
        sources,
        findings(CHEST, volume, text="Yes."),
        ALGORITHM,
        job_id=JOB,
        image=None,
        created_at=CREATED_AT,
        profiles=[PROFILES["generic-pacs"], PROFILES["legacy-pacs"]],
    )
    return made["draft"], made["draft.legacy-pacs"]


def items(item: Dataset) -> list[Dataset]:
    return [found for each in item.get("ContentSequence") or () for found in (each, *items(each))]


def words(report: Dataset) -> list[str]:
    told = [each.TextValue for each in items(report) if each.ValueType == "TEXT"]
    return [each.split(" (segment ")[0].removesuffix(".") for each in told]


def test_it_says_the_same_words(reports: tuple[Dataset, Dataset]) -> None:
    enhanced, basic = reports
    assert words(basic) == words(enhanced)
    assert basic.SOPInstanceUID != enhanced.SOPInstanceUID


def test_it_holds_only_what_the_class_allows(reports: tuple[Dataset, Dataset]) -> None:
    _, basic = reports
    assert basic.SOPClassUID == BasicTextSRStorage
    kinds = {each.ValueType for each in items(basic)}
    assert kinds == {"CONTAINER", "TEXT", "CODE", "UIDREF", "IMAGE"}
    # Codes say what the report is about, and none what is found.
    assert {e.RelationshipType for e in items(basic) if e.ValueType == "CODE"} == {
        "HAS CONCEPT MOD",
        "HAS OBS CONTEXT",
    }


def test_it_cites_the_key_images_and_no_segment(reports: tuple[Dataset, Dataset]) -> None:
    _, basic = reports
    cited = [each.ReferencedSOPSequence[0] for each in items(basic) if each.ValueType == "IMAGE"]
    assert len(cited) == len(CHEST.targets)
    assert {each.ReferencedSOPClassUID for each in cited} == {CTImageStorage}


def test_validators_and_a_reader_find_nothing_wrong(
    reports: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    _, basic = reports
    assert complaints(basic, tmp_path / "basic.dcm") == []
    assert "NOT FOR DIAGNOSTIC USE" in dcmtk(basic, tmp_path / "basic.dcm")
    read = dcmread(tmp_path / "basic.dcm")
    assert read.file_meta.MediaStorageSOPClassUID == BasicTextSRStorage
    assert (read.CompletionFlag, read.VerificationFlag) == ("COMPLETE", "UNVERIFIED")
