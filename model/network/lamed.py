"""M3D-LaMed: a language model that sees one volume and can ask for masks.

Knows tensors and token ids; has never heard of text, files or DICOM. transformers' own Phi-3 and
Llama layers read; the image and mask parts hang on the inner model under the released names.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name
from transformers import (
    Cache,
    DynamicCache,
    LlamaConfig,
    LlamaModel,
    Phi3Config,
    Phi3Model,
)

from model.errors import ModelError

from .config import LamedConfig, Mode
from .losses import dice_loss, language_loss
from .perceiver import build_projector
from .segvol import Masks, SegVol
from .vision import VisionTower


@dataclass(frozen=True)
class Language:
    """One pass: `logits` (B, kept, vocabulary), last-layer `hidden` (B, L, H), the grown cache."""

    logits: Tensor
    hidden: Tensor
    cache: Cache


@dataclass(frozen=True)
class Drawn:
    """The mask part of training: batch `rows` that have a mask, their prompts, logits, losses."""

    rows: tuple[int, ...]
    prompts: Tensor
    logits: Tensor
    dice_loss: Tensor
    bce_loss: Tensor


@dataclass(frozen=True)
class Output:
    """A whole forward: `loss` = `language_loss` + dice + bce, None without labels and masks."""

    logits: Tensor
    hidden: Tensor
    loss: Tensor | None = None
    language_loss: Tensor | None = None
    drawn: Drawn | None = None


class Lamed(nn.Module):
    """The parts and how they meet. `LamedPhi3` and `LamedLlama` name the language model."""

    language_config: ClassVar[Any]
    language_model: ClassVar[Any]

    def __init__(self, config: LamedConfig) -> None:
        super().__init__()
        self.config = config
        try:
            language = self.language_config(attn_implementation="sdpa", **config.language)
        except (StrictDataclassError, TypeError, ValueError) as error:
            raise ModelError(f"config.json does not describe a {config.family}: {error}") from error
        self.model = self.language_model(language)
        self.model.vision_tower = VisionTower(config.vision, keep_cls=config.keep_cls)
        self.model.mm_projector = build_projector(config)
        if config.segvol is not None:
            width = config.segvol.encoder.hidden
            self.model.seg_module = SegVol(config.segvol)
            self.model.seg_projector = nn.Sequential(
                nn.Linear(config.hidden, config.hidden),
                nn.ReLU(),
                nn.Linear(config.hidden, width),
                nn.Dropout(0.1),
            )
        self.lm_head = nn.Linear(config.hidden, config.vocabulary, bias=False)

    def forward(
        self,
        images: Tensor | None,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        segs: Tensor | None = None,
        *,
        mode: Mode = "default",
    ) -> Output:
        """Read B prompts about B images; with `labels` and `segs` return the training loss.

        Parameters
        ----------
        images
            (B, C, D, H, W), 0 to 1; None for text only.
        input_ids
            (B, L): BOS, `config.image_tokens` image tokens, text; padded on either side.
        attention_mask
            (B, L), 1 where a token is real.
        labels
            (B, L), -100 where nothing is asked.
        segs
            (B, 1, D, H, W), 0 or 1. An empty mask takes no part in the loss.

        Raises
        ------
        ModelError
            A prompt without BOS or with a wrong number of image tokens (not in reference mode).
        """
        features = None if images is None else self.encode_image(images)
        embeds = self.embed(input_ids, features, attention_mask=attention_mask, mode=mode)
        hidden = self.model(
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            use_cache=False,
        ).last_hidden_state
        logits = self.lm_head(hidden)
        spoken = None if labels is None else language_loss(logits, labels)
        drawn = None
        if images is not None and segs is not None and self.config.segvol is not None:
            drawn = self._draw(images, input_ids, hidden, segs)
        parts = [] if spoken is None else [spoken]
        if drawn is not None:
            parts.append(drawn.dice_loss + drawn.bce_loss)
        loss = torch.stack(parts).sum() if parts else None
        return Output(logits, hidden, loss, spoken, drawn)

    def encode_image(self, images: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, `config.image_tokens`, H), to stand among word embeddings."""
        features: Tensor = self.model.mm_projector(self.model.vision_tower(images))
        return features

    def embed(
        self,
        input_ids: Tensor,
        features: Tensor | None = None,
        *,
        attention_mask: Tensor | None = None,
        mode: Mode = "default",
    ) -> Tensor:
        """Look up (B, L) ids and put `features` (B or 1, image tokens, H) where the image stands.

        Raises
        ------
        ModelError
            A prompt is not BOS and the right number of image tokens (not in reference mode).
        """
        embeds: Tensor = self.model.embed_tokens(input_ids)
        if features is None:
            return embeds
        features = features.to(embeds.dtype).expand(len(embeds), -1, -1)
        if mode == "reference":
            after = 1 + features.shape[1]
            return torch.cat((embeds[:, :1], features, embeds[:, after:]), dim=1)
        self._check_prompt(input_ids, attention_mask)
        image = (input_ids == self.config.image_token_id).unsqueeze(-1)
        return embeds.masked_scatter(image, features)

    def language(
        self,
        inputs_embeds: Tensor,
        *,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        logits_to_keep: int = 1,
    ) -> Language:
        """Run the language model on (B, L, H), after what `past_key_values` already holds.

        `attention_mask` is (B, cached + L) and may have holes; without `position_ids` a token's
        position is the number of real tokens before it. The cache given grows in place.
        """
        cache = past_key_values
        if cache is None:
            cache = DynamicCache(config=self.model.config)
        if position_ids is None and attention_mask is not None:
            position_ids = _positions(attention_mask)[:, -inputs_embeds.shape[1] :]
        hidden = self.model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return Language(self.lm_head(hidden[:, -logits_to_keep:]), hidden, cache)

    def encode_segmentation(self, images: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, patches, E): SegVol's own view, needed once and only for masks."""
        tokens: Tensor = self._segvol.image_encoder(images)
        return tokens

    def segment(self, image_tokens: Tensor, seg_hidden: Tensor) -> Tensor:
        """Draw one mask per [SEG].

        `image_tokens` (N or 1, patches, E) from `encode_segmentation`, `seg_hidden` (N, H) the
        hidden states that predicted the [SEG]s -> logits (N, 1, D, H, W); positive is inside.
        """
        return self.decode_masks(image_tokens, self.prompts(seg_hidden)).logits

    def prompts(self, seg_hidden: Tensor) -> Tensor:
        """(N, H) hidden states -> (N, E) prompt vectors."""
        prompts: Tensor = self.model.seg_projector(seg_hidden)
        return prompts

    def mean_prompts(self, hidden: Tensor, hits: Tensor) -> Tensor:
        """One prompt per row: of the mean of its hits, zeros without one; (B, L, H), (B, L)."""
        counts = hits.sum(dim=1, keepdim=True)
        total = (hidden * hits.unsqueeze(-1)).sum(dim=1)
        prompts = self.prompts(total / counts.clamp(min=1))
        return torch.where(counts > 0, prompts, torch.zeros_like(prompts))

    def decode_masks(self, image_tokens: Tensor, prompts: Tensor) -> Masks:
        """(N or 1, patches, E) and (N, E) -> N masks."""
        masks: Masks = self._segvol(image_tokens, prompts)
        return masks

    @property
    def _segvol(self) -> SegVol:
        if self.config.segvol is None:
            raise ModelError("this network has no segmentation module: expected segvol, got none")
        module: SegVol = self.model.seg_module
        return module

    def _draw(
        self, images: Tensor, input_ids: Tensor, hidden: Tensor, segs: Tensor
    ) -> Drawn | None:
        rows = segs.flatten(1).any(dim=1).nonzero().flatten()
        if not len(rows):
            return None
        # The vector that draws is the one that predicts [SEG], one place before it.
        hits = input_ids[rows, 1:] == self.config.seg_token_id
        prompts = self.mean_prompts(hidden[rows, :-1], hits)
        logits = self.decode_masks(self.encode_segmentation(images[rows]), prompts).logits.float()
        target = segs[rows].to(logits)
        bce = F.binary_cross_entropy_with_logits(logits, target)
        return Drawn(tuple(rows.tolist()), prompts, logits, dice_loss(logits, target), bce)

    def _check_prompt(self, input_ids: Tensor, attention_mask: Tensor | None) -> None:
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        for row, (ids, mask) in enumerate(zip(input_ids.tolist(), real.tolist(), strict=True)):
            prompt = ids[mask.index(1) if 1 in mask else 0 :]
            self._check_row(row, prompt)

    def _check_row(self, row: int, prompt: list[int]) -> None:
        bos, image, count = (
            self.config.bos_token_id,
            self.config.image_token_id,
            self.config.image_tokens,
        )
        if prompt[0] != bos:
            raise ModelError(f"prompt {row}: expected BOS ({bos}) first, got {prompt[0]}")
        if prompt.count(image) != count:
            raise ModelError(
                f"prompt {row}: expected {count} image tokens ({image}), got {prompt.count(image)}"
            )
        if prompt[1 : 1 + count] != [image] * count:
            raise ModelError(
                f"prompt {row}: expected the {count} image tokens directly after BOS, "
                f"got {prompt[1]} there"
            )

    def restore_buffers(self) -> None:
        """Compute the rotary frequencies anew, in float32, where the weights are."""
        with torch.device(self.lm_head.weight.device):
            self.model.rotary_emb = type(self.model.rotary_emb)(self.model.config)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:  # noqa: FBT001, FBT002 - torch's signature
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # Not in the state dict, and a cast to bfloat16 would bend every position.
        self.restore_buffers()
        return self


class LamedPhi3(Lamed):
    """M3D-LaMed on Phi-3."""

    language_config = Phi3Config
    language_model = Phi3Model


class LamedLlama(Lamed):
    """M3D-LaMed on Llama."""

    language_config = LlamaConfig
    language_model = LlamaModel


def _positions(attention_mask: Tensor) -> Tensor:
    return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)
