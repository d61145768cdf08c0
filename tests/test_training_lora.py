"""Adapters where they belong, merged without a trace; and only what is named learns."""

from copy import deepcopy
from pathlib import Path

import handful
import numpy as np
import pytest
import torch
from torch import nn

from model import checkpoint
from model.data.tokens import Layout
from model.errors import ModelError
from model.network import Lamed
from model.tokenizer import read_tokenizer
from model.training import lora, stages
from model.training.batches import Questions
from model.training.examples import Samples
from model.training.objectives import Speaking
from model.training.recipe import Lora

PREFIXES = {
    "vision": "model.vision_tower.",
    "projector": "model.mm_projector.",
    "embed": "model.embed_tokens.",
    "head": "lm_head.",
    "seg_projector": "model.seg_projector.",
    "segvol": "model.seg_module.",
}
RESTING = (  # carried for the released checkpoints, called by nothing
    "k_proj.bias",  # added to every key alike, which no softmax sees
    "prompt_encoder.point_embeddings", "prompt_encoder.not_a_point_embed", "mask_downscaling",
    "iou_prediction_head", "output_hypernetworks_mlps.1", "output_hypernetworks_mlps.2",
    "output_hypernetworks_mlps.3",
)  # fmt: skip


def network(folder: Path, family: str = "phi3") -> Lamed:
    start = handful.lamed(folder / family, family=family)
    config = checkpoint.read_config(start)
    made = checkpoint.network_from(start, config, torch.device("cpu"), torch.float32)
    assert isinstance(made, Lamed)
    return made


def adapters(made: nn.Module) -> set[str]:
    return {
        name.partition(".lora_A")[0] for name, _ in made.named_parameters() if ".lora_A." in name
    }


@pytest.mark.parametrize("family", ["phi3", "llama"])
def test_adapters_are_on_every_linear_of_the_language_model_and_nowhere_else(
    tmp_path: Path, family: str
) -> None:
    """SegVol's decoder too has `layers.0.self_attn.q_proj`, as Llama has."""
    made = network(tmp_path, family)
    wanted = {
        name
        for name, module in made.named_modules()
        if isinstance(module, nn.Linear) and name.startswith("model.layers.")
    }
    assert len(wanted) == (4 if family == "phi3" else 7) * 2
    lora.inject(made, Lora())
    assert adapters(made) == wanted


def test_merged_adapters_say_the_same_under_the_names_of_before(tmp_path: Path) -> None:
    made = network(tmp_path)
    names, before = list(made.state_dict()), deepcopy(made.state_dict())
    lora.inject(made, Lora(rank=4, alpha=8, dropout=0.5))
    with torch.no_grad():
        for name, each in made.named_parameters():
            if "lora_B" in name:
                each.normal_(std=0.1)  # they begin at 0, and would say nothing
    made.eval()
    embeds = torch.randn(2, 9, made.config.hidden)
    with torch.no_grad():
        adapted = made.language(embeds, logits_to_keep=9)
        lora.merge(made)
        merged = made.language(embeds, logits_to_keep=9)
    torch.testing.assert_close(merged.logits, adapted.logits, atol=1e-5, rtol=1e-5)
    after = made.state_dict()
    assert list(after) == names
    changed = {name for name in names if not torch.equal(before[name], after[name])}
    assert changed == {
        name for name in names if name.startswith("model.layers.") and "norm" not in name
    }


@pytest.mark.parametrize("part", [*PREFIXES, "lora", "language"])
def test_only_what_a_recipe_names_learns(tmp_path: Path, part: str) -> None:
    """One real step, every parameter compared before and after."""
    made = network(tmp_path)
    train = () if part == "lora" else (part,)
    given = handful.recipe("tune", train=train, lora=Lora() if part == "lora" else None)
    torch.manual_seed(0)
    stages.freeze(made, given)
    with torch.no_grad():
        for name, each in made.named_parameters():
            if "lora_B" in name:
                each.normal_()  # a zero lets no gradient through to A
    before = {name: each.detach().clone() for name, each in made.named_parameters()}
    step(made, tmp_path)
    changed = {
        name for name, each in made.named_parameters() if not torch.equal(each, before[name])
    }
    named = {name for name in before if _named(name, part)}
    assert changed <= named
    assert named - changed <= {name for name in named if any(each in name for each in RESTING)}
    assert changed


def step(made: Lamed, tmp_path: Path) -> None:
    """Ask all there is to ask about one patient, once."""
    data = handful.data(tmp_path / "data", handful.scenes((3,)))
    places = stages.Places(tmp_path / "phi3", tmp_path / "out", data=data)
    samples = stages.read_samples(handful.recipe("tune"), places)
    layout = Layout.of(made.config)
    source = Samples(samples, read_tokenizer(tmp_path / "phi3"), layout, 99, masks=9)
    # Samples of one patient lie in two files of one image each: Cap's and Seg's.
    examples = [source.example(each, np.random.default_rng(0)) for each in range(len(source))]
    optimiser = torch.optim.SGD([each for each in made.parameters() if each.requires_grad], 1.0)
    objective = Speaking(made.train())
    objective(**Questions(layout, made.config.seg_token_id)(examples))["loss"].backward()
    optimiser.step()


def _named(name: str, part: str) -> bool:
    if part == "lora":
        return "lora_" in name
    if part == "language":
        return name.startswith(("model.layers.", "model.norm."))
    return name.startswith(PREFIXES[part])


def test_a_part_that_the_network_has_not_is_refused(tmp_path: Path) -> None:
    start = handful.lamed(tmp_path / "blind", segmentation_module=None)
    config = checkpoint.read_config(start)
    made = checkpoint.network_from(start, config, torch.device("cpu"), torch.float32)
    assert isinstance(made, Lamed)
    with pytest.raises(ModelError, match="the network has no segvol to train"):
        stages.freeze(made, handful.recipe("tune", train=("segvol",)))
