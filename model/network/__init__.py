"""The networks of M3D by config: M3D-LaMed on Phi-3 or Llama, and M3D-CLIP.

Knows tensors; has never heard of files, text or DICOM. `reference` mode repeats the reference
implementation; the default differs on purpose in two ways. A prompt that is not BOS and exactly
the image's tokens is a ModelError instead of a silent overwrite, and every [SEG] an answer holds,
also the first token, draws its own mask.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from model.errors import ModelError

from .clip import M3DCLIP
from .config import family, read_clip, read_lamed
from .decoding import Decoded, Generated, generate, greedy
from .lamed import Lamed, LamedLlama, LamedPhi3, Language, Output
from .segvol import Masks

__all__ = [
    "M3DCLIP",
    "Decoded",
    "Generated",
    "Lamed",
    "LamedLlama",
    "LamedPhi3",
    "Language",
    "Masks",
    "Output",
    "build",
    "generate",
    "greedy",
    "load_state",
]

_PRECISE = "positional_encoding_gaussian_matrix"  # phases: bfloat16 would move the places
_OPTIONAL = "language_encoder.embeddings.position_ids"  # written by transformers before 4.31


def build(config: Mapping[str, Any]) -> Lamed | M3DCLIP:
    """Make the network a config.json describes, untrained, in evaluation mode.

    It is made on the current default device: under `torch.device("meta")` it takes no memory.

    Raises
    ------
    ModelError
        A key is missing or says something this code does not compute.
    """
    kind = family(config)
    if kind == "m3d_clip":
        return M3DCLIP(read_clip(config)).eval()
    lamed = LamedPhi3 if kind == "phi3" else LamedLlama
    return lamed(read_lamed(config)).eval()


def load_state(
    network: Lamed | M3DCLIP,
    state: Mapping[str, Tensor],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> None:
    """Put `state` into a network, also one on the meta device, as `dtype` on `device`.

    Each tensor is asked for once and cast, so a lazy mapping never holds two whole copies.

    Raises
    ------
    ModelError
        A key is missing or foreign, or a shape is wrong; the message names it.
    """
    expected = network.state_dict()
    given = set(state) - {_OPTIONAL}
    _refuse("lacks", expected.keys() - given)
    _refuse("has foreign", given - expected.keys())
    cast = {}
    for key, place in expected.items():
        value = state[key]
        if value.shape != place.shape:
            raise ModelError(f"{key}: expected shape {list(place.shape)}, got {list(value.shape)}")
        precise = key.endswith(_PRECISE) or not value.is_floating_point()
        cast[key] = value.to(device, torch.float32 if precise else dtype)
    network.load_state_dict(cast, strict=True, assign=True)
    network.restore_buffers()
    network.eval()


def _refuse(problem: str, keys: set[str]) -> None:
    if keys:
        few = ", ".join(sorted(keys)[:5])
        raise ModelError(f"the checkpoint {problem} {len(keys)} keys, such as {few}")
