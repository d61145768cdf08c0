"""M3D-CLIP loaded: volumes and reports in one space, to find one by the other.

Knows a checkpoint's folder and the WordPiece words in it. Has never heard of DICOM.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertTokenizer

from .card import Card
from .checkpoint import CLIP_WORDS, choose, network_from, read_card, read_config
from .errors import ModelError
from .network import M3DCLIP

MAXIMUM_LENGTH = 512  # tokens of a report, as the released one was trained


@dataclass(frozen=True)
class Words:
    """Reports to ids, as BERT reads them."""

    tokenizer: Any

    @classmethod
    def read(cls, folder: Path) -> "Words":
        """Read ``vocab.txt``; ModelError if it is missing."""
        path = folder / CLIP_WORDS[0]
        if not path.is_file():
            raise ModelError(f"{path} is missing")
        vocabulary = {
            word: number for number, word in enumerate(path.read_text("utf-8").splitlines())
        }
        return cls(BertTokenizer(vocab=vocabulary))

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Give ids and attention mask, (B, L) each."""
        told = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=MAXIMUM_LENGTH,
            return_tensors="pt",
        )
        return told["input_ids"], told["attention_mask"]


@dataclass(frozen=True)
class Clip:
    """A loaded M3D-CLIP."""

    network: M3DCLIP
    words: Words
    card: Card
    device: torch.device
    dtype: torch.dtype

    @torch.inference_mode()
    def embed_images(self, images: Tensor) -> Tensor:
        """Turn (B, 1, D, H, W) in 0..1 into (B, width) float32 unit vectors on the CPU."""
        found = self.network.encode_image(images.to(self.device, self.dtype))
        return found[:, 0].float().cpu()

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Turn reports into (B, width) float32 unit vectors on the CPU."""
        ids, mask = (each.to(self.device) for each in self.words(texts))
        return self.network.encode_text(ids, mask)[:, 0].float().cpu()


def load(
    folder: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str = torch.float32,
) -> Clip:
    """Load M3D-CLIP from a folder in our layout or as released; see `checkpoint.load`."""
    folder = Path(folder)
    chosen, kind = choose(device, dtype)
    config = read_config(folder)
    network = network_from(folder, config, chosen, kind)
    if not isinstance(network, M3DCLIP):
        raise ModelError(f"{folder}: expected an M3D-CLIP, got {config['model_type']}")
    return Clip(network, Words.read(folder), read_card(folder, config), chosen, kind)
