"""Greedy words, and masks for the [SEG]s among them.

Knows token ids and hidden states; must not know text or how a volume was prepared.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache

from model.errors import ModelError

from .config import Mode
from .lamed import Lamed
from .segvol import Masks


@dataclass(frozen=True)
class Decoded:
    """New `ids` (B, T), padded after a row's end; `hidden` (B, T, H) is what predicted each."""

    ids: Tensor
    hidden: Tensor


@dataclass(frozen=True)
class Generated:
    """Words and masks: mask i belongs to batch row `rows[i]`; `prompts` (N, E), `masks` or None."""

    ids: Tensor
    hidden: Tensor
    rows: tuple[int, ...] = ()
    prompts: Tensor | None = None
    masks: Masks | None = None


@torch.no_grad()
def greedy(
    network: Lamed,
    inputs_embeds: Tensor,
    *,
    attention_mask: Tensor | None = None,
    past_key_values: Cache | None = None,
    max_new_tokens: int | Sequence[int] = 256,
) -> Decoded:
    """Say the likeliest next token until every row has ended or said its share.

    `inputs_embeds` (B, L, H) come after what the cache holds; `attention_mask` (B, cached + L) may
    have holes (left padding), so rows of unequal length decode as they would alone.
    """
    config, device = network.config, inputs_embeds.device
    ends = torch.tensor(config.eos_token_ids, device=device)
    limits = torch.as_tensor(max_new_tokens, device=device).expand(len(inputs_embeds))
    if limits.min() < 1:
        raise ModelError(f"max_new_tokens must be 1 or more, not {max_new_tokens}")
    done = torch.zeros(len(inputs_embeds), dtype=torch.bool, device=device)
    ids: list[Tensor] = []
    hidden: list[Tensor] = []
    step = network.language(
        inputs_embeds, attention_mask=attention_mask, past_key_values=past_key_values
    )
    while True:
        token = step.logits[:, -1].argmax(dim=-1).masked_fill(done, config.pad_token_id)
        ids.append(token)
        hidden.append(step.hidden[:, -1])
        done = done | torch.isin(token, ends) | (limits <= len(ids))
        if done.all():
            break
        if attention_mask is not None:
            attention_mask = torch.cat((attention_mask, torch.ones_like(token[:, None])), dim=1)
        step = network.language(
            network.embed(token[:, None]), attention_mask=attention_mask, past_key_values=step.cache
        )
    return Decoded(torch.stack(ids, dim=1), torch.stack(hidden, dim=1))


@torch.no_grad()
def generate(  # noqa: PLR0913 - a question is all of this
    network: Lamed,
    images: Tensor | None,
    input_ids: Tensor,
    *,
    attention_mask: Tensor | None = None,
    max_new_tokens: int = 256,
    segment: bool = True,
    mode: Mode = "default",
) -> Generated:
    """Answer B prompts about B images, greedily, and draw what the answers point at.

    Default mode draws one mask per [SEG], and runs SegVol only if there is one. Reference mode
    ignores `attention_mask`, draws one mask per row, of the mean [SEG] after the first token, and
    gives a row without one -inf everywhere.
    """
    if mode == "reference":
        attention_mask = None
    features = None if images is None else network.encode_image(images)
    embeds = network.embed(input_ids, features, attention_mask=attention_mask, mode=mode)
    said = greedy(network, embeds, attention_mask=attention_mask, max_new_tokens=max_new_tokens)
    if images is None or not segment or network.config.segvol is None:
        return Generated(said.ids, said.hidden)
    hits = said.ids == network.config.seg_token_id
    if mode == "reference":
        return _mean_masks(network, images, said, hits)
    return _masks(network, images, said, hits)


def _masks(network: Lamed, images: Tensor, said: Decoded, hits: Tensor) -> Generated:
    rows, steps = hits.nonzero(as_tuple=True)
    if not len(rows):
        return Generated(said.ids, said.hidden)
    asked, place = torch.unique(rows, return_inverse=True)
    prompts = network.prompts(said.hidden[rows, steps])
    masks = network.decode_masks(network.encode_segmentation(images[asked])[place], prompts)
    return Generated(said.ids, said.hidden, tuple(rows.tolist()), prompts, masks)


def _mean_masks(network: Lamed, images: Tensor, said: Decoded, hits: Tensor) -> Generated:
    hits = torch.cat((torch.zeros_like(hits[:, :1]), hits[:, 1:]), dim=1)
    prompts = network.mean_prompts(said.hidden, hits)
    masks = network.decode_masks(network.encode_segmentation(images), prompts)
    silent = ~hits.any(dim=1)
    logits = masks.logits.masked_fill(silent[:, None, None, None, None], -torch.inf)
    masks = Masks(masks.low_res, masks.iou, logits)
    return Generated(said.ids, said.hidden, tuple(range(len(hits))), prompts, masks)
