"""Checkpoints as they are released: shards with an index, words, a config with remote code."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from words import tokenizer

PARITY = Path(__file__).parent / "data" / "parity"
PHI3, LLAMA, CLIP = "phi3_segvol_small", "llama_segvol_noncubic", "m3d_clip_small"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
ENDS = [2, 5, 6]


def state(name: str = PHI3) -> dict[str, torch.Tensor]:
    return load_file(PARITY / name / "model.safetensors")


def config(name: str = PHI3) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((PARITY / name / "config.json").read_text())
    return content


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


def shard(folder: Path, first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    """Write two shards and the index that knows both."""
    weight_map = {}
    for name, part in zip(SHARDS, (first, second), strict=True):
        save_file(part, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": 1}, "weight_map": weight_map},
    )


def halves(tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], ...]:
    keys = sorted(tensors)
    middle = len(keys) // 2
    return tuple({key: tensors[key] for key in part} for part in (keys[:middle], keys[middle:]))


def lamed(folder: Path, name: str = PHI3) -> Path:
    """Write M3D-LaMed as GoodBaiBai88 released it (m3d.md 2): no tokenizer.json, no manifest."""
    folder.mkdir()
    remote = {"AutoModelForCausalLM": "modeling_m3d_lamed.LamedPhi3ForCausalLM"}
    write_json(folder / "config.json", config(name) | {"auto_map": remote, "eos_token_id": 2})
    write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": ENDS})
    shard(folder, *halves(state(name)))
    words = tokenizer(config(name)["vocab_size"])
    (folder / "tokenizer.model").write_bytes(words.model)
    write_json(folder / "added_tokens.json", dict(words.added))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"})
    return folder


def clip(folder: Path) -> Path:
    """Write M3D-CLIP as released: one file of weights and a vocabulary."""
    folder.mkdir()
    shutil.copy(PARITY / CLIP / "config.json", folder)
    shutil.copy(PARITY / CLIP / "model.safetensors", folder)
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n")
    return folder
