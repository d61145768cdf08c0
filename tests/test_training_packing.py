"""Many questions behind one image: each as if it were alone."""

from dataclasses import replace
from pathlib import Path

import handful
import numpy as np
import pytest
import torch
from torch import Tensor

from model import load
from model.data.sample import Sample, Task
from model.data.tokens import IGNORED, Layout, encode
from model.errors import ModelError
from model.lamed import LaMed
from model.training.batches import Questions
from model.training.examples import CLASSES, FIRST_KIND, Example
from model.training.objectives import Naming, Speaking

ASKED = (
    (Task.CAPTION, "Describe the findings of this head CT.", "There is no mass in the brain."),
    (Task.OPEN_VQA, "Is there a mass in the brain?", "No."),
    (Task.SEMANTIC_SEGMENTATION, "Outline the brain.", "This is the brain: [SEG]."),
    (Task.REFERRING_SEGMENTATION, "Mark the left eye in this scan.", "It is [SEG] there, left."),
)


@pytest.fixture(scope="module")
def lamed(tmp_path_factory: pytest.TempPathFactory) -> LaMed:
    """Its masks and words are random, but not all alike."""
    made = load(handful.lamed(tmp_path_factory.mktemp("start") / "lamed"))
    made.network.eval()
    return made


@pytest.fixture(scope="module")
def examples(lamed: LaMed) -> list[Example]:
    """Two images: one with all questions, one with two."""
    layout = Layout.of(lamed.network.config)
    random = np.random.default_rng(0)
    made = []
    for asked in (ASKED, ASKED[1:3]):
        samples = [
            Sample(f"corpus#{each}", task, Path("image.npy"), question, answer, "1")
            for each, (task, question, answer) in enumerate(asked)
        ]
        masks = tuple(
            random.random(handful.GRID) < 0.2 if "[SEG]" in each.answer else None
            for each in samples
        )
        tokens = tuple(encode(each, lamed.tokenizer, layout) for each in samples)
        image = random.random((1, *handful.GRID), dtype=np.float32)
        made.append(Example(image, tokens, masks))
    return made


def alone(examples: list[Example]) -> list[Example]:
    return [
        replace(each, tokens=(tokens,), masks=(mask,))
        for each in examples
        for tokens, mask in zip(each.tokens, each.masks, strict=True)
    ]


def batch(lamed: LaMed, examples: list[Example]) -> dict[str, Tensor]:
    config = lamed.network.config
    return Questions(Layout.of(config), config.seg_token_id)(examples)


def logits(lamed: LaMed, given: dict[str, Tensor]) -> list[Tensor]:
    """Compute the logits of what is learnt, one tensor for each run of labels."""
    network = lamed.network
    hidden = network.model(
        inputs_embeds=network.embed(given["input_ids"], network.encode_image(given["images"])),
        attention_mask=given["attention"],
        position_ids=given["position_ids"],
        use_cache=False,
    ).last_hidden_state
    found = []
    for row, labels in enumerate(given["labels"][:, 1:] != IGNORED):
        places = labels.nonzero().flatten().tolist()
        starts = [each for each in places if each - 1 not in places]
        for start in starts:
            stop = next(each for each in range(start, len(labels) + 1) if each not in places)
            found.append(network.lm_head(hidden[row, start:stop]))
    return found


@torch.no_grad()
def test_the_logits_of_each_answer_are_those_of_the_question_alone(
    lamed: LaMed, examples: list[Example]
) -> None:
    together = logits(lamed, batch(lamed, examples))
    apart = [logits(lamed, batch(lamed, [each])) for each in alone(examples)]
    assert [len(each) for each in apart] == [1] * len(together) == [1] * 6
    for packed, (single,) in zip(together, apart, strict=True):
        torch.testing.assert_close(packed, single, atol=1e-5, rtol=1e-5)


