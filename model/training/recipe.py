"""What a run of training is: a TOML file, checked to the last key.

Knows names and numbers; neither networks nor data. The paper's recipes and the small one lie in
`recipes/`.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from model.data.sample import Task
from model.errors import ModelError

from .lora import Lora

RECIPES: Final = Path(__file__).parent / "recipes"
STAGES: Final = ("segment", "contrastive", "align", "tune")
PARTS: Final = ("vision", "projector", "embed", "head", "language", "seg_projector", "segvol")
SETS: Final = ("cap", "vqa-closed", "vqa-open", "vqa-yes-no", "seg", "refseg")
SIMPLE: Final[Mapping[Any, tuple[type, ...]]] = {
    int: (int,),
    float: (int, float),
    str: (str,),
    bool: (bool,),
}
AUGMENTS: Final = ("none", "mild", "reference")


@dataclass(frozen=True)
class Corpus:
    """Patients of the anatomy corpus: how many phantoms, how many out of the real scan."""

    phantoms: int
    scans: int = 0
    first: int = 0


@dataclass(frozen=True)
class Published:
    """One data set in a published layout: what it is, and its file within the data folder."""

    kind: str
    file: str
    split: str = "train"


@dataclass(frozen=True)
class Recipe:
    """One stage.

    Parameters
    ----------
    train
        The parts that learn, of `PARTS`; for `segment` and `contrastive` all.
    lora
        Adapters on the language model, which itself rests.
    steps, epochs
        How long: one of them.
    questions, masks, outlines
        At most so many questions behind one image, so many of them with a mask; masks of an image
        in SegVol's own training.
    """

    stage: str
    batch: int
    learning_rate: float
    steps: int = 0
    epochs: int = 0
    accumulate: int = 1
    weight_decay: float = 0.0
    warmup: float = 0.03
    schedule: str = "cosine"
    clip: float = 1.0
    precision: str = "fp32"
    seed: int = 0
    workers: int = 0
    log_every: int = 10
    save_every: int = 200
    gradient_checkpointing: bool = False
    train: tuple[str, ...] = ()
    lora: Lora | None = None
    augment: str = "none"
    questions: int = 1
    masks: int = 0
    outlines: int = 3
    tasks: tuple[Task, ...] = ()
    scale: float | None = None
    corpus: Corpus | None = None
    sets: tuple[Published, ...] = ()
    network: Mapping[str, Any] = field(default_factory=dict)


def find(stage: str, name: str) -> Path:
    """Find a recipe by its name (``small``, ``m3d``, ``phi3``, ``llama2``) or as a file."""
    path = Path(name)
    if path.suffix == ".toml":
        return path
    known = sorted(each.stem for each in RECIPES.glob(f"{stage}_*.toml"))
    if f"{stage}_{name}" not in known:
        names = ", ".join(each.removeprefix(f"{stage}_") for each in known)
        raise ModelError(f"recipe of {stage} must be {names} or a .toml file, not {name!r}")
    return RECIPES / f"{stage}_{name}.toml"


def read(path: Path) -> Recipe:
    """Read and check a recipe.

    Raises
    ------
    ModelError
        The file cannot be read, a key is unknown, missing or wrong: names file, key and what came.
    """
    try:
        told = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"no recipe {path}") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ModelError(f"{path} is no recipe: {error}") from error
    try:
        recipe = _recipe(told)
        _check(recipe)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    return recipe


def _recipe(told: dict[str, Any]) -> Recipe:
    made = dict(told)
    for key, kind in (("corpus", Corpus), ("lora", Lora)):
        if key in made:
            made[key] = _made(kind, made[key], key)
    made["sets"] = tuple(_made(Published, each, "sets") for each in made.get("sets", []))
    made["train"] = tuple(made.get("train", ()))
    try:
        made["tasks"] = tuple(Task(each) for each in made.get("tasks", ()))
    except ValueError as error:
        raise ModelError(f"tasks must be of {', '.join(Task)}: {error}") from error
    recipe: Recipe = _made(Recipe, made, "recipe")
    return recipe


def _made(kind: type[Any], told: object, where: str) -> Any:  # noqa: ANN401 - of the kind that was asked for
    known: dict[str, Any] = {each.name: each.type for each in fields(kind)}
    if not isinstance(told, dict):
        raise ModelError(f"{where} must be a table, not {told!r}")
    foreign = sorted(set(told) - set(known))
    if foreign:
        raise ModelError(f"{where} has no key {foreign[0]!r}; known are {', '.join(known)}")
    for key, value in told.items():
        wanted: tuple[type, ...] = SIMPLE.get(known[key], ())
        if wanted and (
            not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted)
        ):
            raise ModelError(f"{where}: {key} must be {known[key].__name__}, not {value!r}")
    try:
        return kind(**told)
    except TypeError as error:
        raise ModelError(f"{where}: {error}") from error


def _check(recipe: Recipe) -> None:
    rules = (
        (recipe.stage in STAGES, f"stage must be of {', '.join(STAGES)}, not {recipe.stage!r}"),
        (
            set(recipe.train) <= set(PARTS),
            f"train must be of {', '.join(PARTS)}, not {recipe.train}",
        ),
        (bool(recipe.steps) != bool(recipe.epochs), "steps or epochs must be given, one of them"),
        (bool(recipe.corpus) != bool(recipe.sets), "corpus or sets must be given, one of them"),
        (
            recipe.augment in AUGMENTS,
            f"augment must be of {', '.join(AUGMENTS)}, not {recipe.augment!r}",
        ),
        (all(each.kind in SETS for each in recipe.sets), f"sets are of kind {', '.join(SETS)}"),
        (
            min(recipe.batch, recipe.accumulate, recipe.questions) > 0,
            "batch, accumulate and questions must be 1 or more",
        ),
        (recipe.learning_rate > 0, f"learning_rate must be above 0, not {recipe.learning_rate}"),
        (
            recipe.precision in ("fp32", "bf16"),
            f"precision must be fp32 or bf16, not {recipe.precision!r}",
        ),
        (
            not (recipe.lora and "language" in recipe.train),
            "the language model learns by lora or whole, not both",
        ),
        (recipe.stage in ("segment", "contrastive") or bool(recipe.train), "train names no part"),
        (recipe.stage != "segment" or bool(recipe.corpus), "segment learns from the corpus"),
    )
    for holds, expected in rules:
        if not holds:
            raise ModelError(expected)
