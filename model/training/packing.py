"""Many questions behind one image: one sequence, one pass, and no question sees another.

    [BOS] <im_patch> x N | question 1 answer 1 [EOS] | question 2 answer 2 [EOS] | ...

Every question attends to the image and to itself, at the positions it would have alone, so each
answer's loss is that of a sequence of its own: only the image is read once instead of each time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.data.tokens import IGNORED, Layout
from model.errors import ModelError

from .examples import Example


@dataclass(frozen=True)
class Packs:
    """B packs padded to one length L.

    `input_ids`, `labels`, `position_ids` (B, L); `attention` (B, 1, L, L), true where a token may
    look; `rows` and `places` say in which pack and behind which token each [SEG] that draws stands.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    attention: Tensor
    rows: Tensor
    places: Tensor


def pack(examples: Sequence[Example], layout: Layout, seg_id: int) -> Packs:
    """Put the questions of each example behind its image.

    Raises
    ------
    ModelError
        An example asks nothing.
    """
    if not all(each.tokens for each in examples):
        raise ModelError("expected a question behind each image, got none")
    prefix = 1 + layout.image_tokens
    width = max(prefix + sum(len(t.input_ids) - prefix for t in each.tokens) for each in examples)
    shape = (len(examples), width)
    ids = np.full(shape, layout.pad_id)
    labels = np.full(shape, IGNORED)
    positions = np.zeros(shape, np.int64)
    blocks = np.full(shape, -1)
    rows, places = [], []
    for row, each in enumerate(examples):
        ids[row, :prefix] = each.tokens[0].input_ids[:prefix]
        positions[row, :prefix] = np.arange(prefix)
        blocks[row, :prefix] = 0
        at = prefix
        for number, (tokens, mask) in enumerate(zip(each.tokens, each.masks, strict=True), 1):
            own = tokens.input_ids[prefix:]
            end = at + len(own)
            ids[row, at:end] = own
            labels[row, at:end] = tokens.labels[prefix:]
            positions[row, at:end] = prefix + np.arange(len(own))
            blocks[row, at:end] = number
            if mask is not None:
                rows.append(row)
                places.append(at + own.index(seg_id) - 1)  # the state that predicts [SEG] draws
            at = end
    return Packs(
        torch.from_numpy(ids),
        torch.from_numpy(labels),
        torch.from_numpy(positions),
        _attention(torch.from_numpy(blocks)),
        torch.tensor(rows, dtype=torch.long),
        torch.tensor(places, dtype=torch.long),
    )


def _attention(blocks: Tensor) -> Tensor:
    """Look back, at the image and at the same question; (B, L) -> (B, 1, L, L)."""
    width = blocks.shape[1]
    back = torch.ones(width, width, dtype=torch.bool).tril()
    same = blocks[:, :, None] == blocks[:, None, :]
    image = (blocks == 0)[:, None, :]
    return (back & (same | image)).unsqueeze(1)
