from pathlib import Path

import pytest

from sr_templates import Code, TemplateError, load_protocols

OURS = load_protocols()
SMALL = """
name = "small"
title = "Small"
modality = "CT"
body_parts = ["CHEST"]
keywords = ["chest"]
minimum_slices = 8
window = [40, 400]
language = "en"
document_title = "LN 24627-2 CT Chest Report"
procedure = "LN 25045-6 CT unspecified body region"
region = "SCT 816094009 Chest"

[[questions]]
id = "words"
heading = "Lungs"
text = "Is there a mass?"

[[questions]]
id = "outline"
heading = "Outlines"
text = "Please segment the left lung."
max_new_tokens = 8
target = { label = "Left lung", category = "SCT 91723000 Anatomical Structure", type = "SCT 39607008 Lung", laterality = "SCT 7771000 Left", colour_rgb = [0, 1, 2] }
"""  # noqa: E501


def written(folder: Path, text: str, name: str = "small.toml") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def refused(folder: Path, old: str, new: str) -> str:
    assert old in SMALL
    with pytest.raises(TemplateError) as caught:
        load_protocols(written(folder, SMALL.replace(old, new)))
    told = str(caught.value).removeprefix(f"{folder / 'small.toml'}:")
    assert told != str(caught.value)
    return told


def test_our_protocols_are_chest_abdomen_and_brain() -> None:
    assert set(OURS) == {"ct_chest", "ct_abdomen", "mr_brain"}


@pytest.mark.parametrize("name", sorted(OURS))
def test_each_protocol_asks_one_caption_many_findings_and_some_outlines(name: str) -> None:
    questions = OURS[name].questions
    assert [each.id for each in questions if each.caption] == ["impression"]
    assert len([each for each in questions if not each.caption and not each.target]) >= 10
    assert len(OURS[name].targets) >= 3


@pytest.mark.parametrize("name", sorted(OURS))
def test_the_side_in_words_is_the_side_in_code(name: str) -> None:
    for question in OURS[name].targets:
        side = question.target.laterality.meaning.lower() if question.target.laterality else None
        for word in ("left", "right"):
            assert (word in question.text.lower().split()) == (word == side)
            assert (word in question.target.label.lower().split()) == (word == side)
            assert (f"_{word}_" in question.id) == (word == side)


@pytest.mark.parametrize("name", sorted(OURS))
def test_no_question_holds_a_word_reserved_by_the_model(name: str) -> None:
    for question in OURS[name].questions:
        assert not {"<", ">", "[", "]"} & set(question.text)


def test_ct_is_windowed_in_hounsfield_units_and_mr_by_percentiles() -> None:
    assert OURS["ct_chest"].window == (40.0, 400.0)
    assert OURS["ct_chest"].percentiles is None
    assert OURS["mr_brain"].window is None
    assert OURS["mr_brain"].percentiles == (0.5, 99.5)


def test_a_protocol_of_the_site_is_added(tmp_path: Path) -> None:
    protocols = load_protocols(written(tmp_path, SMALL))
    assert set(protocols) == {*OURS, "small"}
    words, outline = protocols["small"].questions
    assert (words.max_new_tokens, words.caption, words.target) == (256, False, None)
    assert outline.target.laterality == Code("SCT", "7771000", "Left")
    assert outline.target.colour_rgb == (0, 1, 2)
    assert outline.target.region is None


