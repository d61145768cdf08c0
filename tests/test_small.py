"""The small network: its words can say all that the corpus says, and it begins by a seed."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model import load, small
from model.data.corpus import telling
from model.data.corpus.case import Case
from model.errors import ModelError
from model.network.perceiver import turned
from model.tokenizer import Tokenizer
from model.training.examples import names


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return small.tokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("small") / "lamed"
    small.init(made)
    return made


def test_what_image_tokens_are_named_with_are_the_words_of_the_sentences(words: Tokenizer) -> None:
    """At the start of a text they would be other pieces, which no question has."""
    for name in names()[1:]:
        within, sentence = words.encode_within(name), words.encode(f"Is there a {name}?")
        at = sentence.index(within[0])
        assert sentence[at : at + len(within)] == within


def test_words_are_the_same_each_time(words: Tokenizer) -> None:
    assert small.tokenizer().model == words.model
    assert small.clip_words() == small.clip_words()


def test_all_that_a_patient_is_asked_and_answered_comes_back_from_the_words(
    words: Tokenizer,
) -> None:
    for seed in range(4):
        case = Case.make(seed)
        for turn in telling.turns(case, np.random.default_rng(seed)):
            text = f"{turn.question} {turn.answer}".replace(telling.BOX, "[0.125, 0.250, 0.375]")
            assert words.decode(words.encode(text)) == text


def test_the_longest_report_fits_behind_the_image(words: Tokenizer) -> None:
    room = 512 - 1 - 100
    reports = {len(words.encode(each)) for each in small.sentences()}
    assert 40 < max(reports) < room - 40, "a question and the end of the answer need room too"


def test_the_untrained_checkpoint_is_marked_and_of_the_grid(folder: Path) -> None:
    lamed = load(folder)
    assert lamed.card.untrained
    assert lamed.network.config.vision.image_size == small.GRID
    assert lamed.network.config.image_tokens == 100
    count = sum(each.numel() for each in lamed.network.parameters())
    assert count * 2 <= 25e6, "in float16 it must fit the repository"


def test_the_same_seed_begins_alike_and_another_does_not(folder: Path, tmp_path: Path) -> None:
    again = small.init(tmp_path / "again")
    other = small.init(tmp_path / "other", seed=1)
    assert load(folder).card.sha256 == again.sha256 != other.sha256


def test_patches_know_their_place_from_the_start(folder: Path) -> None:
    """Neighbours are more alike than places far from each other, along each axis."""
    vit = load(folder).network.model.seg_module.image_encoder
    places = vit.patch_embedding.position_embeddings[0].unflatten(0, (8, 10, 10))
    alike = torch.nn.functional.cosine_similarity
    for axis in range(3):
        first, second, last = (places.select(axis, at).flatten(0, 1) for at in (0, 1, -1))
        assert (alike(first, second, dim=-1) > alike(first, last, dim=-1)).all()
    assert len(torch.unique(places.flatten(0, 2), dim=0)) == 800


def test_a_word_looks_past_words_for_the_image_token_that_shows_it(folder: Path) -> None:
    """Of many it looks at the one of its own kind most, and takes its direction over."""
    network = load(folder).network
    torch.manual_seed(0)
    words = network.model.embed_tokens.weight[:40]
    shown = turned(words) + 0.3 * torch.randn(len(words), network.config.hidden)
    tokens = torch.cat((shown, words))
    attention = network.model.layers[0].self_attn
    width = network.config.hidden
    with torch.no_grad():
        query, key, value = attention.qkv_proj(tokens).split(width, dim=-1)
        scores = query[len(shown) + 7] @ key.T
        taken = attention.o_proj(value[7])
    assert int(scores.argmax()) == 7
    assert torch.cosine_similarity(taken, tokens[7], dim=0) > 0.5


def test_a_place_that_is_taken_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="must be new or an empty folder"):
        small.init(folder)
