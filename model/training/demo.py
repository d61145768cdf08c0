"""The small checkpoint, from nothing: words, SegVol, M3D-CLIP, alignment, tuning.

Every stage that is done is kept, one that was killed goes on; the whole can be run again at any
time and does what is left.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from model import checkpoint, small
from model.network import build

from . import recipe, stages
from .shipping import ship

log = logging.getLogger(__name__)

CARD: Final = recipe.RECIPES / "small.md"


def run(out: Path, cache: Path) -> dict[str, Any]:
    """Run what is not yet done of all stages, and tell of the last one."""
    from model.network import Lamed  # noqa: F401

    start, clip = out / "start", out / "clip-start"
    _once(start, lambda: small.init(start))
    _once(clip, lambda: _clip(clip))
    segment = _stage("segment", out, cache, start)
    contrastive = _stage("contrastive", out, cache, clip, vision=segment)
    align = _stage("align", out, cache, segment, vision=contrastive)
    tuned = _stage("tune", out, cache, align, prompts=out / "segment", name=small.NAME)
    half = out / "half"
    _once(half, lambda: ship(tuned, half, text=CARD.read_text("utf-8")))
    return {"folder": str(half)}


def _stage(stage: str, out: Path, cache: Path, start: Path, **more: Any) -> Path:  # noqa: ANN401 - fields of Places, and a name
    done = out / stage / "checkpoint"
    if not done.exists():
        title = more.pop("name", "")
        places = stages.Places(start, out / stage, cache=cache, **more)
        stages.run(recipe.read(recipe.find(stage, "small")), places, name=title)
    return done


def _clip(out: Path) -> None:
    import torch

    words = small.clip_words()
    config = small.clip_config(len(words.splitlines()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build(config)
    checkpoint.write(
        out,
        config,
        network.state_dict(),
        {"vocab.txt": words},
        name=f"{small.NAME}-clip-untrained",
        untrained=True,
    )


def _once(folder: Path, make: Callable[[], object]) -> None:
    if not folder.exists():
        make()
