"""The stages: a network and a recipe in, a trained checkpoint out.

    segment      SegVol by itself            contrastive   M3D-CLIP
    align        images to words             tune          all tasks, with masks

Knows how the parts of a network are frozen, warmed up and written; how a step is made is the
objectives' business, how it runs `running`'s.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from model import checkpoint
from model.card import Card
from model.clip import Words
from model.data import cap, refseg, seg, vqa
from model.data.corpus.scan import Scan
from model.data.corpus.scene import Pool
from model.data.sample import Sample
from model.data.tokens import Layout
from model.errors import ModelError
from model.network import M3DCLIP, Lamed
from model.network.config import Size
from model.tokenizer import read_tokenizer

from . import lora
from .augment import Augment
from .batches import Outlines, Pairs, Questions
from .examples import Patients, Samples, Source, Stream, weights
from .objectives import FINER, Matching, Segmenting, Speaking
from .prompts import fit, save
from .recipe import Published, Recipe
from .running import Run, last_state, train

CPU: Final = torch.device("cpu")
OUTLINED: Final = 24  # questions behind an image while SegVol's prompts are fitted
log = logging.getLogger(__name__)

STATE: Final = "recipe.json"


@dataclass(frozen=True)
class Places:
    """Where a stage reads and writes.

    `start` is the checkpoint it begins with, `vision` one whose vision encoder is taken over,
    `prompts` a run of SegVol's own training whose prompts the words are fitted to, `data` the
    folder of the published sets, `cache` that of the corpus; `out` keeps the run's state, and at
    its end the trained checkpoint in ``out/checkpoint``.
    """

    start: Path
    out: Path
    vision: Path | None = None
    data: Path | None = None
    cache: Path = Path("run/pool")
    prompts: Path | None = None


def run(recipe: Recipe, places: Places, *, device: str = "auto", name: str = "") -> dict[str, Any]:
    """Run a stage from its start, or on from where it was killed, and write its checkpoint.

    Raises
    ------
    ModelError
        The recipe does not fit the checkpoint or the data, the run in `out` is of another recipe,
        or training broke down.
    """
    _remember(recipe, places)
    config = checkpoint.read_config(places.start)
    network = checkpoint.network_from(places.start, config, CPU, torch.float32)
    if places.vision is not None:
        take_vision(network, places.vision)
    stage = {"segment": _segment, "contrastive": _contrastive}.get(recipe.stage, _speak)
    objective, source, collate = stage(recipe, network, places)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    steps = recipe.steps or -(
        -recipe.epochs * len(source) // (recipe.batch * recipe.accumulate * world)
    )
    how = _how(recipe, steps, device)
    log = train(
        objective.train(),
        Stream(source, how.examples * world, recipe.seed),
        collate,
        how,
        places.out,
    )
    if int(os.environ.get("RANK", "0")):  # the first process writes for all
        return {"folder": str(places.out / "checkpoint"), "steps": steps}
    if isinstance(objective, Segmenting):
        save(objective.prompts.weight, places.out)
    card = _write(recipe, network.eval().to(CPU), config, places, name)
    return {"folder": str(places.out / "checkpoint"), "steps": steps, **_last(log), **vars(card)}


def take_vision(network: Lamed | M3DCLIP, folder: Path) -> None:
    """Take over the vision encoder of another checkpoint: M3D-CLIP's, or else SegVol's.

    Raises
    ------
    ModelError
        There is none, or its shapes are others.
    """
    config = checkpoint.read_config(folder)
    other = checkpoint.network_from(folder, config, CPU, torch.float32)
    if isinstance(other, M3DCLIP):
        given: nn.Module = other.vision_encoder
    elif other.config.segvol is not None:
        given = other.model.seg_module.image_encoder
    else:
        raise ModelError(f"{folder} has no vision encoder to take over")
    into: nn.Module = (
        network.vision_encoder
        if isinstance(network, M3DCLIP)
        else network.model.vision_tower.vision_tower
    )
    # SegVol's has no token for the whole image; the one that is there stays.
    try:
        missing, foreign = into.load_state_dict(given.state_dict(), strict=False)
    except RuntimeError as error:
        raise ModelError(f"{folder}: its vision encoder is another: {error}") from error
    if foreign or set(missing) - {"cls_token"}:
        raise ModelError(f"{folder}: its vision encoder is another: {[*missing, *foreign][0]}")


def freeze(network: Lamed, recipe: Recipe) -> None:
    """Let only the recipe's parts learn."""
    if recipe.lora is not None:
        lora.inject(network, recipe.lora)
    for name, each in network.named_parameters():
        each.requires_grad_(recipe.lora is not None and "lora_" in name)
    parts: dict[str, list[nn.Module]] = {
        "vision": [network.model.vision_tower],
        "projector": [network.model.mm_projector],
        "embed": [network.model.embed_tokens],
        "head": [network.lm_head],
        "language": [network.model.layers, network.model.norm],
    }
    if network.config.segvol is not None:
        parts |= {
            "segvol": [network.model.seg_module],
            "seg_projector": [network.model.seg_projector],
        }
    for part in recipe.train:
        if part not in parts:
            raise ModelError(f"the network has no {part} to train")
        for module in parts[part]:
            module.requires_grad_()


