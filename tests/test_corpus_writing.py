"""The corpus on disk says what the corpus says, read back by the readers of the published sets."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus_scan import CACHE, real_scan
from published_data import box

from model import ModelError
from model.__main__ import main
from model.data import cap, refseg, seg, splits, vqa
from model.data.corpus import writing
from model.data.corpus.case import VIEWS, Case
from model.data.corpus.findings import KINDS
from model.data.corpus.organs import ORGANS
from model.data.corpus.rows import TYPES, classes
from model.data.corpus.scene import Scene
from model.data.corpus.telling import SEG, Turn, phrase, report, turns
from model.data.corpus.writing import Plan, patient, write
from model.data.prompts import box_text
from model.data.sample import Sample, Task, load_image, load_mask
from model.data.terms import term

GRID = (16, 32, 32)
SEEDS = range(3, 15)
SPLITS = {"train": "train", "validation": "val", "test": "test"}
BOX = re.compile(r"<bx_start>\[[^]]*\]<bx_end>")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("corpus")
    write(Plan(GRID, SEEDS), out)
    return out


@pytest.fixture(scope="module")
def scenes() -> dict[str, Scene]:
    return {patient("phantom", seed): Scene.of(Case.make(seed), GRID) for seed in SEEDS}


@pytest.fixture(scope="module")
def told(corpus: Path) -> dict[str, dict[str, Any]]:
    """What `patients.jsonl` says, by patient."""
    lines = (corpus / "patients.jsonl").read_text().splitlines()
    return {each["patient"]: each for each in map(json.loads, lines)}


def said(told: dict[str, Any], *wanted: str) -> list[dict[str, Any]]:
    return [each for each in told["turns"] if each["where"] in wanted]


def name_of(sample: Sample) -> str:
    return sample.image.parent.name


def every(read: Callable[[str, str], list[Sample]]) -> dict[str, list[Sample]]:
    """Read all splits, by patient."""
    found: dict[str, list[Sample]] = {}
    for split, short in SPLITS.items():
        for each in read(split, short):
            found.setdefault(name_of(each), []).append(each)
    return found


def tables(corpus: Path, name: str, read: Callable[..., list[Sample]]) -> dict[str, list[Sample]]:
    return every(lambda _, short: read(corpus / f"{name}_{short}.csv", root=corpus))


def outlines(corpus: Path, *tasks: Task) -> dict[str, list[Sample]]:
    return every(lambda split, _: seg.read(corpus, "anatomy", split, tasks=tasks))


def test_every_report_and_image_comes_back(corpus: Path, scenes: dict[str, Scene]) -> None:
    found = every(lambda split, _: cap.read(corpus / "M3D_Cap.json", split, root=corpus))
    assert found.keys() == scenes.keys()
    for name, scene in scenes.items():
        (sample,) = found[name]
        assert sample.answer == report(scene.truth)
        assert np.array_equal(load_image(sample), scene.image[None])
        assert sample.image.parent.parent.name == f"{scene.truth.modality.lower()}_case"
        assert scene.truth.phase.replace(" ", "_") in sample.image.name


def test_closed_questions_come_back_to_the_letter(
    corpus: Path, told: dict[str, dict[str, Any]]
) -> None:
    found = tables(corpus, "M3D_VQA", vqa.read_closed)
    for name, patient_told in told.items():
        wanted = said(patient_told, "M3D_VQA")
        assert len(wanted) >= 3
        for turn, sample in zip(wanted, found[name], strict=True):
            assert sample.question == turn["question"]
            assert (sample.answer, sample.letter) == (turn["answer"], turn["letter"])
            assert list(sample.choices) == turn["choices"]
            assert TYPES[turn["kind"]] == str({v: k for k, v in vqa.KINDS.items()}[sample.kind])


@pytest.mark.parametrize(
    ("name", "read"), [("M3D_VQA_open", vqa.read_open), ("M3D_VQA_yn", vqa.read_yes_no)]
)
def test_open_and_yes_no_questions_come_back_with_their_side(
    corpus: Path, told: dict[str, dict[str, Any]], name: str, read: Callable[..., list[Sample]]
) -> None:
    found, sides = tables(corpus, name, read), set()
    for who, patient_told in told.items():
        wanted = said(patient_told, name)
        assert wanted
        for turn, sample in zip(wanted, found[who], strict=True):
            assert (sample.question, sample.answer) == (turn["question"], turn["answer"])
            assert sample.side == turn["side"]
            assert (sample.kind == "yes_no") == (turn["kind"] == "yes_no")
            sides.add(sample.side)
    assert sides == {"left", "right", ""}


def test_planted_findings_come_back_with_their_masks(
    corpus: Path, scenes: dict[str, Scene], told: dict[str, dict[str, Any]]
) -> None:
    found, seen = tables(corpus, "M3D_RefSeg", refseg.read), 0
    for name, scene in scenes.items():
        wanted = said(told[name], "M3D_RefSeg")
        for turn, sample in zip(wanted, found.get(name, []), strict=True):
            finding = next(
                each for each in scene.truth.findings if each.number == turn["target"]["number"]
            )
            assert (sample.question, sample.answer) == (turn["question"], turn["answer"])
            assert phrase(finding) in sample.question
            assert (sample.side, sample.kind) == (finding.side, "description")
            assert np.array_equal(load_mask(sample)[0], scene.planted == finding.number)
            assert np.array_equal(load_image(sample), scene.image[None])
            seen += 1
    planted = [each for scene in scenes.values() for each in scene.truth.findings if each.number]
    missed = [each for one in told.values() for each in one["too_small"] if each not in ORGANS]
    assert seen == len(planted) - len(missed) > 5


def test_organs_come_back_present_or_absent(corpus: Path, scenes: dict[str, Scene]) -> None:
    found = outlines(corpus, Task.SEMANTIC_SEGMENTATION)
    for name, scene in scenes.items():
        by_name = {each.kind: each for each in found[name]}
        assert len(by_name) == len(found[name])
        for organ in scene.truth.missing:
            assert by_name[organ].absent
            assert SEG not in by_name[organ].answer
        for organ in scene.truth.present:
            mask = scene.labels == ORGANS[organ].number
            assert (organ in by_name) == bool(mask.any())
            if organ in by_name:
                assert np.array_equal(load_mask(by_name[organ])[0], mask)
                assert by_name[organ].box == box(mask)
                assert by_name[organ].side == ORGANS[organ].side
        neither = ORGANS.keys() - set(scene.truth.present) - set(scene.truth.missing)
        assert not neither & by_name.keys()


def test_findings_are_classes_that_are_there_or_are_not(
    corpus: Path, scenes: dict[str, Scene]
) -> None:
    found = outlines(corpus, Task.SEMANTIC_SEGMENTATION)
    for name, scene in scenes.items():
        by_name = {each.kind: each for each in found[name]}
        known = {(each.kind, each.organ, each.side): each for each in scene.truth.findings}
        for one in [each for each in classes() if each.kind]:
            kind, finding = KINDS[one.kind], known.get((one.kind, one.organ, one.side))
            if finding is not None:
                mask = scene.planted == finding.number
                assert (one.name in by_name) == bool(mask.any())
                if mask.any():
                    assert np.array_equal(load_mask(by_name[one.name])[0], mask)
                    assert by_name[one.name].side == finding.side
            elif kind.region == scene.truth.region and scene.truth.modality in kind.values:
                assert by_name[one.name].absent
            else:
                assert one.name not in by_name


def test_boxes_are_those_of_the_masks(corpus: Path, scenes: dict[str, Scene]) -> None:
    found = outlines(corpus, Task.REC, Task.REG)
    for name, scene in scenes.items():
        samples = [each for each in found[name] if each.kind == "word"]
        for turn in turns(scene.truth, np.random.default_rng(1)):
            if turn.task not in {"rec", "reg"} or turn.target is None:
                continue
            mask = scene.mask(turn.target)
            if mask.any():
                sample = only(samples, turn, box(mask))
                written = sample.answer if turn.task == "rec" else sample.question
                assert BOX.findall(written) == [box_text(box(mask))]  # type: ignore[arg-type]
                assert sample.side == turn.side
        for each in found[name]:
            if each.absent:
                assert not BOX.search(each.answer)


def only(samples: list[Sample], turn: Turn, place: tuple[float, ...]) -> Sample:
    """Find the one sample of the same task about the same thing."""
    (sample,) = [
        each
        for each in samples
        if each.task == turn.task and each.box == place and each.side == turn.side
    ]
    return sample


def test_nothing_that_is_said_is_lost(scenes: dict[str, Scene], told: dict[str, Any]) -> None:
    for name, scene in scenes.items():
        record = told[name]
        assert record["truth"] == json.loads(json.dumps(asdict(scene.truth)))
        assert record["report"] == report(scene.truth)
        assert {"caption", "closed_vqa", "open_vqa", "semantic_segmentation", "rec"} <= {
            each["task"] for each in record["turns"]
        }
        for turn in record["turns"]:
            if turn["target"] is None or isinstance(turn["target"], str):
                organ = turn["target"] or "spine"
                small = bool(turn["target"]) and not scene.mask(organ).any()
                assert (turn["where"].startswith("nowhere")) == small, turn
                assert small == (turn["target"] in record["too_small"])


def test_what_is_too_small_for_the_grid_is_neither_there_nor_absent(tmp_path: Path) -> None:
    write(Plan((4, 6, 6), range(6)), tmp_path)
    lines = (tmp_path / "patients.jsonl").read_text().splitlines()
    records = [json.loads(each) for each in lines]
    assert any(each["too_small"] for each in records)
    found = outlines(tmp_path, Task.SEMANTIC_SEGMENTATION)
    for each in records:
        asked = {sample.kind for sample in found[each["patient"]]}
        assert not asked & set(each["too_small"])
        assert {turn["where"] for turn in each["turns"] if turn["target"] in each["too_small"]} <= {
            "nowhere: what is meant is too small for this grid"
        }
    refs = tables(tmp_path, "M3D_RefSeg", refseg.read)
    assert all(load_mask(sample).any() for some in refs.values() for sample in some)


def test_every_kind_of_question_has_a_place() -> None:
    for seed in range(12):
        case = Case.make(seed, view=VIEWS[seed % len(VIEWS)])
        for turn in turns(case.truth, np.random.default_rng(seed)):
            if turn.task in {"closed_vqa", "open_vqa"}:
                assert turn.kind in TYPES


def test_every_class_has_words_that_say_what_it_is() -> None:
    names = [each.name for each in classes()]
    assert [term(name).name for name in names] == names
    assert len({each.number for each in classes()}) == len(set(names)) == len(names)
    for each in classes():
        assert term(each.name).side == each.side or (not each.kind and each.name in ORGANS)


def test_a_patient_is_in_one_split_in_every_list(corpus: Path, told: dict[str, Any]) -> None:
    found = [
        every(lambda split, _: [*cap.read(corpus / "M3D_Cap.json", split, root=corpus)]),
        outlines(corpus, Task.SEMANTIC_SEGMENTATION),
    ]
    assert all(each.keys() == told.keys() for each in found)
    for split, short in SPLITS.items():
        wanted = {name for name, each in told.items() if each["split"] == split}
        assert wanted == {name for name in told if splits.assign(name, seed=0) == split}
        listed = cap.read(corpus / "M3D_Cap.json", split, root=corpus)
        closed = vqa.read_closed(corpus / f"M3D_VQA_{short}.csv", root=corpus)
        drawn = seg.read(corpus, "anatomy", split)
        for some in (listed, closed, drawn):
            assert {name_of(each) for each in some} == wanted
    assert len({each["split"] for each in told.values()}) > 1


def test_the_manifest_says_what_it_is(corpus: Path) -> None:
    manifest = json.loads((corpus / "manifest.json").read_text())
    assert manifest["phantoms"] == {"first": 3, "count": 12}
    assert manifest["scans"] == {"first": 0, "count": 0}
    assert manifest["grid"] == list(GRID)
    assert sum(manifest["splits"].values()) == 12
    readme = (corpus / "README.md").read_text()
    for words in ("12, seeds from 3", "16 x 32 x 32", "Not for clinical use", "Layout version 1"):
        assert words in readme
    assert "Apache" not in readme
    assert not (corpus / "LICENSE.scan").exists()


# --- runs ---------------------------------------------------------------------------------------


def test_a_second_run_makes_nothing_and_a_third_of_more_only_the_rest(tmp_path: Path) -> None:
    plan = Plan((8, 16, 16), range(3))
    assert write(plan, tmp_path)["made"] == 3
    kept = {each: each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()}
    assert write(plan, tmp_path)["made"] == 0
    assert {each: each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()} == kept
    image = next(tmp_path.glob("*_case/phantom-0000001/*.npy"))
    image.unlink()
    again = write(Plan((8, 16, 16), range(4)), tmp_path)
    assert (again["made"], again["before"]) == (2, 2)
    assert image.read_bytes() == kept[image]
    other = write(Plan((8, 16, 12), range(3)), tmp_path)
    assert other["made"] == 3
    assert np.load(image).shape == (1, 8, 16, 12)


@pytest.mark.slow
def test_processes_make_what_one_makes(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    plan = Plan((8, 16, 16), range(4))
    write(plan, tmp_path / "one")
    write(plan, tmp_path / "two", workers=2, on_progress=lambda *each: seen.append(each))
    assert seen == [(done, 4) for done in range(1, 5)]
    one, two = (
        {
            each.relative_to(tmp_path / name): each.read_bytes()
            for each in (tmp_path / name).rglob("*")
            if each.is_file()
        }
        for name in ("one", "two")
    )
    assert one == two
    assert len(one) > 50


@pytest.mark.slow
def test_a_killed_run_leaves_nothing_half_and_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "model", "data", "corpus", "--out", str(tmp_path)]
    command += ["--seeds", "0", "200", "--grid", "8", "16", "16", "--json"]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 90
    while len(list(tmp_path.glob(".patients/*.json"))) < 2:
        assert running.poll() is None, running.stderr and running.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(running.pid, signal.SIGKILL)
    running.communicate()
    done = len(list(tmp_path.glob(".patients/*.json")))
    assert not (tmp_path / "M3D_Cap.json").exists()
    assert write(Plan((8, 16, 16), range(done + 1)), tmp_path)["before"] == done
    assert len(outlines(tmp_path, Task.SEMANTIC_SEGMENTATION)) == done + 1


def test_a_patient_that_cannot_be_made_is_told_with_its_seed_and_the_others_are_done(
    tmp_path: Path,
) -> None:
    (tmp_path / "anatomy").mkdir()
    (tmp_path / "anatomy" / "phantom-0000004").write_text("in the way")
    with pytest.raises(ModelError, match="1 of 3 patients could not be made; the others") as caught:
        write(Plan((8, 16, 16), range(3, 6)), tmp_path)
    assert "phantom-0000004: seed 4:" in str(caught.value)
    assert {each.stem for each in tmp_path.glob(".patients/*")} == {
        "phantom-0000003", "phantom-0000005",
    }  # fmt: skip


def test_a_seed_of_splits_and_words_changes_words_and_no_image(tmp_path: Path) -> None:
    for seed in (0, 1):
        write(Plan((8, 16, 16), range(2), seed=seed), tmp_path / str(seed))
    words, images = (
        [sorted((tmp_path / str(seed)).glob(pattern)) for seed in (0, 1)]
        for pattern in ("M3D_VQA*.csv", "*_case/*/*.npy")
    )
    assert [each.read_bytes() for each in words[0]] != [each.read_bytes() for each in words[1]]
    assert [each.read_bytes() for each in images[0]] == [each.read_bytes() for each in images[1]]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--seeds", "0", "0"], "there must be a patient"),
        (["--seeds", "-1", "2"], "seeds are 0 or more"),
        (["--seeds", "0", "1", "--grid", "0", "8", "8"], "a grid has 1 voxel or more"),
        (["--seeds", "0", "1", "--workers", "0"], "workers must be 1 or more"),
        (["--seeds", "0", "1", "--scans", "x", "many"], "--scans takes a folder and a count"),
    ],
)
def test_what_makes_no_sense_is_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], reason: str
) -> None:
    out = tmp_path / "out"
    grid = [] if "--grid" in words else ["--grid", "8", "16", "16"]
    assert main(["data", "corpus", "--out", str(out), *words, *grid]) == 3
    assert reason in capsys.readouterr().err
    assert not out.exists()


def test_the_command_shows_progress_and_tells_what_it_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data", "corpus", "--out", str(tmp_path), "--seeds", "7", "2", "--grid", "8", "16"]
    assert main([*words, "16"]) == 0
    shown = capsys.readouterr()
    assert "2/2" in shown.err
    assert main([*words, "16", "--json"]) == 0
    again = capsys.readouterr()
    assert again.err == ""
    told = json.loads(again.out)
    assert (told["patients"], told["made"], told["rows"]["M3D_Cap"]) == (2, 0, 2)
    assert {each.name for each in (tmp_path / ".patients").iterdir()} == {
        "phantom-0000007.json", "phantom-0000008.json",
    }  # fmt: skip


# --- the scan -----------------------------------------------------------------------------------


def test_patients_out_of_the_scan_come_back_all_in_train_under_their_licence(
    tmp_path: Path,
) -> None:
    scan = real_scan()
    plan = Plan(GRID, range(0), range(5, 7), CACHE)
    assert write(plan, tmp_path)["splits"] == {"train": 2, "validation": 0, "test": 0}
    found = outlines(tmp_path, Task.SEMANTIC_SEGMENTATION)
    for seed in (5, 6):
        scene = Scene.of(scan.case(seed), GRID)
        by_name = {each.kind: each for each in found[f"scan-{seed:07d}"]}
        assert np.array_equal(load_image(by_name["liver"]), scene.image[None])
        assert np.array_equal(
            load_mask(by_name["liver"])[0], scene.labels == ORGANS["liver"].number
        )
    assert "Apache License" in (tmp_path / "LICENSE.scan").read_text()
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["scans"]["sha256"] == writing.scanning.SDIST_SHA256
    readme = (tmp_path / "README.md").read_text()
    assert "2, seeds from 5" in readme
    assert "one real person" in readme
