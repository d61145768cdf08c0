"""The judges of `make validate`: a telling part of the matrix, and that each of them can fail."""

import re
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from conftest import missing
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid

from tests.drafts import PROTOCOLS
from tests.validation import judges, matrix, older, report
from tests.validation.judges import BENCHES, JUDGES, Bench, Judge
from tests.validation.judging import Court
from tests.validation.matrix import Case
from tests.validation.programs import Program

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def chest() -> Case:
    """One series, for every profile: what is broken below is a copy."""
    return next(matrix.cases(quick=True))


def only(name: str) -> tuple[list[Judge], list[Bench]]:
    found = [each for each in JUDGES if each.name == name]
    together = [each for each in BENCHES if each.name == name]
    (one,) = (*found, *together)
    if one.program and one.program.missing:
        missing(one.program.missing)
    return found, together


def heard(case: Case, name: str, folder: Path, *labels: str) -> list[str]:
    """Ask one judge about some objects of a case; give what it complains of and nobody explains."""
    objects = {label: case.objects[label] for label in labels or case.objects}
    court = Court(folder, *only(name))
    court.hear(replace(case, objects=objects))
    return [each.text for each in court.outcome.unexplained()]


def broken(case: Case, label: str, spoil: Callable[[Dataset], None]) -> Case:
    file = BytesIO()
    case.objects[label].save_as(file, enforce_file_format=True)
    file.seek(0)
    spoiled = dcmread(file)
    spoil(spoiled)
    return replace(case, objects={**case.objects, label: spoiled})


@pytest.mark.slow
def test_a_telling_part_of_the_matrix_is_clean(tmp_path: Path) -> None:
    absent = [each.program.missing for each in (*JUDGES, *BENCHES) if each.program]
    if any(absent):
        missing("; ".join(filter(None, absent)))
    court = Court(tmp_path, limits={"PixelMed": 1})
    for case in matrix.cases(quick=True):
        court.hear(case)
    assert [(each.label, each.judge, each.text) for each in court.outcome.unexplained()] == []
    assert {judge for _, judge in court.outcome.seen} == {each.name for each in (*JUDGES, *BENCHES)}


# --- each judge can fail --------------------------------------------------------------------------


def test_dciodvfy_misses_a_type_1_attribute(chest: Case, tmp_path: Path) -> None:
    def spoil(seg: Dataset) -> None:
        del seg.DeviceSerialNumber

    found = heard(broken(chest, "seg", spoil), "dciodvfy", tmp_path, "seg")
    assert "Missing attribute Type 1 Required Element=<DeviceSerialNumber>" in "\n".join(found)


@pytest.mark.slow
def test_pixelmed_finds_an_item_that_is_no_row_of_the_template(chest: Case, tmp_path: Path) -> None:
    def spoil(draft: Dataset) -> None:
        heading = draft.ContentSequence[-1].ConceptNameCodeSequence[0]
        heading.CodeValue, heading.CodingSchemeDesignator = "121071", "DCM"
        heading.CodeMeaning = "Finding"  # an element, where only headings may be

    found = heard(broken(chest, "draft", spoil), "PixelMed", tmp_path, "draft")
    assert any("Content Item not in template" in each for each in found)


@pytest.mark.parametrize("name", ["dsrdump", "dsr2html", "highdicom"])
def test_readers_of_reports_refuse_an_illegal_relation(
    name: str, chest: Case, tmp_path: Path
) -> None:
    def spoil(draft: Dataset) -> None:
        if name == "highdicom":
            del draft.ContentSequence[-1].ValueType
        else:
            draft.ContentSequence[-1].RelationshipType = "INFERRED FROM"

    assert heard(chest, name, tmp_path / "sound", "draft") == []
    assert heard(broken(chest, "draft", spoil), name, tmp_path / "broken", "draft")


def test_markup_that_is_markup_of_the_page_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "draft.html"

    def unescaped(*_: object) -> tuple[int, str]:
        path.write_text("<p><SCRIPT>alert(1)</script></p>")
        return 0, ""

    monkeypatch.setattr(Program, "run", unescaped)
    assert judges.page(path.with_suffix(".dcm")) == ["E: markup in an answer is markup of the page"]


def test_dcmqi_misses_measurement_groups_that_are_elsewhere(chest: Case, tmp_path: Path) -> None:
    def spoil(measurements: Dataset) -> None:
        for item in judges._items(measurements):
            if item.ConceptNameCodeSequence[0].CodeValue == "126010":  # Imaging Measurements
                item.ConceptNameCodeSequence[0].CodeValue = "126011"  # Derived Imaging Measurements

    found = heard(broken(chest, "measurements", spoil), "tid1500", tmp_path, "measurements")
    assert found == [f"0 groups are read of {len(PROTOCOLS['ct_chest'].targets)}"]


