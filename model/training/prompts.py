"""SegVol's own prompts handed to the language model: the state that says [SEG] learns to draw.

In its own training SegVol is asked by a table of classes. Before everything is tuned together, the
projector from words to prompts is fitted to that table, so that the mask decoder is asked from the
start what it already understands. The released model has this from its authors' joint training.
"""

import hashlib
from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name

from model.errors import ModelError
from model.network import Lamed

from .batches import Questions
from .examples import Source

FILE: Final = "prompts.safetensors"
TABLE: Final = "prompts.weight"
IMAGES: Final = 220
STEPS: Final = 1500
RATE: Final = 1e-3


def save(table: Tensor, folder: Path) -> None:
    """Keep the table of a run of SegVol's own training."""
    save_file({TABLE: table.detach().contiguous()}, folder / FILE)


def digest(table: Path) -> str:
    """Tell which table it is.

    Raises
    ------
    ModelError
        There is none.
    """
    try:
        return hashlib.sha256((table / FILE).read_bytes()).hexdigest()
    except OSError as error:
        raise ModelError(f"{table / FILE} holds no prompts of SegVol: {error}") from error


def fit(network: Lamed, source: Source, collate: Questions, table: Path) -> float:
    """Fit `seg_projector` in place; return the cosine of what it gives with what it should.

    Raises
    ------
    ModelError
        There is no such table, or it is of another width.
    """
    try:
        prompts = load_file(table / FILE)[TABLE]
    except (OSError, SafetensorError, KeyError) as error:
        raise ModelError(f"{table / FILE} holds no prompts of SegVol: {error}") from error
    width = network.prompts(torch.zeros(1, network.config.hidden)).shape[1]
    if prompts.shape[1] != width:
        raise ModelError(
            f"{table / FILE} has prompts of width {prompts.shape[1]}, expected {width}"
        )
    states, wanted = _states(network.eval(), source, collate)
    return _fitted(network, states, prompts[wanted])


@torch.no_grad()
def _states(network: Lamed, source: Source, collate: Questions) -> tuple[Tensor, Tensor]:
    """Give the states that say [SEG], and the class that each is to draw."""
    found, numbers = [], list[int]()
    for number in range(IMAGES):
        place = number * len(source) // IMAGES
        example = source.example(place, np.random.default_rng([7, number]))
        batch = collate([example])
        if "masks" not in batch:
            continue
        embeds = network.embed(batch["input_ids"], network.encode_image(batch["images"]))
        hidden = network.model(
            inputs_embeds=embeds,
            attention_mask=batch["attention"],
            position_ids=batch["position_ids"],
            use_cache=False,
        ).last_hidden_state
        found.append(hidden[batch["rows"], batch["places"]])
        numbers += [each for each in example.targets if each]
    return torch.cat(found), torch.tensor(numbers)


def _fitted(network: Lamed, states: Tensor, wanted: Tensor) -> float:
    projector = network.model.seg_projector
    optimiser = torch.optim.AdamW(projector.parameters(), lr=RATE)
    for step in range(STEPS):
        for group in optimiser.param_groups:
            group["lr"] = RATE * (1 - step / STEPS)
        optimiser.zero_grad()
        loss: Tensor = F.mse_loss(projector(states), wanted)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    optimiser.zero_grad()
    with torch.no_grad():
        return float(F.cosine_similarity(projector(states), wanted).mean())
