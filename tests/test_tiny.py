"""The untrained tiny checkpoint: it says what it is, and lights every part of the product."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dicom_node.demo import sample
from model import LaMed, ModelError, Question, load, tiny
from model.tokenizer import SEG
from sr_templates import load_protocols

NOTHING = "This model is untrained and knows nothing"
PROTOCOLS = load_protocols()
SERIES = {
    "ct_chest": {"modality": "CT", "body_part": "CHEST"},
    "ct_abdomen": {"modality": "CT", "body_part": "ABDOMEN"},
    "mr_brain": {"modality": "MR", "body_part": "BRAIN"},
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    # Two threads on matrices this small spend their time waiting for each other.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first") / "tiny"
    tiny.init(folder, seed=3)
    return folder


@pytest.fixture(scope="module")
def lamed(checkpoint: Path) -> LaMed:
    return load(checkpoint)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def volume(name: str) -> NDArray[np.float32]:
    """Give a series of the sample patient, or something that no scanner makes."""
    if name == "noise":
        return np.random.default_rng(0).normal(0, 1, (9, 33, 47)).astype(np.float32)
    if name == "one voxel":
        dot = np.zeros((9, 33, 47), np.float32)
        dot[4, 5, 6] = 1
        return dot
    instances = sample.series(shape=(24, 96, 96), **SERIES[name])
    return hd.get_volume_from_series(instances, dtype=np.float32).array


def test_the_same_seed_gives_the_same_bytes(first: Path, tmp_path: Path) -> None:
    tiny.init(tmp_path / "tiny", seed=3)
    assert contents(tmp_path / "tiny") == contents(first)


def test_another_seed_gives_other_weights_and_the_same_words(first: Path, checkpoint: Path) -> None:
    one, other = contents(first), contents(checkpoint)
    same = {name for name in one if one[name] == other[name]}
    assert same == {"config.json", "tokenizer.model", "added_tokens.json"}
    assert load(first).card.sha256 != load(checkpoint).card.sha256


def test_it_leaves_torch_s_own_random_numbers_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    tiny.init(tmp_path / "tiny")
    assert torch.equal(torch.rand(3), expected)


def test_it_says_everywhere_that_it_is_untrained(checkpoint: Path, lamed: LaMed) -> None:
    assert lamed.card.untrained
    assert lamed.card.name == tiny.NAME == "lamed-tiny-untrained"
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    assert manifest["untrained"] is True
    assert manifest["name"] == tiny.NAME
    assert json.loads((checkpoint / "config.json").read_text())["untrained"] is True
    text = (checkpoint / "README.md").read_text()
    assert text.startswith(f"# {tiny.NAME}\n\nUNTRAINED: its answers and masks mean nothing.")
    assert "it says nothing about the image" in text
    assert NOTHING in text


def test_it_has_every_part_of_the_network_and_is_small(checkpoint: Path, lamed: LaMed) -> None:
    parts = {key.split(".")[1] for key in lamed.network.state_dict()}
    assert parts >= {"vision_tower", "mm_projector", "seg_module", "seg_projector", "layers"}
    assert lamed.network.config.vision.image_size == (32, 256, 256)
    assert lamed.network.config.image_tokens == 256
    assert sum(map(len, contents(checkpoint).values())) < 10 << 20


@pytest.mark.parametrize("name", SERIES)
def test_every_question_of_a_protocol_is_answered_in_kind(lamed: LaMed, name: str) -> None:
    protocol = PROTOCOLS[name]
    asked = [
        Question(each.text, caption=each.caption, max_new_tokens=each.max_new_tokens)
        for each in protocol.questions
    ]
    answers = lamed.read(
        volume(name), asked, window=protocol.window, percentiles=protocol.percentiles
    )
    for question, answer in zip(protocol.questions, answers, strict=True):
        wanted = (SEG, 1) if question.target else (NOTHING, 0)
        assert (answer.raw, len(answer.masks)) == wanted, question.text
        assert len(answer.tokens) < question.max_new_tokens
    assert lamed.encodings.vision == lamed.encodings.segmentation


@pytest.mark.parametrize("name", ["ct_chest", "mr_brain", "noise", "one voxel"])
def test_a_mask_covers_a_part_of_the_image_and_no_two_are_alike(lamed: LaMed, name: str) -> None:
    answers = lamed.read(volume(name), tiny.requests()[:5])
    seen = [answer.masks[0].logits > 0 for answer in answers]
    assert all(0.002 < each.mean() < 0.95 for each in seen), [each.mean() for each in seen]
    for index, one in enumerate(seen):
        for other in seen[:index]:
            assert (one != other).mean() > 0.001
    for answer in answers:
        assert np.isfinite(answer.masks[0].restore()).all()


def test_another_seed_points_and_ends_as_well(first: Path) -> None:
    answers = load(first).read(
        volume("ct_chest"), [*tiny.requests()[:3], "Is there a mass?"], window=(40, 400)
    )
    assert [each.raw for each in answers] == [SEG, SEG, SEG, NOTHING]
    assert all(0.002 < (each.masks[0].logits > 0).mean() < 0.95 for each in answers[:3])


def test_whatever_is_asked_the_answer_is_that_it_knows_nothing(lamed: LaMed) -> None:
    asked: list[Any] = [
        "liver",
        "Segment the liver!",
        "Describe the findings of this CT as a radiologist would.",
        Question("Describe the findings of this CT as a radiologist would.", caption=True),
        "中 (z)",
        "This model is",
        "Is this a picture of an image",
        *tiny.sentences()[:20:4],
    ]
    answers = lamed.read(volume("noise"), asked)
    assert {each.text for each in answers} - {NOTHING} <= {
        "untrained and knows nothing"  # an answer that goes on where the question stopped
    }
    assert [each.text for each in answers].count(NOTHING) == len(asked) - 1


@pytest.mark.parametrize("seed", [-1, 1 << 32])
def test_a_seed_that_is_none_is_refused(tmp_path: Path, seed: int) -> None:
    with pytest.raises(ModelError, match=f"seed must be 0 to 4294967295, not {seed}"):
        tiny.init(tmp_path / "tiny", seed=seed)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_holds_something_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ModelError, match=f"{tmp_path} must be new or an empty folder"):
        tiny.init(tmp_path)
    assert contents(tmp_path) == {"mine": b"mine"}
