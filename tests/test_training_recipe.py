"""Recipes: every key checked, and those that ship."""

from pathlib import Path

import pytest

from model.errors import ModelError
from model.training.recipe import RECIPES, Corpus, Lora, Published, find, read

PLAIN = """
stage = "tune"
steps = 10
batch = 2
learning_rate = 1e-3
train = ["vision"]
corpus = { phantoms = 5 }
"""


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_recipe_is_what_its_file_says(tmp_path: Path) -> None:
    found = read(written(tmp_path / "own.toml", PLAIN + "[lora]\nrank = 4\n"))
    assert (found.stage, found.steps, found.batch, found.learning_rate) == ("tune", 10, 2, 0.001)
    assert (found.train, found.corpus, found.lora) == (("vision",), Corpus(5), Lora(rank=4))
    assert (found.epochs, found.schedule, found.clip, found.sets) == (0, "cosine", 1.0, ())


@pytest.mark.parametrize(
    ("was", "becomes", "told"),
    [
        ("steps = 10", "stepz = 10", "recipe has no key 'stepz'; known are stage, batch"),
        ("batch = 2", "", "recipe must have batch"),
        ("batch = 2", 'batch = "2"', "recipe: batch must be int, not '2'"),
        ("batch = 2", "batch = true", "recipe: batch must be int, not True"),
        ("batch = 2", "batch = 2.0", "recipe: batch must be int, not 2.0"),
        ("batch = 2", "batch = 0", "batch must be 1 or more, not 0"),
        ("= 1e-3", "= nan", "recipe: learning_rate must be float, not nan"),
        ("= 1e-3", "= 0", "learning_rate must be above 0, not 0"),
        ("steps = 10", "steps = -1", "steps must be 0 or more, not -1"),
        ("steps = 10", "", "steps or epochs must be given, one of them"),
        ("steps = 10", "steps = 10\nepochs = 1", "steps or epochs must be given, one of them"),
        ('"tune"', '"fly"', "stage must be of segment, contrastive, align, tune, not 'fly'"),
        ('["vision"]', '"vision"', "train must be a list, not 'vision'"),
        ('["vision"]', '["eyes"]', "train must be of vision, projector, .*, not 'eyes'"),
        ('["vision"]', "[]", "train names no part"),
        ("{ phantoms = 5 }", "5", "corpus must be a table, not 5"),
        ("{ phantoms = 5 }", "{ scans = 5 }", "corpus must have phantoms"),
        ("{ phantoms = 5 }", "{ phantoms = 5, head = 1 }", "corpus has no key 'head'"),
        ("{ phantoms = 5 }", "{ phantoms = 0 }", "corpus: there must be a patient"),
        ("corpus = { phantoms = 5 }", "", "corpus or sets must be given, one of them"),
    ],
)
def test_what_does_not_fit_is_refused_by_file_and_key(
    tmp_path: Path, was: str, becomes: str, told: str
) -> None:
    assert was in PLAIN
    path = written(tmp_path / "own.toml", PLAIN.replace(was, becomes))
    with pytest.raises(ModelError, match=f"own.toml: {told}"):
        read(path)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('schedule = "zigzag"', "schedule must be of cosine, linear, .*, not 'zigzag'"),
        ('precision = "fp8"', "precision must be of fp32, bf16, not 'fp8'"),
        ('augment = "reference"', "augment is none or mild for the corpus, reference for sets"),
        ('tasks = ["dance"]', "tasks must be of caption, .*'dance'"),
        ("outlines = 2", "outlines is for segment; tune has no use of it"),
        ("scale = 2.0", "scale is for contrastive; tune has no use of it"),
        ("warmup = 3", "warmup must be a part of the steps, not 3"),
        ("masks = 2", "masks must be at most questions, 1, not 2"),
        ("save_every = 25", "save_every must be a multiple of log_every, 10, not 25"),
        ("lora = { rank = 0 }", "lora: rank and alpha must be 1 or more, not 0, 32"),
        ("lora = { dropout = 1.5 }", "lora: dropout must be 0 to 1, not 1.5"),
        ("gradient_checkpointing = 1", "gradient_checkpointing must be bool, not 1"),
        ("mask_share = 0", "mask_share must be above 0 and at most 1, not 0"),
        ("mask_share = 0.5", "mask_share is for masks of the corpus"),
        ("rates = 2", "rates must be a table, not 2"),
        ("rates = { vision = true }", "rates: vision must be float, not True"),
        ("rates = { vision = 0 }", "rates must be above 0, not {'vision': 0}"),
        ("rates = { segvol = 0.5 }", "rates must be of vision, not 'segvol'"),
        ("sets = [7]", "sets must be a table, not 7"),
        ("balance = 2.0", "balance must be 0 to 1, not 2.0"),
        ("naming = -1.0", "naming must be 0 or more, not -1.0"),
        ('kinds = "yes_no"', "kinds must be a list, not 'yes_no'"),
    ],
)
def test_what_is_added_and_does_not_fit_is_refused(tmp_path: Path, line: str, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        read(written(tmp_path / "own.toml", PLAIN + line + "\n"))


def test_the_language_model_learns_by_adapters_or_whole(tmp_path: Path) -> None:
    text = PLAIN.replace('"vision"', '"language"') + "lora = {}\n"
    with pytest.raises(ModelError, match="by lora or whole, not both"):
        read(written(tmp_path / "own.toml", text))


@pytest.mark.parametrize(
    ("stage", "kind", "told"),
    [
        ("segment", "seg", "segment learns from the corpus"),
        ("contrastive", "vqa-open", "contrastive learns from sets of kind cap"),
        ("contrastive", "poems", "sets: kind must be of cap, .*, not 'poems'"),
    ],
)
def test_a_stage_learns_from_what_it_can(tmp_path: Path, stage: str, kind: str, told: str) -> None:
    text = (
        PLAIN.replace('"tune"', f'"{stage}"')
        .replace('train = ["vision"]\n', "")
        .replace("corpus = { phantoms = 5 }", f'[[sets]]\nkind = "{kind}"\nfile = "x"')
    )
    with pytest.raises(ModelError, match=told):
        read(written(tmp_path / "own.toml", text))


@pytest.mark.parametrize(
    ("line", "name"), [("naming = 1.0", "naming"), ('kinds = ["yes_no"]', "kinds")]
)
def test_what_only_the_corpus_knows_is_refused_with_sets(
    tmp_path: Path, line: str, name: str
) -> None:
    text = PLAIN.replace("corpus = { phantoms = 5 }", '[[sets]]\nkind = "cap"\nfile = "x"')
    with pytest.raises(ModelError, match=f"{name} is for the corpus, sets know nothing of it"):
        read(written(tmp_path / "own.toml", f"{line}\n{text}"))


def test_what_is_no_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no recipe .*none.toml"):
        read(tmp_path / "none.toml")
    with pytest.raises(ModelError, match=r"own.toml is no recipe: .*line 1"):
        read(written(tmp_path / "own.toml", "stage = tune"))


def test_recipes_are_found_by_name_or_as_a_file() -> None:
    assert find("tune", "phi3") == RECIPES / "tune_phi3.toml"
    assert find("tune", "elsewhere/own.toml") == Path("elsewhere/own.toml")
    with pytest.raises(
        ModelError, match=r"recipe of tune must be llama2, phi3, small or a .toml file, not 'gpt'"
    ):
        find("tune", "gpt")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda each: each.stem)
