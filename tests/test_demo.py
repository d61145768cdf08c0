import json
from pathlib import Path

import pydicom
import pytest
from commands import Done, lamed_node, short_protocols
from PIL import Image

from dicom_node.config import Config
from dicom_node.supervisor import Supervisor

NO_INDEX = {
    "PIP_INDEX_URL": "http://127.0.0.1:9/",
    "PIP_RETRIES": "0",
    "PIP_CONFIG_FILE": "/dev/null",
    "PIP_NO_INDEX": "0",
}


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> tuple[Done, Path]:
    """One demonstration without a network: the document, and what a person sees beside it."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in NO_INDEX.items():
            patch.setenv(name, value)
        done = lamed_node(
            *("demo", "--no-stay", "--json", "--out", folder / "out", "--cache", folder / "cache"),
            checkpoint=checkpoint,
            protocols=short_protocols(folder / "protocols"),
            dicom_port=0,
            http_port=0,
            data_dir=folder / "not-this-one",
            minimum_free_mb=1,
        )
    assert not (folder / "not-this-one").exists()
    return done, folder / "out"


@pytest.mark.slow
def test_without_a_network_a_synthetic_study_is_sent_and_it_is_said(
    shown: tuple[Done, Path],
) -> None:
    done, out = shown
    assert done.code == 0
    assert "no real scan" in done.err
    assert "SYNTHETIC" in done.err
    assert "60/60" in done.err
    for step in ("study.complete", "study.routed", "job.done", "delivery.sent"):
        assert step in done.err
    assert done.data["sent"] == str(out / "synthetic")
    sent = pydicom.dcmread(next((out / "synthetic").glob("*.dcm")), stop_before_pixels=True)
    assert str(sent.PatientName).startswith("SYNTHETIC")


@pytest.mark.slow
def test_what_is_named_lies_there_and_came_back_over_dicom(shown: tuple[Done, Path]) -> None:
    done, out = shown
    drafts = out / "drafts"
    names = sorted(path.name for path in drafts.iterdir())
    assert names == [
        "draft.dcm", "draft.txt", "measurements.dcm", "overlay.png", "seg.dcm", "summary.json",
    ]  # fmt: skip
    assert all(str(drafts / name) in done.err for name in names)
    assert done.data["drafts"] == str(drafts)
    assert [each["path"] for each in done.data["objects"]] == [
        str(drafts / name) for name in ("seg.dcm", "measurements.dcm", "draft.dcm")
    ]
    received = {path.stem: path for path in (out / "received").rglob("*.dcm")}
    for name in ("seg.dcm", "measurements.dcm", "draft.dcm"):
        copy = pydicom.dcmread(drafts / name, stop_before_pixels=True)
        assert (drafts / name).read_bytes() == received[copy.SOPInstanceUID].read_bytes()
        assert copy.SeriesDescription.startswith("AI DRAFT")
    assert json.loads((drafts / "summary.json").read_text())["protocol"] == "ct_chest"
    with Image.open(drafts / "overlay.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 600
    assert "AI DRAFT" in (drafts / "draft.txt").read_text().splitlines()[0]
    assert (drafts / "draft.txt").read_text() in done.err


@pytest.mark.slow
def test_nothing_is_left_running(shown: tuple[Done, Path]) -> None:
    _, out = shown
    with Supervisor(Config(data_dir=out / "node")) as alone:
        assert alone.ports == {}


def test_a_folder_with_something_else_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear colleague")
    done = lamed_node("demo", "--no-stay", "--out", tmp_path, "--json")
    assert done.code == 3
    assert done.error == f"{tmp_path} holds something else; give an empty folder with --out"
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
    done = lamed_node("demo", "--no-stay", "--out", tmp_path / "letter.txt", "--json")
    assert (done.code, "is a file" in done.error) == (3, True)


def test_a_demonstration_that_is_still_up_is_not_swept_away(tmp_path: Path) -> None:
    (tmp_path / ".lamed-demo").touch()
    (tmp_path / "received").mkdir()
    with Supervisor(Config(data_dir=tmp_path / "node")):
        done = lamed_node("demo", "--no-stay", "--out", tmp_path, "--json")
    assert done.code == 4
    assert "is still up; stop it first" in done.error
    assert (tmp_path / "received").is_dir()
