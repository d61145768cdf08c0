"""The checkpoint that ships: half the bytes, every number on its card, its curves and its page."""

import json
from pathlib import Path
from typing import Any

import curve
import pytest
import torch
from safetensors.torch import load_file

from model import checkpoint, tiny
from model.errors import ModelError
from model.training import shipping
from model.training.shipping import ship


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "tiny"
    tiny.init(folder)
    return folder


def measured(folder: Path, sha256: str, page: str = "<p>pictures</p>") -> Path:
    """Write results as the benchmark does: one task with a score, one that was not measured."""
    score = {"value": 0.51234, "low": 0.4, "high": 0.6, "blind": 0.1, "items": 12}
    results: dict[str, Any] = {
        "checkpoint": {"sha256": sha256},
        "counts": {"images": 340, "patients": 340},
        "tasks": {
            "rec": {"measured": True, "scores": {"iou": score}},
            "retrieval": {"measured": False},
        },
        "declining": {"scores": {"all": score | {"low": None, "blind": None}}},
    }
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results))
    if page:
        (folder / "report.html").write_text(page)
    return folder / "results.json"


def digest(folder: Path) -> str:
    return checkpoint.read_card(folder, checkpoint.read_config(folder)).sha256


def test_what_ships_has_half_the_bytes_and_its_numbers_page_and_curves(
    source: Path, tmp_path: Path
) -> None:
    results = measured(tmp_path / "bench", digest(source))
    curve.run(tmp_path / "run" / "tune")
    card = ship(source, tmp_path / "out", text="Of a test.", results=results, run=tmp_path / "run")
    given, kept = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "out"))
    for name, value in kept.items():
        exact = name.endswith(shipping.PRECISE) or not given[name].is_floating_point()
        assert value.dtype == (given[name].dtype if exact else torch.float16), name
        assert torch.equal(value, given[name].to(value.dtype)), name
    assert set(kept) == set(given)
    told = (tmp_path / "out" / "README.md").read_text()
    assert "Of a test." in told
    assert "340 images" in told
    assert "| rec | iou | 0.512 [0.400, 0.600] | 0.100 | 12 |" in told
    assert "| retrieval | not measured | | | |" in told
    assert "| declining | all | 0.512 |  | 12 |" in told
    assert "| tune | 12 | 0 |" in told
    assert "![curves](training.svg)" in told
    assert (tmp_path / "out" / "report.html").read_text() == "<p>pictures</p>"
    assert (tmp_path / "out" / "training.svg").read_text().startswith("<svg")
    files = json.loads((tmp_path / "out" / "manifest.json").read_text())["files"]
    assert set(files) >= {"report.html", "training.svg", "README.md", "model.safetensors"}
    assert card.sha256 == digest(tmp_path / "out") != digest(source)


def test_what_is_half_already_stays_as_it_was_measured(source: Path, tmp_path: Path) -> None:
    half = ship(source, tmp_path / "half", text="")
    results = measured(tmp_path / "bench", half.sha256)
    again = ship(tmp_path / "half", tmp_path / "out", text="", results=results)
    assert again.sha256 == half.sha256


def test_numbers_of_another_checkpoint_are_refused(source: Path, tmp_path: Path) -> None:
    results = measured(tmp_path / "bench", "0" * 64)
    with pytest.raises(
        ModelError, match=f"is of the checkpoint 0{{12}}, expected {digest(source)[:12]}"
    ):
        ship(source, tmp_path / "out", text="", results=results)
    assert not (tmp_path / "out").exists()


def test_numbers_without_their_page_or_without_sense_are_refused(
    source: Path, tmp_path: Path
) -> None:
    results = measured(tmp_path / "bench", digest(source), page="")
    with pytest.raises(ModelError, match="there should be its page"):
        ship(source, tmp_path / "out", text="", results=results)
    results.write_text("{")
    with pytest.raises(ModelError, match="is no result of the benchmark"):
        ship(source, tmp_path / "out", text="", results=results)


def test_weights_that_are_too_large_do_not_ship(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipping, "LARGEST_MB", 0)
    with pytest.raises(ModelError, match=r"at most 0 MB, not \d"):
        ship(source, tmp_path / "out", text="")
    assert not (tmp_path / "out").exists()
