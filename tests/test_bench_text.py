"""BLEU, ROUGE, METEOR, chrF and BERTScore against numbers by hand and by other programs."""

import math
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertModel, BertTokenizer

from model.bench import bertscore, text
from model.errors import ModelError

unhurried = settings(deadline=None)  # a busy machine is no slow function

WORDS = st.sampled_from(["the", "a", "nodule", "nodules", "in", "left", "lung", "no", "5", "."])
TEXTS = st.lists(WORDS, max_size=14).map(" ".join)
METRICS: dict[str, Callable[[str, str], float]] = {
    "bleu": text.bleu,
    "rouge1": text.rouge1,
    "rouge_l": text.rouge_l,
    "meteor": text.meteor,
    "chrf": text.chrf,
}

# (said, truth, ROUGE-1, ROUGE-L, METEOR) of rouge-score 0.1.2, and of NLTK 3.10.4 with its
# ORIGINAL_ALGORITHM stemmer, no synonyms, and our tokens.
FOREIGN = [
    ("the cat sat on the mat", "on the mat sat the cat", 1.0, 0.5, 0.5),
    (
        "There is a small nodule in the right lung.",
        "A nodule is seen in the right upper lung, 5 mm.",
        *(0.7, 0.6, 0.497047),
    ),
    (
        "No pleural effusion. The liver is normal; no stones in the kidneys.",
        "The liver and kidneys are normal. There is no pleural effusion or pneumothorax.",
        *(0.64, 0.32, 0.423667),
    ),
    ("axial", "Axial", 1.0, 1.0, 0.5),
    ("arterial phase", "venous phase", 0.5, 0.5, 0.25),
    ("the the the the", "the cat is on the mat", 0.4, 0.4, 0.172414),
    (
        "CT of the chest shows multiple enlarged nodes, largest 1.5 cm, and a left-sided effusion.",
        "Chest CT: multiple enlarging lymph nodes (largest 1.5 cm) with left-sided effusions.",
        *(0.645161, 0.580645, 0.623916),
    ),
    ("completely different words", "nothing in common here", 0.0, 0.0, 0.0),
]


@pytest.mark.parametrize(("said", "truth", "rouge1", "rouge_l", "meteor"), FOREIGN)
def test_rouge_and_the_published_meteor_are_those_of_other_programs(
    said: str, truth: str, rouge1: float, rouge_l: float, meteor: float
) -> None:
    assert text.rouge1(said, truth) == pytest.approx(rouge1, abs=1e-6)
    assert text.rouge_l(said, truth) == pytest.approx(rouge_l, abs=1e-6)
    assert text.reference(said, truth)["rouge1"] == pytest.approx(rouge1, abs=1e-6)
    assert text.reference(said, truth)["meteor"] == pytest.approx(meteor, abs=1e-6)


def test_bleu_1_is_clipped_precision_with_a_penalty_for_brevity() -> None:
    # "the" counts twice of four, the reference has six words: exp(1 - 6/4) * 2/4.
    said, truth = "the the the the", "the cat is on the mat"
    assert text.bleu(said, truth, order=1) == pytest.approx(math.exp(-0.5) * 0.5)
    assert text.reference(said, truth)["bleu"] == pytest.approx(math.exp(-0.5) * 0.5)
    # A longer answer pays by its precision only.
    assert text.bleu("a b c d", "a b", order=1) == pytest.approx(0.5)


def test_bleu_4_is_the_geometric_mean_of_four_precisions() -> None:
    said, truth = "a nodule in the left lung is seen", "a nodule in the left lung was seen"
    precisions = (7 / 8, 5 / 7, 4 / 6, 3 / 5)
    assert text.bleu(said, truth) == pytest.approx(math.prod(precisions) ** 0.25)


def test_bleu_of_many_answers_counts_over_all_of_them() -> None:
    said, truth = ["a b c d", "x"], ["a b c d", "y"]
    assert text.corpus_bleu(said, truth, order=1) == pytest.approx(4 / 5)
    assert text.bleu("x", "y", order=1) == 0


