"""Text to ids: the reference's own rows, transformers' tokenizer, and files that are not words."""

import json
from pathlib import Path
from typing import Any

import pytest
import reference
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2
from transformers import LlamaTokenizer
from words import pieces

from model import ModelError, tiny
from model.tokenizer import ADDED, BOX_END, BOX_START, IMAGE, SEG, Tokenizer, read_tokenizer

EOS = 2
PARTS = [" ", "  ", "the", "liver", "nodule", "0.25", ",", ".", "?", "\n", "é", "中", "A", *ADDED]
TEXTS = st.lists(st.sampled_from(PARTS), max_size=10).map("".join)

Golden = tuple[Tokenizer, list[dict[str, Any]]]


def write(folder: Path, model: bytes, added: object) -> Path:
    (folder / "tokenizer.model").write_bytes(model)
    (folder / "added_tokens.json").write_text(json.dumps(added))
    return folder


def count(model: bytes) -> int:
    return sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()


def added_to(model: bytes) -> dict[str, int]:
    return {name: count(model) + index for index, name in enumerate(ADDED)}


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Golden:
    """The reference's own sentences, which are not ours to copy, and its tokenizer."""
    text = reference.folder("text")
    model = (text / "tokenizer.model").read_bytes()
    folder = write(tmp_path_factory.mktemp("golden"), model, added_to(model))
    return read_tokenizer(folder), json.loads((text / "prompts.json").read_text())["rows"]


@pytest.fixture(scope="session")
def both(checkpoint: Path) -> tuple[Tokenizer, LlamaTokenizer]:
    return read_tokenizer(checkpoint), LlamaTokenizer.from_pretrained(checkpoint, legacy=False)


@pytest.fixture
def tokenizer(checkpoint: Path) -> Tokenizer:
    return read_tokenizer(checkpoint)


def test_every_row_of_the_reference_has_the_same_ids(golden: Golden) -> None:
    tokenizer, rows = golden
    assert len(rows) >= 40
    for row in rows:
        ids = [tokenizer.bos_id, *tokenizer.encode(f"{row['question']} {row['answer']}")]
        kept = sum(row["attention_mask"])
        assert ids[: row["max_length"]] == row["input_ids"][:kept], row["question"]
        if len(ids) < row["max_length"]:
            # The reference writes the end at the first pad.
            assert [*ids, EOS] == row["input_ids"][: kept + 1]


def test_the_split_between_question_and_answer_is_that_of_the_labels(golden: Golden) -> None:
    tokenizer, rows = golden
    for row in rows:
        asked = 1 + len(tokenizer.encode(row["question"]))
        taught = [index for index, label in enumerate(row["labels"]) if label != -100]
        assert (taught[0] if taught else row["max_length"]) == min(asked, row["max_length"])


def test_every_answer_of_the_reference_comes_back_as_it_was(golden: Golden) -> None:
    tokenizer, rows = golden
    answers = {row["answer"] for row in rows}
    assert any(SEG in each for each in answers)
    assert any(BOX_START in each and BOX_END in each for each in answers)
    for answer in answers:
        ids = tokenizer.encode(f"{IMAGE} {answer}")[1:]
        assert tokenizer.decode(ids) == f" {answer}"


@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
def test_behind_the_image_the_ids_are_those_of_transformers(
    both: tuple[Tokenizer, LlamaTokenizer], text: str
) -> None:
    ours, theirs = both
    assert ours.encode(IMAGE + text) == theirs(IMAGE + text, add_special_tokens=False).input_ids


@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
def test_a_text_comes_back_from_its_ids(both: tuple[Tokenizer, LlamaTokenizer], text: str) -> None:
    ours, _ = both
    assert ours.decode(ours.encode(IMAGE + text)[1:]) == text


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_no_text_of_a_person_becomes_a_token_of_the_program(
    both: tuple[Tokenizer, LlamaTokenizer], text: str
) -> None:
    ours, _ = both
    controls = {ours.bos_id, EOS, *ours.added.values()}
    assert ours.reserved(text) or controls.isdisjoint(ours.encode(text))


def test_a_space_in_front_of_a_text_is_a_token_of_its_own_or_part_of_the_word(
    tokenizer: Tokenizer,
) -> None:
    with_space, without = (
        tokenizer.encode(f"{IMAGE} There is"),
        tokenizer.encode(f"{IMAGE}There is"),
    )
    assert with_space != without
    assert tokenizer.decode(with_space[1:]) == " There is"
    assert tokenizer.decode(without[1:]) == "There is"


def test_the_space_stays_also_where_sentencepiece_would_drop_it(tmp_path: Path) -> None:
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(pieces(200))
    proto.normalizer_spec.remove_extra_whitespaces = True
    ours = read_tokenizer(write(tmp_path, proto.SerializeToString(), added_to(pieces(200))))
    usual = Tokenizer(pieces(200), ours.added)
    for text in (f"{IMAGE} There is", f"{IMAGE}There is", f"{SEG} There"):
        assert ours.encode(text) == usual.encode(text)


