"""M3D-Cap as published, and what all readers do about rows and files that are broken."""

import logging
import re
from pathlib import Path

import numpy as np
import pytest
from published_data import SHAPE, image, listed

from model.data import cap
from model.data.sample import DataError, Sample, Task, load_image, side_of

NAMES = ("ct_case/000001/Axial_bone", "ct_case/000001/Coronal", "ct_quizze/000001/Axial")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Make three images of two cases that have one number in two folders."""
    folder = tmp_path / "M3D_Cap_npy"
    for seed, name in enumerate(NAMES):
        image(folder / f"{name}.npy", seed)
    (folder / "ct_case/000001/text.txt").write_text("A stone in the left\n kidney.\n")
    (folder / "ct_quizze/000001/text.txt").write_text("Zyste beidseits, \u00fcberall.")
    entries = [
        {
            "image": f"M3D_Cap_npy/{name}.npy",
            "text": f"M3D_Cap_npy/{Path(name).parent.as_posix()}/text.txt",
        }
        for name in NAMES
    ]
    listed(folder / "M3D_Cap.json", train=entries[:2], test=entries[2:], test1k=entries[2:])
    return tmp_path


def read(root: Path, split: str = "train", *, skip: bool = False, seed: int = 0) -> list[Sample]:
    return cap.read(root / "M3D_Cap_npy/M3D_Cap.json", split, root=root, skip=skip, seed=seed)


def test_an_image_and_the_report_of_its_case_are_a_sample(root: Path) -> None:
    first, second = read(root)
    assert first.task is Task.CAPTION
    assert first.id == "M3D_Cap_npy/M3D_Cap.json#train/1"
    assert first.answer == second.answer == "A stone in the left kidney."
    assert (first.side, first.sided) == ("left", True)
    assert np.array_equal(load_image(second), np.load(root / f"M3D_Cap_npy/{NAMES[1]}.npy"))
    assert load_image(first).shape == SHAPE
    (third,) = read(root, "test")
    assert third.answer == "Zyste beidseits, \u00fcberall."


def test_a_patient_is_the_folder_of_the_case_with_its_group(root: Path) -> None:
    assert {each.patient for each in read(root)} == {"ct_case/000001"}
    assert {each.patient for each in read(root, "test")} == {"ct_quizze/000001"}


def test_the_question_follows_from_the_seed_and_the_row(root: Path) -> None:
    assert read(root) == read(root)
    asked = {tuple(each.question for each in read(root, seed=seed)) for seed in range(20)}
    assert len(asked) > 10
    assert any(first != second for first, second in asked)


@pytest.mark.parametrize(("key", "split"), [("training", "train"), ("val", "validation")])
def test_a_split_may_have_its_longer_or_shorter_name(root: Path, key: str, split: str) -> None:
    path = root / "M3D_Cap_npy/M3D_Cap.json"
    path.write_text(path.read_text().replace('"train"', f'"{key}"'))
    assert len(read(root, split)) == 2


def test_a_split_of_two_names_or_none_is_an_error(root: Path) -> None:
    with pytest.raises(DataError, match="expected one list named test2k, got train, test, test1k"):
        read(root, "test2k")
    path = root / "M3D_Cap_npy/M3D_Cap.json"
    path.write_text(path.read_text().replace('"test1k"', '"training"'))
    with pytest.raises(DataError, match="expected one list named train, got train and training"):
        read(root)


def test_missing_images_are_counted_and_named_before_anything_is_read(root: Path) -> None:
    for name in NAMES[:2]:
        (root / f"M3D_Cap_npy/{name}.npy").unlink()
    with pytest.raises(DataError) as caught:
        read(root)
    assert caught.value.row == "train/1"
    assert caught.value.came.startswith("2 missing, first: ")
    assert caught.value.expected == "2 files"
    assert all(f"{root}/M3D_Cap_npy/{name}.npy" in str(caught.value) for name in NAMES[:2])


def test_missing_images_are_skipped_only_when_told_and_then_it_is_said(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (root / f"M3D_Cap_npy/{NAMES[0]}.npy").unlink()
    with caplog.at_level(logging.WARNING):
        (left,) = read(root, skip=True)
    assert left.image.name == "Coronal.npy"
    (record,) = caplog.records
    assert record.left_out == 1  # type: ignore[attr-defined]
    assert NAMES[0] in record.getMessage()


def test_many_missing_files_are_counted_and_the_first_named(root: Path) -> None:
    entry = {"text": "M3D_Cap_npy/ct_case/000001/text.txt"}
    entries = [entry | {"image": f"ct_case/{number:03d}/Axial.npy"} for number in range(100)]
    listed(root / "M3D_Cap_npy/M3D_Cap.json", train=entries)
    with pytest.raises(DataError, match="expected 100 files, got 100 missing, first: ") as caught:
        read(root)
    assert len(re.findall(r"Axial\.npy", str(caught.value))) == 5


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "a report in UTF-8"),
        (b"\xff\xfe", "a report in UTF-8"),
        (b" \n", "a report, got nothing"),
    ],
)
def test_a_report_that_cannot_be_read_is_named_with_its_row(
    root: Path, text: bytes | None, told: str
) -> None:
    path = root / "M3D_Cap_npy/ct_quizze/000001/text.txt"
    path.unlink()
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(DataError, match=f"M3D_Cap.json, row test/1: expected {told}"):
        read(root, "test")


def test_a_broken_row_is_an_error_and_never_another_row_in_its_place(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = root / "M3D_Cap_npy/M3D_Cap.json"
    good = {"image": f"M3D_Cap_npy/{NAMES[0]}.npy", "text": "M3D_Cap_npy/ct_case/000001/text.txt"}
    listed(path, train=[good, {"image": 7, "text": "a"}, good, {"text": "b"}])
    with pytest.raises(DataError, match="row train/2: expected text in image, got 7") as caught:
        read(root)
    assert "1 more rows cannot be used, first: train/4" in str(caught.value)
    with caplog.at_level(logging.WARNING):
        assert [each.id.rpartition("#")[2] for each in read(root, skip=True)] == [
            "train/1",
            "train/3",
        ]
    assert caplog.records[0].left_out == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[]", "a JSON object, got list"),
        ("{", "JSON in UTF-8"),
        ('{"train": [1]}', "a list of objects named train"),
        (None, "a list, got No such file"),
    ],
)
def test_a_list_that_is_none_is_named(root: Path, content: str | None, told: str) -> None:
    path = root / "M3D_Cap_npy/M3D_Cap.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=f"M3D_Cap_npy/M3D_Cap.json: expected {told}"):
        read(root)


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.zeros((4, 8, 8), np.float32), r"an image \(1, D, H, W\)"),
        (np.zeros(SHAPE, np.uint8), "an image of floats"),
        (np.full(SHAPE, 255, np.float32), "voxels in 0..1"),
        (np.full(SHAPE, np.nan, np.float32), "voxels in 0..1"),
        (np.array([{}]), "an array in"),
    ],
)
def test_an_image_that_is_none_names_the_row_when_it_is_loaded(
    root: Path, array: np.ndarray, told: str
) -> None:
    np.save(root / f"M3D_Cap_npy/{NAMES[0]}.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=f"M3D_Cap.json, row train/1: expected {told}"):
        load_image(read(root)[0])


@pytest.mark.parametrize(
    ("text", "side", "sided"),
    [
        ("The left kidney.", "left", True),
        ("RIGHT lung, right heart.", "right", True),
        ("Left and right kidney.", "", True),
        ("Bilateral effusion.", "", True),
        ("Levocardia? Dextroscoliosis.", "", True),
        ("The bright liver is upright.", "", False),
        ("No side is named.", "", False),
    ],
)
def test_a_side_in_words_is_seen(text: str, side: str, sided: bool) -> None:  # noqa: FBT001
    sample = Sample("a#1", Task.CAPTION, Path("a.npy"), "Report.", text, "p", side=side_of(text))
    assert (sample.side, sample.sided) == (side, sided)