def test_every_recipe_that_ships_is_whole_and_of_its_stage(path: Path) -> None:
    assert path.stem.startswith(f"{read(path).stage}_")


def test_the_papers_recipes_have_the_papers_numbers() -> None:
    """(epochs, batch of a process, learning rate, weight decay) as its scripts have them."""
    wanted = {
        "contrastive_m3d": (100, 32, 1e-4, 0.1),
        "align_llama2": (3, 16, 1e-4, 0.0),
        "align_phi3": (3, 16, 1e-4, 0.0),
        "tune_llama2": (4, 8, 5e-5, 0.0),
        "tune_phi3": (5, 8, 5e-5, 0.0),
    }
    for name, numbers in wanted.items():
        found = read(RECIPES / f"{name}.toml")
        assert (found.epochs, found.batch, found.learning_rate, found.weight_decay) == numbers
        assert (found.precision, found.schedule, found.warmup) == ("bf16", "cosine", 0.03)
    assert set(found.train) == {"vision", "projector", "embed", "head", "seg_projector", "segvol"}
    assert found.lora == Lora(16, 32, 0.05)
    assert set(read(RECIPES / "align_phi3.toml").train) == {"projector", "embed"}


def test_the_papers_tuning_learns_all_masks_which_the_references_no_longer_does() -> None:
    sets = read(RECIPES / "tune_phi3.toml").sets
    assert {Published("seg", f"M3D_Seg_npy/{code:04d}/{code:04d}.json") for code in range(25)} <= {
        *sets
    }
    assert Published("refseg", "M3D_RefSeg_npy/M3D_RefSeg.csv") in sets
    assert all(each.split == "train" for each in sets)
