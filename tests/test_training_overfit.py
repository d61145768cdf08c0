"""Three patients learnt by heart through all stages, and told again by the checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import handful
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model import clip, load
from model.data import cap, seg, vqa
from model.data.corpus import telling
from model.data.corpus.scene import Scene
from model.data.sample import Sample, Task, load_image, load_mask
from model.lamed import Answer, LaMed, Question
from model.preprocess import prepare
from model.training import stages
from model.training.recipe import Corpus, Lora

pytestmark = pytest.mark.slow
TASKS = (Task.CAPTION, Task.CLOSED_VQA, Task.OPEN_VQA, Task.SEMANTIC_SEGMENTATION)


@dataclass(frozen=True)
class Course:
    """The folder of all stages, and what they learnt from."""

    folder: Path
    patients: list[Scene]

    def checkpoint(self, stage: str) -> Path:
        return self.folder / stage / "checkpoint"

    @property
    def samples(self) -> list[Sample]:
        data = self.folder / "data"
        table = data / "M3D-VQA/M3D_VQA_train.csv"
        return [
            *cap.read(data / "M3D_Cap_npy/M3D_Cap.json", "train", root=data),
            *vqa.read_closed(table, root=data),
            *vqa.read_open(table, root=data),
            *seg.read(data / "M3D_Seg_npy", "0003", "train", tasks=TASKS),
        ]


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Course:
    folder = tmp_path_factory.mktemp("course")
    made = Course(folder, handful.scenes())
    handful.lamed(folder / "start")
    handful.clip(folder / "clip")
    handful.data(folder / "data", made.patients)

    def learn(stage: str, start: Path, vision: Path | None = None, **given: Any) -> None:
        given |= {"log_every": given["steps"] // 2, "save_every": given["steps"]}
        places = stages.Places(start, folder / stage, vision, folder / "data", folder / "pool")
        stages.run(handful.recipe(stage, batch=3, **given), places, device="cpu")

    learn("segment", folder / "start", steps=250, learning_rate=3e-3, corpus=Corpus(4))
    learn("contrastive", folder / "clip", made.checkpoint("segment"),
          steps=150, learning_rate=5e-3, scale=12.0)  # fmt: skip
    learn("align", made.checkpoint("segment"), made.checkpoint("contrastive"),
          steps=120, learning_rate=3e-3, questions=3)  # fmt: skip
    learn("tune", made.checkpoint("align"), steps=350, learning_rate=3e-3, questions=9, masks=3,
          lora=Lora(dropout=0.0), tasks=TASKS)  # fmt: skip
    return made


@pytest.fixture(scope="module")
def lamed(course: Course) -> LaMed:
    return load(course.checkpoint("tune"))


@pytest.fixture(scope="module")
def answered(course: Course, lamed: LaMed) -> list[tuple[Sample, Answer]]:
    """Everything that was taught, asked of the written checkpoint."""
    told = []
    for sample in course.samples:
        image = prepare(load_image(sample)[0], handful.GRID)
        question = Question(sample.question, caption=sample.task is Task.CAPTION)
        told.append((sample, *lamed.ask(image, [question])))
    return told


def test_every_answer_is_the_one_that_was_taught_word_for_word(
    answered: list[tuple[Sample, Answer]],
) -> None:
    assert {sample.task for sample, _ in answered} == set(TASKS)
    assert len(answered) == 3 + 3 + 3 + 9 + 9
    assert [answer.raw for _, answer in answered] == [sample.answer for sample, _ in answered]


def test_every_mask_covers_what_it_is_of(answered: list[tuple[Sample, Answer]]) -> None:
    drawn = [(sample, answer) for sample, answer in answered if sample.mask]
    assert len(drawn) >= 3
    for sample, answer in drawn:
        (mask,) = answer.masks
        wanted, found = load_mask(sample)[0], mask.logits > 0
        assert 2 * (wanted & found).sum() / (wanted.sum() + found.sum()) > 0.8, sample.id


def test_what_is_absent_is_declined_without_a_mask(answered: list[tuple[Sample, Answer]]) -> None:
    absent = [answer for sample, answer in answered if sample.absent]
    assert len(absent) >= 3
    assert all(answer.masks == () for answer in absent)


def test_each_report_finds_its_image_and_each_image_its_report(course: Course) -> None:
    model = clip.load(course.checkpoint("contrastive"))
    images = torch.from_numpy(np.stack([each.image[None] for each in course.patients]))
    texts = [telling.report(each.truth) for each in course.patients]
    scores = model.embed_images(images) @ model.embed_texts(texts).T
    assert scores.argmax(dim=0).tolist() == scores.argmax(dim=1).tolist() == [0, 1, 2]


def test_a_checkpoint_stays_marked_untrained_until_it_has_learnt_to_answer_and_draw(
    course: Course, lamed: LaMed
) -> None:
    assert [load(course.checkpoint(each)).card.untrained for each in ("segment", "align")] == [
        True,
        True,
    ]
    assert not lamed.card.untrained
    assert lamed.card.name == "start-segment-align-tune"
    card = (course.checkpoint("tune") / "README.md").read_text()
    assert "UNTRAINED" not in card
    assert "lamed-model train tune" in card
    assert "Not a medical device" in card
    assert "UNTRAINED" in (course.checkpoint("align") / "README.md").read_text()


def test_the_vision_of_each_stage_is_where_the_one_before_left_it(course: Course) -> None:
    """M3D-CLIP began with SegVol's, alignment took M3D-CLIP's and let it rest."""
    matched = clip.load(course.checkpoint("contrastive")).network.vision_encoder.state_dict()
    aligned = load(course.checkpoint("align")).network.model
    for name, value in aligned.vision_tower.vision_tower.state_dict().items():
        assert torch.equal(value, matched[name])
    segmented = load(course.checkpoint("segment")).network.model.seg_module.state_dict()
    for name, value in aligned.seg_module.state_dict().items():
        assert torch.equal(value, segmented[name])


def test_tensorboard_has_the_curve_of_each_stage(course: Course) -> None:
    parts = {"segment": "cells", "contrastive": "found", "align": "language", "tune": "dice"}
    for stage, part in parts.items():
        events = EventAccumulator(str(course.folder / stage / "tensorboard"))
        events.Reload()
        for name in ("loss", part, "grad_norm", "learning_rate"):
            curve = events.Scalars(f"train/{name}")
            assert len(curve) == 3
            assert all(np.isfinite(each.value) for each in curve)
        losses = [each.value for each in events.Scalars("train/loss")]
        assert losses[-1] < losses[0]


def test_a_stage_that_is_done_keeps_one_state_and_is_not_done_again(course: Course) -> None:
    before = sorted((course.folder / "tune").rglob("*"))
    assert [each.name for each in before if each.name.startswith("checkpoint-")] == [
        "checkpoint-350"
    ]
    recipe = handful.recipe(
        "tune", batch=3, steps=350, learning_rate=3e-3, questions=9, masks=3, log_every=175,
        save_every=350, lora=Lora(dropout=0.0), tasks=TASKS,
    )  # fmt: skip
    places = stages.Places(
        course.checkpoint("align"), course.folder / "tune", data=course.folder / "data"
    )
    told = stages.run(recipe, places, device="cpu")
    assert told["sha256"] == load(course.checkpoint("tune")).card.sha256
    assert sorted((course.folder / "tune").rglob("*")) == before
