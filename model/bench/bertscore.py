"""BERTScore (Zhang et al. 2020), from weights that are on disk; it downloads nothing.

Knows one folder with a transformers encoder and its tokenizer. The published tables use
roberta-large, hidden states of layer 17, without rescaling; other weights give other numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from model.errors import ModelError

ROBERTA_LARGE_LAYER = 17
LEADING_SPACE = {"roberta"}  # its words begin with a space, the first one too


@dataclass(frozen=True)
class BertScore:
    """An encoder that compares texts by the similarity of their tokens."""

    folder: Path
    layer: int = ROBERTA_LARGE_LAYER

    def f1(self, said: str, truth: str) -> float:
        """Give the F of precision and recall, both mean similarities of the best matches."""
        precision, recall = self.score(said, truth)
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0

    def score(self, said: str, truth: str) -> tuple[float, float]:
        """Give precision and recall; 0 if a text is empty.

        The tokens that only begin and end a text may be matched, but do not count themselves.
        """
        ours, theirs = self._encode(said), self._encode(truth)
        similar = ours @ theirs.T
        inner = similar[1:-1].max(dim=1).values, similar.T[1:-1].max(dim=1).values
        precision, recall = (float(each.mean()) if len(each) else 0.0 for each in inner)
        return (precision, recall) if len(inner[0]) and len(inner[1]) else (0.0, 0.0)

    @torch.inference_mode()
    def _encode(self, text: str) -> Tensor:
        """Tokens of a text, (n + 2, width), each of length one."""
        plain = text.strip()
        if plain and self._network.config.model_type in LEADING_SPACE:
            plain = f" {plain}"
        most = min(self._tokenizer.model_max_length, self._network.config.max_position_embeddings)
        ids = self._tokenizer(plain, truncation=True, max_length=most)["input_ids"]
        states = self._network(torch.tensor([ids]), output_hidden_states=True).hidden_states
        found: Tensor = torch.nn.functional.normalize(states[self.layer][0].float(), dim=-1)
        return found

    @cached_property
    def _tokenizer(self) -> Any:  # noqa: ANN401 - transformers says no more
        return AutoTokenizer.from_pretrained(self.folder, local_files_only=True)

    @cached_property
    def _network(self) -> Any:  # noqa: ANN401 - transformers says no more
        # Never a pickle, whatever else lies in the folder.
        network = AutoModel.from_pretrained(
            self.folder, local_files_only=True, use_safetensors=True
        )
        return network.eval()


def find(folder: Path | None, *, layer: int = ROBERTA_LARGE_LAYER) -> BertScore | None:
    """Open the encoder of a folder; None if there is no folder: the score is then absent.

    Raises
    ------
    ModelError
        The folder holds no encoder, or one with too few layers.
    """
    if folder is None or not folder.is_dir():
        return None
    scorer = BertScore(folder, layer)
    try:
        layers = scorer._network.config.num_hidden_layers  # noqa: SLF001 - its own module
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} holds no encoder for BERTScore: {error}") from error
    if not 0 <= layer <= layers:
        raise ModelError(f"BERTScore needs layer {layer}, and {folder} has {layers} layers")
    return scorer


def scores(scorer: BertScore | None, pairs: Sequence[tuple[str, str]]) -> list[float] | None:
    """Give the F of each (answer, truth); None without an encoder."""
    return None if scorer is None else [scorer.f1(*each) for each in pairs]
