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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import set_seed

from model import checkpoint
from model.clip import Words
from model.data import cap, refseg, seg, vqa
from model.data.corpus.scan import Scan
from model.data.corpus.scene import Pool
from model.data.sample import Sample
from model.data.tokens import Layout
from model.errors import ModelError
from model.network import M3DCLIP, Lamed
from model.network.config import LamedConfig, Size
from model.tokenizer import read_tokenizer

from . import lora, prompts
from .augment import Augment
from .batches import Outlines, Pairs, Questions
from .examples import Patients, Samples, Source, Stream, names, weights
from .objectives import FINER, Matching, Naming, Segmenting, Speaking
from .recipe import Published, Recipe, check
from .running import Run, forget_states, last_state, train

CPU: Final = torch.device("cpu")
OUTLINED: Final = 24  # questions behind an image while SegVol's prompts are fitted
DRAWING: Final = ("segvol", "seg_projector")
MODULES: Final = {
    "vision": ("model.vision_tower",),
    "projector": ("model.mm_projector",),
    "embed": ("model.embed_tokens",),
    "head": ("lm_head",),
    "language": ("model.layers", "model.norm"),
    "segvol": ("model.seg_module",),
    "seg_projector": ("model.seg_projector",),
}
STATE, CHECKPOINT = "recipe.json", "checkpoint"  # in the folder of a run

log = logging.getLogger(__name__)


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
    check(recipe)
    _remember(recipe, places)
    config = checkpoint.read_config(places.start)
    if (places.out / CHECKPOINT).exists():
        return _done(places)
    network, objective, source, collate = _begun(recipe, places)
    world = int(os.environ.get("WORLD_SIZE", "1"))  # the launcher's word
    how = _how(recipe, steps_of(recipe, len(source), world), device)
    stream = Stream(source, how.examples * world, recipe.seed)
    spread = dict[str, Tensor]()
    log = train(objective.train(), stream, collate, how, places.out, spread.update)
    told = {"steps": how.steps, **_last(log)}
    if int(os.environ.get("RANK", "0")):  # the first process writes for all
        return told
    if spread:  # what its parts are left in is of use to nobody else
        network, objective, *_ = _begun(recipe, places)
        objective.load_state_dict(spread)
    if isinstance(objective, Segmenting):
        prompts.save(objective.prompts.weight, places.out)
    _write(recipe, network.eval().to(CPU), config, places, name)
    forget_states(places.out)
    return told | _done(places)


def _begun(recipe: Recipe, places: Places) -> tuple[Lamed | M3DCLIP, nn.Module, Source, Any]:
    """Give the network as it begins, its objective, and where its batches come from."""
    set_seed(recipe.seed)  # what is added to the network begins at random
    config = checkpoint.read_config(places.start)
    network = checkpoint.network_from(places.start, config, CPU, torch.float32)
    if places.vision is not None:
        take_vision(network, places.vision)
    stage = {"segment": _segment, "contrastive": _contrastive}.get(recipe.stage, _speak)
    return network, *stage(recipe, network, places)


def steps_of(recipe: Recipe, examples: int, world: int) -> int:
    """Tell how many steps a recipe takes with so many examples in so many processes."""
    each = recipe.batch * recipe.accumulate * world
    return recipe.steps or -(-recipe.epochs * examples // each)


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
    wrong = sorted({*missing, *foreign} - {"cls_token"})
    if wrong:
        raise ModelError(f"{folder}: its vision encoder is another: {wrong[0]}")


def freeze(network: Lamed, recipe: Recipe) -> None:
    """Let only the recipe's parts learn."""
    if recipe.lora is not None:
        lora.inject(network, recipe.lora)
    for name, each in network.named_parameters():
        each.requires_grad_(recipe.lora is not None and "lora_" in name)
    for part in recipe.train:
        if part in DRAWING and network.config.segvol is None:
            raise ModelError(f"the network has no {part} to train")
        for name in MODULES[part]:
            network.get_submodule(name).requires_grad_(requires_grad=True)


def _segment(
    recipe: Recipe, network: Lamed | M3DCLIP, places: Places
) -> tuple[nn.Module, Source, Any]:
    if not isinstance(network, Lamed) or network.config.segvol is None:
        raise ModelError("segment trains a network with a segmentation module")
    encoder = network.config.segvol.encoder
    step = tuple(each // FINER for each in encoder.patch_size)
    if any(each % FINER for each in encoder.patch_size):
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
        _patients(recipe, places, grid)
        if recipe.corpus
        else Samples(read_samples(recipe, places), augment=Augment(recipe.augment), grid=grid)
    )
    return Matching(network), source, Pairs(Words.read(places.start))


def _speak(
    recipe: Recipe, network: Lamed | M3DCLIP, places: Places
) -> tuple[nn.Module, Source, Any]:
    if not isinstance(network, Lamed):
        raise ModelError(f"{recipe.stage} trains an M3D-LaMed")
    if recipe.masks and network.config.segvol is None:
        raise ModelError(f"the network cannot draw: masks must be 0, not {recipe.masks}")
    freeze(network, recipe)
    if recipe.gradient_checkpointing:
        # transformers gave it another name within version 5.
        model = network.model
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)()
    words, layout = read_tokenizer(places.start), Layout.of(network.config)
    if recipe.corpus:
        source: Source = replace(
            _patients(recipe, places, network.config.vision.image_size),
            tokenizer=words, layout=layout, outlines=0,
            blocks=_blocks(network.config) if recipe.naming else None,
        )  # fmt: skip
    else:
        source = Samples(
            read_samples(recipe, places), words, layout, recipe.questions, Augment(recipe.augment),
            recipe.masks, network.config.vision.image_size,
        )  # fmt: skip
    collate = Questions(layout, network.config.seg_token_id)
    if places.prompts is not None and last_state(places.out) is None:
        _fit_prompts(network, source, collate, places.prompts)
    naming = Naming([words.encode_within(each) for each in names()]) if recipe.naming else None
    return Speaking(network, naming, recipe.naming, recipe.balance), source, collate


