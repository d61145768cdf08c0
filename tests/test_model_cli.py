"""`lamed-model`: what it prints and which exit code a script gets."""

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch

from model import load
from model.__main__ import main


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    # Two threads on matrices this small spend their time waiting for each other.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_init_writes_a_checkpoint_and_says_which(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "tiny"
    assert main(["init", "--size", "tiny", "--out", str(folder)]) == 0
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    card = load(folder).card
    assert printed == {
        "name": card.name,
        "version": card.version,
        "sha256": card.sha256,
        "untrained": "True",
        "folder": str(folder),
    }


def test_init_with_json_prints_json_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "tiny"
    assert main(["init", "--size", "tiny", "--out", str(folder), "--seed", "4", "--json"]) == 0
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert told == vars(load(folder).card) | {"folder": str(folder)}
    assert told["untrained"] is True
    assert printed.err == ""


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["unknown"],
        ["init"],
        ["init", "--size", "tiny"],
        ["init", "--size", "huge", "--out", "x"],
        ["init", "--size", "tiny", "--out", "x", "--seed", "many"],
        ["init", "--size", "tiny", "--out", "x", "--unknown"],
    ],
)
def test_a_wrong_call_is_exit_code_2_with_the_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: lamed-model" in capsys.readouterr().err


@pytest.mark.parametrize("seed", ["0", "-7"])
def test_bad_input_is_exit_code_3_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: str
) -> None:
    (tmp_path / "mine").write_text("mine")
    command = ["init", "--size", "tiny", "--out", str(tmp_path), "--seed", seed]
    reason = f"{tmp_path} must be new or an empty folder"
    if seed == "-7":
        reason = "seed must be 0 to 4294967295, not -7"
    assert main(command) == 3
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", f"lamed-model: {reason}\n")
    assert main([*command, "--json"]) == 3
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"error": reason, "exit_code": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_what_nobody_foresaw_is_exit_code_5_with_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    impossible = str(tmp_path / "a\0b")
    assert main(["init", "--size", "tiny", "--out", impossible, "--json"]) == 5
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert told["exit_code"] == 5
    assert told["error"].startswith("ValueError: ")
    assert "lamed-model: ValueError: " in printed.err


def test_the_installed_command_is_this_one() -> None:
    (command,) = entry_points(group="console_scripts", name="lamed-model")
    assert command.load() is main


@pytest.mark.slow
def test_the_module_is_a_command_too(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    command = [sys.executable, "-m", "model", "init", "--size", "tiny", "--out", tmp_path]
    done = subprocess.run([*command, "--json"], check=False, capture_output=True, text=True)
    assert done.returncode == 3
    assert json.loads(done.stdout)["exit_code"] == 3
    assert done.stderr == f"lamed-model: {tmp_path} must be new or an empty folder\n"
