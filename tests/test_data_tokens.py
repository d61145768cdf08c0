"""Ids, labels and masks: as the reference makes them, and as we do where it is odd."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import reference
import torch

from model.data.sample import DataError, Sample, Task
from model.data.tokens import IGNORED, Layout, Tokens, collate, encode, prompt
from model.network.config import read_lamed
from model.tokenizer import ADDED, IMAGE, SEG, Tokenizer, read_tokenizer

TASKS = {
    "cap": Task.CAPTION,
    "vqa_closed": Task.CLOSED_VQA,
    "vqa_open": Task.OPEN_VQA,
    "rec_cls": Task.REC,
    "rec_des": Task.REC,
    "reg_cls": Task.REG,
    "reg_des": Task.REG,
    "seg_cls": Task.SEMANTIC_SEGMENTATION,
    "seg_des": Task.REFERRING_SEGMENTATION,
    "refseg": Task.REFERRING_SEGMENTATION,
}
IMAGE_TOKENS = 8
EOS, UNKNOWN = 2, 0


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The reference's small tokenizer; the added tokens come after its pieces."""
    folder = tmp_path_factory.mktemp("tokenizer")
    model = (reference.folder("text") / "tokenizer.model").read_bytes()
    (folder / "tokenizer.model").write_bytes(model)
    pieces = Tokenizer(model, {}).pieces
    added = {name: pieces + number for number, name in enumerate(ADDED)}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    return read_tokenizer(folder)


def golden() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(
        (reference.folder("text") / "prompts.json").read_text()
    )["rows"]
    return rows


def as_sample(row: dict[str, Any]) -> Sample:
    """Take the image tokens off, and with them the space that all but captions have."""
    question = row["question"].removeprefix(IMAGE * IMAGE_TOKENS)
    assert question.startswith(" ") is (row["dataset"] != "cap")
    task = TASKS[row["dataset"]]
    closed = {"choices": ("", "", "", ""), "letter": row["answer"][0]}
    return Sample(
        id=f"{row['dataset']}.csv#{row['index']}",
        task=task,
        image=Path("image.npy"),
        question=question.removeprefix(" "),
        answer=row["answer"],
        patient="one",
        **(closed if task is Task.CLOSED_VQA else {}),
    )


def layout(row: dict[str, Any], **options: Any) -> Layout:
    pad = EOS if row["pad"] == "eos" else UNKNOWN
    return Layout(IMAGE_TOKENS, EOS, pad, row["max_length"], **options)


def sample(question: str = "Where?", answer: str = "Here.", **options: Any) -> Sample:
    options = {"task": Task.OPEN_VQA, "id": "some.csv#3"} | options
    return Sample(image=Path("a.npy"), question=question, answer=answer, patient="p", **options)


def test_every_case_of_the_reference_comes_out_equal(tokenizer: Tokenizer) -> None:
    rows = golden()
    assert len(rows) == 80
    for row in rows:
        made = layout(row, reference=True)
        batch = collate([encode(as_sample(row), tokenizer, made)], made, length=row["max_length"])
        place = f"{row['dataset']} {row['index']} {row['pad']} {row['max_length']}"
        assert batch.input_ids[0].tolist() == row["input_ids"], place
        assert batch.labels[0].tolist() == row["labels"], place
        assert batch.attention_mask[0].tolist() == row["attention_mask"], place


def test_the_default_differs_from_the_reference_in_the_attention_to_the_eos_alone(
    tokenizer: Tokenizer,
) -> None:
    ended = 0
    for row in golden():
        if all(each == IGNORED for each in row["labels"]):
            continue
        made = layout(row)
        batch = collate([encode(as_sample(row), tokenizer, made)], made, length=row["max_length"])
        assert batch.input_ids[0].tolist() == row["input_ids"]
        assert batch.labels[0].tolist() == row["labels"]
        expected, length = list(row["attention_mask"]), sum(row["attention_mask"])
        if length < row["max_length"]:
            ended += 1
            assert row["input_ids"][length] == EOS
            expected[length] = 1
        assert batch.attention_mask[0].tolist() == expected
    assert ended > 40


def test_a_question_that_leaves_no_room_for_its_answer_is_an_error_with_its_place(
    tokenizer: Tokenizer,
) -> None:
    emptied = [row for row in golden() if all(each == IGNORED for each in row["labels"])]
    assert emptied
    for row in emptied:
        with pytest.raises(DataError, match=f"^{row['dataset']}.csv, row {row['index']}: "):
            encode(as_sample(row), tokenizer, layout(row))


def test_a_caption_follows_the_image_at_once_and_all_else_after_a_space() -> None:
    made = Layout(2, EOS, UNKNOWN)
    for task in Task:
        letter = {"choices": ("a", "b"), "letter": "A"} if task is Task.CLOSED_VQA else {}
        expected = "<im_patch><im_patch>" + ("" if task is Task.CAPTION else " ") + "Where?"
        assert prompt(sample(task=task, **letter), made) == expected


