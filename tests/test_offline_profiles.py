"""What `lamed-node run` and `ask` write for which destinations."""

import json
from pathlib import Path
from typing import Any

import pytest
from commands import short_protocols

from dicom_node.__main__ import main
from dicom_node.demo import sample


@pytest.fixture
def node(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LAMED_DATA_DIR", str(tmp_path / "node"))
    monkeypatch.setenv("LAMED_CHECKPOINT", str(checkpoint))
    monkeypatch.setenv("LAMED_PROTOCOLS", str(short_protocols(tmp_path / "protocols")))
    made = sample.series(shape=(8, 32, 32), spacing_mm=(6.0, 5.0, 5.0))
    sample.write(made, tmp_path / "ct")
    return tmp_path


def outputs(out: Path) -> list[Any]:
    told = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    return [each["label"] for each in told["outputs"]]


def test_what_a_profile_gets_is_written_and_nothing_else(
    node: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = node / "out"
    run = ["run", str(node / "ct"), "--out", str(out)]
    assert main([*run, "--profile", "ohif", "--profile", "slicer"]) == 0
    assert outputs(out) == ["seg", "measurements", "draft", "measurements.ohif"]
    assert main([*run, "--profile", "ohif"]) == 0
    assert "measurements" not in outputs(out)
    assert {each.stem for each in out.glob("*.dcm")} == set(outputs(out))
    assert (out / "draft.txt").read_text(encoding="utf-8").startswith("AI DRAFT")
    assert main([*run, "--profile", "siemens"]) == 2
    assert "one of generic-pacs, ohif" in capsys.readouterr().err