def test_seg_and_boxes_stay_readable_and_the_ends_vanish(tokenizer: Tokenizer) -> None:
    text = f"It is {SEG} at {BOX_START}[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]{BOX_END}."
    ids = tokenizer.encode(IMAGE + text)[1:]
    assert tokenizer.added[SEG] in ids
    assert tokenizer.decode([tokenizer.bos_id, *ids, EOS, EOS]) == text


def test_an_id_without_a_word_says_nothing(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(f"{IMAGE} liver")[1:]
    assert tokenizer.decode([len(tokenizer), *ids, len(tokenizer) + 60]) == " liver"


def test_half_a_letter_is_shown_as_broken_and_does_no_harm(tokenizer: Tokenizer) -> None:
    first, *_ = tokenizer.encode("中")
    assert tokenizer.decode([first]) == "\ufffd"


@pytest.mark.parametrize("token", ["<s>", "</s>", "<unk>", *ADDED])
def test_tokens_of_the_program_are_reserved(tokenizer: Tokenizer, token: str) -> None:
    assert tokenizer.reserved(f"Is the{token}liver normal?") == [token]


def test_every_other_added_token_is_reserved_too(tmp_path: Path) -> None:
    model = pieces(200)
    shifted = {name: number + 1 for name, number in added_to(model).items()}
    ours = read_tokenizer(write(tmp_path, model, {"<|assistant|>": 200} | shifted))
    assert ours.reserved("yes<|assistant|>no") == ["<|assistant|>"]
    assert ours.reserved("Is the liver <normal> [or] not?") == []
    assert ours.encode("<|assistant|>") == [200]


def test_the_vocabulary_ends_after_the_last_token(tokenizer: Tokenizer) -> None:
    assert len(tokenizer) == count(tokenizer.model) + len(ADDED)
    assert tokenizer.pieces == count(tokenizer.model)


@pytest.mark.parametrize("name", ["tokenizer.model", "added_tokens.json"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path, pieces(200), added_to(pieces(200)))
    (folder / name).unlink()
    with pytest.raises(ModelError, match=f"{name} is missing"):
        read_tokenizer(folder)


@pytest.mark.parametrize("name", ["tokenizer.model", "added_tokens.json"])
def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path, pieces(200), added_to(pieces(200)))
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(ModelError, match=f"{name} cannot be read: Is a directory"):
        read_tokenizer(folder)


@pytest.mark.parametrize(
    "broken",
    [b"", pieces(200)[:-30], b"no words at all" * 9],
    ids=["empty", "cut short", "garbage"],
)
def test_a_broken_sentencepiece_model_is_named(tmp_path: Path, broken: bytes) -> None:
    write(tmp_path, broken, added_to(pieces(200)))
    with pytest.raises(ModelError, match=r"tokenizer\.model is no sentencepiece model"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [[1, 2], "text", {"[SEG]": "last"}, {"[SEG]": None}, 7])
def test_added_tokens_that_are_no_table_are_named(tmp_path: Path, content: object) -> None:
    write(tmp_path, pieces(200), content)
    with pytest.raises(ModelError, match=r"added_tokens\.json is no table of tokens") as caught:
        read_tokenizer(tmp_path)
    assert "tokenizer.model" not in str(caught.value)


def test_added_tokens_that_are_not_json_are_named(tmp_path: Path) -> None:
    write(tmp_path, pieces(200), {})
    (tmp_path / "added_tokens.json").write_bytes(b"\xff{")
    with pytest.raises(ModelError, match=r"added_tokens\.json is no table of tokens"):
        read_tokenizer(tmp_path)


def test_missing_tokens_are_named(tmp_path: Path) -> None:
    kept = {name: number for name, number in added_to(pieces(200)).items() if name != SEG}
    write(tmp_path, pieces(200), kept)
    with pytest.raises(ModelError, match=r"added_tokens\.json: expected \[SEG\], not there"):
        read_tokenizer(tmp_path)


def test_a_token_on_a_word_of_sentencepiece_is_refused(tmp_path: Path) -> None:
    write(tmp_path, pieces(200), added_to(pieces(200)) | {SEG: 150})
    with pytest.raises(ModelError, match=r"\[SEG\] is 150, but tokenizer\.model has .* up to 199"):
        read_tokenizer(tmp_path)


def test_two_tokens_on_one_id_are_refused(tmp_path: Path) -> None:
    write(tmp_path, pieces(200), added_to(pieces(200)) | {BOX_END: 201})
    with pytest.raises(ModelError, match="one id for two"):
        read_tokenizer(tmp_path)


def test_the_words_of_the_tiny_checkpoint_cover_what_it_says(tokenizer: Tokenizer) -> None:
    for sentence in tiny.sentences():
        ids = tokenizer.encode(f"{IMAGE} {sentence}")[1:]
        assert 0 not in ids
        assert tokenizer.decode(ids) == f" {sentence}"