def test_what_is_learnt_is_the_answer_and_its_end(tokenizer: Tokenizer) -> None:
    made = Layout(4, EOS, EOS)
    tokens = encode(sample(answer="The liver is normal."), tokenizer, made)
    learnt = [each for each in tokens.labels if each != IGNORED]
    assert tokenizer.decode(learnt[:-1]).strip() == "The liver is normal."
    assert learnt[-1] == tokens.input_ids[-1] == EOS
    assert tokens.input_ids[:5] == (tokenizer.bos_id, *[tokenizer.added[IMAGE]] * 4)
    assert tokens.attention_mask == (1,) * len(tokens.input_ids)


def test_a_word_of_an_answer_is_learnt_also_where_its_id_is_that_of_padding(
    tokenizer: Tokenizer,
) -> None:
    answered = sample(answer="It is so.")
    plain = encode(answered, tokenizer, Layout(4, EOS, UNKNOWN))
    pad = next(each for each in plain.labels if each != IGNORED)
    ours = encode(answered, tokenizer, Layout(4, EOS, pad))
    theirs = encode(answered, tokenizer, Layout(4, EOS, pad, reference=True))
    place = plain.labels.index(pad)
    assert (ours.labels[place], theirs.labels[place]) == (pad, IGNORED)


@pytest.mark.parametrize("short_by", [1, 2, 3])
def test_a_cut_text_has_no_end(tokenizer: Tokenizer, short_by: int) -> None:
    whole = encode(sample(answer="No mass is seen."), tokenizer, Layout(4, EOS, EOS))
    length = len(whole.input_ids) - short_by
    cut = encode(sample(answer="No mass is seen."), tokenizer, Layout(4, EOS, EOS, length))
    assert cut.input_ids == whole.input_ids[:length]
    assert cut.labels == whole.labels[:length]
    assert EOS not in cut.input_ids


def test_an_answer_that_just_fits_has_its_end_as_the_last_token(tokenizer: Tokenizer) -> None:
    whole = encode(sample(), tokenizer, Layout(4, EOS, EOS))
    assert encode(sample(), tokenizer, Layout(4, EOS, EOS, len(whole.input_ids))) == whole


def test_a_mask_whose_seg_would_be_cut_away_is_an_error(tokenizer: Tokenizer) -> None:
    outlined = sample(
        answer=f"Sure, it is {SEG}.",
        task=Task.SEMANTIC_SEGMENTATION,
        mask=Path("mask.npy"),
        id="0003/0003.json#train/7",
    )
    place = encode(outlined, tokenizer, Layout(4, EOS, EOS)).input_ids.index(tokenizer.added[SEG])
    kept = encode(outlined, tokenizer, Layout(4, EOS, EOS, place + 1))
    assert kept.input_ids[-1] == tokenizer.added[SEG]
    with pytest.raises(DataError, match=r"^0003/0003.json, row train/7: expected \[SEG\] within"):
        encode(outlined, tokenizer, Layout(4, EOS, EOS, place))


def test_a_batch_is_padded_on_the_right_and_padding_is_neither_seen_nor_learnt(
    tokenizer: Tokenizer,
) -> None:
    made = Layout(4, EOS, UNKNOWN)
    rows = [
        encode(sample(answer=each), tokenizer, made) for each in ("No.", "The liver is normal.")
    ]
    batch = collate(rows, made)
    longest = max(len(each.input_ids) for each in rows)
    for name, filler in (("input_ids", UNKNOWN), ("labels", IGNORED), ("attention_mask", 0)):
        values: torch.Tensor = getattr(batch, name)
        assert values.shape == (2, longest)
        assert values.dtype == torch.int64
        for index, row in enumerate(rows):
            own: Sequence[int] = getattr(row, name)
            assert values[index].tolist() == [*own, *[filler] * (longest - len(own))]
    assert len({len(each.input_ids) for each in rows}) == 2


def test_a_batch_of_one_length_pads_to_it() -> None:
    made = Layout(1, EOS, 9)
    batch = collate([Tokens((1, 5, EOS), (IGNORED, 5, EOS), (1, 1, 1))], made, length=5)
    assert batch.input_ids.tolist() == [[1, 5, EOS, 9, 9]]
    assert batch.labels.tolist() == [[IGNORED, 5, EOS, IGNORED, IGNORED]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0, 0]]


def test_the_layout_of_a_network_is_read_from_its_configuration(checkpoint: Path) -> None:
    config = read_lamed(json.loads((checkpoint / "config.json").read_text()))
    made = Layout.of(config)
    assert (made.image_tokens, made.eos_id, made.pad_id) == (config.image_tokens, 2, 2)
    assert made.max_length == 512
    assert not made.reference


def test_an_image_of_more_tokens_than_the_released_ones_leaves_as_much_room_for_text(
    checkpoint: Path,
) -> None:
    told = json.loads((checkpoint / "config.json").read_text())
    many = read_lamed(told | {"image_size": [64, 256, 256], "patch_size": [4, 16, 16]})
    config = replace(many, projector=replace(many.projector, window=1))
    assert config.image_tokens == 16**3
    assert Layout.of(config).max_length == 2 * 16**3
    assert Layout.of(config, max_length=20).max_length == 20