def _blocks(config: LamedConfig) -> Size:
    """Tell how many voxels an image token sees along each axis.

    Raises
    ------
    ModelError
        It sees no block of them.
    """
    shape = config.projector
    if shape.kind != "spp" or shape.pooling == "sequence":
        raise ModelError(f"naming is for tokens of blocks, not for a projector of {shape}")
    z, y, x = (each * shape.window for each in config.vision.patch_size)
    return z, y, x


def _fit_prompts(network: Lamed, source: Source, collate: Questions, table: Path) -> None:
    if not isinstance(source, Patients):
        raise ModelError("the words are fitted to SegVol's prompts on the corpus, not on sets")
    asked = replace(source, masks=OUTLINED, mask_share=1.0, questions=OUTLINED)
    log.info("prompts.fitted", extra={"cosine": prompts.fit(network, asked, collate, table)})


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
        mask_share=recipe.mask_share,
        outlines=recipe.outlines if recipe.stage == "segment" else 0,
        tasks=frozenset(recipe.tasks) or None,
        kinds=frozenset(recipe.kinds) or None,
        surveys=recipe.surveys,
    )


def read_samples(recipe: Recipe, places: Places) -> list[Sample]:
    """Read the samples of the recipe's sets and tasks."""
    if places.data is None:
        raise ModelError("--data must name the folder of the prepared sets")
    found = [each for one in recipe.sets for each in _read(one, places.data, recipe.seed)]
    if recipe.tasks:
        found = [each for each in found if each.task in recipe.tasks]
    if not found:
        raise ModelError(f"{places.data} holds no sample of the recipe's sets and tasks")
    return found


def _read(one: Published, data: Path, seed: int) -> list[Sample]:
    path = data / one.file
    if one.kind == "cap":
        return cap.read(path, one.split, root=data, seed=seed)
    if one.kind == "seg":
        return seg.read(path.parent.parent, path.stem, one.split, seed=seed)
    if one.kind == "refseg":
        return refseg.read(path, root=path.parent)
    tables = {
        "vqa-closed": vqa.read_closed,
        "vqa-open": vqa.read_open,
        "vqa-yes-no": vqa.read_yes_no,
    }
    return tables[one.kind](path, root=data)


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
        rates={
            f"network.{module}": factor
            for part, factor in recipe.rates.items()
            for module in MODULES[part]
        },
        device=device,
    )


def _remember(recipe: Recipe, places: Places) -> None:
    """Refuse to go on with a run of another recipe."""
    told = asdict(recipe) | {"start": _digest(places.start)}
    if places.vision is not None:
        told |= {"vision": _digest(places.vision)}
    if places.prompts is not None:
        told |= {"prompts": prompts.digest(places.prompts)}
    text, path = json.dumps(told, sort_keys=True, default=str), places.out / STATE
    if path.exists():
        before, now = json.loads(path.read_text("utf-8")), json.loads(text)
        # Keys of another version are not compared.
        changed = [key for key in sorted({*before} & {*now}) if before[key] != now[key]]
        if changed:
            raise ModelError(
                f"{places.out} holds a run of another recipe or start: "
                f"expected {changed[0]} {before[changed[0]]!r}, got {now[changed[0]]!r}; "
                "choose another folder"
            )
        return
    places.out.mkdir(parents=True, exist_ok=True)
    # Under another name first: several processes may begin at once, and each may be killed.
    own = path.with_suffix(f".{os.getpid()}")
    own.write_text(text, "utf-8")
    own.replace(path)


def _digest(folder: Path) -> str:
    return checkpoint.read_card(folder, checkpoint.read_config(folder)).sha256


def _write(
    recipe: Recipe, network: Lamed | M3DCLIP, config: dict[str, Any], places: Places, name: str
) -> None:
    """Write the network in our layout: adapters merged, words as at the start."""
    if isinstance(network, Lamed) and recipe.lora is not None:
        lora.merge(network)
    words = checkpoint.WORDS if isinstance(network, Lamed) else checkpoint.CLIP_WORDS
    # Who has not learnt to answer and to draw stays marked: the last stage takes the mark away.
    card = checkpoint.read_card(places.start, config)
    begun = card.name.removesuffix("-untrained")
    checkpoint.write(
        places.out / CHECKPOINT,
        config,
        network.state_dict(),
        {each: (places.start / each).read_bytes() for each in words},
        name=name or f"{begun}-{recipe.stage}",
        untrained=card.untrained and recipe.stage in ("segment", "align"),
        note=_note(recipe, places),
    )


def _done(places: Places) -> dict[str, Any]:
    folder = places.out / CHECKPOINT
    card = checkpoint.read_card(folder, checkpoint.read_config(folder))
    return {"folder": str(folder), **vars(card)}


def _note(recipe: Recipe, places: Places) -> str:
    digest = hashlib.sha256((places.out / STATE).read_bytes()).hexdigest()[:12]
    return f"Trained by `lamed-model train {recipe.stage}`; recipe and start have digest {digest}."


def _last(log: list[dict[str, float]]) -> dict[str, float]:
    return {"loss": log[-1]["loss"]} if log else {}
