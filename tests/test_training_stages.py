"""Stages: what fits is trained and written whole, what does not is refused before a step."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import handful
import pytest
import torch

from model import checkpoint, clip, load
from model.data.sample import Task
from model.errors import ModelError
from model.training import stages
from model.training.curves import courses
from model.training.recipe import Corpus, Lora, Published


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two starts and the published sets of two patients; nothing in it is changed."""
    folder = tmp_path_factory.mktemp("root")
    handful.lamed(folder / "lamed")
    handful.clip(folder / "clip")
    handful.data(folder / "data", handful.scenes((1, 3)))
    return folder


def run(root: Path, out: Path, stage: str, start: str = "lamed", **given: Any) -> dict[str, Any]:
    vision = given.pop("vision", None)
    places = stages.Places(root / start, out, vision, root / "data", root / "pool")
    return stages.run(handful.recipe(stage, **given), places, device="cpu")


def test_every_published_set_goes_through_a_step_of_tuning(root: Path, tmp_path: Path) -> None:
    """Two patients, each in Cap and VQA, in Seg and in RefSeg: six images, all their questions."""
    sets = (*handful.SETS, handful.SEG, handful.REFSEG)
    given = {"questions": 99, "masks": 9, "batch": 6, "steps": 1, "save_every": 1}
    extra = {"augment": "reference", "lora": Lora(), "gradient_checkpointing": True}
    told = run(root, tmp_path, "tune", sets=sets, **given, **extra)
    tuned = load(told["folder"])
    assert tuned.card.sha256 == told["sha256"]
    assert not tuned.card.untrained
    state = json.loads((tmp_path / "checkpoint-1/trainer_state.json").read_text())
    assert {"loss", "language", "dice", "bce", "grad_norm"} <= set(state["log_history"][0])


def test_only_the_tasks_of_the_recipe_are_read(root: Path, tmp_path: Path) -> None:
    places = stages.Places(root / "lamed", tmp_path, data=root / "data")
    sets = (*handful.SETS, handful.SEG, handful.REFSEG)
    every = stages.read_samples(handful.recipe("tune", sets=sets), places)
    wanted = (Task.REC, Task.CAPTION)
    some = stages.read_samples(handful.recipe("tune", sets=sets, tasks=wanted), places)
    assert {each.task for each in every} == set(Task)
    assert some == [each for each in every if each.task in wanted]
    with pytest.raises(ModelError, match="holds no sample of the recipe's sets and tasks"):
        stages.read_samples(handful.recipe("tune", sets=sets[:1], tasks=(Task.REG,)), places)


def test_epochs_are_as_many_steps_as_there_are_examples_for() -> None:
    recipe = handful.recipe("align", steps=0, epochs=3, batch=4, accumulate=2)
    assert [stages.steps_of(recipe, 100, world) for world in (1, 2, 8)] == [38, 19, 5]
    assert stages.steps_of(replace(recipe, epochs=0, steps=7), 100, 8) == 7


@pytest.mark.parametrize(
    ("stage", "start", "given", "told"),
    [
        ("contrastive", "lamed", {}, "contrastive trains an M3D-CLIP"),
        ("align", "clip", {}, "align trains an M3D-LaMed"),
        ("segment", "clip", {}, "segment trains a network with a segmentation module"),
        ("tune", "nowhere", {}, "no folder .*nowhere"),
        ("tune", "lamed", {"steps": 0}, "steps or epochs must be given"),
        ("tune", "lamed", {"sets": (Published("cap", "none.json"),)}, "none.json: expected a list"),
    ],
)
def test_a_stage_refuses_what_it_cannot_train(
    root: Path, tmp_path: Path, stage: str, start: str, given: dict[str, Any], told: str
) -> None:
    with pytest.raises(ModelError, match=told):
        run(root, tmp_path, stage, start, **given)
    assert not (tmp_path / "checkpoint").exists()


def test_masks_want_a_network_that_can_draw(tmp_path: Path) -> None:
    handful.lamed(tmp_path / "blind", segmentation_module=None)
    with pytest.raises(ModelError, match="the network cannot draw: masks must be 0, not 2"):
        run(tmp_path, tmp_path / "out", "tune", "blind", train=("vision",))


def test_sets_want_a_folder(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="--data must name the folder of the prepared sets"):
        stages.run(handful.recipe("tune"), stages.Places(root / "lamed", tmp_path), device="cpu")


