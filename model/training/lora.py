"""LoRA adapters (peft) on the language model, and back out: a merged network is a plain one.

Knows modules; the names of the merged network are those it had before.
"""

import re
from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from model.errors import ModelError
from model.network import Lamed

from .recipe import Lora


def inject(network: Lamed, lora: Lora) -> None:
    """Put an adapter on every Linear of the language model's layers, in place."""
    names = [
        f"layers.{name}"
        for name, module in network.model.layers.named_modules()
        if isinstance(module, nn.Linear)
    ]
    if not names:
        raise ModelError("the language model has no Linear that an adapter could be put on")
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        # Whole names: SegVol's decoder has layers whose names end alike.
        target_modules="|".join(map(re.escape, names)),
        bias="none",
    )
    inject_adapter_in_model(config, network.model)


def merge(network: Lamed) -> None:
    """Add every adapter to its Linear and take it out, in place."""
    adapted: list[tuple[str, Any]] = [
        (name, module)
        for name, module in network.model.layers.named_modules()
        if isinstance(module, BaseTunerLayer)
    ]
    for name, module in adapted:
        module.merge(safe_merge=True)
        parent, _, last = name.rpartition(".")
        setattr(network.model.layers.get_submodule(parent), last, module.get_base_layer())
