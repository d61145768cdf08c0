"""What each part of the training gives: every variant from its own start, and none run twice."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import handful
import pytest
import torch

from model import checkpoint, load
from model.errors import ModelError
from model.network.config import read_lamed
from model.training import ablation, prompts
from model.training.ablation import VARIANTS, Plan
from model.training.examples import CLASSES
from model.training.recipe import Corpus
from model.training.shipping import ship

CORPUS: dict[str, Any] = {
    "corpus": Corpus(2), "sets": (), "augment": "mild", "steps": 1, "save_every": 1, "batch": 1,
    "questions": 4, "naming": 1.0,
}  # fmt: skip
LOOKING = {"kinds": ("yes_no",), "train": ("vision", "projector", "embed", "head", "language")}
PLAN = Plan(
    handful.recipe("align", **CORPUS, **LOOKING), handful.recipe("tune", **CORPUS, masks=1), 3
)


@dataclass(frozen=True)
class Done:
    run: Path
    out: Path
    cache: Path
    told: dict[str, Any]
    said: str

    def again(self, plan: Plan = PLAN, *, run: Path | None = None) -> dict[str, Any]:
        return ablation.run(run or self.run, self.out, self.cache, plan, device="cpu")


def finished(run: Path) -> Path:
    """Write what a run of `demo` leaves, untrained; no two parts are the same network."""
    whole = handful.lamed(run / "segment/checkpoint")
    handful.clip(run / "contrastive/checkpoint")
    prompts.save(torch.randn(CLASSES, handful.WIDTH), run / "segment")
    for part, factor in (("look", 1.01), ("align", 1.02)):
        config = checkpoint.read_config(whole)
        network = checkpoint.network_from(whole, config, torch.device("cpu"), torch.float32)
        state = {name: each * factor for name, each in network.state_dict().items()}
        words = {each: (whole / each).read_bytes() for each in checkpoint.WORDS}
        folder = run / part / "checkpoint"
        checkpoint.write(folder, config, state, words, name=part, untrained=True)
    return run


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """All variants, once; prompts are fitted to fewer images than a real network wants."""
    root = tmp_path_factory.mktemp("ablation")
    run, lines = finished(root / "run"), list[str]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompts, "IMAGES", 2)
        patch.setattr(prompts, "STEPS", 2)
        patch.setattr(ablation, "tell", lines.append)
        told = ablation.run(run, root / "out", root / "cache", PLAN, device="cpu")
    return Done(run, root / "out", root / "cache", told, "\n".join(lines))


def test_every_variant_is_trained_from_its_start_measured_and_told(done: Done) -> None:
    assert json.loads((done.out / "ablation.json").read_text()) == done.told
    assert [each["variant"] for each in done.told["variants"]] == [each.name for each in VARIANTS]
    assert len({each["sha256"] for each in done.told["variants"]}) == len(VARIANTS)
    for each in done.told["variants"]:
        assert load(done.out / each["variant"] / "checkpoint").card.sha256 == each["sha256"]
        assert (each["steps"], each["seen"]["patients"], each["seen"]["first"]) == (1, 3, 900_000)
        assert f"{each['variant']}: {each['stage']}, 1 steps" in done.said
    starts = {
        name: json.loads((done.out / name / "recipe.json").read_text())
        for name in (each.name for each in VARIANTS)
    }
    for each in VARIANTS:
        told = starts[each.name]
        assert told["start"] == done.told["run"][each.start]
        assert told.get("vision") == (each.vision and done.told["run"][each.vision])
        assert ("prompts" in told) is (each.stage == "tune")


def test_pooling_is_changed_and_no_weight_with_it(done: Done) -> None:
    def config(name: str) -> Any:
        return read_lamed(checkpoint.read_config(done.out / name / "checkpoint"))

    whole, mean, none = config("whole"), config("mean-pooled"), config("unpooled")
    assert (whole.projector.pooling, mean.projector.pooling) == ("max", "spatial")
    assert (whole.image_tokens, mean.image_tokens, none.image_tokens) == (8, 8, 64)
    for name in ("mean-pooled", "unpooled"):
        folder = done.out / name / "start"
        card = checkpoint.read_card(folder, checkpoint.read_config(folder))
        assert card.sha256 == done.told["run"]["segment"]
        assert card.untrained


def test_an_image_of_many_tokens_leaves_room_for_as_much_text(done: Done, tmp_path: Path) -> None:
    variant = ablation.Variant("unpooled", "look", "segment", None, {"proj_pooling_size": 1})
    large = handful.lamed(tmp_path / "large", image_size=[64, 96, 96])
    out = ablation._changed(large, tmp_path / "start", variant)
    assert checkpoint.read_config(out)["max_position_embeddings"] == 2 * 16 * 12 * 12
    assert checkpoint.read_config(done.out / "unpooled/start")["max_position_embeddings"] == 1024


def test_what_is_done_is_kept_and_what_is_left_out_is_still_told(done: Done) -> None:
    before = {path: path.stat().st_mtime_ns for path in done.out.rglob("*") if path.is_file()}
    assert done.again(replace(PLAN, only=("aligned",))) == done.told
    after = {path: path.stat().st_mtime_ns for path in done.out.rglob("*") if path.is_file()}
    changed = {path.name for path in after if after[path] != before.get(path)}
    assert changed == {"ablation.json"}


def test_other_patients_are_measured_anew_without_training(done: Done, tmp_path: Path) -> None:
    shutil.copytree(done.out / "aligned", tmp_path / "aligned")
    plan = replace(PLAN, patients=2, only=("aligned",))
    told = ablation.run(done.run, tmp_path, done.cache, plan, device="cpu")
    (one,) = told["variants"]
    assert one["seen"]["patients"] == 2
    same = next(each for each in done.told["variants"] if each["variant"] == "aligned")
    assert one["sha256"] == same["sha256"]


def test_other_steps_another_run_and_an_unfinished_one_are_refused(
    done: Done, tmp_path: Path
) -> None:
    longer = replace(PLAN, look=replace(PLAN.look, steps=2), only=("whole",))
    with pytest.raises(ModelError, match="another recipe or start: expected steps 1, got 2"):
        done.again(longer)
    other = tmp_path / "other"
    shutil.copytree(done.run, other)
    shutil.rmtree(other / "segment/checkpoint")
    shutil.copytree(other / "look/checkpoint", other / "segment/checkpoint")
    for name, why in (("whole", "expected start"), ("unpooled", "start has the weights")):
        with pytest.raises(ModelError, match=why):
            _alone(done, other, tmp_path / name, name)
    shutil.rmtree(other / "align")
    with pytest.raises(ModelError, match=r"begins with .*align.checkpoint, which is not there"):
        done.again(replace(PLAN, only=("aligned",)), run=other)


def _alone(done: Done, run: Path, out: Path, name: str) -> None:
    shutil.copytree(done.out / name, out / name)
    ablation.run(run, out, done.cache, replace(PLAN, only=(name,)), device="cpu")


def test_the_plan_is_the_shipped_recipes_at_other_steps() -> None:
    plan = Plan.of(200, 120, ["whole"])
    assert (plan.look.steps, plan.tune.steps) == (200, 200)
    assert plan.look.kinds == ("yes_no",)
    assert plan.tune.lora is not None
    with pytest.raises(ModelError, match=r"a variant is one of whole, .*, not 'none'"):
        Plan.of(only=["none"])
    with pytest.raises(ModelError, match="patients must be 1 or more, not 0"):
        Plan.of(patients=0)
    with pytest.raises(ModelError, match="steps must be 1 or more, not -1"):
        Plan.of(-1)


def test_the_card_tells_what_each_part_gives_of_its_own_run_only(
    done: Done, tmp_path: Path
) -> None:
    source, path = done.run / "align/checkpoint", done.out / "ablation.json"
    ship(source, tmp_path / "out", text="", run=done.run, ablation=path)
    told = (tmp_path / "out/README.md").read_text()
    assert "## What each part gives" in told
    assert "on 3 phantoms of seeds 900000 on" in told
    rows = [line.split(" | ") for line in told.splitlines() if " | 1 | " in line]
    assert [each[2] for each in rows] == [each.name.replace("-", " ") for each in VARIANTS]
    seen = done.told["variants"][-1]["seen"]
    assert rows[-1][-2:] == [f"{seen['report']:.2f}", f"{seen['blind']:.2f} |"]
    assert rows[0][-2:] == ["", " |"]
    with pytest.raises(ModelError, match="is of a run, which --run must name"):
        ship(source, tmp_path / "no", text="", ablation=path)
    found = json.loads(path.read_text())
    found["run"]["look"] = "0" * 64
    (tmp_path / "other.json").write_text(json.dumps(found))
    with pytest.raises(ModelError, match=r"is of a run whose look is 0{12}, .* has "):
        ship(source, tmp_path / "no", text="", run=done.run, ablation=tmp_path / "other.json")
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ModelError, match="is no result of `train ablate`"):
        ship(source, tmp_path / "no", text="", run=done.run, ablation=tmp_path / "other.json")
