"""M3D-VQA as published: closed, open and yes/no."""

import pickle
import re
from pathlib import Path

import pytest
from published_data import VQA, edited, image, table

from model.data import vqa
from model.data.sample import DataError, Sample, Task

AXIAL, BONE = "M3D_Cap_npy/ct_case/000007/Axial.npy", "M3D_Cap_npy/ct_case/000007/Bone.npy"
REPORT = 'Lines\nof a "report", with commas.'
ROWS = (
    (AXIAL, REPORT, 1, "Which plane is it?", "Axial", "Sagittal", "Coronal", "NA", "Axial", "A"),
    (BONE, REPORT, 2, "Which phase?", "None", "NA", "nan", "Venous", "None", "A"),
    (AXIAL, REPORT, 4, "Is a stone seen?", "Yes", "No", "NA", "NA", "no", "B."),
    (
        AXIAL,
        REPORT,
        "5.0",
        "Where is it?",
        "Left kidney",
        "Liver",
        "null",
        "N/A",
        "Left kidney",
        "A",
    ),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    for name in (AXIAL, BONE):
        image(tmp_path / name)
    return table(tmp_path / "M3D_VQA_test.csv", VQA, ROWS)


def closed(path: Path, *, skip: bool = False) -> list[Sample]:
    return vqa.read_closed(path, root=path.parent, skip=skip)


def test_a_closed_question_has_its_choices_and_the_letter_of_the_right_one(path: Path) -> None:
    first = closed(path)[0]
    assert first.task is Task.CLOSED_VQA
    assert first.question == "Which plane is it? Choices: A. Axial B. Sagittal C. Coronal D. NA"
    assert (first.answer, first.letter) == ("A. Axial", "A")
    assert first.choices == ("Axial", "Sagittal", "Coronal", "NA")
    assert first.id == "M3D_VQA_test.csv#1"
    assert first.image == path.parent / AXIAL


def test_choices_that_pandas_takes_for_nothing_stay_words(path: Path) -> None:
    assert closed(path)[1].choices == ("None", "NA", "nan", "Venous")
    assert closed(path)[1].answer == "A. None"
    assert closed(path)[3].choices == ("Left kidney", "Liver", "null", "N/A")
    assert "C. nan D." not in closed(path)[0].question


def test_an_open_question_has_the_answer_alone(path: Path) -> None:
    samples = vqa.read_open(path, root=path.parent)
    assert [each.task for each in samples] == [Task.OPEN_VQA] * 4
    assert [each.answer for each in samples] == ["Axial", "None", "no", "Left kidney"]
    assert all("Choices" not in each.question and not each.choices for each in samples)


def test_question_types_have_names_for_scores_of_their_own(path: Path) -> None:
    assert [each.kind for each in closed(path)] == ["plane", "phase", "abnormality", "location"]


def test_a_patient_is_that_of_the_captions(path: Path) -> None:
    assert {each.patient for each in closed(path)} == {"ct_case/000007"}
    assert [each.side for each in closed(path)] == ["", "", "", "left"]


def test_yes_no_questions_may_lack_a_type_and_are_scored_by_two_choices(tmp_path: Path) -> None:
    image(tmp_path / AXIAL)
    columns = ("Image Path", "Question", "Answer")
    rows = [(AXIAL, "Is it axial?", "Yes"), (AXIAL, "A mass?", "No, there is none.")]
    path = table(tmp_path / "M3D_VQA_yn_train.csv", columns, rows)
    first, second = vqa.read_yes_no(path, root=tmp_path)
    assert (first.task, first.kind, first.choices) == (Task.OPEN_VQA, "yes_no", ("Yes", "No"))
    assert second.answer == "No, there is none."
    edited(path, {"Yes": "Perhaps"})
    with pytest.raises(DataError, match="row 1: expected an answer that begins with Yes or No"):
        vqa.read_yes_no(path, root=tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"Axial,A": "Axial,E"}, "row 1: expected a letter of ABCD in Answer Choice, got 'E'"),
        ({"Axial,A": "Axial,AB"}, "row 1: expected a letter of ABCD in Answer Choice, got 'AB'"),
        ({"Axial,A": "Axial,B"}, "row 1: expected the answer to be choice B, 'Sagittal'"),
        ({"Which phase?": ""}, "row 2: expected text in Question, got nothing"),
        ({",4,Is": ",9,Is"}, "row 3: expected a question type"),
        ({",4,Is": ",four,Is"}, "row 3: expected a whole number in Question Type, got 'four'"),
        ({",4,Is": ",4.5,Is"}, "row 3: expected a whole number in Question Type, got '4.5'"),
        ({"Left kidney,A": "Left kidney"}, "row 4: expected text in Answer Choice, got nothing"),
        ({"Left kidney,A": "Left kidney,A,more"}, "row 4: expected 10 cells, got more"),
    ],
)
def test_a_broken_row_is_named(path: Path, change: dict[str, str], told: str) -> None:
    edited(path, change)
    with pytest.raises(DataError, match=f"^M3D_VQA_test.csv, {re.escape(told)}"):
        closed(path)


