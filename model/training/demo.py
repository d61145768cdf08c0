"""The small checkpoint, from nothing: words, SegVol, M3D-CLIP, looking, alignment, tuning.

Every stage that is done is kept, one that was killed goes on; the whole can be run again at any
time and does what is left.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch

from model import checkpoint, small
from model.errors import ModelError
from model.network import build

from . import recipe, stages
from .recipe import Recipe
from .shipping import ship

CARD: Final = recipe.RECIPES / "small.md"


def run(out: Path, cache: Path, share: float = 1.0) -> dict[str, Any]:
    """Run what is not yet done of all stages, and tell of the last one.

    Parameters
    ----------
    share
        How much of each recipe's steps is run, 0 to 1: a short run, to try something out on, or to
        learn from `ablation` what the parts give.

    Raises
    ------
    ModelError
        `share` is out of range, or a stage in `out` was begun with another one.
    """
    if not 0 < share <= 1:
        raise ModelError(f"share must be above 0 and at most 1, not {share}")

    def stage(kind: str, places: stages.Places, name: str = "small", title: str = "") -> Path:
        done = places.out / stages.CHECKPOINT
        if not done.exists():
            stages.run(_short(recipe.read(recipe.find(kind, name)), share), places, name=title)
        return done

    start, clip = out / "start", out / "clip-start"
    _once(start, lambda: small.init(start))
    _once(clip, lambda: _clip(clip))
    segment = stage("segment", stages.Places(start, out / "segment", cache=cache))
    places = stages.Places(clip, out / "contrastive", vision=segment, cache=cache)
    contrastive = stage("contrastive", places)
    places = stages.Places(segment, out / "look", vision=contrastive, cache=cache)
    look = stage("align", places, "small_look")
    align = stage("align", stages.Places(look, out / "align", cache=cache))
    places = stages.Places(align, out / "tune", cache=cache, prompts=out / "segment")
    tuned = stage("tune", places, title=small.NAME)
    half = out / "half"
    _once(half, lambda: ship(tuned, half, text=CARD.read_text("utf-8")))
    return {"folder": str(half)}


def _short(whole: Recipe, share: float) -> Recipe:
    return replace(whole, steps=max(1, round(whole.steps * share)))


def _clip(out: Path) -> None:
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