def test_loss_and_gradients_are_those_of_the_questions_alone(
    lamed: LaMed, examples: list[Example]
) -> None:
    """The loss of a pack is the mean over its tokens and over its masks."""
    objective = Speaking(lamed.network)
    whole = objective(**batch(lamed, examples))
    objective.zero_grad()
    whole["loss"].backward()
    packed = {name: each.grad.clone() for name, each in grown(objective)}

    objective.zero_grad()
    counts, language, masks = [], [], []
    for each in alone(examples):
        given = batch(lamed, [each])
        parts = objective(**given)
        counts.append(int((given["labels"] != IGNORED).sum()))
        language.append(parts["language"])
        masks += [parts["dice"] + parts["bce"]] if each.masks[0] is not None else []
    said = sum(count * each for count, each in zip(counts, language, strict=True)) / sum(counts)
    loss = said + sum(masks) / len(masks)
    torch.testing.assert_close(whole["loss"], loss, atol=1e-5, rtol=1e-5)
    loss.backward()
    apart = dict(grown(objective))
    assert packed.keys() == apart.keys()
    for name, gradient in packed.items():
        torch.testing.assert_close(gradient, apart[name].grad, atol=1e-5, rtol=1e-3, msg=name)


@torch.no_grad()
@pytest.mark.parametrize("balance", [0.5, 1.0])
def test_a_short_answer_counts_as_the_recipe_says(
    lamed: LaMed, examples: list[Example], balance: float
) -> None:
    single, lengths = [], []
    for each in alone(examples):
        given = batch(lamed, [each])
        single.append(Speaking(lamed.network)(**given)["language"])
        lengths.append(int((given["labels"] != IGNORED).sum()))
    assert len(set(lengths)) > 1
    share = torch.tensor(lengths) ** (1 - balance)
    wanted = (torch.stack(single) * share).sum() / share.sum()
    whole = Speaking(lamed.network, balance=balance)(**batch(lamed, examples))
    torch.testing.assert_close(whole["language"], wanted, atol=1e-5, rtol=1e-5)


def grown(objective: Speaking) -> list[tuple[str, Tensor]]:
    return [(name, each) for name, each in objective.named_parameters() if each.grad is not None]


@torch.no_grad()
def test_a_mask_is_drawn_by_the_state_that_predicts_its_own_seg(
    lamed: LaMed, examples: list[Example]
) -> None:
    given = batch(lamed, examples)
    seg = lamed.tokenizer.added["[SEG]"]
    assert given["rows"].tolist() == [0, 0, 1]
    for row, place in zip(given["rows"].tolist(), given["places"].tolist(), strict=True):
        assert given["input_ids"][row, place + 1] == seg
        assert given["labels"][row, place + 1] == seg
    assert len(given["masks"]) == 3


@torch.no_grad()
def test_without_masks_a_batch_has_none_and_segvol_rests(
    lamed: LaMed, examples: list[Example]
) -> None:
    given = batch(lamed, [replace(each, masks=(None,) * len(each.masks)) for each in examples])
    assert "masks" not in given
    assert set(Speaking(lamed.network)(**given)) == {"loss", "language"}


def test_image_tokens_learn_the_words_for_what_they_show() -> None:
    """A finding counts more than an organ, and what is shown is likest to its own word."""
    torch.manual_seed(0)
    naming = Naming([[], *([number] for number in range(CLASSES - 1))])
    words = torch.nn.Embedding(CLASSES - 1, 32)
    tokens = torch.nn.Parameter(torch.randn(1, 6, 32))
    named = torch.zeros(1, 6, CLASSES, dtype=torch.bool)
    shown = [1, 2, 3, FIRST_KIND, FIRST_KIND + 1, FIRST_KIND + 2]
    named[0, range(6), shown] = True
    naming(tokens, words.weight, named).backward()
    pull = tokens.grad.norm(dim=-1)[0] if tokens.grad is not None else torch.zeros(6)
    assert pull[3:].min() > pull[:3].max()
    assert words.weight.grad is not None
    learning = torch.optim.Adam([tokens, *naming.parameters()], lr=0.05)
    for _ in range(200):
        learning.zero_grad()
        naming(tokens, words.weight.detach(), named).backward()
        learning.step()
    turned = words.weight.roll(16, dims=-1)
    likeness = torch.cosine_similarity(tokens[0, :, None], turned[None], dim=-1)
    assert (likeness.argmax(dim=1) + 1).tolist() == shown


def test_an_image_without_a_question_is_refused(lamed: LaMed, examples: list[Example]) -> None:
    with pytest.raises(ModelError, match="expected a question behind each image, got none"):
        batch(lamed, [replace(examples[0], tokens=(), masks=())])
