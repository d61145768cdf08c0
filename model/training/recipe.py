"""What a run of training is: a TOML file, checked to the last key.

Knows names and numbers; neither networks nor data. The paper's recipes and the small one lie in
`recipes/`.
"""

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from math import isfinite
from pathlib import Path
from types import UnionType
from typing import Any, Final, TypeVar, get_args

from model.data.sample import Task
from model.errors import ModelError

RECIPES: Final = Path(__file__).parent / "recipes"
STAGES: Final = ("segment", "contrastive", "align", "tune")
SPEAKING: Final = ("align", "tune")  # the stages that ask questions
PARTS: Final = ("vision", "projector", "embed", "head", "language", "seg_projector", "segvol")
SETS: Final = ("cap", "vqa-closed", "vqa-open", "vqa-yes-no", "seg", "refseg")
MASKED: Final = ("seg", "refseg")
AUGMENTS: Final = ("none", "mild", "reference")
SCHEDULES: Final = ("cosine", "linear", "constant", "constant_with_warmup")
PRECISIONS: Final = ("fp32", "bf16")
# Keys that only some stages look at: elsewhere they would be ignored without a word.
ONLY: Final = {
    "train": SPEAKING,
    "lora": SPEAKING,
    "questions": SPEAKING,
    "masks": SPEAKING,
    "mask_share": SPEAKING,
    "rates": SPEAKING,
    "tasks": SPEAKING,
    "kinds": SPEAKING,
    "surveys": SPEAKING,
    "naming": SPEAKING,
    "balance": SPEAKING,
    "gradient_checkpointing": SPEAKING,
    "outlines": ("segment",),
    "scale": ("contrastive",),
}
Table = TypeVar("Table")
Rule = tuple[bool, str]


@dataclass(frozen=True)
class Lora:
    """Rank, alpha and dropout as in the paper's sample script (16, 32, 0.05)."""

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05


@dataclass(frozen=True)
class Corpus:
    """Patients of the anatomy corpus: how many phantoms, how many out of the real scan."""

    phantoms: int
    scans: int = 0
    first: int = 0


@dataclass(frozen=True)
class Published:
    """One data set in a published layout: what it is, and its file within the data folder.

    The paths in the lists of M3D-Cap and M3D-VQA begin in the data folder, those of M3D-Seg and
    M3D-RefSeg in the set's own.
    """

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
        How long: one of them. A step of the optimiser takes `batch` x `accumulate` examples in
        every process.
    questions, masks, outlines
        At most so many questions behind one image, so many of them with a mask; masks of an image
        in SegVol's own training.
    mask_share
        In how many of the corpus' images anything is outlined: drawing takes longer than speaking.
    rates
        Factors of the learning rate for some of the parts in `train`; 1 for the others.
    tasks
        Ask these only; nothing: all that there is.
    kinds
        Of the corpus' questions, ask only these: ``yes_no``, ``topic`` and so on.
    surveys
        How often, besides the questions, all kinds of findings of the corpus are gone through.
    naming
        Weight of the loss that names what each image token shows; the corpus knows.
    balance
        0: every token counts alike, as published, so that a report outweighs many a yes or no;
        1: every answer does, however long; 0.5: an answer counts by the root of its length.
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
    mask_share: float = 1.0
    rates: Mapping[str, float] = field(default_factory=dict)
    outlines: int = 3
    tasks: tuple[Task, ...] = ()
    kinds: tuple[str, ...] = ()
    surveys: int = 0
    naming: float = 0.0
    balance: float = 0.0
    scale: float | None = None
    corpus: Corpus | None = None
    sets: tuple[Published, ...] = ()


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
        check(recipe)
        _check_keys(recipe, told)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    return recipe


def check(recipe: Recipe) -> None:
    """Raise ModelError for the first value that is out of its range or fits no other."""
    for holds, expected in (*_ranges(recipe), *_names(recipe), *_fits(recipe)):
        if not holds:
            raise ModelError(expected)


def _recipe(told: dict[str, Any]) -> Recipe:
    made = dict(told)
    for key, kind in (("corpus", Corpus), ("lora", Lora)):
        if key in made:
            made[key] = _made(kind, made[key], key)
    made["sets"] = tuple(_made(Published, each, "sets") for each in _list(made, "sets"))
    made["rates"] = _rates(made.get("rates", {}))
    made["train"] = tuple(_list(made, "train"))
    made["kinds"] = tuple(_list(made, "kinds"))
    try:
        made["tasks"] = tuple(Task(each) for each in _list(made, "tasks"))
    except ValueError as error:
        raise ModelError(f"tasks must be of {', '.join(Task)}: {error}") from error
    return _made(Recipe, made, "recipe")


def _rates(told: object) -> dict[str, float]:
    if not isinstance(told, dict):
        raise ModelError(f"rates must be a table, not {told!r}")
    for part, factor in told.items():
        _check_type(f"rates: {part}", factor, float)
    return told


def _list(told: dict[str, Any], key: str) -> list[Any]:
    found = told.get(key, [])
    if not isinstance(found, list):
        raise ModelError(f"{key} must be a list, not {found!r}")
    return found