def test_a_row_counts_as_one_however_many_lines_it_has(path: Path) -> None:
    edited(path, {"Left kidney,A": "Left kidney,D"})
    assert path.read_text().count("\n") > len(ROWS) + 1
    with pytest.raises(DataError) as caught:
        closed(path)
    assert (caught.value.file, caught.value.row) == (Path("M3D_VQA_test.csv"), 4)
    assert [each.id for each in closed(path, skip=True)] == [
        f"M3D_VQA_test.csv#{row}" for row in (1, 2, 3)
    ]


def test_a_missing_column_and_a_table_that_is_none_are_named(path: Path, tmp_path: Path) -> None:
    edited(path, {"Choice C": "Choice c"})
    with pytest.raises(DataError, match="got no Choice C"):
        closed(path)
    assert len(vqa.read_open(path, root=tmp_path)) == 4
    path.write_text('Image Path,Question,Answer\n"a,b,c')
    with pytest.raises(DataError, match="expected a CSV file in UTF-8, got unexpected end of data"):
        vqa.read_yes_no(path, root=tmp_path)
    path.write_bytes(b"Image Path,Question,Answer\na,\xff,c\n")
    with pytest.raises(DataError, match="expected a CSV file in UTF-8"):
        vqa.read_yes_no(path, root=tmp_path)
    with pytest.raises(DataError, match="expected a table, got No such file"):
        vqa.read_yes_no(tmp_path / "none.csv", root=tmp_path)


def test_a_table_with_a_byte_order_mark_is_read(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(closed(path)) == 4


def test_missing_images_are_counted_once(path: Path) -> None:
    (path.parent / AXIAL).unlink()
    with pytest.raises(DataError, match="row 1: expected 2 files, got 1 missing, first: "):
        closed(path)
    assert [each.kind for each in closed(path, skip=True)] == ["phase"]


def test_an_error_survives_the_way_between_processes() -> None:
    error = DataError("a.csv", 3, "a letter", "none")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) == "a.csv, row 3: expected a letter, got none"
    assert (again.file, again.row) == (Path("a.csv"), 3)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"answer": " "}, "text for answer"),
        ({"patient": ""}, "text for patient"),
        ({"side": "middle"}, "left, right or no side"),
        ({"task": Task.CLOSED_VQA}, "the letter of the right choice"),
        ({"choices": ("a", "b"), "letter": "C"}, "a letter of AB"),
        ({"choices": ("a", "b"), "letter": "AB"}, "a letter of AB"),
        ({"letter": "A"}, "a letter of no choices"),
        ({"mask_label": 2}, "a mask for a label"),
        ({"box": (0, 0, 0, 1, 1)}, "a box"),
        ({"box": (0.5, 0, 0, 0.4, 1, 1)}, "a box"),
        ({"box": (0, 0, 0, 1, 1, 1.5)}, "a box"),
        ({"absent": True, "mask": Path("m.npy")}, "no box and no mask of what is absent"),
        ({"absent": True, "box": (0, 0, 0, 1, 1, 1)}, "no box and no mask of what is absent"),
    ],
)
def test_a_sample_that_contradicts_itself_is_not_made(
    options: dict[str, object], told: str
) -> None:
    fields = {
        "id": "a.csv#1",
        "task": Task.OPEN_VQA,
        "image": Path("a.npy"),
        "question": "Q?",
        "answer": "A.",
        "patient": "p",
    }
    Sample(**fields)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=f"^a.csv, row 1: expected {told}"):
        Sample(**(fields | options))  # type: ignore[arg-type]
