"""`lamed-model bench` with the real untrained checkpoint: what it writes, and what it refuses."""

import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_models import Oracle
from PIL import Image
from published_data import listed, nothing

from model import checkpoint as layout
from model import clip, load, small
from model.__main__ import main
from model.bench.asking import JOURNAL, Run, ask
from model.bench.items import LIMITS, TASKS
from model.bench.patients import Patients
from model.bench.reporting import report
from model.bench.scoring import notes, score
from model.data.sample import Task
from model.network import build

FEW = [option for task in Task for option in ("--limit", task.value, "2")]
PUBLIC = {"value", "low", "high", "items"} | {
    f"{what}{end}" for what in ("blind", "difference") for end in ("", "_low", "_high")
}


class Page(HTMLParser):
    """The words of a page, its pictures, and everything it would fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.pictures: list[str] = []
        self.fetched: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in {"meta", "img", "br", "rect", "path"}:
            self._open.append(tag)
        for name, value in attrs:
            if name in {"src", "href", "xlink:href"}:
                kind = self.pictures if (value or "").startswith("data:image/png") else self.fetched
                kind.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self._open and self._open[-1] == tag:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in {"style", "title"}:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "there", "is", "no", "a", "the", "stone")


def clip_folder(out: Path, size: tuple[int, int, int]) -> Path:
    """Write an untrained M3D-CLIP for images of that size."""
    config = small.clip_config(len(WORDS))
    config |= {"hidden_size": 48, "mlp_dim": 96, "num_layers": 1, "num_heads": 4}
    config |= {"img_size": list(size), "patch_size": [4, 16, 16]}
    config["oracle_overrides"]["bert"] |= {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_hidden_layers": 1,
    }
    state = build(config).state_dict()
    files = {"vocab.txt": "".join(f"{each}\n" for each in WORDS).encode()}
    layout.write(out, config, state, files, name="clip", untrained=True)
    return out


@pytest.fixture(scope="module")
def options(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Give the command on two patients, but for where it writes."""
    seen = clip_folder(tmp_path_factory.mktemp("clip") / "clip", (32, 256, 256))
    return ["bench", "--checkpoint", str(checkpoint), "--clip", str(seen), "--cases", "2", *FEW]


