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
from .network.config import family
from .tokenizer import IMAGE, SEG, Tokenizer, read_tokenizer

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
GENERATION = "generation_config.json"
MANIFEST, CARD = "manifest.json", "README.md"
MANIFEST_KEYS = {"name": str, "version": str, "sha256": str, "untrained": bool, "files": dict}
CLIP = "m3d_clip"
WORDS = ("tokenizer.model", "added_tokens.json")
CLIP_WORDS = ("vocab.txt",)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
READ = frozenset({CONFIG, GENERATION, WEIGHTS, INDEX, *WORDS})
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
    chosen, kind = choose(device, dtype)
    config = read_config(folder)
    if _family(folder, config) == CLIP:
        raise ModelError(f"{folder / CONFIG}: {config['model_type']} retrieves, it cannot answer")
    card = read_card(folder, config)
    tokenizer = read_tokenizer(folder)
    network = network_from(folder, config, chosen, kind)
    if not isinstance(network, Lamed):
        raise ModelError(f"{folder / CONFIG}: expected a network that answers")
    _check_words(folder, network, tokenizer)
    return LaMed(network, tokenizer, card, chosen, kind)


def import_checkpoint(source: str | Path, out: Path) -> Card:
    """Verify a released checkpoint and write it in our layout with manifest and card.

    An untrained one stays untrained.

    Parameters
    ----------
    source
        A folder, or the id of a model on the hub, of which only safetensors, configuration and
        tokenizer are fetched.

    Raises
    ------
    ModelError
        See `load`; or `out` is no empty folder, or cannot be written.
    """
    must_be_free(out)
    folder, name = _fetched(source)
    config = read_config(folder)
    card = read_card(folder, config, name=name)
    network = network_from(folder, config, torch.device("cpu"), None)
    words = WORDS if isinstance(network, Lamed) else CLIP_WORDS
    if isinstance(network, Lamed):
        _check_words(folder, network, read_tokenizer(folder))
    words_of = {each: _bytes(folder / each) for each in words}
    return write(
        out, config, network.state_dict(), words_of, name=card.name, untrained=card.untrained
    )


