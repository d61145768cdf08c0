"""Checkpoints: released folders and our own layout, verified to the last key and byte.

    our layout    config.json  model.safetensors  tokenizer.model  added_tokens.json
                  manifest.json (sha256 of each file, and of the weights)  README.md (the card)

Knows files. Only safetensors are read: no pickle, no code from a checkpoint, nothing from a hub
at load time.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .card import Card
from .errors import ModelError
from .lamed import LaMed
from .network import M3DCLIP, Lamed, build, load_state
from .tokenizer import read_tokenizer

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
MANIFEST, CARD = "manifest.json", "README.md"
WORDS = ("tokenizer.model", "added_tokens.json")
CLIP_WORDS = ("vocab.txt",)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load(
    folder: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str = torch.float32,
) -> LaMed:
    """Load M3D-LaMed from a folder in our layout or as released.

    Parameters
    ----------
    device
        A torch device, or "auto": CUDA if there is any.
    dtype
        A torch dtype, or "auto": bfloat16 on CUDA, float32 on the CPU.

    Raises
    ------
    ModelError
        A file is missing, cut short, foreign or does not match its digest, or a key or a shape is
        not the network's: names the file, the key, what was expected and what came.
    """
    folder = Path(folder)
    device, dtype = choose(device, dtype)
    config = read_config(folder)
    card = read_card(folder)
    tokenizer = read_tokenizer(folder)
    network = network_from(folder, config, device, dtype)
    if not isinstance(network, Lamed):
        raise ModelError(f"{folder / CONFIG}: {config['model_type']} retrieves, it cannot answer")
    _check_words(folder, network, tokenizer.added, len(tokenizer))
    return LaMed(network, tokenizer, card, device, dtype)


def import_checkpoint(source: str | Path, out: Path) -> Card:
    """Verify a released checkpoint and write it in our layout with manifest and card.

    Parameters
    ----------
    source
        A folder, or the id of a model on the hub, of which only safetensors, configuration and
        tokenizer are fetched.

    Raises
    ------
    ModelError
        See `load`; or `out` is not empty.
    """
    folder = _fetched(source)
    if out.exists() and any(out.iterdir()):
        raise ModelError(f"{out} must be empty or new")
    config = read_config(folder)
    network = network_from(folder, config, torch.device("cpu"), None)
    words = WORDS if isinstance(network, Lamed) else CLIP_WORDS
    if isinstance(network, Lamed):
        tokenizer = read_tokenizer(folder)
        _check_words(folder, network, tokenizer.added, len(tokenizer))
    plain = {key: value for key, value in config.items() if key != "auto_map"}
    words_of = {name: (folder / name).read_bytes() for name in words}
    return write(out, plain, network.state_dict(), words_of, name=folder.name, untrained=False)


def write(  # noqa: PLR0913 - a checkpoint is all of this
    out: Path,
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    words: Mapping[str, bytes],
    *,
    name: str,
    untrained: bool,
    note: str = "",
) -> Card:
    """Write a checkpoint in our layout; it stands complete under its name or not at all."""
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    (partial / CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    tensors = {key: value.contiguous() for key, value in sorted(state.items())}
    save_file(tensors, partial / WEIGHTS, metadata={"format": "pt"})
    for file, content in words.items():
        (partial / file).write_bytes(content)
    card = Card(name, "1", _sha256(partial / WEIGHTS), untrained)
    count = sum(each.numel() for each in tensors.values())
    (partial / CARD).write_text(_card_text(card, config, count, note))
    files = {path.name: _sha256(path) for path in sorted(partial.iterdir())}
    manifest = vars(card) | {"files": files}
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    if out.exists():
        out.rmdir()
    partial.rename(out)
    return card


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json, and the ends of an answer from generation_config.json if it is there."""
    if not folder.is_dir():
        raise ModelError(f"no folder {folder}")
    config = _json(folder / CONFIG)
    if (folder / "generation_config.json").exists():
        ends = _json(folder / "generation_config.json").get("eos_token_id")
        if ends is not None:
            config["eos_token_id"] = ends
    return config


def read_card(folder: Path) -> Card:
    """Read who a checkpoint is; every file must have the digest of the manifest.

    A released folder has no manifest: its digest is made of its weights.
    """
    if not (folder / MANIFEST).exists():
        digest = hashlib.sha256()
        for path in _weights(folder):
            digest.update(_sha256(path).encode())
        return Card(folder.name, "1", digest.hexdigest(), untrained=False)
    manifest = _json(folder / MANIFEST)
    for name, expected in manifest.get("files", {}).items():
        if not (folder / name).exists():
            raise ModelError(f"{folder / name} is missing")
        found = _sha256(folder / name)
        if found != expected:
            raise ModelError(f"{folder / name}: expected sha256 {expected}, got {found}")
    try:
        return Card(
            str(manifest["name"]),
            str(manifest["version"]),
            str(manifest["sha256"]),
            bool(manifest["untrained"]),
        )
    except KeyError as error:
        raise ModelError(f"{folder / MANIFEST}: expected {error}, not there") from error


