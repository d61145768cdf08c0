"""Pages of paper: what does not fit goes on, with everything it belongs to."""

from contextlib import closing
from datetime import datetime

import pypdfium2
from PIL import Image

from sr_templates.page import Picture, Sheet, Words, lay_out

NOTICE = "AI DRAFT - NOT FOR DIAGNOSTIC USE - UNVERIFIED"


def sheet(count: int, findings: int = 3) -> Sheet:
    """Return a sheet of `count` pictures, as many colours, and short findings."""
    return Sheet(
        notice=NOTICE,
        title="CT Chest Report",
        author="LaMed",
        written=datetime(2026, 3, 4, 5, 6),  # noqa: DTZ001 - local, as the study's own times
        facts=(("Patient", "Doe, Jane"),),
        warning=Words("Summary", ("Checked by nobody.",)),
        first=Words("Impressions", ("None.",)),
        findings=Words("Findings", tuple(f"Finding {each}." for each in range(findings))),
        about=(Words("Procedure", ("Limits: it saw one series.",)),),
        pictures=tuple(
            Picture(Image.new("RGB", (56, 48)), f"Image {each}: structure") for each in range(count)
        ),
        legend=tuple(
            ((200, each, 40), f"A structure of a name that takes two lines, number {each}, 12 mL")
            for each in range(count)
        ),
    )


def read(pdf: bytes) -> list[str]:
    with closing(pypdfium2.PdfDocument(pdf)) as document:
        texts = []
        for number in range(len(document)):
            with closing(document[number]) as page, closing(page.get_textpage()) as text:
                texts.append(" ".join(text.get_text_bounded().split()))
        return texts


def test_few_pictures_and_their_legend_stand_beside_the_text() -> None:
    (text,) = read(lay_out(sheet(4)))
    for number in range(4):
        assert f"Image {number}: structure" in text
        assert f"number {number}, 12 mL" in text


def test_many_pictures_go_on_and_none_is_lost() -> None:
    texts = read(lay_out(sheet(60)))
    whole = " ".join(texts)
    assert len(texts) > 1
    for number in range(60):
        assert whole.count(f"Image {number}: structure") == 1
        assert whole.count(f"number {number}, 12 mL") == 1
    assert all(text.startswith(NOTICE) for text in texts)


def test_many_findings_go_on_and_none_is_lost() -> None:
    texts = read(lay_out(sheet(0, findings=200)))
    whole = " ".join(texts)
    assert len(texts) > 1
    assert all(f"Finding {number}." in whole for number in range(200))
    assert "Limits: it saw one series." in texts[-1]
    assert "Key slices" not in whole


def test_the_same_sheet_gives_the_same_bytes() -> None:
    assert lay_out(sheet(2)) == lay_out(sheet(2))
