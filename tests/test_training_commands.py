"""`lamed-model train` as a process: exit codes, and what it says where."""

import json
import os
import subprocess
import sys
from pathlib import Path

import handful
import pytest

from model import load
from model.__main__ import main

ROOT = Path(__file__).parent.parent
OWN = """
stage = "align"
steps = 2
batch = 1
learning_rate = 1e-3
log_every = 1
save_every = 1
train = ["projector"]

[[sets]]
kind = "cap"
file = "M3D_Cap_npy/M3D_Cap.json"
"""


def train(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "model", "train", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_run_ends_with_0_and_json_is_all_it_prints(tmp_path: Path) -> None:
    start = handful.lamed(tmp_path / "start")
    data = handful.data(tmp_path / "data", handful.scenes((3,)))
    (tmp_path / "own.toml").write_text(OWN)
    places = ("--start", start, "--data", data, "--out", tmp_path / "out")
    options = ("--name", "mine", "--device", "cpu", "--json")
    done = train("align", "--recipe", tmp_path / "own.toml", *places, *options)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["folder"] == str(tmp_path / "out/checkpoint")
    assert (told["name"], told["steps"]) == ("mine", 2)
    assert load(told["folder"]).card.sha256 == told["sha256"]
    steps = [each for each in done.stderr.splitlines() if each.startswith("step ")]
    assert [each.split()[1] for each in steps] == ["1/2", "2/2"]


def test_a_recipe_of_another_stage_or_none_ends_with_3_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(OWN)
    done = train("tune", "--recipe", tmp_path / "own.toml", "--start", tmp_path, "--out",
                 tmp_path / "out", "--json")  # fmt: skip
    assert done.returncode == 3
    assert "is a recipe of align, not of tune" in json.loads(done.stdout)["error"]
    assert "is a recipe of align, not of tune" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("whole", "whole begins with"),
        ("none", "a variant is one of whole, without-contrastive,"),
    ],
)
def test_an_ablation_without_a_finished_run_or_of_no_variant_ends_with_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, why: str
) -> None:
    places = ("--run", str(tmp_path), "--out", str(tmp_path / "out"))
    assert main(["train", "ablate", *places, "--only", name, "--json"]) == 3
    assert why in json.loads(capsys.readouterr().out)["error"]
    assert not (tmp_path / "out").exists()


def test_a_run_of_no_steps_or_of_more_than_all_ends_with_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for share in ("0", "1.5"):
        places = ("--out", str(tmp_path / "out"), "--share", share, "--json")
        assert main(["train", "demo", *places]) == 3
        assert "share must be above 0" in json.loads(capsys.readouterr().out)["error"]
    assert not (tmp_path / "out").exists()


def test_a_command_that_is_not_one_ends_with_2() -> None:
    done = train("fly", "--out", "x")
    assert done.returncode == 2
    assert "invalid choice: 'fly'" in done.stderr


def test_other_commands_load_nothing_of_training_but_its_words() -> None:
    """Whoever only reads or benches need not install what training needs."""
    code = """
import sys
import model.__main__
model.__main__._parser()
loaded = sorted(each for each in sys.modules if each.startswith("model.training."))
print(*loaded, "peft" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["model.training.commands", "model.training.recipe", "False"]
