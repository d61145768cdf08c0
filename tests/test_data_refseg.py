"""M3D-RefSeg as published: a lesion in words, and its label in a map."""

import re
from pathlib import Path

import numpy as np
import pytest
from published_data import REFSEG, edited, image, mask, table

from model.data import refseg
from model.data.sample import DataError, Sample, Task, load_mask

ROWS = (
    ("s0001/ct.npy", "s0001/mask.npy", 1, 0, "Outline the cyst.", "It is [SEG], in the left lobe."),
    ("s0001/ct.npy", "s0001/mask.npy", "2.0", 1, "What hurts?", "The stone: <SEG>."),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    image(tmp_path / "M3D_RefSeg_npy/s0001/ct.npy")
    mask(tmp_path / "M3D_RefSeg_npy/s0001/mask.npy", (0, 2, 0, 3, 0, 4), (2, 4, 5, 7, 5, 8))
    return table(tmp_path / "M3D_RefSeg.csv", REFSEG, ROWS)


def read(path: Path, *, skip: bool = False) -> list[Sample]:
    return refseg.read(path, root=path.parent / "M3D_RefSeg_npy", skip=skip)


def test_a_row_is_a_question_about_one_label(path: Path) -> None:
    first, second = read(path)
    assert {first.task, second.task} == {Task.REFERRING_SEGMENTATION}
    assert (first.kind, second.kind) == ("description", "reasoning")
    assert (first.mask_label, second.mask_label) == (1, 2)
    assert (first.side, second.side) == ("left", "")
    assert first.patient == second.patient == "s0001"
    labels = np.load(path.parent / "M3D_RefSeg_npy/s0001/mask.npy")
    assert np.array_equal(load_mask(first), labels == 1)
    assert np.array_equal(load_mask(second), labels == 2)


def test_the_other_spelling_of_seg_is_put_right(path: Path) -> None:
    assert read(path)[1].answer == "The stone: [SEG]."


@pytest.mark.parametrize("prefix", ["M3D_RefSeg_npy/", "/somewhere/RefSegData/", "./"])
def test_paths_of_raw_files_and_of_other_machines_are_found(path: Path, prefix: str) -> None:
    edited(
        path,
        {
            "s0001/ct.npy": f"{prefix}s0001/ct.nii.gz",
            "s0001/mask.npy": f"{prefix}s0001/mask.nii.gz",
        },
    )
    assert [each.image.name for each in read(path)] == ["ct.npy", "ct.npy"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({",2.0,": ",3,"}, "row 2: expected label 3 in mask.npy, got [0, 1, 2]"),
        ({",2.0,": ",0,"}, "row 2: expected label 0 in mask.npy"),
        ({",2.0,": ",-1,"}, "row 2: expected label -1 in mask.npy"),
        ({",2.0,": ",two,"}, "row 2: expected a whole number in Mask_ID, got 'two'"),
        ({",1,0,": ",1,2,"}, "row 1: expected a question type of"),
        ({"[SEG]": "there"}, "row 1: expected one [SEG] in the answer, got 0"),
        ({"<SEG>": "[SEG] and <SEG>"}, "row 2: expected one [SEG] in the answer, got 2"),
        ({"Outline the cyst.": ""}, "row 1: expected text in Question, got nothing"),
    ],
)
def test_a_broken_row_is_named_and_skipped_only_when_told(
    path: Path, change: dict[str, str], told: str
) -> None:
    edited(path, change)
    with pytest.raises(DataError, match=f"^M3D_RefSeg.csv, {re.escape(told)}"):
        read(path)
    assert len(read(path, skip=True)) == 1


def test_missing_files_are_counted_and_named(path: Path) -> None:
    (path.parent / "M3D_RefSeg_npy/s0001/mask.npy").unlink()
    with pytest.raises(
        DataError, match=r"row 1: expected 2 files, got 1 missing, first: .*mask.npy"
    ):
        read(path)


def test_a_mask_that_is_no_array_is_named_with_its_row(path: Path) -> None:
    (path.parent / "M3D_RefSeg_npy/s0001/mask.npy").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(DataError, match=r"^M3D_RefSeg.csv, row 1: expected an array in"):
        read(path)


def test_a_mask_without_its_label_is_an_error_when_it_is_loaded(path: Path) -> None:
    first, _ = read(path)
    mask(
        path.parent / "M3D_RefSeg_npy/s0001/mask.npy",
        (0, 1, 0, 1, 0, 1),
        (1, 2, 1, 2, 1, 2),
        label=4,
    )
    with pytest.raises(DataError, match="row 1: expected a voxel in the mask, got none"):
        load_mask(first)
