"""The command line `lamed-model data`, as `lamed-model` runs it."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published_data import REFSEG, VQA, image, listed, mask, nothing, table
from raw_studies import listed as raw_list
from raw_studies import marked, nifti, pictures

from model import ModelError
from model.data import commands
from model.data.sample import DataError


def run(*arguments: object) -> dict[str, Any]:
    """Parse as `lamed-model` does, and run what it would run."""
    parser = argparse.ArgumentParser()
    commands.add_to(parser.add_subparsers(required=True))
    parsed = parser.parse_args(["data", *map(str, arguments)])
    told: dict[str, Any] = parsed.command(parsed)
    return told


def cap(root: Path, **splits: list[str]) -> Path:
    """Make images of cases, and a list; the seed of an image is the number of its case."""
    content = {}
    for split, cases in splits.items():
        content[split] = []
        for name in cases:
            folder = root / "ct_case" / name
            image(folder / f"{split}.npy", int(name))
            (folder / "text.txt").write_text(f"Case {name} is normal.")
            entry = {"image": f"ct_case/{name}/{split}.npy", "text": f"ct_case/{name}/text.txt"}
            content[split].append(entry)
    return listed(root / "M3D_Cap.json", **content)


def test_raw_scans_are_prepared_and_it_is_told_what_was_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voxels, labels, affine = marked("LPS")
    nifti(tmp_path / "raw/0001/a/image.nii.gz", voxels, affine)
    nifti(tmp_path / "raw/0001/a/label.nii.gz", labels, affine)
    entry = {"image": "0001/a/image.nii.gz", "label": "0001/a/label.nii.gz"}
    raw_list(tmp_path / "raw", "0001", labels={"1": "liver", "2": "spleen"}, train=[entry])
    out = tmp_path / "out"
    told = run("prepare", "seg", tmp_path / "raw", "--out", out, "--window", 500, 1000)
    assert told == {
        "studies": 1,
        "made": 1,
        "before": 0,
        "failed": 0,
        "left_out": [],
        "folder": str(out),
    }
    assert np.load(out / "0001/a/image.npy").shape == (1, 32, 256, 256)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "1/1" in printed.err
    again = run("prepare", "seg", tmp_path / "raw", "--out", out, "--window", 500, 1000, "--json")
    assert again["before"] == 1
    assert capsys.readouterr().err == ""
    found = run("check", "seg", out, "--list", out / "0001/0001.json", "--splits", "train", "train")
    assert found["train_samples"] == 14


def test_studies_that_fail_are_bad_input_and_the_others_are_done(tmp_path: Path) -> None:
    slices = np.random.default_rng(0).integers(0, 255, (3, 20, 20), dtype=np.uint8)
    for name in ("1", "2"):
        pictures(tmp_path / "raw/ct_case" / name / "Axial", slices)
    broken = tmp_path / "raw/ct_case/1/Axial/2.png"
    broken.write_bytes(b"")
    with pytest.raises(ModelError, match="1 of 2 studies could not be prepared") as caught:
        run("prepare", "cap", tmp_path / "raw", "--out", tmp_path / "out", "--mode", "reference")
    assert str(broken) in str(caught.value)
    assert (tmp_path / "out/ct_case/2/Axial.npy").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--workers", 0), "workers must be 1 or more"),
        (("--axes", "RAA"), "axes must name each direction once"),
        (("--mode", "reference", "--axes", "RAS"), "for canonical mode"),
    ],
)
def test_options_that_make_no_sense_are_told(
    tmp_path: Path, options: tuple[object, ...], told: str
) -> None:
    (tmp_path / "raw").mkdir()
    with pytest.raises(ModelError, match=told):
        run("prepare", "seg", tmp_path / "raw", "--out", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_a_leak_is_told_with_its_pair(tmp_path: Path) -> None:
    path = cap(tmp_path, train=["1", "2"], test=["2", "3"])
    report = tmp_path / "report.json"
    told = run("check", "cap", tmp_path, "--list", path, "--out", report, "--json")
    pair = {"train": "M3D_Cap.json#train/2", "test": "M3D_Cap.json#test/1", "why": "ct_case/2"}
    assert told["patients"] == [pair]
    assert [each["train"] for each in told["images"]] == [pair["train"]]
    assert (told["train_samples"], told["test_samples"], told["leaked_samples"]) == (2, 2, 1)
    assert told["clean"] is False
    assert json.loads(report.read_text()) == told
    shown = run("check", "cap", tmp_path, "--list", path, "--no-images")
    assert shown["images"] == "0"
    assert shown["patients"].splitlines()[0] == "1"
    assert shown["patients"].split()[1:] == list(pair.values())


def test_only_the_first_of_many_pairs_are_shown(tmp_path: Path) -> None:
    names = [str(number) for number in range(30)]
    path = cap(tmp_path, train=names, test=names)
    shown = run("check", "cap", tmp_path, "--list", path, "--no-images")["patients"].splitlines()
    assert (shown[0], shown[-1].strip(), len(shown)) == ("30", "and 10 more", 22)


def test_every_kind_of_table_is_read(tmp_path: Path) -> None:
    image(tmp_path / "ct_case/1/a.npy", 1)
    mask(tmp_path / "s1/mask.npy", (0, 1, 0, 1, 0, 1), (1, 2, 1, 2, 1, 2))
    image(tmp_path / "s1/ct.npy")
    row = ("ct_case/1/a.npy", "", 1, "Plane?", "Axial", "Coronal", "NA", "NA", "Axial", "A")
    closed = table(tmp_path / "vqa.csv", VQA, [row])
    columns = ("Image Path", "Question", "Answer")
    yes_no = table(tmp_path / "yn.csv", columns, [("ct_case/1/a.npy", "Axial?", "Yes")])
    row = ("s1/ct.npy", "s1/mask.npy", 2, 0, "Outline it.", "It is [SEG].")
    referred = table(tmp_path / "refseg.csv", REFSEG, [row])
    for kind, path in (
        ("vqa-closed", closed),
        ("vqa-open", closed),
        ("vqa-yes-no", yes_no),
        ("refseg", referred),
    ):
        told = run("check", kind, tmp_path, "--list", path, path, "--json")
        assert (told["train_samples"], told["leaked_samples"]) == (1, 1), kind


def test_what_is_missing_is_told_or_skipped_when_wanted(tmp_path: Path) -> None:
    path = cap(tmp_path, train=["1", "2"], test=["3"])
    (tmp_path / "ct_case/2/train.npy").unlink()
    with pytest.raises(DataError, match="expected 2 files, got 1 missing"):
        run("check", "cap", tmp_path, "--list", path)
    assert run("check", "cap", tmp_path, "--list", path, "--skip", "--json")["train_samples"] == 1


@pytest.mark.parametrize(("kind", "count"), [("cap", 2), ("seg", 2), ("refseg", 1)])
def test_lists_of_another_number_are_refused(tmp_path: Path, kind: str, count: int) -> None:
    paths = [tmp_path / "a.json"] * count
    with pytest.raises(ModelError, match=f"{kind} has (one list|a table for train and for test)"):
        run("check", kind, tmp_path, "--list", *paths)


def test_questions_are_a_command_beside_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run("--help")
    assert caught.value.code == 0
    told = capsys.readouterr().out
    assert all(each in told for each in ("prepare", "check", "questions"))


def test_an_absent_class_counts_as_a_sample(tmp_path: Path) -> None:
    image(tmp_path / "0001/a/image.npy")
    nothing(tmp_path / "0001/a/masks/mask_0.npy")
    entry = {"image": "0001/a/image.npy", "label": "0001/a/masks/mask_0.npy"}
    path = listed(tmp_path / "0001/0001.json", labels={"1": "liver"}, train=[entry], test=[entry])
    told = run("check", "seg", tmp_path, "--list", path, "--json")
    assert told["train_samples"] == 5  # all but the box that another structure would need