def network_from(
    folder: Path, config: Mapping[str, Any], device: torch.device, dtype: torch.dtype | None
) -> Lamed | M3DCLIP:
    """Build the network of a folder and put its weights in; None keeps their dtype."""
    try:
        with torch.device("meta"):
            network = build(config)
    except ModelError as error:
        raise ModelError(f"{folder / CONFIG}: {error}") from error
    with ExitStack() as stack:
        state = _State(stack, _weights(folder))
        kept = dtype or state.dtype
        try:
            load_state(network, state, device=device, dtype=kept)
        except ModelError as error:
            raise ModelError(f"{folder}: {error}") from error
    return network


def choose(
    device: str | torch.device, dtype: torch.dtype | str
) -> tuple[torch.device, torch.dtype]:
    """Resolve "auto" and names.

    Raises
    ------
    ModelError
        CUDA is asked for and there is none, or the dtype is not one we compute in.
    """
    if str(device) == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = torch.device(device)
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ModelError("device must be cpu: torch sees no CUDA device")
    if dtype == "auto":
        dtype = "bfloat16" if chosen.type == "cuda" else "float32"
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise ModelError(f"dtype must be auto, {' or '.join(DTYPES)}, not {dtype!r}")
        dtype = DTYPES[dtype]
    return chosen, dtype


def describe_device(device: str, dtype: str) -> str:
    """Say where the model would compute, for the doctor."""
    chosen, kind = choose(device, dtype)
    if chosen.type != "cuda":
        return f"{chosen} in {kind} ({torch.get_num_threads()} threads)"
    free, total = torch.cuda.mem_get_info(chosen)
    name = torch.cuda.get_device_name(chosen)
    return f"{name} in {kind}, {free >> 20} of {total >> 20} MB free"


class _State(Mapping[str, Tensor]):
    """The tensors of one or more safetensors files, each read when it is asked for."""

    def __init__(self, stack: ExitStack, paths: list[Path]) -> None:
        self._where: dict[str, Any] = {}
        for path in paths:
            try:
                file = stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{path} is cut short or no safetensors file: {error}") from error
            for key in file.keys():  # noqa: SIM118 - it is no mapping
                if key in self._where:
                    raise ModelError(f"{path}: {key} stands in two files")
                self._where[key] = file

    @property
    def dtype(self) -> torch.dtype:
        return next(
            (each.dtype for each in self.values() if each.is_floating_point()), torch.float32
        )

    def __getitem__(self, key: str) -> Tensor:
        tensor: Tensor = self._where[key].get_tensor(key)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


def _weights(folder: Path) -> list[Path]:
    """Find the files of the weights: one, or the shards of an index."""
    if (folder / INDEX).exists():
        index = _json(folder / INDEX).get("weight_map")
        if not isinstance(index, dict) or not index:
            raise ModelError(f"{folder / INDEX}: expected a weight_map, not there")
        names = sorted({str(each) for each in index.values()})
        if any(Path(name).name != name for name in names):
            raise ModelError(f"{folder / INDEX}: a shard is a file of this folder, not {names}")
    else:
        names = [WEIGHTS]
    for name in names:
        if not (folder / name).exists():
            pickles = sorted(path.name for each in PICKLES for path in folder.glob(each))
            found = f"; {', '.join(pickles)} is a pickle and is not read" if pickles else ""
            raise ModelError(f"{folder / name} is missing{found}")
    return [folder / name for name in names]


def _check_words(folder: Path, network: Lamed, added: Mapping[str, int], count: int) -> None:
    config = network.config
    for name, expected, key in (
        ("[SEG]", config.seg_token_id, "seg_token_id"),
        ("<im_patch>", config.image_token_id, "image_token_id"),
    ):
        if added[name] != expected:
            raise ModelError(
                f"{folder / CONFIG}: {key} is {expected}, the tokenizer has {name} at {added[name]}"
            )
    if count > config.vocabulary:
        raise ModelError(
            f"{folder / CONFIG}: vocab_size is {config.vocabulary}, the tokenizer has {count}"
        )


def _fetched(source: str | Path) -> Path:
    if Path(source).is_dir() or not HUB_ID.fullmatch(str(source)):
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    kinds = ["*.safetensors", "*.safetensors.index.json", "*.json", "tokenizer.model", "vocab.txt"]
    try:
        return Path(snapshot_download(str(source), allow_patterns=kinds))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(f"neither a folder nor a model that can be fetched: {source}") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing") from error
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: expected a table, got {type(content).__name__}")
    return content


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _card_text(card: Card, config: Mapping[str, Any], count: int, note: str) -> str:
    state = "UNTRAINED: its answers and masks mean nothing." if card.untrained else ""
    return "\n".join(
        [
            f"# {card.name}",
            "",
            *([state, ""] if state else []),
            f"- family: {config['model_type']}",
            f"- parameters: {count:,}",
            f"- image: {config.get('image_size') or config.get('img_size')}",
            f"- sha256 of the weights: {card.sha256}",
            "",
            "Not a medical device, not for diagnostic use.",
            *(["", note] if note else []),
            "",
        ]
    )
