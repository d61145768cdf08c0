"""`LaMed.read`: a batch says what each question alone would get, and each part runs once."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from words import tokenizer

from model import Answer, Card, LaMed, Question, load
from model.network import Lamed, build, generate, load_state
from model.preprocess import prepare
from model.tokenizer import ADDED, IMAGE, SEG

PARITY = Path(__file__).parent / "data" / "parity"
SETS = ["phi3_segvol_small", "llama_segvol_noncubic", "llama_noseg_sequence"]
CARD = Card("parity", "1", "00" * 32, untrained=True)
TOLERANCE = 1e-4
STEPS = 24
QUESTIONS = [
    Question("There is a nodule in the upper lobe.", max_new_tokens=STEPS),
    Question("Is it?", id="short", max_new_tokens=STEPS),
    Question("Describe the findings of this CT.", caption=True, max_new_tokens=STEPS),
    Question("There is an effusion near the hilum.", id="few", max_new_tokens=5),
    Question("There is a stone at the base of it, on the left.", max_new_tokens=STEPS),
    Question("Is there a fracture on the right side, or is it a cyst?", max_new_tokens=1),
]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    # Two threads on matrices this small spend their time waiting for each other.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def parity(name: str) -> LaMed:
    config = json.loads((PARITY / name / "config.json").read_text())
    network = build(config)
    assert isinstance(network, Lamed)
    load_state(network, load_file(PARITY / name / "model.safetensors"))
    words = tokenizer(config["vocab_size"])
    return LaMed(network, words, CARD, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module", params=SETS)
def lamed(request: pytest.FixtureRequest) -> LaMed:
    return parity(request.param)


@pytest.fixture(scope="module")
def volume() -> NDArray[np.float32]:
    noise = np.random.default_rng(0).normal(0, 1, (9, 40, 37)).astype(np.float32)
    noise[:, :4] = noise[:, :, 30:] = noise.min()  # nothing of the patient: it is cropped
    return noise


@pytest.fixture(scope="module")
def together(lamed: LaMed, volume: NDArray[np.float32]) -> list[Answer]:
    return lamed.read(volume, QUESTIONS)


def prompt(lamed: LaMed, question: Question) -> Tensor:
    """The whole prompt as m3d.md 1.4 has it: BOS, the image's tokens, a space, the question."""
    config = lamed.network.config
    text = IMAGE * config.image_tokens + ("" if question.caption else " ") + question.text
    return torch.tensor([[config.bos_token_id, *lamed.tokenizer.encode(text)]])


def image(lamed: LaMed, volume: NDArray[np.float32]) -> Tensor:
    return prepare(volume, lamed.network.config.vision.image_size).image


@contextmanager
def calls(lamed: LaMed) -> Iterator[Counter[Any]]:
    """Count what really runs: both image encoders, and the language model by batch and length."""
    counted: Counter[Any] = Counter()
    model = lamed.network.model

    def language(_: object, __: object, given: dict[str, Tensor]) -> None:
        counted[tuple(given["inputs_embeds"].shape[:2])] += 1

    hooks = [
        model.vision_tower.register_forward_hook(lambda *_: counted.update(["vision"])),
        model.register_forward_pre_hook(language, with_kwargs=True),
    ]
    if lamed.network.config.segvol is not None:
        encoder = model.seg_module.image_encoder
        hooks.append(encoder.register_forward_hook(lambda *_: counted.update(["segvol"])))
    yield counted
    for hook in hooks:
        hook.remove()


def assert_same(one: Answer, other: Answer) -> None:
    assert one.tokens == other.tokens
    assert (one.id, one.question, one.text, one.raw) == (
        other.id,
        other.question,
        other.text,
        other.raw,
    )
    assert one.boxes == other.boxes
    assert one.confidence == pytest.approx(other.confidence, abs=TOLERANCE)
    assert len(one.masks) == len(other.masks)
    for mask, twin in zip(one.masks, other.masks, strict=True):
        assert np.abs(mask.logits - twin.logits).max() <= TOLERANCE
        assert mask.placement == twin.placement


def test_a_batch_of_unequal_questions_answers_as_each_alone(
    lamed: LaMed, volume: NDArray[np.float32], together: list[Answer]
) -> None:
    lengths = {prompt(lamed, each).shape[1] for each in QUESTIONS}
    assert len(lengths) > 3
    assert len({len(each.tokens) for each in together}) > 2
    for question, answer in zip(QUESTIONS, together, strict=True):
        (alone,) = lamed.read(volume, [question])
        assert_same(answer, alone)


