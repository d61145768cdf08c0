"""The language of conditions: what it means, what it refuses, and that nothing trips it."""

import string
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.routing import expression
from dicom_node.routing.expression import DEEPEST, ExpressionError, parse, parse_quantity

IMAGE: dict[str, Sequence[str | float]] = {
    "Modality": ["CT"],
    "SliceThickness": [2.5],
    "InstanceNumber": [0.0],
    "PatientAge": ["045Y"],
    "PatientName": ["SECRET^NAME"],
    "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
    "SeriesDescription": ["Thorax  Lung"],
    "StudyDate": ["20260102"],
    "plane": ["axial"],
}
FACTS = ("plane", "slices")


def values(name: str) -> Sequence[str | float]:
    return IMAGE.get(name, ())


def holds(text: str) -> bool:
    return parse(text, FACTS).holds(values)


@pytest.mark.parametrize(
    "text",
    [
        'Modality == "ct"',
        "Modality == 'CT'",
        "SliceThickness <= 2.5",
        "SliceThickness > -1e2",
        "SliceThickness in [2, 2.5]",
        "InstanceNumber == 0",
        "PatientAge >= 18 and PatientAge < 45.5",
        'ImageType == "PRIMARY"',
        'ImageType contains "orig"',
        'SeriesDescription starts with "tho" and SeriesDescription ends with "LUNG"',
        r'SeriesDescription matches "^thorax\s+(lung|bone)$"',
        'Modality != "MR"',
        'Modality not in ["MR", "PT"]',
        'StudyDate >= "20260101"',
        'plane == "axial"',
        "Modality",
        "not BodyPartExamined",
        'Modality == "MR" or Modality == "CT" and SliceThickness < 3',
        'not (Modality == "MR" or SliceThickness > 3)',
        'Modality\n ==\n\t"CT"',
    ],
)
def test_what_holds(text: str) -> None:
    assert holds(text)


@pytest.mark.parametrize(
    "text",
    [
        'Modality == "MR"',
        'BodyPartExamined == "CHEST"',
        'BodyPartExamined != "CHEST"',
        'BodyPartExamined not in ["CHEST"]',
        "BodyPartExamined",
        "slices > 0",
        "Modality > 3",
        'ImageType != "PRIMARY"',
        'SeriesDescription matches "^lung"',
        '(Modality == "MR" or Modality == "CT") and SliceThickness > 3',
        'not Modality == "CT"',
    ],
)
def test_what_does_not_hold_and_says_why(text: str) -> None:
    assert not holds(text)
    assert parse(text, FACTS).why_not(values)


def test_a_reason_names_what_is_not_so_and_what_came() -> None:
    why = parse('Modality == "CT" and SliceThickness <= 1').why_not(values)
    assert why == "SliceThickness <= 1 is not so: it is '2.5'"
    assert parse("BodyPartExamined").why_not(values) == "BodyPartExamined is missing"


def test_a_reason_does_not_tell_who_somebody_is() -> None:
    why = parse('PatientName contains "other"').why_not(values)
    assert "PatientName" in why
    assert "SECRET" not in why


@pytest.mark.parametrize(
    ("text", "line", "column", "said"),
    [
        ('Modaltiy == "CT"', 1, 1, "no keyword of DICOM is called 'Modaltiy', is Modality meant?"),
        ('modality == "CT"', 1, 1, "is Modality meant?"),
        ('Modality = "CT"', 1, 10, "is == meant?"),
        ("Modality ==", 1, 12, "expected a text in quotes or a number, came the end"),
        ('(Modality == "CT"', 1, 18, "expected ), came the end"),
        ('Modality == "CT"\n  foo', 2, 3, "expected and, or, or the end, came 'foo'"),
        ('Modality == "CT', 1, 13, "not closed"),
        ("PixelData == 1", 1, 1, "PixelData has no value to compare with"),
        ("ReferencedImageSequence", 1, 1, "no value to compare with"),
        ('Modality matches "("', 1, 18, "missing )"),
        (r'Modality matches "(a)\1"', 1, 18, "invalid escape"),
        ('Modality matches "(?=a)"', 1, 18, "invalid"),
        (f'Modality matches "{"a" * 257}"', 1, 18, "at most 256"),
        ('Modality matches "((a{99}){99}){99}"', 1, 18, "no regular expression of RE2"),
        ("Modality in []", 1, 14, "expected a text in quotes or a number"),
        ('Modality starts "a"', 1, 17, "expected with"),
        ("SliceThickness < 1e999", 1, 18, "no number"),
        ("__import__", 1, 1, "no keyword of DICOM"),
        ("", 1, 1, "came the end"),
        ("not " * (DEEPEST + 1) + "Modality", 1, 4 * DEEPEST + 1, "levels"),
        ("(" * (DEEPEST + 1), 1, DEEPEST + 1, "levels"),
        ("a" * 4001, 1, 1, "at most 4000 characters, not 4001"),
    ],
)
def test_an_error_says_where_and_what_was_expected(
    text: str, line: int, column: int, said: str
) -> None:
    with pytest.raises(ExpressionError) as caught:
        parse(text, FACTS)
    assert (caught.value.line, caught.value.column) == (line, column)
    assert said in str(caught.value)
    assert f"line {line}, column {column}" in str(caught.value)


