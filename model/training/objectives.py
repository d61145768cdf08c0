"""What each stage minimises. Knows networks and batches of tensors; neither files nor words."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Final

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name

from model.data.tokens import IGNORED
from model.network import M3DCLIP, Lamed
from model.network.losses import dice_loss
from model.network.perceiver import turned
from model.network.segvol import SegVol

from .examples import CLASSES, FIRST_KIND

Parts = dict[str, Tensor]
FINDING: Final = 10.0  # times as much as an organ, where image tokens are named
SHARPNESS, RARE = 20.0, -4.0  # of a likeness, and of the logit of what is like nothing
FINER: Final = 4  # cells of a mask along each axis of a patch


class Segmenting(nn.Module):
    """SegVol by itself: masks of named classes, and what each cell of the image is.

    The prompts are a table of classes, the cells are read by one Linear from each patch; both are
    left behind. The second teaches all classes of an image at the cost of one mask; `weights`
    (classes,) lets the rare ones count.
    """

    weights: Tensor

    def __init__(self, segvol: SegVol, weights: Tensor | None = None) -> None:
        super().__init__()
        self.segvol = segvol
        width = segvol.image_encoder.norm.normalized_shape[0]
        self.prompts = nn.Embedding(CLASSES, width)
        self.cells = nn.Linear(width, CLASSES * FINER**3)
        weights = torch.ones(CLASSES) if weights is None else weights
        self.register_buffer("weights", weights, persistent=False)

    def forward(
        self, images: Tensor, classes: Tensor, rows: Tensor, asked: Tensor, masks: Tensor
    ) -> Parts:
        """Give the loss and its parts.

        `images` (B, 1, D, H, W), `classes` (B, cells along D, H, W), mask i (N, D, H, W) is of
        class `asked[i]` in image `rows[i]`.
        """
        tokens = self.segvol.image_encoder(images)
        cells = F.cross_entropy(self._cells(tokens), classes.long(), weight=self.weights)
        logits = self.segvol(tokens[rows], self.prompts(asked)).logits[:, 0].float()
        dice, bce = mask_losses(logits, masks)
        return {"loss": cells + dice + bce, "cells": cells, "dice": dice, "bce": bce}

    def _cells(self, tokens: Tensor) -> Tensor:
        """(B, patches, width) -> (B, classes, 4 x grid)."""
        depth, height, width = self.segvol.grid
        parts = self.cells(tokens).reshape(
            len(tokens), depth, height, width, CLASSES, FINER, FINER, FINER
        )
        size = [FINER * each for each in self.segvol.grid]
        cells: Tensor = parts.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(len(tokens), CLASSES, *size)
        return cells.float()


class Matching(nn.Module):
    """M3D-CLIP: which report belongs to which image, among those of all processes."""

    def __init__(self, clip: M3DCLIP) -> None:
        super().__init__()
        self.clip = clip

    def forward(
        self, images: Tensor, input_ids: Tensor, attention_mask: Tensor, reports: Tensor
    ) -> Parts:
        """Give the loss; equal numbers in `reports` (B,) are the same report.

        Every process has the loss of all pairs, so that the mean of the gradients, which is what
        processes exchange, is the gradient of one process that has the whole batch.
        """
        clip = self.clip
        seen = everywhere(clip.encode_image(images)[:, 0].float())
        read = everywhere(clip.encode_text(input_ids, attention_mask)[:, 0].float())
        number = everywhere(reports)
        with torch.autocast(seen.device.type, enabled=False):
            # Not exp(logit_scale): the released one was trained so.
            logits = clip.logit_scale * seen @ read.T
        same = number[:, None] == number[None, :]
        right = same.float() / same.sum(dim=1, keepdim=True)
        loss = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
        found = same.gather(1, logits.argmax(dim=1, keepdim=True)).float().mean()
        return {"loss": loss, "found": found, "scale": clip.logit_scale}


class Naming(nn.Module):
    """What each image token shows, told by its likeness to the words for it.

    The words' embeddings are what the projector is aligned with: thousands of answers say less of
    where a finding lies than one image of which all is named. `pieces` are the ids of each class'
    name (the first class has none). A finding counts `FINDING` times: it is rare.
    """

    ids: Tensor
    offsets: Tensor
    weights: Tensor

    def __init__(self, pieces: Sequence[Sequence[int]]) -> None:
        super().__init__()
        flat = [each for name in pieces[1:] for each in name]
        starts = accumulate([0, *(len(name) for name in pieces[1:-1])])
        heavy = torch.ones(len(pieces) - 1)
        heavy[FIRST_KIND - 1 :] = FINDING
        self.register_buffer("ids", torch.tensor(flat), persistent=False)
        self.register_buffer("offsets", torch.tensor(list(starts)), persistent=False)
        self.register_buffer("weights", heavy, persistent=False)
        self.sharpness = nn.Parameter(torch.tensor(SHARPNESS))
        self.bias = nn.Parameter(torch.full((len(pieces) - 1,), RARE))

    def forward(self, tokens: Tensor, words: Tensor, named: Tensor) -> Tensor:
        """Give the loss; `tokens` (B, N, H), `words` (vocabulary, H), `named` (B, N, classes)."""
        names = F.embedding_bag(self.ids, words, self.offsets, mode="mean")
        logits = self.sharpness * likeness(tokens, names) + self.bias
        wanted = named[..., 1:].float()
        each = F.binary_cross_entropy_with_logits(logits, wanted, pos_weight=self.weights)
        return each * len(self.bias)  # per token


def likeness(tokens: Tensor, words: Tensor) -> Tensor:
    """Give the cosine between image tokens (..., H) and turned words (N, H): (..., N)."""
    return F.normalize(tokens.float(), dim=-1) @ F.normalize(turned(words).float(), dim=-1).T


class Speaking(nn.Module):
    """M3D-LaMed: the answers to many questions behind each image, and their masks.

    With `naming`, and `weight` for its loss, also what each image token shows; `balance` is the
    recipe's.
    """

    def __init__(
        self,
        network: Lamed,
        naming: Naming | None = None,
        weight: float = 1.0,
        balance: float = 0.0,
    ) -> None:
        super().__init__()
        self.network, self.naming, self.weight, self.balance = network, naming, weight, balance

    def forward(  # noqa: PLR0913, PLR0917 - a batch is all of this
        self,
        images: Tensor,
        input_ids: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        attention: Tensor,
        rows: Tensor,
        places: Tensor,
        masks: Tensor | None = None,
        named: Tensor | None = None,
    ) -> Parts:
        """Give the loss and its parts; see `packing.Packs`, `masks` (N, D, H, W)."""
        network = self.network
        seen = network.encode_image(images)
        embeds = network.embed(input_ids, seen)
        hidden = network.model(
            inputs_embeds=embeds,
            attention_mask=attention,
            position_ids=position_ids,
            use_cache=False,
        ).last_hidden_state
        # Of thousands of places only those that are learnt need their logits.
        asked = labels[:, 1:] != IGNORED
        each = F.cross_entropy(
            network.lm_head(hidden[:, :-1][asked]).float(), labels[:, 1:][asked], reduction="none"
        )
        spoken = (each * self._share(asked)).sum()
        parts, loss = {"language": spoken}, spoken
        if self.naming is not None and named is not None:
            parts["naming"] = self.naming(seen, network.model.embed_tokens.weight, named)
            loss = loss + self.weight * parts["naming"]
        if masks is None or not len(rows):
            return {"loss": loss + self._no_mask(images, hidden), **parts}
        drawn, back = torch.unique(rows, return_inverse=True)
        tokens = network.encode_segmentation(images[drawn])[back]
        logits = network.segment(tokens, hidden[rows, places])[:, 0].float()
        dice, bce = mask_losses(logits, masks)
        return {"loss": loss + dice + bce, **parts, "dice": dice, "bce": bce}

    def _share(self, asked: Tensor) -> Tensor:
        """Tell how much each learnt token counts, 1 together; an answer is learnt in one piece."""
        first = asked & ~F.pad(asked, (1, 0))[:, :-1]
        answer = first.flatten().cumsum(0).reshape(asked.shape)[asked] - 1
        length = torch.bincount(answer).float()
        share = length[answer] ** -self.balance
        return share / share.sum()

    def _no_mask(self, images: Tensor, hidden: Tensor) -> Tensor:
        """Let SegVol take part in a step without masks, weighed 0, where others may have some.

        Processes that share its weights exchange them when it runs, so it runs in all or in none.
        """
        seg = self.network.config.segvol
        if seg is None or not _several() or not any(map(_learns, self._mask_parts())):
            return hidden.new_zeros(())
        tokens = self.network.encode_segmentation(images[:1])
        return 0 * self.network.segment(tokens, hidden[:1, 0]).float().mean()

    def _mask_parts(self) -> tuple[nn.Module, nn.Module]:
        return self.network.model.seg_module, self.network.model.seg_projector


def mask_losses(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Dice and BCE of (N, D, H, W)."""
    wanted = masks.to(logits)
    return dice_loss(logits, wanted), F.binary_cross_entropy_with_logits(logits, wanted)


def everywhere(own: Tensor) -> Tensor:
    """Put the rows of all processes one under the other, in the order of their ranks."""
    return _Everywhere.apply(own) if _several() else own  # type: ignore[no-untyped-call]


class _Everywhere(torch.autograd.Function):
    """Rows of all processes; each gets back what all processes' losses say about its own."""

    @staticmethod
    def forward(context: Any, own: Tensor) -> Tensor:  # noqa: ANN401 - torch's own
        context.rows = len(own)
        parts = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, own.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:  # noqa: ANN401 - torch's own
        summed = gradients[0].contiguous().clone()
        distributed.all_reduce(summed)
        first = distributed.get_rank() * context.rows
        return summed[first : first + context.rows]


def _several() -> bool:
    return (
        distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )


def _learns(module: nn.Module) -> bool:
    return any(each.requires_grad for each in module.parameters())
