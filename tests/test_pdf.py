"""The report page as a PDF reader sees it: complete, on one page if it fits, the same each time."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pypdfium2
import pytest
from pydicom import Dataset, dcmread

from sr_templates import PROFILES, Finding, encode
from tests.drafts import (
    ALGORITHM,
    CREATED_AT,
    JOB,
    PAGE,
    PROTOCOLS,
    encoded,
    encoded_enhanced,
    findings,
    series,
    stack,
    untrained,
)
from tests.test_encoding import complaints, written

CHEST = PROTOCOLS["ct_chest"]
A4_POINTS = (595, 842)


def pages(made: Dataset) -> list[str]:
    """Return the text of each page, on one line."""
    return [" ".join(text.split()) for text in _read(made)]


def _read(made: Dataset) -> Iterator[str]:
    with closing(pypdfium2.PdfDocument(made.EncapsulatedDocument)) as document:
        for number in range(len(document)):
            with closing(document[number]) as page, closing(page.get_textpage()) as text:
                yield text.get_text_bounded()


def rendered(made: Dataset) -> np.ndarray:
    """Return the pixels of the first page: rows, columns, colours."""
    with (
        closing(pypdfium2.PdfDocument(made.EncapsulatedDocument)) as document,
        closing(document[0]) as page,
    ):
        assert tuple(round(each) for each in page.get_size()) == A4_POINTS
        return np.asarray(page.render(scale=2).to_pil().convert("RGB"), int)


def page(answers: Sequence[Finding] | None = None, **changed: str) -> Dataset:
    """Encode the page of a chest CT; `changed` are values of the source's header."""
    instances = series()
    for each in instances:
        for keyword, value in changed.items():
            setattr(each, keyword, value)
    sources, volume = stack(instances)
    return encode(
        CHEST,
        sources,
        findings(CHEST, volume) if answers is None else answers,
        ALGORITHM,
        job_id=JOB,
        image=volume,
        created_at=CREATED_AT,
        profiles=PAGE,
    )["pdf"]


def told(text: str) -> list[Finding]:
    _, volume = stack(series())
    return findings(CHEST, volume, text=text)


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_the_page_is_clean_for_dciodvfy_and_is_one(name: str, tmp_path: Path) -> None:
    made = encoded(name, profiles=PAGE)["pdf"]
    assert complaints(made, tmp_path / "page.dcm") == []
    read = dcmread(tmp_path / "page.dcm")
    assert read.MIMETypeOfEncapsulatedDocument == "application/pdf"
    assert read.BurnedInAnnotation == "YES"
    assert read.VerificationFlag == "UNVERIFIED"
    assert len(read.SourceInstanceSequence) == 12
    assert len(pages(read)) == 1


def test_the_page_says_what_the_draft_says() -> None:
    (text,) = pages(page(told("A nodule of 7 mm in the right upper lobe.")))
    assert text.startswith("AI DRAFT - NOT FOR DIAGNOSTIC USE - UNVERIFIED")
    for question in CHEST.questions:
        if not question.target and not question.caption:
            assert question.text in text
    asked = [each for each in CHEST.questions if not each.target]
    assert text.count("A nodule of 7 mm in the right upper lobe.") == len(asked)
    for question in CHEST.targets:
        assert question.target is not None
        assert question.target.label in text
    assert "Limits: " in text
    assert ALGORITHM.sha256 in text.replace(" ", "")
    assert "segment 1" not in text  # numbers differ from one destination to the other


def test_the_page_says_whose_it_is() -> None:
    (text,) = pages(page(PatientName="Müller^Jürgen", PatientID="4711", AccessionNumber="A-1"))
    for each in ("Müller, Jürgen", "4711", "A-1", "1960-01-01", "2026-01-05", "2026-03-04 05:06"):
        assert each in text


def test_the_impression_stands_before_the_findings() -> None:
    (text,) = pages(page())
    assert 0 < text.index("Impressions") < text.index("Findings") < text.index("Limits: ")


