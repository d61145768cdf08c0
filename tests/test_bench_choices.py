"""Letters of four-choice answers: what is one, and what only looks like one."""

import json
from pathlib import Path

import pytest
from conftest import missing
from hypothesis import given, settings
from hypothesis import strategies as st

from model.bench.choices import Accuracy, Judged, accuracy, mean_of_kinds, read, reference

unhurried = settings(deadline=None)  # a busy machine is no slow function

PARITY = Path(__file__).parents[2] / "shared" / "parity" / "text"
PLANES = ("Axial", "Sagittal", "Coronal", "Oblique")
PLACES = ("Left lung", "Right lung", "Left lobe of the liver", "Liver")
PRESENT = ("Yes", "No", "NA", "nan")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A", "A"),
        ("a", "A"),
        (" B ", "B"),
        ("B.", "B"),
        ("(B)", "B"),
        ("(b)", "B"),
        ("B)", "B"),
        ("b.", "B"),
        ("C: coronal", "C"),
        ("C. Coronal", "C"),
        ("C.Coronal", "C"),
        ("D - oblique", "D"),
        ("**C**", "C"),
        ("**C.** Coronal", "C"),
        ("Option C", "C"),
        ("Answer: D", "D"),
        ("answer: d", "D"),
        ("The answer is C", "C"),
        ("The answer is C.", "C"),
        ("The correct answer is (C).", "C"),
        ("The answer is option C because the slices stand upright.", "C"),
        ("The answer is A because it is transverse.", "A"),
        ("I would choose B, sagittal.", "B"),
        ("It is B.", "B"),
        ("I think B.", "B"),
        ("The plane is coronal.\nC.", "C"),
        ("C. C. C.", "C"),
        # in words
        ("Coronal", "C"),
        ("coronal.", "C"),
        ("The scan was made in the coronal plane.", "C"),
        # no letter
        ("", None),
        ("   ", None),
        ("?", None),
        ("E", None),
        ("E.", None),
        ("I do not know.", None),
        ("A nodule.", None),
        ("A large nodule in the lung", None),
        ("The answer is a nodule.", None),
        ("Deficiency of vitamin D.", None),
        ("Hepatitis B.", None),
        ("Disc disease at C5.", None),
        ("ABCD", None),
        ("AB. x", None),
        ("The answer is not A.", None),
        ("It is not axial.", None),
        # more than one
        ("C.A. B.", None),
        ("The answer is C.A. B.", None),
        ("A. B.", None),
        ("A, B", None),
        ("A or B", None),
        ("Both A and C", None),
        ("A. Axial B. Sagittal C. Coronal D. Oblique", None),
        ("B. Axial", None),
        ("axial or coronal", None),
    ],
)
def test_a_letter_is_read_where_one_is_given_and_nowhere_else(
    text: str, letter: str | None
) -> None:
    assert read(text, PLANES) == letter


@pytest.mark.parametrize(
    ("text", "choices", "letter"),
    [
        ("Left lung", PLACES, "A"),
        ("It lies in the left lobe of the liver.", PLACES, "C"),
        ("It lies in the liver.", PLACES, "D"),
        ("Liver and left lung", PLACES, None),
        ("Not the left lung", PLACES, None),
        ("yes", PRESENT, "A"),
        ("Yes, there is no effusion.", PRESENT, "A"),
        ("No, there is none.", PRESENT, "B"),
        ("No.", PRESENT, "B"),
        ("B. No", PRESENT, "B"),
        ("C", PRESENT, None),
        ("nan", PRESENT, None),
        ("NA", PRESENT, None),
        ("same", ("same", "same", "other", "none"), None),
        ("C", (), "C"),
        ("coronal", (), None),
        ("3.5 cm", ("3.5 cm", "5 cm", "3 cm", "35 cm"), "A"),
        ("5 cm", ("3.5 cm", "5 cm", "3 cm", "35 cm"), "B"),
        ("A (left)", ("left", "right", "both", "none"), "A"),
        ("D", ("C", "D", "B", "A"), "B"),
        ("a.*b", ("a.*b", "[", "(", "\\"), "A"),
    ],
)
def test_a_choice_may_be_given_in_its_own_words(
    text: str, choices: tuple[str, ...], letter: str | None
) -> None:
    assert read(text, choices) == letter


@unhurried
@given(st.sampled_from("ABCD"), st.permutations(PLANES))
def test_what_the_training_data_answers_is_read(letter: str, planes: list[str]) -> None:
    choice = planes["ABCD".index(letter)]
    for text in (f"{letter}. {choice}", letter, f"{letter}.", choice, f"{letter} {choice}"):
        assert read(text, planes) == letter
    others = [each for each in planes if each != choice]
    assert all(read(f"{letter}. {other}", planes) is None for other in others)


@unhurried
@given(st.text(max_size=60), st.lists(st.text(max_size=8), max_size=4))
def test_no_text_breaks_the_reader(text: str, choices: list[str]) -> None:
    assert read(text, choices) in {"A", "B", "C", "D", None}


def test_the_published_rule_is_the_golden_one() -> None:
    if not PARITY.is_dir():
        missing("the golden numbers of the reference")
    rows = json.loads((PARITY / "metrics.json").read_text())["closed_vqa_rule"]
    assert len(rows) >= 5
    for text, letter, expected in rows:
        assert reference(text, letter) == bool(expected)


def test_the_published_rule_counts_what_ours_does_not_and_the_reverse() -> None:
    assert reference("C.A. B.", "A")
    assert read("C.A. B.") is None
    assert not reference("B", "B")
    assert read("B") == "B"


def test_accuracy_has_a_row_for_each_kind_and_one_for_all() -> None:
    judged = [
        Judged("plane", "A", "A"),
        Judged("plane", "B", "B"),
        Judged("organ", "C", "D"),
        Judged("organ", "C", None),
        Judged("organ", "C", "C"),
        Judged("organ", "D", "D"),
    ]
    rows = accuracy(judged)
    assert rows == {
        "organ": Accuracy(4, 2, 1),
        "plane": Accuracy(2, 2, 0),
        "all": Accuracy(6, 4, 1),
    }
    assert rows["all"].accuracy == pytest.approx(4 / 6)
    assert mean_of_kinds(rows) == pytest.approx((2 / 4 + 1) / 2)
    assert accuracy([]) == {}


def test_the_mean_of_kinds_is_that_of_the_published_table() -> None:
    # arXiv 2404.00578, closed VQA: five kinds and their mean 75.78, here of equally many questions.
    parts = {"plane": 1976, "phase": 1595, "organ": 1495, "abnormality": 1333, "location": 1179}
    rows = {kind: Accuracy(2000, right, 0) for kind, right in parts.items()}
    assert mean_of_kinds(rows) == pytest.approx(0.7578, abs=5e-5)