def test_the_order_of_the_questions_changes_no_answer(
    lamed: LaMed, volume: NDArray[np.float32], together: list[Answer]
) -> None:
    for answer, twin in zip(together, lamed.read(volume, QUESTIONS[::-1])[::-1], strict=True):
        assert_same(answer, twin)


def test_a_batch_answers_as_one_whole_prompt_at_a_time_without_a_cached_prefix(
    lamed: LaMed, volume: NDArray[np.float32], together: list[Answer]
) -> None:
    pixels, ends = image(lamed, volume), lamed.network.config.eos_token_ids
    for question, answer in zip(QUESTIONS, together, strict=True):
        said = generate(
            lamed.network, pixels, prompt(lamed, question), max_new_tokens=question.max_new_tokens
        )
        ids = [each for each in said.ids[0].tolist() if each not in ends]
        assert list(answer.tokens) == ids
        drawn = said.masks.logits[:, 0].numpy() if said.masks is not None else []
        assert len(answer.masks) == len(drawn)
        for mask, logits in zip(answer.masks, drawn, strict=True):
            assert np.abs(mask.logits - logits).max() <= TOLERANCE


def test_the_confidence_is_what_one_forward_pass_gives_the_words(
    lamed: LaMed, volume: NDArray[np.float32], together: list[Answer]
) -> None:
    for question, answer in zip(QUESTIONS, together, strict=True):
        asked, said = prompt(lamed, question), torch.tensor([answer.tokens], dtype=torch.long)
        with torch.no_grad():
            whole = torch.cat((asked, said), dim=1)
            logits = lamed.network(image(lamed, volume), whole).logits[0, asked.shape[1] - 1 : -1]
        chosen = [row.softmax(0)[each] for row, each in zip(logits, answer.tokens, strict=True)]
        expected = float(torch.stack(chosen).prod() ** (1 / len(chosen))) if chosen else 0
        assert answer.confidence == pytest.approx(expected, abs=TOLERANCE)
        assert all(int(row.argmax()) == each for row, each in zip(logits, said[0], strict=True))


def test_the_volume_is_encoded_once_the_prefix_computed_once_and_all_decode_as_one_batch(
    lamed: LaMed, volume: NDArray[np.float32], together: list[Answer]
) -> None:
    before = replace(lamed.encodings)
    with calls(lamed) as counted:
        lamed.read(volume, QUESTIONS)
    prefix = 1 + lamed.network.config.image_tokens
    longest = max(prompt(lamed, each).shape[1] for each in QUESTIONS) - prefix
    steps = max(len(each.tokens) for each in together)
    drawn = int(any(each.masks for each in together))
    assert counted.pop("vision") == 1
    assert counted.pop("segvol", 0) == drawn
    assert counted.pop((1, prefix)) == 1
    assert counted.pop((len(QUESTIONS), longest)) == 1
    assert list(counted) == [(len(QUESTIONS), 1)]
    assert counted[len(QUESTIONS), 1] in (steps - 1, steps)  # the end is a step, a limit is none
    assert lamed.encodings.vision == before.vision + 1
    assert lamed.encodings.prefix == before.prefix + 1
    assert lamed.encodings.segmentation == before.segmentation + drawn


def test_without_a_seg_the_mask_branch_does_not_run(volume: NDArray[np.float32]) -> None:
    lamed = parity("phi3_segvol_small")
    with calls(lamed) as counted:
        (answer,) = lamed.read(volume, QUESTIONS[-1:])
    assert SEG not in answer.raw
    assert answer.masks == ()
    assert (counted["vision"], counted["segvol"], lamed.encodings.segmentation) == (1, 0, 0)


def test_there_is_one_mask_for_each_seg(lamed: LaMed, together: list[Answer]) -> None:
    seg = lamed.network.config.seg_token_id
    draws = lamed.network.config.segvol is not None
    assert any(seg in each.tokens for each in together)
    for answer in together:
        assert len(answer.masks) == answer.tokens.count(seg) * draws
        assert answer.raw.count(SEG) == answer.tokens.count(seg)
        for mask in answer.masks:
            assert mask.logits.shape == lamed.network.config.vision.image_size
            assert mask.logits.dtype == np.float32
            assert np.isfinite(mask.logits).all()


def test_a_mask_goes_back_to_the_grid_of_the_volume(
    volume: NDArray[np.float32], together: list[Answer]
) -> None:
    for mask in (each for answer in together for each in answer.masks):
        restored = mask.restore()
        assert restored.shape == volume.shape
        assert (mask.placement.start, mask.placement.stop) == ((0, 4, 0), (9, 40, 30))
        assert (restored[:, :4] == -100).all()
        assert np.ptp(restored[:, 4:, :30]) > 0