def test_a_character_that_commands_is_found(chest: Case, tmp_path: Path) -> None:
    def spoil(draft: Dataset) -> None:
        draft.StudyDescription = "CT \u202etsehc"

    case = broken(chest, "draft", spoil)
    assert heard(case, "text", tmp_path, "draft") == [
        "Error: StudyDescription holds characters that command"
    ]


def test_dcentvfy_and_identity_find_another_patient(chest: Case, tmp_path: Path) -> None:
    def spoil(draft: Dataset) -> None:
        draft.PatientName = "ANOTHER^PATIENT"

    case = broken(chest, "draft", spoil)
    assert "PatientName" in heard(case, "dcentvfy", tmp_path / "a", "draft")[0]
    assert "PatientName" in heard(case, "identity", tmp_path / "b", "draft")[0]


def test_a_reference_to_an_instance_that_is_not_there_is_found(chest: Case, tmp_path: Path) -> None:
    stranger = generate_uid()

    def spoil(seg: Dataset) -> None:
        seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence[
            0
        ].ReferencedSOPInstanceUID = stranger

    case = broken(chest, "seg", spoil)
    assert heard(chest, "references", tmp_path / "sound") == []
    assert heard(case, "references", tmp_path / "broken", "seg") == [
        f"Error: refers to {stranger}, which is not there"
    ]


@pytest.mark.parametrize("reader", ["dcmqi voxels", "highdicom voxels"])
def test_a_flipped_segmentation_is_found(reader: str, chest: Case, tmp_path: Path) -> None:
    def spoil(seg: Dataset) -> None:
        orientation = seg.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
        x, y, z, *rest = orientation.ImageOrientationPatient
        orientation.ImageOrientationPatient = [-x, -y, -z, *rest]

    found = heard(broken(chest, "seg", spoil), reader, tmp_path, "seg")
    assert len(found) == len(PROTOCOLS["ct_chest"].targets)
    assert all(re.search(r"of \d+ voxels \d+ are not read", each) for each in found)


# --- what is told ---------------------------------------------------------------------------------


def test_a_judge_that_is_not_there_is_told_with_how_to_get_it(tmp_path: Path) -> None:
    absent = Program("no-such-program", "/usr/bin", "apt-get install it")
    court = Court(tmp_path, [Judge("absent", lambda _: [], absent)], [])
    assert court.outcome.missing == {"absent": "no-such-program is missing: apt-get install it"}


def test_an_explanation_that_explains_nothing_is_told() -> None:
    living, dead = (report.Explanation("dciodvfy", each, "why") for each in ("Device", "Gone"))
    complaint = report.Complaint("case", "seg", "dciodvfy", "Warning - Device UID")
    outcome = report.Outcome(complaints=[complaint], explanations=(living, dead))
    assert outcome.unexplained() == []
    assert outcome.dead() == [dead]
    outcome.missing["dciodvfy"] = "how"
    assert outcome.dead() == []


def test_an_explanation_holds_only_where_it_says() -> None:
    here = report.Explanation("dciodvfy", "Device", "why", where=": seg$")
    told = [report.Complaint("case", label, "dciodvfy", "Device") for label in ("seg", "draft")]
    outcome = report.Outcome(complaints=told, explanations=(here,))
    assert [each.label for each in outcome.unexplained()] == ["draft"]


def test_every_explanation_gives_a_reason_about_a_judge_that_there_is() -> None:
    names = {each.name for each in (*JUDGES, *BENCHES)}
    for each in report.load():
        assert each.judge in names
        assert each.why.endswith(".")
        assert not each.pattern.startswith("^Error") or each.where, each.pattern


def test_the_older_codes_are_put_into_a_copy(chest: Case) -> None:
    draft = chest.objects["draft"]
    title = draft.ConceptNameCodeSequence[0]
    copy = older.translated(draft)
    assert copy.ConceptNameCodeSequence[0].CodeValue == "11538-6"
    assert title.CodeValue == "24627-2"
    assert older.skeleton(draft) != older.skeleton(copy)


def test_titles_of_all_protocols_have_an_older_code() -> None:
    for each in PROTOCOLS.values():
        assert (each.document_title.scheme, each.document_title.value) in older.OLDER
