"""What each part of the small checkpoint's training gives: the same steps, one part left out.

Knows the folders of a finished run of `demo`, and which stage is run again from where; how a stage
is run is `stages`' business, how it is measured `seeing`'s. What is done is kept, in `out/NAME`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch

from model import checkpoint
from model.data.corpus import scene
from model.data.corpus.scene import Pool
from model.data.shelf import Shelf
from model.errors import ModelError
from model.network.config import read_lamed

from . import recipe as recipes
from . import stages
from .progress import counted, tell
from .recipe import Recipe
from .seeing import FIRST_SEED, measure

RESULT, SEEN = "ablation.json", "seen.json"
SCHEMA: Final = 1
STEPS, PATIENTS = 200, 120
LOOK, TUNE = "look", "tune"
CPU: Final = torch.device("cpu")
TOLD: Final = """\
`lamed-model train ablate`: looking and tuning run again for few steps, each time with one part
changed or left out. The data, their order and the weights that two variants both begin with are the
same; one seed. Measured on {patients} phantoms of seeds {first} on, which neither training nor the
benchmark uses. AUC are means over the kinds of findings, 0.5 is a guess: `named` by the likeness of
the image token that is most like the word, `yes or no` by the answer, `side` by the answer to which
side it is on. `right` is the share of right answers; the more frequent one gives {usual:.2f}.
`report` is the loss per token of the true report, `blind` with the image withheld; looking teaches
none."""


@dataclass(frozen=True)
class Variant:
    """One stage run again: `start` and `vision` are stages of the run it is about.

    `changed` are keys of config.json. None of them changes the shape of a weight, pooling has none:
    so every variant of looking begins with the very same projector.
    """

    name: str
    stage: str
    start: str
    vision: str | None = None
    changed: Mapping[str, Any] = field(default_factory=dict)


VARIANTS: Final = (
    Variant("whole", LOOK, "segment", "contrastive"),
    Variant("without-contrastive", LOOK, "segment", "segment"),
    Variant("mean-pooled", LOOK, "segment", "contrastive", {"proj_pooling_type": "spatial"}),
    Variant("unpooled", LOOK, "segment", "contrastive", {"proj_pooling_size": 1}),
    Variant("aligned", TUNE, "align"),
    Variant("without-alignment", TUNE, "look"),
    Variant("without-looking-and-alignment", TUNE, "segment", "contrastive"),
)
PARTS: Final = ("segment", "contrastive", "look", "align")  # stages of a run that variants begin at


@dataclass(frozen=True)
class Plan:
    """The recipes of the two stages, how many patients are measured, and which variants are run."""

    look: Recipe
    tune: Recipe
    patients: int = PATIENTS
    only: tuple[str, ...] = ()

    @classmethod
    def of(cls, steps: int = STEPS, patients: int = PATIENTS, only: Sequence[str] = ()) -> "Plan":
        """Take the recipes that the small checkpoint was made by, all of `steps`."""
        if steps < 1:
            raise ModelError(f"steps must be 1 or more, not {steps}")
        look, tune = (
            replace(recipes.read(recipes.find(stage, name)), steps=steps)
            for stage, name in (("align", "small_look"), ("tune", "small"))
        )
        return cls(look, tune, patients, tuple(only))

    def __post_init__(self) -> None:
        names = [each.name for each in VARIANTS]
        for name in self.only:
            if name not in names:
                raise ModelError(f"a variant is one of {', '.join(names)}, not {name!r}")
        if self.patients < 1:
            raise ModelError(f"patients must be 1 or more, not {self.patients}")


def run(run: Path, out: Path, cache: Path, plan: Plan, *, device: str = "auto") -> dict[str, Any]:
    """Train and measure what is not done yet; write ``ablation.json``, and give it.

    Variants that the plan leaves out are told of where an earlier call has finished them.

    Raises
    ------
    ModelError
        The run has not come so far, or a variant in `out` is of other steps, another recipe or
        another run.
    """
    chosen = [each for each in VARIANTS if not plan.only or each.name in plan.only]
    for each in chosen:
        _check_run(run, each)
    told: list[dict[str, Any]] = []
    for each in VARIANTS:
        recipe = plan.look if each.stage == LOOK else plan.tune
        if each in chosen or (out / each.name / SEEN).exists():
            places = _places(run, out / each.name, cache, each)
            tell(f"{each.name}: {each.stage}, {recipe.steps} steps")
            trained = stages.run(recipe, places, device=device, name=f"ablation-{each.name}")
            seen = _measured(each.name, places, plan.patients, device)
            about = {"variant": each.name, "stage": each.stage, "steps": recipe.steps}
            told.append({**about, "sha256": trained["sha256"], "seen": seen})
    result = {"schema": SCHEMA, "run": _digests(run), "variants": told}
    Shelf(out).text(RESULT, json.dumps(result, indent=1, allow_nan=False) + "\n")
    return result


def section(path: Path, run: Path) -> Iterator[str]:
    """Tell a result of `run` in Markdown, for the card of the checkpoint that `run` made.

    Raises
    ------
    ModelError
        It is none, or of another run.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
        told, digests = found["variants"], found["run"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is no result of `train ablate`: {error!r}") from error
    now = _digests(run)
    for part, digest in digests.items():
        if now.get(part) != digest:
            raise ModelError(
                f"{path} is of a run whose {part} is {digest[:12]}, {run} has "
                f"{now.get(part, 'none')[:12]}"
            )
    yield "## What each part gives"
    yield ""
    yield from table(told)


def table(told: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Tell what every variant sees, in Markdown.

    Raises
    ------
    ModelError
        There is nothing to tell.
    """
    if not told:
        raise ModelError("expected a variant that was measured, got none")
    yield TOLD.format(**told[0]["seen"])
    yield ""
    yield "| stage | steps | variant | named | yes or no | right | side | report | blind |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for each in told:
        one = each["seen"]
        spoken = each["stage"] == TUNE
        numbers = [one["naming"], one["asked"], one["accuracy"], one["side"]]
        numbers += [one["report"], one["blind"]] if spoken else [None, None]
        cells = " | ".join("" if value is None else f"{value:.2f}" for value in numbers)
        name = each["variant"].replace("-", " ")
        yield f"| {each['stage']} | {each['steps']} | {name} | {cells} |"
    yield ""


def _check_run(run: Path, variant: Variant) -> None:
    for stage in (variant.start, variant.vision):
        if stage is not None and not _checkpoint(run, stage).is_dir():
            raise ModelError(
                f"{variant.name} begins with {_checkpoint(run, stage)}, which is not there: "
                "`lamed-model train demo` makes it"
            )


def _checkpoint(run: Path, stage: str) -> Path:
    return run / stage / stages.CHECKPOINT


def _places(run: Path, out: Path, cache: Path, variant: Variant) -> stages.Places:
    """Say where a variant reads and writes; a start with another config is written to `out`."""
    start = _checkpoint(run, variant.start)
    if variant.changed:
        start = _changed(start, out / "start", variant)
    vision = None if variant.vision is None else _checkpoint(run, variant.vision)
    prompts = run / "segment" if variant.stage == TUNE else None
    return stages.Places(start, out, vision, cache=cache, prompts=prompts)


def _changed(source: Path, out: Path, variant: Variant) -> Path:
    """Write a checkpoint of the same weights with another config, if it is not there."""
    config = checkpoint.read_config(source) | dict(variant.changed)
    card = checkpoint.read_card(source, config)
    if out.exists():
        kept = checkpoint.read_card(out, checkpoint.read_config(out)).sha256
        if kept != card.sha256:
            raise ModelError(
                f"{out} has the weights {kept[:12]}, expected {card.sha256[:12]} of {source}; "
                "choose another folder"
            )
        return out
    room = 2 * read_lamed(config).image_tokens  # as much text as image
    for key in ("max_position_embeddings", "original_max_position_embeddings"):
        config[key] = max(config.get(key, 0), room)
    network = checkpoint.network_from(source, config, CPU, torch.float32)
    words = {each: (source / each).read_bytes() for each in checkpoint.WORDS}
    checkpoint.write(
        out, config, network.state_dict(), words, name=card.name, untrained=card.untrained,
        note=f"The weights of {card.sha256[:12]} with another config, for `{variant.name}`.",
    )  # fmt: skip
    return out


def _measured(name: str, places: stages.Places, patients: int, device: str) -> dict[str, Any]:
    """Measure the trained variant, or tell what was measured of it."""
    folder = places.out / stages.CHECKPOINT
    lamed = checkpoint.load(folder, device)
    about = {
        "sha256": lamed.card.sha256, "corpus": scene.VERSION,
        "patients": patients, "first": FIRST_SEED,
    }  # fmt: skip
    path = places.out / SEEN
    if not path.exists() or json.loads(path.read_text("utf-8"))["about"] != about:
        pool = Pool(places.cache / "phantoms", lamed.network.config.vision.image_size)
        seeds = range(FIRST_SEED, FIRST_SEED + patients)
        seen = asdict(measure(lamed, pool, seeds, counted(f"{name}: patients")))
        Shelf(places.out).text(SEEN, json.dumps({"about": about, "seen": seen}, indent=1) + "\n")
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))["seen"]
    return found


def _digests(run: Path) -> dict[str, str]:
    """Tell which checkpoints a run has come to."""
    found = [(part, _checkpoint(run, part)) for part in PARTS]
    return {
        part: checkpoint.read_card(folder, checkpoint.read_config(folder)).sha256
        for part, folder in found
        if folder.is_dir()
    }