def _made(kind: type[Table], told: object, where: str) -> Table:
    """Make a table of its keys: every one known and of its type, none missing."""
    known = {each.name: each for each in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(told, dict):
        raise ModelError(f"{where} must be a table, not {told!r}")
    for key, value in told.items():
        if key not in known:
            raise ModelError(f"{where} has no key {key!r}; known are {', '.join(known)}")
        _check_type(f"{where}: {key}", value, known[key].type)
    missing = [name for name, each in known.items() if each.default is MISSING and name not in told]
    if missing:
        raise ModelError(f"{where} must have {', '.join(missing)}")
    return kind(**told)


def _check_type(name: str, value: object, kind: Any) -> None:  # noqa: ANN401 - as dataclasses say
    known = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    plain = next((each for each in known if each in (int, float, str, bool)), None)
    if plain is None:
        return
    allowed = (int, float) if plain is float else plain
    right = isinstance(value, allowed) and isinstance(value, bool) is (plain is bool)
    if not right or (isinstance(value, float) and not isfinite(value)):
        raise ModelError(f"{name} must be {plain.__name__}, not {value!r}")


def _check_keys(recipe: Recipe, told: Iterable[str]) -> None:
    for key in told:
        stages = ONLY.get(key, STAGES)
        if recipe.stage not in stages:
            raise ModelError(
                f"{key} is for {' and '.join(stages)}; {recipe.stage} has no use of it"
            )


def _ranges(recipe: Recipe) -> Iterator[Rule]:
    for name in ("batch", "accumulate", "questions", "log_every", "save_every", "outlines"):
        value = getattr(recipe, name)
        yield value >= 1, f"{name} must be 1 or more, not {value}"
    for name in (
        "steps",
        "epochs",
        "weight_decay",
        "clip",
        "seed",
        "workers",
        "masks",
        "surveys",
        "naming",
    ):
        value = getattr(recipe, name)
        yield value >= 0, f"{name} must be 0 or more, not {value}"
    share, rates = recipe.mask_share, recipe.rates.values()
    yield 0 < share <= 1, f"mask_share must be above 0 and at most 1, not {share}"
    yield all(each > 0 for each in rates), f"rates must be above 0, not {recipe.rates}"
    balance = recipe.balance
    yield 0 <= balance <= 1, f"balance must be 0 to 1, not {balance}"
    rate, scale = recipe.learning_rate, recipe.scale
    yield rate > 0, f"learning_rate must be above 0, not {rate}"
    yield 0 <= recipe.warmup < 1, f"warmup must be a part of the steps, not {recipe.warmup}"
    yield scale is None or scale > 0, f"scale must be above 0, not {scale}"
    if recipe.lora:
        rank, alpha, dropout = recipe.lora.rank, recipe.lora.alpha, recipe.lora.dropout
        yield min(rank, alpha) >= 1, f"lora: rank and alpha must be 1 or more, not {rank}, {alpha}"
        yield 0 <= dropout < 1, f"lora: dropout must be 0 to 1, not {dropout}"
    if recipe.corpus:
        counts = (recipe.corpus.phantoms, recipe.corpus.scans, recipe.corpus.first)
        yield min(counts) >= 0, f"corpus: numbers must be 0 or more, not {counts}"
        yield sum(counts[:2]) > 0, "corpus: there must be a patient"


def _names(recipe: Recipe) -> Iterator[Rule]:
    for name, value, known in (
        ("stage", recipe.stage, STAGES),
        ("augment", recipe.augment, AUGMENTS),
        ("schedule", recipe.schedule, SCHEDULES),
        ("precision", recipe.precision, PRECISIONS),
        *(("train", each, PARTS) for each in recipe.train),
        *(("rates", each, recipe.train) for each in recipe.rates),
        *(("sets: kind", each.kind, SETS) for each in recipe.sets),
    ):
        yield value in known, f"{name} must be of {', '.join(known)}, not {value!r}"


def _fits(recipe: Recipe) -> Iterator[Rule]:
    stage, kinds = recipe.stage, {each.kind for each in recipe.sets}
    yield bool(recipe.steps) != bool(recipe.epochs), "steps or epochs must be given, one of them"
    yield bool(recipe.corpus) != bool(recipe.sets), "corpus or sets must be given, one of them"
    yield (
        recipe.save_every % recipe.log_every == 0,  # or the line across a kill would be another
        f"save_every must be a multiple of log_every, {recipe.log_every}, not {recipe.save_every}",
    )
    yield stage not in SPEAKING or bool(recipe.train or recipe.lora), "train names no part"
    yield (
        not (recipe.lora and "language" in recipe.train),
        "the language model learns by lora or whole, not both",
    )
    yield (
        recipe.masks <= recipe.questions,
        f"masks must be at most questions, {recipe.questions}, not {recipe.masks}",
    )
    yield (
        recipe.mask_share == 1 or bool(recipe.corpus and recipe.masks),
        "mask_share is for masks of the corpus",
    )
    for name in ("naming", "kinds", "surveys"):
        told = bool(getattr(recipe, name))
        yield not told or bool(recipe.corpus), f"{name} is for the corpus, sets know nothing of it"
    yield stage != "segment" or bool(recipe.corpus), "segment learns from the corpus"
    yield stage != "contrastive" or kinds <= {"cap"}, "contrastive learns from sets of kind cap"
    yield (
        recipe.augment != ("reference" if recipe.corpus else "mild"),
        f"augment is none or mild for the corpus, reference for sets, not {recipe.augment!r}",
    )