def test_a_folder_with_a_run_of_another_recipe_or_start_is_refused(
    root: Path, tmp_path: Path
) -> None:
    out, recipe = tmp_path / "out", handful.recipe("align")
    first = run(root, out, "align")
    again = run(root, out, "align")
    assert again == {key: value for key, value in first.items() if key not in ("steps", "loss")}
    with pytest.raises(ModelError, match=r"another recipe or start: expected batch 2, got 1"):
        run(root, out, "align", batch=1)
    other = handful.lamed(tmp_path / "other", num_hidden_layers=1)
    with pytest.raises(ModelError, match=r"another recipe or start: expected start '.*', got '"):
        stages.run(recipe, stages.Places(other, out, data=root / "data"), device="cpu")


def test_the_vision_of_another_checkpoint_is_taken_over(root: Path) -> None:
    def network(name: str) -> Any:
        config = checkpoint.read_config(root / name)
        return checkpoint.network_from(root / name, config, torch.device("cpu"), torch.float32)

    lamed, matched = network("lamed"), network("clip")
    segvol = network("lamed").model.seg_module.image_encoder.state_dict()
    token = matched.vision_encoder.cls_token.clone()
    stages.take_vision(matched, root / "lamed")
    taken = matched.vision_encoder.state_dict()
    assert all(torch.equal(taken[name], value) for name, value in segvol.items())
    assert torch.equal(matched.vision_encoder.cls_token, token)
    stages.take_vision(lamed, root / "clip")
    own = network("clip").vision_encoder.state_dict()
    taken = lamed.model.vision_tower.vision_tower.state_dict()
    assert taken.keys() == own.keys()
    assert all(torch.equal(taken[name], value) for name, value in own.items())


def test_vision_of_another_shape_or_none_is_refused(root: Path, tmp_path: Path) -> None:
    large = handful.lamed(tmp_path / "large", image_size=[32, 64, 64])
    blind = handful.lamed(tmp_path / "blind", segmentation_module=None)
    network = clip.load(root / "clip").network
    with pytest.raises(ModelError, match="large: its vision encoder is another"):
        stages.take_vision(network, large)
    with pytest.raises(ModelError, match="blind has no vision encoder to take over"):
        stages.take_vision(network, blind)


def test_the_corpus_too_goes_through_every_stage(root: Path, tmp_path: Path) -> None:
    corpus = {"corpus": Corpus(2), "sets": (), "steps": 1, "save_every": 1, "augment": "mild"}
    for stage, start in (("contrastive", "clip"), ("align", "lamed"), ("tune", "lamed")):
        told = run(root, tmp_path / stage, stage, start, **corpus)
        assert checkpoint.read_config(Path(told["folder"]))["model_type"] in (
            "m3d_clip",
            "lamed_phi3",
        )
        assert told["loss"] > 0


def test_image_tokens_are_named_and_what_names_them_is_left_behind(
    root: Path, tmp_path: Path
) -> None:
    given = {
        "corpus": Corpus(2), "sets": (), "augment": "mild", "kinds": ("yes_no",), "questions": 4,
        "naming": 1.0, "train": ("vision", "projector", "embed", "head", "language"),
    }  # fmt: skip
    told = run(root, tmp_path / "look", "align", "lamed", **given)
    assert json.loads((tmp_path / "look/recipe.json").read_text())["naming"] == 1.0
    (course,) = courses(tmp_path)
    assert set(course.curves) >= {"language", "naming"}
    assert load(Path(told["folder"]))
    linear = handful.lamed(tmp_path / "linear", mm_projector_type="linear", proj_places=0.0)
    places = stages.Places(linear, tmp_path / "no", cache=root / "pool")
    with pytest.raises(ModelError, match=r"naming is for tokens of blocks, not for .*linear"):
        stages.run(handful.recipe("align", **given), places, device="cpu")


def test_what_is_added_to_a_network_begins_by_the_seed(root: Path, tmp_path: Path) -> None:
    """SegVol's own training adds a table and a Linear, tuning adds adapters."""
    torch.manual_seed(1)
    first = run(root, tmp_path / "a", "tune", lora=Lora(), steps=1, save_every=1)
    torch.manual_seed(2)
    second = run(root, tmp_path / "b", "tune", lora=Lora(), steps=1, save_every=1)
    assert first["sha256"] == second["sha256"]