def test_a_protocol_of_the_site_takes_the_place_of_ours(tmp_path: Path) -> None:
    text = SMALL.replace('"small"', '"ct_chest"')
    protocols = load_protocols(written(tmp_path, text, "ct_chest.toml"))
    assert protocols["ct_chest"].title == "Small"


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match="nowhere"):
        load_protocols(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("SCT 39607008 Lung", "SCT 39607009 Lung", "questions[2].target.type: SCT '39607009' is"),
        ("SCT 39607008 Lung", "SCT 39607008 Liver", "means 'Lung' or 'Lung structure"),
        ("SCT 39607008 Lung", "SRT T-28000 Lung", "must be one of DCM, LN, SCT, not 'SRT'"),
        ("SCT 39607008 Lung", "Lung", "expected 'SCHEME VALUE MEANING', got 'Lung'"),
        ("SCT 7771000 Left", "SCT 39607008 Lung", "laterality: expected a code of PS3.16 CID 244"),
        ("SCT 91723000 Anatomical Structure", "SCT 39607008 Lung", "category: expected a code of"),
        ("LN 24627-2 CT Chest Report", "SCT 39607008 Lung", "document_title: expected a code of"),
        ('region = "SCT 816094009 Chest"', "", "region: is missing, expected str"),
        ("minimum_slices = 8", "minimum_slice = 8", "minimum_slices: is missing, expected int"),
        ("minimum_slices = 8", "minimum_slices = true", "expected int, got True"),
        ("minimum_slices = 8", "minimum_slices = 0", "expected 1 to 10000, got 0"),
        ("minimum_slices = 8", 'minimum_slices = 8\nslices = "x"', "slices: is not a known key"),
        ("max_new_tokens = 8", "max_tokens = 8", "questions[2].max_tokens: is not a known key"),
        ("max_new_tokens = 8", "max_new_tokens = 0", "expected 1 to 1024, got 0"),
        ("max_new_tokens = 8", "caption = true", "a caption is a text"),
        ("colour_rgb = [0, 1, 2]", "colour_rgb = [0, 1, 256]", "expected three numbers 0-255"),
        ("colour_rgb", "color_rgb", "target.colour_rgb: is missing"),
        ('"small"', '"other"', "expected the file's name 'small', got 'other'"),
        ('modality = "CT"', 'modality = "US"', "modality: expected one of CT, MR, got 'US'"),
        ('language = "en"', 'language = "xx"', "language: expected one of en"),
        ('["CHEST"]', "[]", "body_parts: expected a list of words"),
        ("window = [40, 400]", "", "expected either window or percentiles"),
        ("window = [40, 400]", "window = [40, 400]\npercentiles = [1, 99]", "and not both"),
        ("window = [40, 400]", "window = [40, 0]", "expected [level, width > 0]"),
        ("window = [40, 400]", "window = [40]", "window: expected two numbers"),
        ("window = [40, 400]", "percentiles = [99, 1]", "expected 0 <= low < high <= 100"),
        ('id = "outline"', 'id = "words"', "expected each id once, got 'words' again"),
        ('heading = "Lungs"', 'heading = "Lu\\nngs"', "expected 1-64 characters on one line"),
        ('heading = "Lungs"', 'heading = "Lu\\\\ngs"', "without backslash"),
        ('heading = "Lungs"', f'heading = "{"L" * 65}"', "expected 1-64 characters"),
        ("[[questions]]", "[[question]]", "questions: is missing"),
        ('name = "small"', "name = ", "cannot be read as TOML"),
    ],
)
def test_what_is_wrong_is_named_with_its_file_and_key(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert message in refused(tmp_path, old, new)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("SCT 39607008 Lung", "SCT 39607009 Lung", 24),
        ("SCT 816094009 Chest", "SCT 1 Chest", 12),
        ('region = "SCT 816094009 Chest"', "", 1),
        ('heading = "Outlines"\n', "", 19),
        ('"Lungs"', '""', 16),
        ("max_new_tokens = 8", "max_tokens = 8", 23),
        ("[0, 1, 2]", "[0, 1]", 24),
        ('text = "Is there a mass?"', f'text = "?"\n{"EVALUATION"}', 18),
    ],
)
def test_the_line_of_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, line: int) -> None:
    evaluation = 'evaluation = { concept = "SCT 1 Mass", answers = { yes = "SCT 2 Yes" } }'
    assert refused(tmp_path, old, new.replace("EVALUATION", evaluation)).startswith(f"{line}: ")


def test_the_line_of_a_key_in_a_table_of_its_own_is_named(tmp_path: Path) -> None:
    inline = next(line for line in SMALL.splitlines() if line.startswith("target"))
    table = """[questions.target]
label = "Left lung"
category = "SCT 91723000 Anatomical Structure"
type = "SCT 39607008 Liver"
colour_rgb = [0, 1, 2]"""
    assert refused(tmp_path, inline, table).startswith("27: questions[2].target.type: ")


EVALUATED = """text = "Is there a mass?"
evaluation = { concept = "SCT 36118008 Pneumothorax", answers = { ANSWERS } }"""
YES_NO = 'yes = "SCT 52101004 Present", "no, none" = "SCT 272519000 Absent"'


def test_allowed_answers_have_codes_and_others_have_none(tmp_path: Path) -> None:
    text = SMALL.replace('text = "Is there a mass?"', EVALUATED.replace("ANSWERS", YES_NO))
    evaluation = load_protocols(written(tmp_path, text))["small"].questions[0].evaluation
    assert evaluation.concept.meaning == "Pneumothorax"
    assert evaluation.allowed == '"yes", "no, none"'
    assert evaluation.code(" Yes.\n") == Code("SCT", "52101004", "Present")
    assert evaluation.code("NO,  none!") == Code("SCT", "272519000", "Absent")
    for other in ("", "yes and no", "Yes, on the left.", "no", "y"):
        assert evaluation.code(other) is None


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ("", "18: questions[1].evaluation.answers: expected the allowed answers"),
        ('yes = "SCT 1 Present"', "18: questions[1].evaluation.answers.yes: SCT '1' is not a code"),
        ('Yes = "SCT 52101004 Present"', "answers.Yes: expected small letters, as 'yes'"),
    ],
)
def test_answers_without_a_code_are_refused(tmp_path: Path, answers: str, message: str) -> None:
    told = refused(tmp_path, 'text = "Is there a mass?"', EVALUATED.replace("ANSWERS", answers))
    assert message in told


def test_an_outline_is_not_evaluated(tmp_path: Path) -> None:
    evaluation = EVALUATED.replace("ANSWERS", YES_NO).split("\n")[1]
    told = refused(tmp_path, "max_new_tokens = 8", f"max_new_tokens = 8\n{evaluation}")
    assert "questions[2].evaluation: only words that answer a question" in told


def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(TemplateError, match="cannot be read as TOML"):
        load_protocols(tmp_path)


def test_a_code_reads_as_it_is_written() -> None:
    text = "SCT 24028007 Right"
    assert str(Code.parse(text)) == text
