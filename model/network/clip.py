"""M3D-CLIP: one embedding space for volumes and reports.

Knows tensors and token ids; has never heard of hubs: BERT comes from the config, never by name.
"""

from dataclasses import dataclass
from math import log

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name
from transformers import BertConfig, BertModel

from model.errors import ModelError

from .config import ClipConfig, Mode
from .vision import ViT


@dataclass(frozen=True)
class Matched:
    """`logits` (images, texts) and the symmetric cross-entropy `loss`, None without labels."""

    logits: Tensor
    loss: Tensor | None = None


class M3DCLIP(nn.Module):
    """A 3D ViT and a BERT, each projected and L2-normalised; token 0 stands for the whole."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        try:
            bert = BertConfig(**{"attn_implementation": "sdpa", **config.bert})
        except (StrictDataclassError, TypeError, ValueError) as error:
            raise ModelError(f"config.json does not describe a BERT: {error}") from error
        width = config.vision.hidden
        self.vision_encoder = ViT(config.vision, classify=True)
        self.language_encoder = BertModel(bert)
        self.mm_vision_proj = nn.Linear(width, width)
        self.mm_language_proj = nn.Linear(width, width)
        self.logit_scale = nn.Parameter(torch.tensor(log(1 / 0.07)))

    def encode_image(self, images: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, 1 + patches, width), unit vectors, CLS first."""
        return F.normalize(self.mm_vision_proj(self.vision_encoder(images)), dim=-1)

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, L) ids -> (B, L, width), unit vectors, CLS first."""
        tokens = self.language_encoder(input_ids, attention_mask=attention_mask).last_hidden_state
        return F.normalize(self.mm_language_proj(tokens), dim=-1)

    def scores(
        self, images: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Cosine of every image (rows) with every text (columns)."""
        return self.encode_image(images)[:, 0] @ self.encode_text(input_ids, attention_mask)[:, 0].T

    def forward(
        self,
        images: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        mode: Mode = "default",
    ) -> Matched:
        """Score all pairs; `labels[i]` is the text of image i and the image of text i.

        The reference returns the mean of the scores and their transpose, which ranks nothing.
        """
        # The reference multiplies by the logarithm of the scale, and was trained so.
        logits = self.logit_scale * self.scores(images, input_ids, attention_mask)
        loss = None
        if labels is not None:
            loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
        return Matched((logits + logits.T) / 2 if mode == "reference" else logits, loss)

    def restore_buffers(self) -> None:
        """Make BERT's index buffers, which no checkpoint holds, where the weights are."""
        embeddings = self.language_encoder.embeddings
        places = torch.arange(
            embeddings.position_embeddings.num_embeddings, device=self.logit_scale.device
        ).unsqueeze(0)
        embeddings.register_buffer("position_ids", places, persistent=False)
        embeddings.register_buffer("token_type_ids", torch.zeros_like(places), persistent=False)
