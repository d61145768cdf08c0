"""What `LaMed.read` makes of a text that is known word for word, and what it refuses.

The network of these tests says what it is told: each token has a fixed one that follows it.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import reference
import torch
from numpy.typing import NDArray
from torch import Tensor
from words import pieces

from model import Answer, Card, LaMed, ModelError, Question
from model.lamed import _boxes, _plain
from model.network import Lamed, build
from model.preprocess import Placement, Prepared, prepare
from model.tokenizer import ADDED, BOX_END, BOX_START, IMAGE, SEG, Tokenizer

VOCABULARY = 200
POSITIONS = 600
END = "</s>"
WIDTHS = {"hidden_size": 24, "mlp_dim": 16, "num_layers": 1, "num_heads": 2}
SEGVOL = {"embed_dim": 24, "mlp_dim": 16, "num_layers": 1, "num_heads": 2}
DECODER = {"decoder_mlp_dim": 20, "decoder_heads": 2, "iou_hidden": 12}
CONFIG: dict[str, Any] = {
    "model_type": "lamed_llama",
    "vocab_size": VOCABULARY,
    "hidden_size": VOCABULARY,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
    "eos_token_id": [2],
    "pad_token_id": 0,
    "seg_token_id": VOCABULARY - 1,
    "image_size": [6, 10, 8],
    "patch_size": [2, 2, 2],
    "mm_hidden_size": 24,
    "segmentation_module": "segvol",
    "oracle_overrides": {"vision": WIDTHS, "segvol": SEGVOL | DECODER},
}
OTHER = "<|assistant|>"  # Phi-3 brings such ones along
EXTRA = {OTHER: VOCABULARY - 5} | {n: VOCABULARY - 4 + index for index, n in enumerate(ADDED)}
ROOM = 512 - 1 - 4  # tokens of a prompt, less BOS, less 1 x 2 x 2 pooled patches
MOST = POSITIONS - 1 - 4 - 2  # less a space and a question mark

Speak = Callable[..., Answer]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    # Two threads on matrices this small spend their time waiting for each other.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def number(words: Tokenizer, word: str) -> int:
    (found,) = [2] if word == END else words.encode(IMAGE + word)[1:]
    return found


def speaking(follows: Mapping[str, str], **changes: Any) -> LaMed:
    """Make a model in which each word is one token, followed by the one that `follows` tells."""
    torch.manual_seed(0)
    network = build(CONFIG | changes)
    assert isinstance(network, Lamed)
    spoken = dict.fromkeys([*follows, *follows.values()])
    whole = tuple(each.replace(" ", "\u2581") for each in spoken if each not in {END, *EXTRA})
    words = Tokenizer(pieces(EXTRA[OTHER], whole), EXTRA)
    with torch.no_grad():
        network.model.embed_tokens.weight.copy_(torch.eye(VOCABULARY))
        for layer in network.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        network.lm_head.weight.zero_()
        for word, following in follows.items():
            network.lm_head.weight[number(words, following), number(words, word)] = 1
    card = Card("speaking", "1", "00" * 32, untrained=True)
    return LaMed(network, words, card, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def volume() -> NDArray[np.float32]:
    """Give a volume whose crop is (1, 2, 3) to (13, 22, 35), 12 x 20 x 32 voxels."""
    noise = np.zeros((15, 24, 40), np.float32)
    noise[1:13, 2:22, 3:35] = np.random.default_rng(0).uniform(1, 2, (12, 20, 32))
    return noise


@pytest.fixture
def speak(volume: NDArray[np.float32]) -> Speak:
    """Let a model answer with these words, one after the other, and end."""

    def answer(*words: str) -> Answer:
        lamed = speaking(dict(zip(("?", *words), (*words, END), strict=True)))
        return lamed.read(volume, [Question("Where is it?", max_new_tokens=20)])[0]

    return answer


def drawn_after(lamed: LaMed, volume: NDArray[np.float32], word: str) -> NDArray[np.float32]:
    """Draw the mask whose [SEG] follows a word: the state there is its unit vector, normed."""
    state = torch.zeros(1, VOCABULARY)
    state[0, number(lamed.tokenizer, word)] = VOCABULARY**0.5
    image = prepare(volume, lamed.network.config.vision.image_size).image
    with torch.no_grad():
        tokens = lamed.network.encode_segmentation(image)
        logits: Tensor = lamed.network.segment(tokens, state)
    return np.asarray(logits[0, 0])


def test_an_answer_is_what_the_model_said_until_its_end(speak: Speak) -> None:
    answer = speak("It", " is", " a", " cyst", ".")
    assert (answer.text, answer.raw) == ("It is a cyst.", "It is a cyst.")
    assert len(answer.tokens) == 5
    assert 0.9 < answer.confidence <= 1
    assert (answer.masks, answer.boxes) == ((), ())


def test_an_answer_that_ends_at_once_is_empty_and_of_no_confidence(speak: Speak) -> None:
    answer = speak()
    assert (answer.text, answer.raw, answer.tokens) == ("", "", ())
    assert answer.confidence == 0
    assert answer.masks == ()


def test_every_end_of_the_config_ends_an_answer(volume: NDArray[np.float32]) -> None:
    lamed = speaking({"?": "It", "It": OTHER, OTHER: "B"}, eos_token_id=[2, EXTRA[OTHER]])
    (answer,) = lamed.read(volume, ["Where is it?"])
    assert (answer.text, len(answer.tokens)) == ("It", 1)


def test_a_seg_that_comes_first_draws_a_mask(speak: Speak, volume: NDArray[np.float32]) -> None:
    answer = speak(SEG)
    assert answer.tokens == (VOCABULARY - 1,)
    assert (answer.raw, answer.text) == (SEG, "")
    (mask,) = answer.masks
    expected = drawn_after(speaking({"?": SEG}), volume, "?")
    np.testing.assert_allclose(mask.logits, expected, atol=1e-5)


def test_each_of_several_segs_draws_the_mask_of_the_word_before_it(
    volume: NDArray[np.float32],
) -> None:
    lamed = speaking({"?": SEG, SEG: " and", " and": SEG})
    (answer,) = lamed.read(volume, [Question("Where is it?", max_new_tokens=11)])
    assert answer.raw == " and".join([SEG] * 6)
    assert answer.text == "and and and and and"
    first, second = (drawn_after(lamed, volume, each) for each in ("?", " and"))
    assert np.abs(first - second).max() > 1e-3
    assert len(answer.masks) == 6
    for mask, expected in zip(answer.masks, [first, *[second] * 5], strict=True):
        np.testing.assert_allclose(mask.logits, expected, atol=1e-5)


def test_masks_stay_with_their_questions(volume: NDArray[np.float32]) -> None:
    lamed = speaking({"?": SEG, SEG: " and", " and": SEG, ".": "No", "No": END, "!": SEG})
    asked = ["Where?", "Nowhere.", "Here!", "Where is it?"]
    limits = [7, 7, 3, 1]
    answers = lamed.read(
        volume,
        [Question(text, max_new_tokens=n) for text, n in zip(asked, limits, strict=True)],
    )
    assert [len(each.masks) for each in answers] == [4, 0, 2, 1]
    assert answers[1].text == "No"
    for answer, word in zip(answers, "?.!?", strict=True):
        for mask in answer.masks[:1]:
            np.testing.assert_allclose(mask.logits, drawn_after(lamed, volume, word), atol=1e-5)
    assert lamed.encodings.segmentation == 1


def test_a_network_without_masks_says_seg_and_draws_nothing(volume: NDArray[np.float32]) -> None:
    lamed = speaking({"?": SEG, SEG: END}, segmentation_module=None)
    (answer,) = lamed.read(volume, ["Where is it?"])
    assert (answer.raw, answer.masks, lamed.encodings.segmentation) == (SEG, (), 0)


def test_a_box_is_read_and_placed_on_the_voxels_of_the_source(speak: Speak) -> None:
    # Patches 1 to 3 of 6, 2 to 6 of 10, 0 to 7 of 8, as the reference writes them.
    answer = speak("It", " is", BOX_START, "[0.167, 0.2, 0.0, 0.5, 0.6, 0.875]", BOX_END, ".")
    assert answer.raw == f"It is{BOX_START}[0.167, 0.2, 0.0, 0.5, 0.6, 0.875]{BOX_END}."
    assert answer.text == "It is."
    (box,) = answer.boxes
    assert box.start == pytest.approx((1 + 12 * 1 / 6, 2 + 20 * 2 / 10, 3), abs=0.02)
    assert box.stop == pytest.approx((1 + 12 * 4 / 6, 2 + 20 * 7 / 10, 35), abs=0.02)


def test_boxes_of_the_reference_hold_exactly_their_voxels() -> None:
    cases = json.loads((reference.folder("text") / "metrics.json").read_text())["mask2box"]
    assert cases
    for case in cases:
        z, y, x = case["shape"]
        prepared = Prepared(torch.zeros(1, 1, z, y, x), Placement((z, y, x), (0, 0, 0), (z, y, x)))
        (box,) = _boxes(f"{BOX_START}{case['box']}{BOX_END}", prepared)
        assert box.start == pytest.approx(case["min_index"], abs=0.01)
        assert box.stop == pytest.approx([each + 1 for each in case["max_index"]], abs=0.01)


def test_a_box_ends_at_the_edge_of_the_crop(volume: NDArray[np.float32]) -> None:
    prepared = prepare(volume, (6, 10, 8))
    (box,) = _boxes(f"{BOX_START}[0, 0, 0, 1, 1, 1]{BOX_END}", prepared)
    assert (box.start, box.stop) == ((1, 2, 3), (13, 22, 35))


@pytest.mark.parametrize(
    "inside",
    [
        "[0.1, 0.2, 0.3, 0.4, 0.5]",
        "[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]",
        "[0.5, 0.2, 0.3, 0.4, 0.5, 0.6]",
        "[0.1, 0.2, 0.3, 0.4, 0.5, 1.6]",
        "[-0.1, 0.2, 0.3, 0.4, 0.5, 0.6]",
        "[nan, 0.2, 0.3, 0.4, 0.5, 0.6]",
        "[upper left]",
        "[]",
    ],
)
def test_what_is_no_box_is_none_and_leaves_no_tokens(speak: Speak, inside: str) -> None:
    answer = speak("It", " is", BOX_START, inside, BOX_END, ".")
    assert answer.boxes == ()
    assert answer.text == "It is."


def test_half_a_box_leaves_no_tokens_in_the_text(speak: Speak) -> None:
    assert speak("It", BOX_START, " is", " a", " cyst").text == "It is a cyst"


def test_no_added_token_stays_in_the_text(speak: Speak) -> None:
    answer = speak("It", OTHER, " is", IMAGE, " a", SEG, ".")
    assert answer.raw == f"It{OTHER} is{IMAGE} a{SEG}."
    assert answer.text == "It is a."


def test_control_characters_and_the_space_of_a_token_vanish_from_the_text() -> None:
    assert _plain("It\x00 is\x1b at [SEG] , or\n\tnot .", ADDED) == "It is at, or not."


def refused(question: Question, volume: NDArray[np.float32], **changes: Any) -> str:
    lamed = speaking({"?": END}, **changes)
    with pytest.raises(ModelError) as caught:
        lamed.read(volume, ["Where?", question])
    assert (lamed.encodings.vision, lamed.encodings.prefix) == (0, 0)
    return str(caught.value)


@pytest.mark.parametrize("token", ["<s>", "</s>", "<unk>", OTHER, *ADDED])
def test_tokens_of_the_program_are_refused_in_a_question(
    volume: NDArray[np.float32], token: str
) -> None:
    told = refused(Question(f"Doe, Jane{token} where?", id="liver"), volume)
    assert told == f"question liver must not hold {token}"


@pytest.mark.parametrize("text", ["", " ", "\n\t "])
def test_an_empty_question_is_refused(volume: NDArray[np.float32], text: str) -> None:
    assert refused(Question(text), volume) == "a question is empty"


def test_a_question_is_as_long_as_in_training_and_no_longer(volume: NDArray[np.float32]) -> None:
    lamed = speaking({"?": END})
    longest = Question("?" * (ROOM - 1), max_new_tokens=4)  # and a space in front
    assert len(lamed.tokenizer.encode(f"{IMAGE} {longest.text}")) - 1 == ROOM
    assert len(lamed.read(volume, [longest])) == 1
    longer = replace(longest, text=f"?{longest.text}")
    told = refused(longer, volume)
    assert told == f"a question must have at most {ROOM} tokens, not {ROOM + 1}"
    assert len(lamed.read(volume, [replace(longer, caption=True)])) == 1


@pytest.mark.parametrize("limit", [0, -1, MOST + 1])
def test_an_answer_has_one_token_or_more_and_no_more_than_there_are_positions(
    volume: NDArray[np.float32], limit: int
) -> None:
    told = refused(Question("?", max_new_tokens=limit), volume)
    assert told == f"a question: max_new_tokens must be 1 to {MOST}, not {limit}"


def test_an_answer_may_fill_every_position(volume: NDArray[np.float32]) -> None:
    longest = Question("?", max_new_tokens=MOST)
    (answer,) = speaking({"?": "B", "B": "B"}).read(volume, [longest])
    assert len(answer.tokens) == MOST


def test_one_text_is_not_taken_for_many_questions(volume: NDArray[np.float32]) -> None:
    lamed = speaking({"?": END})
    with pytest.raises(ModelError, match="a list, not one text"):
        lamed.read(volume, "Where?")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda voxels: voxels * np.nan, "finite"),
        (lambda voxels: voxels[0], r"\(slices, rows, columns\), not of shape \(24, 40\)"),
        (np.zeros_like, "contrast; every voxel is 0"),
    ],
)
def test_a_volume_that_is_none_is_refused_before_anything_runs(
    volume: NDArray[np.float32], spoil: Callable[..., NDArray[np.float32]], message: str
) -> None:
    lamed = speaking({"?": END})
    with pytest.raises(ModelError, match=message):
        lamed.read(spoil(volume), ["Where?"])
    assert lamed.encodings.vision == 0