def test_a_regular_expression_that_backtracks_elsewhere_is_linear_here() -> None:
    found = {"SeriesDescription": ["a" * 100_000]}
    evil = parse('SeriesDescription matches "^(a+)+$" and SeriesDescription matches "(a|aa)+b"')
    assert "(a|aa)+b" in evil.why_not(lambda name: found.get(name, ()))


def test_a_quantity_is_a_number_or_made_of_attributes() -> None:
    assert parse_quantity("200").number(values) == 200
    assert parse_quantity("2 * (SliceThickness + 1) + 1").number(values) == 8
    assert parse_quantity("InstanceNumber + 1").number(values) == 1
    assert parse_quantity("ImagesInAcquisition * 2").number(values) is None
    assert parse_quantity("Modality * 2").number(values) is None


def test_a_condition_knows_what_it_asks_for() -> None:
    assert parse('Modality == "CT" or not plane', FACTS).names == {"Modality", "plane"}


# --- whatever is written ------------------------------------------------------------------------

WORDS = st.sampled_from(
    [*"()[],<>+*", "==", "!=", "<=", ">=", *expression.WORDS, *IMAGE, '"CT"', "'x'", "2", "-1.5",
     '"(a+)+$"', "BodyPartExamined", "PixelData", "\n", '"', "=", "1e999"]
)  # fmt: skip


@given(st.one_of(st.text(max_size=200), st.lists(WORDS, max_size=60).map(" ".join)))
def test_whatever_is_written_is_read_or_refused_with_its_place(text: str) -> None:
    for reader in (parse, parse_quantity):
        try:
            read = reader(text, FACTS)
        except ExpressionError as error:
            assert 1 <= error.line <= text.count("\n") + 1  # noqa: PT017 - or none is raised
            assert error.column >= 1  # noqa: PT017
        else:
            assert read.names <= {*IMAGE, "BodyPartExamined", *FACTS}


LITERALS = st.one_of(
    st.floats(-1e6, 1e6).map(lambda number: f"{number:.3f}"),
    # A backslash before the last quote would keep the text open.
    st.text(string.ascii_letters + " .\\", max_size=8).map(
        lambda text: f"'{text.rstrip(chr(92))}'"
    ),
)
COMPARISONS = st.builds(
    "{} {} {}".format,
    st.sampled_from([*IMAGE, "BodyPartExamined"]),
    st.sampled_from(["==", "!=", "<", "<=", ">", ">="]),
    LITERALS,
)
CONDITIONS = st.recursive(
    COMPARISONS,
    lambda inner: st.one_of(
        inner.map("not ({})".format),
        st.builds("({}) and ({})".format, inner, inner),
        st.builds("({}) or ({})".format, inner, inner),
    ),
    max_leaves=8,
)


@given(CONDITIONS, CONDITIONS)
def test_and_or_not_are_those_of_logic(one: str, other: str) -> None:
    left, right = holds(one), holds(other)
    assert holds(f"({one}) and ({other})") == (left and right)
    assert holds(f"({one}) or ({other})") == (left or right)
    assert holds(f"not ({one})") == (not left)


@given(CONDITIONS, st.dictionaries(st.sampled_from(sorted(IMAGE)), st.lists(st.one_of(
    st.text(max_size=20), st.floats()), max_size=3)))  # fmt: skip
def test_whatever_the_values_are_a_condition_holds_or_says_why(
    text: str, found: dict[str, list[str | float]]
) -> None:
    condition = parse(text, FACTS)
    why = condition.why_not(lambda name: found.get(name, ()))
    assert condition.holds(lambda name: found.get(name, ())) == (not why)
