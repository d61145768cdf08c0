"""Fonts: which has which character, and what becomes of what none has."""

import io

import pytest
from fontTools.ttLib import TTFont

from sr_templates import typefaces


@pytest.mark.parametrize(
    "text", ["Größe, naïve, Łódź", "Лёгкие", "Πνεύμονες", "肺野", "はい", "폐", "0.5 µm²"]
)
def test_text_of_many_scripts_is_kept(text: str) -> None:
    assert typefaces.legible(text) == text


def test_what_no_font_has_is_spelt_or_replaced_and_never_left_out() -> None:
    assert typefaces.legible("≥ 5 → 7") == ">= 5 -> 7"
    assert typefaces.legible("a\U0001f600b") == f"a{typefaces.REPLACEMENT}b"


def test_only_the_fonts_that_a_text_takes_are_loaded() -> None:
    assert len(typefaces.needed(typefaces.legible("Größe ≥ 5 mm"))) == 1
    assert len(typefaces.needed("肺")) == 2


def test_a_cut_font_has_the_text_s_characters_and_is_the_same_each_time() -> None:
    font = typefaces.fonts()[0]
    first, again = typefaces.cut(font, "Größe", 700), typefaces.cut(font, "Größe", 700)
    assert first == again
    assert len(first) < 50_000
    with TTFont(io.BytesIO(first)) as opened:
        characters = set(opened.getBestCmap())
        assert {ord(each) for each in "Größe"} <= characters
        assert ord("Q") not in characters
        assert "fvar" not in opened


def test_a_line_is_cut_to_its_room_and_shows_that_it_is() -> None:
    assert typefaces.fitted("Lung", 14, 500) == "Lung"
    cut = typefaces.fitted("Right upper lobe of the lung", 14, 100)
    assert cut.endswith("…")
    assert typefaces.width(cut, 14) <= 100
