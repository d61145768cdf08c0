import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Tool = Callable[[str], str]

ROOT = Path(__file__).parent.parent
SUBJECTS = {
    "receiving": {"LaMed Node", "Orthanc", "DCMTK storescp", "pynetdicom save_as"},
    "sending": {"LaMed Node", "pynetdicom", "DCMTK dcmsend"},
    "volume": {"LaMed Node", "numpy frombuffer", "ours, with every header", "highdicom"},
    "segmentation": {"LaMed Node", "highdicom", "dcmqi"},
    "reading": {"LaMed Node, one batch", "one at a time"},
    "ledger": {"LaMed Node", "bare sqlite3"},
}


def bench(*options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tests.bench", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def quick(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    told = tmp_path_factory.mktemp("bench") / "bench.json"
    done = bench("--quick", "--checkpoint", str(checkpoint), "--json", str(told))
    assert done.returncode == 0, done.stderr
    return json.loads(told.read_text()) | {"shown": done.stdout}


@pytest.mark.slow
def test_every_bench_measures_every_subject_once(tool: Tool, quick: dict[str, Any]) -> None:
    for name in ("Orthanc", "storescp", "storescu", "dcmsend"):
        tool(name)
    assert quick["missing"] == []
    seen: dict[str, set[str]] = {}
    for row in quick["rows"]:
        seen.setdefault(row["bench"], set()).add(row["subject"])
        assert len(row["values"]) == 1, row
        assert math.isfinite(row["median"]), row
        assert row["median"] > 0 or row["unit"] in {"MB added", "MB more"}, row
        assert row["subject"] in quick["shown"]
    assert seen == SUBJECTS


@pytest.mark.slow
def test_one_batch_encodes_the_image_once(quick: dict[str, Any]) -> None:
    runs = {each["subject"]: each for each in quick["rows"] if "encoders" in each["unit"]}
    # Two requests for a mask: the vision tower and SegVol's encoder, once or for each.
    assert runs["LaMed Node, one batch"]["median"] == 2
    assert runs["one at a time"]["median"] == 4
    assert runs["one at a time"]["ours_is_times_better"] == 2


def test_a_bench_nobody_knows_is_a_usage_error() -> None:
    done = bench("flying")
    assert done.returncode == 2
    assert "flying" in done.stderr