def test_published_bleu_strips_the_ends_and_keeps_the_case() -> None:
    assert text.reference(" axial \n", "axial")["bleu"] == 1
    assert text.reference("Axial", "axial")["bleu"] == 0
    assert text.reference("", "axial") == {"bleu": 0, "rouge1": 0, "meteor": 0}


def test_rouge_by_hand() -> None:
    # Common: a, c, d (3 of 4 and of 5); the longest in order is "a d" or "c d": 2.
    assert text.rouge1("a c d x", "c y a d z") == pytest.approx(6 / 9)
    assert text.rouge_l("a c d x", "c y a d z") == pytest.approx(4 / 9)


def test_meteor_by_hand() -> None:
    # All six match in three runs, "on the mat", "sat", "the cat": 1 - 0.5 (3/6)^3.
    assert text.meteor("the cat sat on the mat", "on the mat sat the cat") == pytest.approx(0.9375)
    # "masses" and "mass" have one stem; P 3/4, R 3/5 and the matches in two runs.
    precision, recall = 3 / 4, 3 / 5
    mean = precision * recall / (0.9 * precision + 0.1 * recall)
    penalty = 0.5 * (2 / 3) ** 3
    said, truth = "left mass clearly seen", "a left masses is seen"
    assert text.meteor(said, truth) == pytest.approx(mean * (1 - penalty))


def test_meteor_aligns_the_longest_run_where_a_word_comes_twice() -> None:
    # Three matches; "the left lung" in one run, though another "the" stands before it.
    said, truth = "the left lung", "the heart and the left lung"
    recall = 3 / 6
    mean = recall / (0.9 + 0.1 * recall)
    assert text.meteor(said, truth) == pytest.approx(mean * (1 - 0.5 * (1 / 3) ** 3))


def test_a_right_single_word_is_right() -> None:
    assert text.meteor("Axial.", "axial") == 1
    assert text.reference("axial", "axial")["meteor"] == 0.5


def test_numbers_and_letters_are_words() -> None:
    assert text.meteor("1.5 cm", "1.5 mm") == pytest.approx(0.25)
    assert text.meteor("15 cm", "1.5 mm") == 0


def test_chrf_by_hand() -> None:
    # One-letter grams 2 of 3; two-letter 1 of 2; three-letter 0 of 1; P = R, so F is their mean.
    assert text.chrf("abc", "abd") == pytest.approx((2 / 3 + 1 / 2 + 0) / 3, abs=1e-6)


@pytest.mark.parametrize("name", METRICS)
@unhurried
@given(said=TEXTS, truth=TEXTS)
def test_every_metric_lies_between_zero_and_one(name: str, said: str, truth: str) -> None:
    assert 0 <= METRICS[name](said, truth) <= 1 + 1e-12


@pytest.mark.parametrize("name", METRICS)
@unhurried
@given(said=TEXTS.filter(lambda each: re.search("[a-z0-9]", each)))
def test_a_text_equal_to_its_reference_is_perfect_and_nothing_is_worth_nothing(
    name: str, said: str
) -> None:
    assert METRICS[name](said, said) == pytest.approx(1)
    assert METRICS[name]("", said) == METRICS[name](said, "") == 0


@pytest.mark.parametrize("name", ["rouge1", "rouge_l"])
@unhurried
@given(said=TEXTS, truth=TEXTS)
def test_f_of_precision_and_recall_is_symmetric(name: str, said: str, truth: str) -> None:
    assert METRICS[name](said, truth) == METRICS[name](truth, said)
    assert text.rouge_l(said, truth) <= text.rouge1(said, truth)


@unhurried
@given(said=TEXTS, truth=TEXTS)
def test_meteor_matches_as_many_words_as_can_be_each_once(said: str, truth: str) -> None:
    words, wanted = text.WORD.findall(said), text.WORD.findall(truth)
    shared = sum(min(words.count(each), wanted.count(each)) for each in set(words))
    for pairs in (list(text._tiled(words, wanted)), text._last_to_last(words, wanted)):
        assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)
    pairs = list(text._tiled(words, wanted))
    assert all(words[i] == wanted[j] for i, j in pairs)
    assert len(pairs) == shared