def test_the_page_shows_outlines_in_the_colours_of_its_legend() -> None:
    pixels = rendered(page())
    for question in CHEST.targets:
        assert question.target is not None
        found = np.abs(pixels - question.target.colour_rgb).max(axis=2) < 30
        assert np.count_nonzero(found) > 50, question.target.label


def test_the_same_job_makes_the_same_page() -> None:
    assert written(page()) == written(page())


def test_the_page_is_the_same_whatever_else_a_destination_gets() -> None:
    made = [
        encoded(profiles=(profile.like(extras=("pdf",)),))["pdf"]
        for profile in (PROFILES["legacy-pacs"], PROFILES["weasis"])
    ]
    assert written(made[0]) == written(made[1])


def test_a_longer_text_is_set_smaller_and_a_very_long_one_goes_on() -> None:
    sentence = "There is no hint of consolidation, as far as the images let one see it. "
    longer = pages(page(told(sentence)))
    assert len(longer) == 1
    longest = pages(page(told(sentence * 20)))
    assert len(longest) > 1
    whole = " ".join(longest)
    asked = [each for each in CHEST.questions if not each.target]
    assert whole.count("hint") == 20 * len(asked)
    for number, text in enumerate(longest, 1):
        assert "NOT FOR DIAGNOSTIC USE" in text
        assert f"Page {number} of {len(longest)}" in text


def test_nothing_is_drawn_beyond_the_margins() -> None:
    word = "W" * 400
    pixels = rendered(page(told(word), PatientName="A" * 60, StudyDescription="B" * 60))
    below = pixels[2 * 40 :]
    assert (below[:, : 2 * 30] > 200).all()
    assert (below[:, -2 * 30 :] > 200).all()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Иванова^Анна", "Иванова, Анна"),
        ("Παπαδοπούλου^Ελένη", "Παπαδοπούλου, Ελένη"),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "Yamada, Tarou (山田 太郎)"),
        ("Kim^Minji=김^민지", "Kim, Minji (김 민지)"),
    ],
)
def test_names_of_many_scripts_are_set(name: str, shown: str) -> None:
    (text,) = pages(page([], PatientName=name))
    assert shown in text
    assert "stands for a character" not in text


def test_what_no_font_has_is_replaced_and_said() -> None:
    (text,) = pages(page(told("ܫܠܡܐ ≥ 5 mm")))
    assert ">= 5 mm" in text
    assert "stands for a character that the fonts of this page do not have" in text


def test_without_an_outline_evenly_spaced_slices_are_shown() -> None:
    answers = [replace(each, mask=None) for each in told("No.")]
    made = page(answers)
    (text,) = pages(made)
    assert text.count("Image ") == 4
    assert "Key slices" in text
    dark = (rendered(made).max(axis=2) < 30).mean()
    assert dark > 0.02


def test_without_an_image_the_page_has_its_text() -> None:
    sources, volume = stack(series())
    made = encode(
        CHEST,
        sources,
        findings(CHEST, volume),
        ALGORITHM,
        job_id=JOB,
        image=None,
        created_at=CREATED_AT,
        profiles=PAGE,
    )["pdf"]
    (text,) = pages(made)
    assert "Key slices" not in text
    assert "Findings" in text


def test_an_untrained_model_is_named_so_at_the_head() -> None:
    (text,) = pages(encoded(algorithm=untrained(), profiles=PAGE)["pdf"])
    assert text.startswith("AI DRAFT - NOT FOR DIAGNOSTIC USE - UNVERIFIED - UNTRAINED MODEL")
    assert "is meaningless" in text


def test_a_multi_frame_source_gives_a_page_too(tmp_path: Path) -> None:
    made = encoded_enhanced(profiles=PAGE)["pdf"]
    assert complaints(made, tmp_path / "page.dcm") == []
    assert "Frame " in pages(made)[0]