def test_a_text_for_people_holds_no_tokens_of_the_program(together: list[Answer]) -> None:
    assert any(token in each.raw for each in together for token in ADDED)
    for answer in together:
        assert not any(token in answer.text for token in ADDED)
        assert answer.text == " ".join(answer.text.split())
        assert answer.raw or not answer.text


def test_an_answer_ends_after_its_own_number_of_tokens(together: list[Answer]) -> None:
    few = [len(each.tokens) for each in together if each.id == "few"]
    assert few == [5]
    assert len(together[-1].tokens) == 1
    assert max(len(each.tokens) for each in together) == STEPS


def test_a_shorter_limit_cuts_and_changes_nothing_else(
    lamed: LaMed, volume: NDArray[np.float32], together: list[Answer]
) -> None:
    cut = lamed.read(volume, [replace(QUESTIONS[0], max_new_tokens=4)])[0]
    assert cut.tokens == together[0].tokens[:4]
    assert cut.text == " ".join(cut.text.split())


def test_a_caption_follows_the_image_without_a_space(
    lamed: LaMed, volume: NDArray[np.float32]
) -> None:
    seen: list[Tensor] = []
    layer = lamed.network.model.embed_tokens
    hook = layer.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    plain = Question("Is it?", max_new_tokens=1)
    lamed.read(volume, [plain])
    lamed.read(volume, [replace(plain, caption=True)])
    hook.remove()
    spoken = [lamed.tokenizer.decode(each[0].tolist()) for each in seen]
    assert [each for each in spoken if IMAGE not in each] == [" Is it?", "Is it?"]


def test_spaces_around_a_question_change_nothing(
    lamed: LaMed, volume: NDArray[np.float32], together: list[Answer]
) -> None:
    padded = replace(QUESTIONS[1], text=f"  {QUESTIONS[1].text}\n")
    (answer,) = lamed.read(volume, [padded])
    assert answer.tokens == together[1].tokens
    assert answer.question == padded.text


def test_reading_twice_gives_the_same_bytes(
    lamed: LaMed, volume: NDArray[np.float32], together: list[Answer]
) -> None:
    for one, other in zip(together, lamed.read(volume, QUESTIONS), strict=True):
        assert (one.tokens, one.text, one.confidence) == (
            other.tokens,
            other.text,
            other.confidence,
        )
        assert [each.logits.tobytes() for each in one.masks] == [
            each.logits.tobytes() for each in other.masks
        ]


def test_another_volume_gets_another_answer(
    lamed: LaMed, volume: NDArray[np.float32], together: list[Answer]
) -> None:
    other = lamed.read(np.flip(volume, 0).copy() ** 2, QUESTIONS)
    assert [each.tokens for each in other] != [each.tokens for each in together]


def test_the_caller_s_voxels_stay_as_they_are(lamed: LaMed, volume: NDArray[np.float32]) -> None:
    mine = volume.copy()
    lamed.read(mine, QUESTIONS[:1], percentiles=(0.5, 99.5))
    assert mine.tobytes() == volume.tobytes()


def test_the_window_and_the_percentiles_reach_the_image(lamed: LaMed) -> None:
    noise = np.random.default_rng(1).normal(40, 100, (9, 40, 37)).astype(np.float32)
    grid = lamed.network.config.vision.image_size
    for options in ({"window": (40.0, 80.0)}, {"percentiles": (10.0, 60.0)}):
        seen: list[Tensor] = []
        tower = lamed.network.model.vision_tower
        hook = tower.register_forward_hook(lambda _, given, __, seen=seen: seen.append(given[0]))
        lamed.read(noise, QUESTIONS[-1:], **options)
        hook.remove()
        assert len(seen) == 1
        torch.testing.assert_close(seen[0], prepare(noise, grid, **options).image)
        assert not torch.allclose(seen[0], prepare(noise, grid).image, atol=0.01)


def test_no_question_gets_no_answer_and_runs_nothing(
    lamed: LaMed, volume: NDArray[np.float32]
) -> None:
    with calls(lamed) as counted:
        assert lamed.read(volume, []) == []
    assert not counted


def test_bfloat16_on_the_cpu_gives_finite_results(checkpoint: Path) -> None:
    lamed = load(checkpoint, dtype="bfloat16")
    noise = np.random.default_rng(0).normal(0, 1, (12, 60, 50))
    answers = lamed.read(noise, ["Please segment the liver in this image.", "Is there a mass?"])
    assert lamed.dtype == torch.bfloat16
    assert all(each.dtype == torch.bfloat16 for each in lamed.network.parameters())
    assert [len(each.masks) for each in answers] == [1, 0]
    assert np.isfinite(answers[0].masks[0].restore()).all()
    assert all(0 < each.confidence <= 1 for each in answers)
    assert answers[1].text