def test_long_reports_are_scored_in_no_time() -> None:
    said = "the lung is clear and there is no nodule in the left lung of the chest . " * 20
    truth = "there is no effusion in the chest and the left lung shows the nodule . " * 20
    assert 0 < text.meteor(said, truth) < 1


def test_all_of_them_at_once_are_each_of_them() -> None:
    said, truth = "a nodule in the left lung", "the left lung shows a nodule"
    scored = text.score(said, truth)
    assert scored["rougeL"] == text.rouge_l(said, truth)
    assert scored["bleu1"] == text.bleu(said, truth, order=1)
    assert {"bleu", "bleu1", "rouge1", "rougeL", "meteor", "chrf"} == set(scored)
    assert scored["bleu"] == text.bleu(said, truth) != scored["bleu1"]


def test_the_metrics_reach_for_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        pytest.fail("a metric opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    text._bleu.cache_clear()
    text._stemmer.cache_clear()
    text._stem.cache_clear()
    assert text.score("two nodules", "two nodule")["meteor"] == pytest.approx(1 - 0.5 / 8)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with weights of chance, laid out as transformers does."""
    folder = tmp_path_factory.mktemp("bert")
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] a the nodule mass left right lung in is no ##s . ,"
    (folder / "vocab.txt").write_text("\n".join(words.split()))
    shape = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = BertConfig(
        vocab_size=18, intermediate_size=64, max_position_embeddings=32, initializer_range=0.5,
        **shape,
    )  # fmt: skip
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    BertTokenizer(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    return folder


def test_bert_score_is_the_mean_of_the_best_matches(encoder: Path) -> None:
    scorer = bertscore.find(encoder, layer=2)
    assert scorer is not None
    ours, theirs = (
        _states(encoder, each, 2) for each in ("a nodule in the left lung", "no mass , no nodules")
    )
    similar = torch.tensor([[torch.cosine_similarity(a, b, dim=0) for b in theirs] for a in ours])
    precision = sum(float(max(row)) for row in similar[1:-1]) / (len(ours) - 2)
    recall = sum(float(max(row)) for row in similar.T[1:-1]) / (len(theirs) - 2)
    found = scorer.score("a nodule in the left lung", "no mass , no nodules")
    assert found == pytest.approx((precision, recall), abs=1e-5)
    f1 = scorer.f1("a nodule in the left lung", "no mass , no nodules")
    assert f1 == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-5)


def _states(folder: Path, said: str, layer: int) -> torch.Tensor:
    tokenizer = BertTokenizer.from_pretrained(folder)
    network = BertModel.from_pretrained(folder)
    with torch.no_grad():
        told = network(**tokenizer(said, return_tensors="pt"), output_hidden_states=True)
    states: torch.Tensor = told.hidden_states[layer][0]
    return states


def test_bert_score_of_equal_texts_is_one_and_of_nothing_zero(encoder: Path) -> None:
    scorer = bertscore.find(encoder, layer=3)
    assert scorer is not None
    assert scorer.f1("no nodule", "no nodule") == pytest.approx(1, abs=1e-5)
    assert scorer.f1("no nodule", "a mass is in the lung") < 0.999
    assert scorer.f1("", "no nodule") == scorer.f1("no nodule", " ") == 0
    there, back = scorer.score("no nodule", "a mass"), scorer.score("a mass", "no nodule")
    assert there == pytest.approx(back[::-1], abs=1e-6)
    assert scorer.f1("no nodule " * 60, "no nodule " * 60) == pytest.approx(1, abs=1e-4)
    assert bertscore.scores(scorer, [("a mass", "a mass")]) == [pytest.approx(1, abs=1e-5)]


def test_bert_score_without_weights_is_absent_and_with_wrong_ones_an_error(
    encoder: Path, tmp_path: Path
) -> None:
    assert bertscore.find(None) is None
    assert bertscore.find(tmp_path / "nowhere") is None
    assert bertscore.scores(None, [("a", "a")]) is None
    with pytest.raises(ModelError, match=r"needs layer 17, and .* has 3 layers"):
        bertscore.find(encoder)
    with pytest.raises(ModelError, match="holds no encoder"):
        bertscore.find(tmp_path)
