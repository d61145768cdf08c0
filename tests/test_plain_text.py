"""A draft as plain text: what a RIS finds in it, and that no line is too long."""

import unicodedata

import pytest
from pydicom import Dataset

from sr_templates.plain_text import plain_text, shown_date, shown_name, shown_time
from tests.drafts import PROTOCOLS, encoded, series, untrained

NOTICE = "AI DRAFT - NOT FOR DIAGNOSTIC USE - UNVERIFIED"


def draft(text: str = "No.", **changed: str) -> Dataset:
    instances = series()
    for each in instances:
        for keyword, value in changed.items():
            setattr(each, keyword, value)
    return encoded(instances=instances, text=text)["draft"]


def width(line: str) -> int:
    return sum(1 + (unicodedata.east_asian_width(each) in "WF") for each in line)


def fact(text: str, label: str) -> str:
    (found,) = (line for line in text.splitlines() if line.startswith(f"{label}:"))
    return found.removeprefix(f"{label}:").strip()


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_the_notice_is_first_and_last_and_no_line_is_longer_than_80(name: str) -> None:
    lines = plain_text(encoded(name)["draft"]).splitlines()
    assert lines[1] == lines[-2] == NOTICE
    assert max(map(width, lines)) <= 80


def test_a_ris_finds_order_patient_and_study() -> None:
    made = draft(PatientName="Doe^Jane^Q", AccessionNumber="A-17")
    text = plain_text(made)
    assert fact(text, "Patient Name") == "Doe, Jane Q"
    assert fact(text, "Patient ID") == made.PatientID
    assert fact(text, "Birth Date") == "1960-01-01"
    assert fact(text, "Accession Number") == "A-17"
    assert fact(text, "Study Date") == "2026-01-05"
    assert fact(text, "Study Instance UID") == made.StudyInstanceUID
    assert fact(text, "SOP Instance UID") == made.SOPInstanceUID
    assert fact(text, "Status") == "COMPLETE, UNVERIFIED, PRELIMINARY"


def test_every_question_and_answer_is_there_in_the_protocol_s_order() -> None:
    whole = " ".join(plain_text(draft("Seven, zyx.")).split())
    asked = [each for each in PROTOCOLS["ct_chest"].questions if not each.target]
    assert whole.count("Seven, zyx.") == len(asked)
    places = [whole.index(each.text) for each in asked if not each.caption]
    assert places == sorted(places)
    assert "Limits: the model answered" in whole
    for heading in ("FINDINGS", "IMPRESSIONS"):
        assert heading in whole


def test_a_uid_is_never_broken() -> None:
    uid = "1.2.840." + "1" * 56
    text = plain_text(draft(StudyInstanceUID=uid))
    assert len(uid) == 64
    assert f"Study Instance UID:\n  {uid}\n" in text


@pytest.mark.parametrize("text", ["W" * 500, "肺野に異常陰影を認めない。" * 30, "é" * 300])
def test_text_without_spaces_is_broken_and_nothing_is_lost(text: str) -> None:
    written = plain_text(draft(text))
    assert max(map(width, written.splitlines())) <= 80
    assert text in "".join(written.split())


def test_an_untrained_model_is_told_in_the_notice() -> None:
    text = plain_text(encoded(algorithm=untrained())["draft"])
    assert text.splitlines()[1] == f"{NOTICE} - UNTRAINED MODEL"


def test_the_text_is_the_same_each_time() -> None:
    assert plain_text(draft()) == plain_text(draft())


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("Doe^Jane^Q^Dr^MD", "Doe, Dr Jane Q MD"),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "Yamada, Tarou (山田 太郎)"),
        ("ANONYMOUS", "ANONYMOUS"),
        ("", ""),
    ],
)
def test_a_name_is_shown_as_people_write_it(value: str, shown: str) -> None:
    assert shown_name(value) == shown


def test_what_is_no_date_or_time_stays_as_it_is() -> None:
    assert (shown_date("20260304"), shown_date("2026"), shown_date(None)) == (
        "2026-03-04",
        "2026",
        "",
    )
    assert (shown_time("050607.123"), shown_time("0506"), shown_time("")) == (
        "05:06:07",
        "0506",
        "",
    )