@pytest.fixture(scope="module")
def done(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the command once."""
    out = tmp_path_factory.mktemp("bench")
    assert main([*options, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def results(done: Path) -> dict[str, Any]:
    return json.loads((done / "results.json").read_text())


def test_results_say_whose_they_are_and_what_was_asked(
    results: dict[str, Any], checkpoint: Path
) -> None:
    assert results["checkpoint"] == vars(load(checkpoint).card)
    assert results["schema"] == 1
    assert results["mode"] == "own"
    assert results["data"]["seeds"] == {"phantom": [1_000_000, 1_000_002]}
    assert results["counts"]["images"] == results["counts"]["patients"] == 2
    assert results["counts"]["blind"] == results["counts"]["questions"] > 16
    assert results["seconds"]["asking"] > 0
    assert results["settings"]["dtype"] == "float32"


def test_every_task_is_there_with_its_scores_and_blind_beside_each(
    results: dict[str, Any],
) -> None:
    assert tuple(results["tasks"]) == TASKS
    for name, task in results["tasks"].items():
        assert task["measured"], name
        for metric, each in task["scores"].items():
            assert set(each) == PUBLIC, (name, metric)
            assert each["low"] <= each["value"] <= each["high"], (name, metric)
            if metric != "ceiling":
                assert each["blind"] is not None or metric in {
                    "mean_mm",
                    "hd95_mm",
                    "surface_dice",
                }, (name, metric)


def scores(results: dict[str, Any]) -> Iterator[tuple[str, dict[str, float]]]:
    for name, task in results["tasks"].items():
        for metric, each in task.get("scores", {}).items():
            yield f"{name} {metric}", each
        for dimension, values in task.get("slices", {}).items():
            for value, each in values.items():
                yield f"{name} by {dimension}: {value}", each


def test_the_page_holds_every_score_and_needs_nothing_else(
    done: Path, results: dict[str, Any]
) -> None:
    page = Page((done / "report.html").read_text())
    assert page.fetched == []
    assert "script" not in page.tags
    text = page.text
    assert "Not for clinical use." in text
    assert "untrained: its answers mean nothing" in text
    assert results["checkpoint"]["sha256"] in text
    for name, each in scores(results):
        decimals = 2 if name.split()[-1] in {"mean_mm", "hd95_mm", "contradictions"} else 3
        value, low, high = (f"{each[end]:.{decimals}f}" for end in ("value", "low", "high"))
        assert f"{value} [{low}, {high}]" in text, name
    for note in results["notes"]:
        assert note in text
    assert page.pictures
    for each in page.pictures:
        with Image.open(io.BytesIO(base64.b64decode(each.partition(",")[2]))) as picture:
            assert picture.height == 260


def test_retrieval_is_measured_with_m3d_clip(results: dict[str, Any], options: list[str]) -> None:
    found = results["tasks"]["retrieval"]
    assert results["clip"] == clip.load(options[options.index("--clip") + 1]).card.sha256
    assert found["items"] == 2
    assert set(found["scores"]) == {"image_to_text R@1 of 2", "text_to_image R@1 of 2"}
    assert {each["blind"] for each in found["scores"].values()} == {0.5}


def test_what_the_command_prints_is_json_if_wished(
    done: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = (done / JOURNAL).read_bytes()
    assert main([*options, "--out", str(done), "--json"]) == 0
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert printed.err == ""
    assert told["images"] == 2
    assert set(told) == {"folder", "images", *TASKS}
    assert told["retrieval"].startswith("image_to_text R@1 of 2 ")
    assert (done / JOURNAL).read_bytes() == before, "nothing was asked again"


def test_the_published_scoring_needs_no_new_answers(
    done: Path, options: list[str], tmp_path: Path
) -> None:
    (tmp_path / JOURNAL).write_bytes((done / JOURNAL).read_bytes())
    assert main([*options, "--out", str(tmp_path), "--mode", "reference", "--json"]) == 0
    assert (tmp_path / JOURNAL).read_bytes() == (done / JOURNAL).read_bytes()
    told = json.loads((tmp_path / "results.json").read_text())
    assert told["mode"] == "reference"
    assert set(told["tasks"]["caption"]["scores"]) == {"bleu", "rouge1", "meteor"}
    text = Page((tmp_path / "report.html").read_text()).text
    assert "Scored as the published scripts score" in text
    for name, each in scores(told):
        assert f"{each['value']:.3f}" in text, name


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(
    done: Path, options: list[str], tmp_path: Path, results: dict[str, Any]
) -> None:
    command = [*options, "--out", str(tmp_path)]
    journal = tmp_path / JOURNAL
    with subprocess.Popen(
        [sys.executable, "-m", "model", *command],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    ) as run:
        deadline = time.monotonic() + 200
        while not journal.is_file() or journal.read_bytes().count(b"\n") < 12:
            assert run.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
    kept = journal.read_bytes()
    kept = kept[: kept.rfind(b"\n") + 1]
    whole = (done / JOURNAL).read_bytes()
    assert 12 <= kept.count(b"\n") < whole.count(b"\n")
    assert main([*command, "--json"]) == 0
    assert journal.read_bytes().startswith(kept)
    keys = [json.loads(line)["key"] for line in journal.read_bytes().splitlines()]
    assert len(set(keys)) == len(keys)
    assert set(keys) == {json.loads(line)["key"] for line in whole.splitlines()}
    again = json.loads((tmp_path / "results.json").read_text())
    # What is asked in another batch may round differently.
    values = {name: each["value"] for name, each in scores(again)}
    assert values == pytest.approx({name: each["value"] for name, each in scores(results)})


def test_prepared_folders_are_benched_too(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = load(checkpoint).network.config.vision.image_size
    folder = tmp_path / "0003" / "c1"
    (folder / "masks").mkdir(parents=True)
    random = np.random.default_rng(1)
    np.save(folder / "image.npy", random.random((1, *grid), dtype=np.float32))
    liver = np.zeros((1, *grid), bool)
    liver[0, 4:20, 40:90, 30:110] = True
    np.save(folder / "masks" / "mask_0.npy", liver)
    nothing(folder / "masks" / "mask_1.npy")
    case = "0003/c1"
    rows = [{"image": f"{case}/image.npy", "label": f"{case}/masks/mask_{n}.npy"} for n in (0, 1)]
    listed(tmp_path / "0003/0003.json", labels={"1": "liver", "2": "spleen"}, train=[], test=rows)
    out = tmp_path / "out"
    command = ["bench", "--checkpoint", str(checkpoint), "--out", str(out), "--root", str(tmp_path)]
    assert main([*command, "--folder", "seg", str(tmp_path / "0003/0003.json"), "--json"]) == 0
    told = json.loads((out / "results.json").read_text())
    assert json.loads(capsys.readouterr().out)["images"] == 1
    assert told["tasks"]["semantic_segmentation"]["items"] == 2
    assert told["tasks"]["retrieval"] == {
        "measured": False,
        "why": "no M3D-CLIP was given, or no image has a report",
    }
    assert "mean_mm" not in told["tasks"]["semantic_segmentation"]["scores"]
    assert any("no distances in mm" in each for each in told["notes"])
    assert "c1/image.npy" in Page((out / "report.html").read_text()).text


WRONG = (
    (["--cases", "0"], "cases must be 1 or more, not 0"),
    (["--cases", "2", "--limit", "rec", "many"], "the limit of rec must be 0 or more, not 'many'"),
    (["--cases", "2", "--limit", "poetry", "3"], "a task is one of caption, .* not 'poetry'"),
    (["--folder", "cap", "x.json"], "folders need --root"),
    (["--root", "x"], "--root needs --folder"),
    (["--corpus", "--folder", "cap", "x.json", "--root", "x"], "the corpus or folders, not both"),
    (["--first-seed", "-4"], "first-seed must be 0 or more, not -4"),
    (["--bertscore", "nowhere"], "nowhere is no folder with weights"),
    (["--device", "toaster"], "device must be auto, cpu or cuda"),
)


@pytest.mark.parametrize(("options", "reason"), WRONG, ids=[" ".join(each) for each, _ in WRONG])
def test_what_cannot_be_done_is_exit_code_3_with_the_reason(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    reason: str,
) -> None:
    out = tmp_path / "out"
    assert main(["bench", "--checkpoint", str(checkpoint), "--out", str(out), *options]) == 3
    assert re.search(reason, capsys.readouterr().err)
    assert not out.exists()


def test_another_run_in_the_same_folder_is_exit_code_3(
    done: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*options, "--out", str(done), "--cases", "3"]) == 3
    assert "answers of another run, whose seeds is" in capsys.readouterr().err


def test_images_must_be_of_one_size_for_both_networks(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = clip_folder(tmp_path / "clip", (16, 64, 64))
    assert main([*options, "--clip", str(other), "--out", str(tmp_path / "out")]) == 3
    assert (
        "sees images of (16, 64, 64), the checkpoint of (32, 256, 256)" in capsys.readouterr().err
    )


def test_words_of_an_answer_cannot_become_a_part_of_the_page(tmp_path: Path) -> None:
    patients = Patients((32, 64, 64), 1, LIMITS)
    evil = "<script>alert(1)</script>"
    entries = ask(Run(Oracle.of(patients, blind=evil), patients), tmp_path)
    for each in entries:
        if "item" in each:
            each["text"] = evil
    found = score(entries)
    told = {
        "mode": "own",
        "checkpoint": {"name": evil, "version": "1", "sha256": "", "untrained": False},
        "clip": None,
        "data": {"corpus": evil},
        "settings": {},
        "seconds": {},
        **found,
        "notes": notes({}, found, bert=True),
    }
    page = Page(report(told, entries, patients))
    assert "script" not in page.tags
    assert evil in page.text