def must_be_free(out: Path) -> None:
    """Refuse a place that holds something; ModelError names it."""
    try:
        taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    except OSError as error:
        raise ModelError(f"{out} cannot be read: {error.strerror}") from error
    if taken:
        raise ModelError(f"{out} must be new or an empty folder")


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
    """Write a checkpoint in our layout; it stands complete under its name or not at all.

    Raises
    ------
    ModelError
        `out` cannot be written.
    """
    out = out.resolve()
    partial = out.with_name(f"{out.name}.partial")
    plain = {key: value for key, value in config.items() if key not in ("auto_map", "untrained")}
    # Also here, so that no lost manifest makes an untrained checkpoint a trained one.
    plain |= {"untrained": True} if untrained else {}
    tensors = {key: value.contiguous() for key, value in sorted(state.items())}
    try:
        _fill(partial, plain, tensors, words)
        card = Card(name, "1", _sha256(partial / WEIGHTS), untrained)
        count = sum(each.numel() for each in tensors.values())
        (partial / CARD).write_text(_card_text(card, plain, count, note), "utf-8")
        files = {path.name: _sha256(path) for path in sorted(partial.iterdir())}
        manifest = vars(card) | {"files": files}
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{out} cannot be written: {error}") from error
    return card


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json, and the ends of an answer from generation_config.json if it is there."""
    if not folder.is_dir():
        raise ModelError(f"no folder {folder}")
    config = _json(folder / CONFIG)
    if (folder / GENERATION).exists():
        ends = _json(folder / GENERATION).get("eos_token_id")
        if ends is not None:
            config["eos_token_id"] = ends
    return config


def read_card(folder: Path, config: Mapping[str, Any], *, name: str = "") -> Card:
    """Read who a checkpoint is; every file must have the digest of the manifest.

    A released folder has no manifest: its digest is made of its weights, its name is `name` or the
    folder's.
    """
    untrained = bool(config.get("untrained", False))
    if not (folder / MANIFEST).exists():
        digest = hashlib.sha256()
        for path in _weights(folder):
            digest.update(_sha256(path).encode())
        return Card(name or folder.resolve().name, "1", digest.hexdigest(), untrained)
    manifest = _manifest(folder)
    return Card(
        manifest["name"],
        manifest["version"],
        manifest["sha256"],
        manifest["untrained"] or untrained,
    )


def network_from(
    folder: Path, config: Mapping[str, Any], device: torch.device, dtype: torch.dtype | None
) -> Lamed | M3DCLIP:
    """Build the network of a folder and put its weights in; None keeps their dtype."""
    try:
        with torch.device("meta"):
            network = build(config)
    except ModelError as error:
        raise ModelError(f"{folder / CONFIG}: {error}") from error
    paths = _weights(folder)
    with ExitStack() as stack:
        state = _State(stack, paths)
        try:
            load_state(network, state, device=device, dtype=dtype or state.dtype)
        except ModelError as error:
            whole = paths[0] if len(paths) == 1 else folder / INDEX
            raise ModelError(f"{whole}: {error}") from error
    return network


def choose(
    device: str | torch.device, dtype: torch.dtype | str
) -> tuple[torch.device, torch.dtype]:
    """Resolve "auto" and names.

    Raises
    ------
    ModelError
        CUDA is asked for and there is none, or the device or dtype is not one we compute in.
    """
    if str(device) == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"device must be auto, cpu or cuda, not {device!r}") from error
    if chosen.type not in ("cpu", "cuda"):
        raise ModelError(f"device must be auto, cpu or cuda, not {str(device)!r}")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device is {chosen}, but torch sees no CUDA device; cpu works")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ModelError(f"device is {chosen}, but torch sees {torch.cuda.device_count()} of them")
    if dtype == "auto":
        dtype = "bfloat16" if chosen.type == "cuda" else "float32"
    kind = DTYPES.get(str(dtype).removeprefix("torch."))
    if kind is None:
        raise ModelError(f"dtype must be auto, {' or '.join(DTYPES)}, not {str(dtype)!r}")
    return chosen, kind


def describe_device(device: str, dtype: str) -> str:
    """Say where the model would compute, for the doctor."""
    chosen, dtype_chosen = choose(device, dtype)
    kind = str(dtype_chosen).removeprefix("torch.")
    if chosen.type != "cuda":
        return f"{chosen} in {kind} ({torch.get_num_threads()} threads)"
    free, total = torch.cuda.mem_get_info(chosen)
    name = torch.cuda.get_device_name(chosen)
    return f"{name} in {kind}, {free >> 20} of {total >> 20} MB free"


class _State(Mapping[str, Tensor]):
    """The tensors of one or more safetensors files, each read when it is asked for."""

    def __init__(self, stack: ExitStack, paths: list[Path]) -> None:
        self._where: dict[str, Any] = {}
        names: dict[str, str] = {}
        for path in paths:
            try:
                file = stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{path} is cut short or no safetensors file: {error}") from error
            for key in file.keys():  # noqa: SIM118 - it is no mapping
                if key in names:
                    raise ModelError(f"{path}: expected {key} once, got it in {names[key]} too")
                self._where[key], names[key] = file, path.name

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


def _check_words(folder: Path, network: Lamed, tokenizer: Tokenizer) -> None:
    config = network.config
    for name, found, key, expected in (
        (SEG, tokenizer.added[SEG], "seg_token_id", config.seg_token_id),
        (IMAGE, tokenizer.added[IMAGE], "image_token_id", config.image_token_id),
        ("BOS", tokenizer.bos_id, "bos_token_id", config.bos_token_id),
    ):
        if found != expected:
            raise ModelError(
                f"{folder / CONFIG}: {key} is {expected}, the tokenizer has {name} at {found}"
            )
    if len(tokenizer) > config.vocabulary:
        raise ModelError(
            f"{folder / CONFIG}: vocab_size is {config.vocabulary}, "
            f"the tokenizer has {len(tokenizer)}"
        )
    if not config.eos_token_ids:
        raise ModelError(
            f"{folder / CONFIG}: expected eos_token_id, which ends an answer, got none"
        )


def _fill(
    partial: Path,
    config: Mapping[str, Any],
    tensors: dict[str, Tensor],
    words: Mapping[str, bytes],
) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    (partial / CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", "utf-8")
    save_file(tensors, partial / WEIGHTS, metadata={"format": "pt"})
    # safetensors lets nobody but the writer read it; the node may be somebody else.
    (partial / WEIGHTS).chmod((partial / CONFIG).stat().st_mode)
    for file, content in words.items():
        (partial / file).write_bytes(content)


def _family(folder: Path, config: Mapping[str, Any]) -> str:
    try:
        return family(config)
    except ModelError as error:
        raise ModelError(f"{folder / CONFIG}: {error}") from error


def _manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of our layout; every file that is read stands in it with its digest."""
    path = folder / MANIFEST
    manifest = _json(path)
    for key, kind in MANIFEST_KEYS.items():
        value = manifest.get(key)
        if not isinstance(value, kind):
            raise ModelError(f"{path}: expected {key} as {kind.__name__}, got {value!r}")
    files: dict[str, Any] = manifest["files"]
    for name in sorted(READ):
        if (folder / name).exists() and name not in files:
            raise ModelError(f"{folder / name} is foreign: not in {MANIFEST}")
    for name, expected in files.items():
        found = _sha256(folder / name)
        if found != expected:
            raise ModelError(f"{folder / name}: expected sha256 {expected}, got {found}")
    if files.get(WEIGHTS) != manifest["sha256"]:
        raise ModelError(
            f"{path}: expected sha256 of {WEIGHTS}, {files.get(WEIGHTS)}, got {manifest['sha256']}"
        )
    return manifest


def _fetched(source: str | Path) -> tuple[Path, str]:
    """Find the folder of a source, from the hub if need be, and the name of the model."""
    folder = Path(source)
    if folder.is_dir() or not HUB_ID.fullmatch(str(source)):
        return folder, folder.resolve().name
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    kinds = ["*.safetensors", "*.safetensors.index.json", "*.json", "tokenizer.model", "vocab.txt"]
    try:
        return Path(snapshot_download(str(source), allow_patterns=kinds)), folder.name
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(f"neither a folder nor a model that can be fetched: {source}") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_bytes(path))
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: expected a table, got {type(content).__name__}")
    return content


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> ModelError:
    if isinstance(error, FileNotFoundError):
        return ModelError(f"{path} is missing")
    return ModelError(f"{path} cannot be read: {error.strerror}")


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
