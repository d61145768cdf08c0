"""Asking: everything once, with the image and without, and on from where a killed run was."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench_models import Made, Oracle, Silly, answer, item, mask, subject

from model.bench.asking import BLIND, FORMAT, IMAGE, JOURNAL, Run, ask, unpacked, vector
from model.bench.items import LIMITS, Item
from model.bench.patients import Patients
from model.card import Card
from model.data.sample import Task
from model.errors import ModelError
from model.lamed import Answer, Question
from model.preprocess import Prepared

GRID = (32, 64, 64)


@pytest.fixture(scope="module")
def patients() -> Patients:
    return Patients(GRID, 2, LIMITS)


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / JOURNAL).read_text().splitlines()]


def answers(entries: list[Any], condition: str) -> dict[str, Any]:
    return {each["item"]["id"]: each for each in entries if each.get("condition") == condition}


def test_every_question_is_asked_with_its_image_and_without(
    patients: Patients, tmp_path: Path
) -> None:
    model = Oracle.of(patients)
    entries = ask(Run(model, patients), tmp_path)
    wanted = [each for number in range(2) for each in patients.subject(number).items]
    seen, blind = answers(entries, IMAGE), answers(entries, BLIND)
    assert set(seen) == set(blind) == {each.id for each in wanted}
    assert [id_ for id_, sees in model.asked if sees] == [each.id for each in wanted]
    for each in wanted:
        assert Item.read(seen[each.id]["item"]) == each
        assert seen[each.id]["raw"] == each.answer
        assert blind[each.id]["raw"] == model.blind
    keys = [each["key"] for each in lines(tmp_path)]
    assert len(set(keys)) == len(keys) == 1 + 2 * len(wanted) + 2


def test_without_an_image_the_same_words_are_asked_once(tmp_path: Path) -> None:
    questions = [item("caption", "Say it.", subject=name, id=name) for name in ("a", "b", "c")]
    source = Made([subject([each], {}) for each in questions])
    model = Oracle.of(source)
    entries = ask(Run(model, source), tmp_path)
    assert model.asked == [("a", True), ("a", False), ("b", True), ("c", True)]
    assert len(answers(entries, BLIND)) == 3


def test_the_blind_image_is_grey_and_of_the_same_shape(tmp_path: Path) -> None:
    given: list[Prepared] = []

    class Watching(Silly):
        def answer(self, question: Question, prepared: Prepared, **_: bool) -> Answer:
            given.append(prepared)
            return answer(question, "No.")

    source = Made([subject([item("caption")], {})])
    ask(Run(Watching(), source), tmp_path)
    seen, blind = given
    assert seen.image.equal(source.subject(0).prepared.image)
    assert blind.image.equal(torch.full_like(seen.image, 0.5))
    assert blind.placement == seen.placement


def test_a_run_that_broke_off_asks_only_what_is_missing(patients: Patients, tmp_path: Path) -> None:
    whole = ask(Run(Oracle.of(patients), patients), tmp_path / "whole")
    model = Oracle.of(patients)
    first = [each.id for each in patients.subject(0).items]
    second = [each.id for each in patients.subject(1).items]

    def die(about: Item, said: Answer) -> Answer:
        if about.id == second[3]:
            raise KeyboardInterrupt
        return said

    with pytest.raises(KeyboardInterrupt):
        ask(Run(replace(model, spoil=die), patients), tmp_path / "broken")
    kept = lines(tmp_path / "broken")
    again = Oracle.of(patients)
    entries = ask(Run(again, patients), tmp_path / "broken")
    assert lines(tmp_path / "broken")[: len(kept)] == kept
    asked = {id_ for id_, _ in again.asked}
    assert not asked & set(first)
    assert set(second) <= asked
    for condition in (IMAGE, BLIND):
        assert answers(entries, condition) == answers(whole, condition)


def test_what_was_answered_of_an_image_is_not_asked_again(
    patients: Patients, tmp_path: Path
) -> None:
    ask(Run(Oracle.of(patients), patients), tmp_path)
    journal = tmp_path / JOURNAL
    kept = journal.read_text().splitlines(keepends=True)[:6]  # the settings and five answers
    journal.write_text("".join(kept) + '{"key": "half a li')
    model = Oracle.of(patients)
    entries = ask(Run(model, patients), tmp_path)
    told = [json.loads(line)["item"]["id"] for line in kept[1:]]
    assert not {id_ for id_, sees in model.asked if sees} & set(told)
    assert len(answers(entries, IMAGE)) == len({*told, *(id_ for id_, _ in model.asked)})


def test_a_finished_run_asks_nothing(patients: Patients, tmp_path: Path) -> None:
    first = ask(Run(Oracle.of(patients), patients), tmp_path)
    model = Oracle.of(patients)
    assert ask(Run(model, patients), tmp_path) == lines(tmp_path)
    assert model.asked == []
    assert first == lines(tmp_path)[1:]


@pytest.mark.parametrize("other", ["checkpoint", "cases", "limits", "clip", "dtype"])
def test_answers_of_another_run_are_not_gone_on_from(tmp_path: Path, other: str) -> None:
    patients = Patients(GRID, 1, {Task.CAPTION: 1})
    model = Oracle.of(patients)
    ask(Run(model, patients), tmp_path)
    before = (tmp_path / JOURNAL).read_bytes()
    runs = {
        "checkpoint": Run(
            replace(model, card=Card("oracle", "2", "cd" * 32, untrained=False)), patients
        ),
        "cases": Run(model, replace(patients, phantoms=2)),
        "limits": Run(model, replace(patients, limits={Task.CAPTION: 2})),
        "clip": Run(model, patients, clip_sha256="ef" * 32),
        "dtype": Run(replace(model, dtype=torch.bfloat16), patients),
    }
    named = {"cases": "seeds"}.get(other, other)
    with pytest.raises(ModelError, match=f"answers of another run, whose {named} is .*--out"):
        ask(runs[other], tmp_path)
    assert (tmp_path / JOURNAL).read_bytes() == before


def test_a_folder_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ModelError, match="out cannot be written"):
        ask(Run(Silly(), Made([subject([item("caption")], {})])), tmp_path / "out")


def test_a_file_that_is_no_journal_of_a_benchmark_is_left_alone(tmp_path: Path) -> None:
    source = Made([subject([item("caption")], {})])
    (tmp_path / JOURNAL).write_text('{"key": "something"}\n')
    with pytest.raises(ModelError, match="expected the settings of a benchmark"):
        ask(Run(Silly(), source), tmp_path)
    assert (tmp_path / JOURNAL).read_text() == '{"key": "something"}\n'


def test_there_must_be_something_to_ask(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nothing to ask"):
        ask(Run(Silly(), Made([])), tmp_path)


def test_a_question_that_cannot_be_asked_is_named_with_its_image(tmp_path: Path) -> None:
    class Refusing(Silly):
        def ask(self, _: Prepared, questions: Any) -> list[Answer]:
            raise ModelError(f"question {questions[0].id} must have at most 9 tokens, not 10")

    source = Made([subject([item("caption", id="q", subject="img")], {})])
    with pytest.raises(ModelError, match="img: question q must have at most 9 tokens"):
        ask(Run(Refusing(), source), tmp_path)


# --- masks --------------------------------------------------------------------------------------

TASK = "semantic_segmentation"
SPACING_MM = (5.0, 2.0, 3.0)


def block(z: int, y: int, x: int, size: int = 4) -> np.ndarray:
    inside = np.zeros((8, 10, 12), bool)
    inside[z : z + size, y : y + size, x : x + size] = True
    return inside


def judged(tmp_path: Path, truth: np.ndarray, *drawn: np.ndarray, **options: Any) -> dict[str, Any]:
    """Ask for one outline, and let the model draw."""
    about = item(TASK, absent=not truth.any())
    source = Made([subject([about], {about.id: truth}, **options)])

    def draw(_: Item, given: Answer) -> Answer:
        placed = source.subject(0).prepared
        return replace(given, masks=tuple(mask(each, placed) for each in drawn))

    entries = ask(Run(Oracle.of(source, spoil=draw), source), tmp_path)
    (entry,) = answers(entries, IMAGE).values()
    said = unpacked(entry)
    union = np.logical_or.reduce(drawn) if drawn else np.zeros_like(truth)
    assert np.array_equal(np.zeros_like(truth) if said is None else said, union)
    return entry["mask"]


def test_a_mask_moved_by_a_slice_is_a_slice_away(tmp_path: Path) -> None:
    found = judged(tmp_path, block(1, 3, 3), block(2, 3, 3))
    assert found["dice"] == pytest.approx(2 * 48 / 128)
    assert found["voxels"] == [64, 64]
    # 56 of the 64 voxels of a 4 x 4 x 4 block are its border. An outer slice of one (16 voxels)
    # is 5 mm from the other; of the opposite slice the inner 4 voxels are 2 mm from the other's
    # border; all others lie on it.
    assert found["surface"]["hd95_mm"] == pytest.approx(5.0)
    assert found["surface"]["dice"] == pytest.approx((56 - 16) / 56)
    assert found["surface"]["mean_mm"] == pytest.approx((16 * 5 + 4 * 2) / 56)


def test_several_masks_of_one_answer_count_together(tmp_path: Path) -> None:
    truth = block(1, 1, 1) | block(1, 1, 6)
    found = judged(tmp_path, truth, block(1, 1, 1), block(1, 1, 6))
    assert (found["dice"], found["drawn"]) == (1.0, 2)
    assert found["surface"] == {"mean_mm": 0.0, "hd95_mm": 0.0, "dice": 1.0}


def test_what_is_not_there_has_no_dice(tmp_path: Path) -> None:
    nothing = np.zeros((8, 10, 12), bool)
    found = judged(tmp_path / "drawn", nothing, block(1, 1, 1))
    assert (found["dice"], found["surface"], found["drawn"]) == (None, None, 1)
    found = judged(tmp_path / "declined", nothing)
    assert (found["dice"], found["drawn"], found["voxels"]) == (None, 0, [0, 0])


def test_what_is_missed_has_a_dice_of_nothing_and_no_distance(tmp_path: Path) -> None:
    found = judged(tmp_path, block(1, 1, 1))
    assert (found["dice"], found["surface"], found["reference_dice"]) == (0.0, None, 0.0)


def test_there_are_no_distances_where_nobody_knows_the_voxels(tmp_path: Path) -> None:
    found = judged(tmp_path, block(1, 3, 3), block(2, 3, 3), spacing_mm=None)
    assert found["surface"] is None
    assert found["dice"] == pytest.approx(0.75)


def test_soft_dice_is_kept_for_the_published_scoring(tmp_path: Path) -> None:
    found = judged(tmp_path, block(1, 1, 1), block(1, 1, 1))
    inside, outside = 1 / (1 + np.exp(-5)), 1 / (1 + np.exp(5))
    whole = 8 * 10 * 12
    expected = 2 * 64 * inside / (64 * inside + (whole - 64) * outside + 64 + 1)
    assert found["reference_dice"] == pytest.approx(expected, rel=1e-5)


def test_the_way_to_the_network_and_back_sets_what_a_mask_can_reach(tmp_path: Path) -> None:
    assert judged(tmp_path, block(1, 3, 3))["ceiling"] == 1.0
    truth = block(1, 3, 3, size=1)
    about = item(TASK)
    coarse = subject([about], {about.id: truth})
    image = torch.rand(1, 1, 4, 5, 6)  # half as fine, so the one voxel is lost or eight
    made = Made([replace(coarse, prepared=replace(coarse.prepared, image=image))])
    entries = ask(Run(Silly(), made), tmp_path / "coarse")
    assert answers(entries, IMAGE)[about.id]["mask"]["ceiling"] < 0.5


def test_vectors_of_images_and_reports_are_kept_as_they_are(tmp_path: Path) -> None:
    class Clip:
        def embed_images(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean(dim=(2, 3, 4)).expand(1, 2)

        def embed_texts(self, texts: list[str]) -> torch.Tensor:
            return torch.tensor([[float(len(each)), 0.5] for each in texts])

    whole, silent = item("caption", subject="a"), item("caption", subject="b")
    source = Made([subject([whole], {}, report="Nine long"), subject([silent], {})])
    entries = ask(Run(Silly(), source, Clip(), "ef" * 32), tmp_path)
    (kept,) = [each for each in entries if "image" in each]
    mean = float(source.subject(0).prepared.image.mean())
    assert vector(kept["image"]).tolist() == pytest.approx([mean, mean])
    assert vector(kept["text"]).tolist() == [9.0, 0.5]
    assert (kept["subject"], kept["report"]) == ("a", "Nine long")
    assert lines(tmp_path)[0]["run"]["format"] == FORMAT