def _segment(
    recipe: Recipe, network: Lamed | M3DCLIP, places: Places
) -> tuple[nn.Module, Source, Any]:
    if not isinstance(network, Lamed) or network.config.segvol is None:
        raise ModelError("segment trains a network with a segmentation module")
    encoder = network.config.segvol.encoder
    step = tuple(each // FINER for each in encoder.patch_size)
    if any(each % FINER for each in encoder.patch_size[:1]) or 0 in step:
        raise ModelError(f"patch_size must be whole cells of {FINER}, not {encoder.patch_size}")
    source = _patients(recipe, places, encoder.image_size)
    z, y, x = step
    objective = Segmenting(network.model.seg_module, torch.from_numpy(weights(source)))
    return objective, source, Outlines((z, y, x))


def _contrastive(
    recipe: Recipe, network: Lamed | M3DCLIP, places: Places
) -> tuple[nn.Module, Source, Any]:
    if not isinstance(network, M3DCLIP):
        raise ModelError("contrastive trains an M3D-CLIP")
    if recipe.scale is not None:
        network.logit_scale.data.fill_(recipe.scale)
    grid = network.config.vision.image_size
    source: Source = (
        _patients(recipe, places, grid) if recipe.corpus else Samples(_samples(recipe, places))
    )
    return Matching(network), source, Pairs(Words.read(places.start))


def _speak(
    recipe: Recipe, network: Lamed | M3DCLIP, places: Places
) -> tuple[nn.Module, Source, Any]:
    if not isinstance(network, Lamed):
        raise ModelError(f"{recipe.stage} trains an M3D-LaMed")
    freeze(network, recipe)
    if recipe.gradient_checkpointing:
        network.model.gradient_checkpointing_enable()
    words, layout = read_tokenizer(places.start), Layout.of(network.config)
    if recipe.corpus:
        source: Source = replace(
            _patients(recipe, places, network.config.vision.image_size),
            tokenizer=words, layout=layout, outlines=0,
        )  # fmt: skip
    else:
        source = Samples(
            _samples(recipe, places), words, layout, recipe.questions, Augment(recipe.augment)
        )
    collate = Questions(layout, network.config.seg_token_id)
    if places.prompts is not None and last_state(places.out) is None:
        asked = (
            replace(source, masks=OUTLINED, questions=OUTLINED)
            if isinstance(source, Patients)
            else source
        )
        log.info("prompts.fitted", extra={"cosine": fit(network, asked, collate, places.prompts)})
    return Speaking(network), source, collate


def _patients(recipe: Recipe, places: Places, grid: Size) -> Patients:
    assert recipe.corpus is not None  # noqa: S101 - the caller looked
    first, cache = recipe.corpus.first, places.cache
    pools: list[tuple[Pool, range]] = [
        (Pool(cache / "phantoms", grid), range(first, first + recipe.corpus.phantoms))
    ]
    if recipe.corpus.scans:
        scan = Scan.load(cache / "source")
        pools.append(
            (Pool(cache / "scans", grid, scan.case), range(first, first + recipe.corpus.scans))
        )
    return Patients(
        pools,
        Augment(recipe.augment),
        questions=recipe.questions,
        masks=recipe.masks,
        outlines=recipe.outlines if recipe.stage == "segment" else 0,
        tasks=frozenset(recipe.tasks) or None,
    )


def _samples(recipe: Recipe, places: Places) -> list[Sample]:
    if places.data is None:
        raise ModelError("--data must name the folder of the prepared sets")
    found = [each for one in recipe.sets for each in _read(one, places.data, recipe.seed)]
    if not found:
        raise ModelError(f"{places.data} holds no sample of the recipe's sets")
    return found


def _read(one: Published, data: Path, seed: int) -> list[Sample]:
    path = data / one.file
    readers: dict[str, Callable[[], list[Sample]]] = {
        "cap": lambda: cap.read(path, one.split, root=data, seed=seed),
        "vqa-closed": lambda: vqa.read_closed(path, root=data),
        "vqa-open": lambda: vqa.read_open(path, root=data),
        "vqa-yes-no": lambda: vqa.read_yes_no(path, root=data),
        "seg": lambda: seg.read(path.parents[1], path.stem, one.split, seed=seed),
        "refseg": lambda: refseg.read(path, root=data),
    }
    return readers[one.kind]()


def _how(recipe: Recipe, steps: int, device: str) -> Run:
    return Run(
        steps=steps,
        batch=recipe.batch,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        warmup=recipe.warmup,
        schedule=recipe.schedule,
        accumulate=recipe.accumulate,
        clip=recipe.clip,
        precision=recipe.precision,
        seed=recipe.seed,
        workers=recipe.workers,
        log_every=recipe.log_every,
        save_every=recipe.save_every,
        device=device,
    )


def _remember(recipe: Recipe, places: Places) -> None:
    """Refuse to go on with a run of another recipe."""
    told = json.dumps(
        asdict(recipe) | {"start": _digest(places.start)}, sort_keys=True, default=str
    )
    path = places.out / STATE
    if path.exists() and path.read_text("utf-8") != told:
        raise ModelError(
            f"{places.out} holds a run of another recipe or start; choose another folder"
        )
    places.out.mkdir(parents=True, exist_ok=True)
    path.write_text(told, "utf-8")


def _digest(folder: Path) -> str:
    return checkpoint.read_card(folder, checkpoint.read_config(folder)).sha256


def _write(
    recipe: Recipe, network: Lamed | M3DCLIP, config: dict[str, Any], places: Places, name: str
) -> Card:
    """Write the network in our layout: adapters merged, words as at the start."""
    if isinstance(network, Lamed) and recipe.lora is not None:
        lora.merge(network)
    words = checkpoint.WORDS if isinstance(network, Lamed) else checkpoint.CLIP_WORDS
    out = places.out / "checkpoint"
    if out.exists():
        return checkpoint.read_card(out, config)
    state: dict[str, Tensor] = network.state_dict()
    return checkpoint.write(
        out,
        {key: value for key, value in config.items() if key != "untrained"},
        state,
        {each: (places.start / each).read_bytes() for each in words},
        name=name or f"{places.start.name}-{recipe.stage}",
        untrained=False,
        note=_note(recipe, places),
    )


def _note(recipe: Recipe, places: Places) -> str:
    digest = hashlib.sha256((places.out / STATE).read_bytes()).hexdigest()[:12]
    return f"Trained by `lamed-model train {recipe.stage}`; recipe and start have digest {digest}."


def _last(log: list[dict[str, float]]) -> dict[str, float]:
    return {"loss": log[-1]["loss"]} if log else {}
