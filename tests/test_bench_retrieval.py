"""R@k both ways, with the same text of several images, and with ties."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from safetensors.numpy import load_file

from model.bench.retrieval import ranks, recalls, reference, subset
from model.errors import ModelError

unhurried = settings(deadline=None)  # a busy machine is no slow function

GOLDEN = Path(__file__).parent / "data" / "parity" / "m3d_clip_small"
COUNT = 7
# Few values, so that there are ties.
SCORES = arrays(np.float64, (COUNT, COUNT), elements=st.sampled_from([-0.5, 0, 0.25, 0.5, 1]))
TEXTS = st.lists(st.sampled_from("abcdefg"), min_size=COUNT, max_size=COUNT)
SAME_WAY = {"IR": "image_to_text", "TR": "text_to_image"}


def test_ranks_by_hand() -> None:
    scores = np.array([[0.9, 0.1, 0.2], [0.8, 0.7, 0.1], [0.3, 0.5, 0.4]])
    found = ranks(scores, ["a", "b", "c"])
    assert found["image_to_text"].tolist() == [1, 2, 2]
    assert found["text_to_image"].tolist() == [1, 1, 1]
    assert recalls(scores, ["a", "b", "c"], ks=(1, 2)) == {
        "image_to_text": {1: pytest.approx(1 / 3), 2: 1},
        "text_to_image": {1: 1, 2: 1},
    }


def test_the_same_text_of_another_image_is_right() -> None:
    # Image 0 is closest to the text of pair 1, which is word for word its own.
    scores = np.array([[0.1, 0.9, 0.5], [0.9, 0.1, 0.2], [0.0, 0.0, 1.0]])
    found = ranks(scores, ["clear lungs", "clear lungs", "a mass"])
    assert found["image_to_text"].tolist() == [1, 1, 1]
    assert found["text_to_image"].tolist() == [1, 1, 1]
    assert ranks(scores, ["x", "y", "z"])["image_to_text"].tolist() == [3, 3, 1]
    assert reference(scores, ks=(1,)) == {
        "IR": {1: pytest.approx(1 / 3)},
        "TR": {1: pytest.approx(1 / 3)},
    }


def test_a_model_that_says_the_same_of_all_finds_nothing() -> None:
    flat = np.zeros((20, 20))
    found = recalls(flat, range(20))
    assert found["image_to_text"] == found["text_to_image"] == {1: 0, 5: 0, 10: 0}
    assert ranks(flat, range(20))["image_to_text"].tolist() == [20] * 20
    assert reference(flat)["IR"][10] == 0.5, "the published rule gives chance to order"


def test_a_tie_with_another_right_answer_costs_nothing() -> None:
    scores = np.array([[0.5, 0.5, 0.1], [0.5, 0.5, 0.1], [0.0, 0.0, 0.9]])
    assert ranks(scores, ["a", "a", "b"])["image_to_text"].tolist() == [1, 1, 1]
    assert ranks(scores, ["a", "c", "b"])["image_to_text"].tolist() == [2, 2, 1]


def test_the_golden_recalls_of_the_reference() -> None:
    scores = load_file(GOLDEN / "expected.safetensors")["scores"]
    golden = json.loads((GOLDEN / "cases.json").read_text())["recall"]
    found = reference(scores)
    ours = recalls(scores, range(len(scores)))
    for way in ("IR", "TR"):
        for k in (1, 5, 10):
            assert found[way][k] == pytest.approx(golden[f"{way}_R{k}"], abs=1e-6)
            # Without a tie and without the same text twice there is one answer.
            assert ours[SAME_WAY[way]][k] == found[way][k]


@unhurried
@given(SCORES, TEXTS)
def test_ranks_are_those_of_a_plain_count(scores: NDArray[np.float64], texts: list[str]) -> None:
    found = ranks(scores, texts)["image_to_text"]
    for row, rank in enumerate(found):
        right = [scores[row, j] for j in range(COUNT) if texts[j] == texts[row]]
        wrong = [scores[row, j] for j in range(COUNT) if texts[j] != texts[row]]
        assert rank == 1 + sum(each >= max(right) for each in wrong)


@unhurried
@given(SCORES, TEXTS)
def test_recall_grows_with_k_and_turns_with_the_matrix(
    scores: NDArray[np.float64], texts: list[str]
) -> None:
    found = recalls(scores, texts, ks=(1, 3, COUNT))
    for way in found.values():
        assert 0 <= way[1] <= way[3] <= way[COUNT] <= 1
    turned = recalls(scores.T, texts, ks=(1, 3, COUNT))
    assert turned["image_to_text"] == found["text_to_image"]


@unhurried
@given(SCORES, st.permutations(range(COUNT)))
def test_the_order_of_the_pairs_means_nothing(
    scores: NDArray[np.float64], order: list[int]
) -> None:
    texts = list("abcdefg")
    shuffled = recalls(scores[np.ix_(order, order)], [texts[i] for i in order], ks=(1, 2))
    assert shuffled == recalls(scores, texts, ks=(1, 2))


@unhurried
@given(SCORES)
def test_perfect_similarities_find_everything(scores: NDArray[np.float64]) -> None:
    perfect = scores + 2 * np.eye(COUNT)
    for way in recalls(perfect, range(COUNT), ks=(1,)).values():
        assert way == {1: 1.0}
    assert reference(perfect, ks=(1,)) == {"IR": {1: 1.0}, "TR": {1: 1.0}}


def test_a_subset_is_seeded_without_repeats_and_in_order() -> None:
    drawn = subset(2000, 100, seed=3)
    assert drawn.tolist() == subset(2000, 100, seed=3).tolist()
    assert drawn.tolist() != subset(2000, 100, seed=4).tolist()
    assert len(set(drawn.tolist())) == 100
    assert drawn.tolist() == sorted(drawn.tolist())
    assert subset(5, 5, seed=0).tolist() == [0, 1, 2, 3, 4]


def test_every_pair_is_drawn_as_often_as_any_other() -> None:
    drawn = np.concatenate([subset(10, 3, seed=seed) for seed in range(2000)])
    counts = np.bincount(drawn, minlength=10)
    # 600 each, with a standard deviation of sqrt(2000 * 0.3 * 0.7) = 20.5.
    assert abs(counts - 600).max() < 5 * 20.5


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(ModelError, match="3 x 3"):
        recalls(np.zeros((3, 4)), "abc")
    with pytest.raises(ModelError, match="R@10 needs at least 10 pairs, not 3"):
        recalls(np.zeros((3, 3)), "abc")
    with pytest.raises(ModelError, match="not 5"):
        subset(4, 5, seed=0)
    with pytest.raises(ModelError, match="numbers"):
        recalls(np.full((3, 3), np.nan), "abc", ks=(1,))
    with pytest.raises(ModelError, match="0 x 0"):
        recalls(np.zeros((0, 0)), "", ks=(1,))
