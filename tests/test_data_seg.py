"""M3D-Seg, prepared: what is asked about a mask, and about one that is empty."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from published_data import box, image, listed, mask, nothing

from model.data import seg
from model.data.prompts import box_text
from model.data.sample import DataError, Sample, Task, load_mask
from model.tokenizer import SEG

LABELS = {
    "0": "background",
    "1": "liver",
    "2": "kidney left",
    "3": "tumor",
    "4": "spleen",
}
LIVER, KIDNEY = (0, 2, 1, 5, 0, 3), (2, 4, 3, 4, 6, 8)
MASKS = "0031/a/masks"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Make a set of two cases: liver and left kidney are there, the spleen is absent in one."""
    image(tmp_path / "0031/a/image.npy", 1)
    image(tmp_path / "0031/b/image.npy", 2)
    mask(tmp_path / MASKS / "mask_0.npy", LIVER)
    mask(tmp_path / MASKS / "mask_1.npy", KIDNEY)
    nothing(tmp_path / MASKS / "mask_3.npy")
    mask(tmp_path / "0031/b/masks/mask_2.npy", LIVER)
    train = [
        {"image": "0031/a/image.npy", "label": f"{MASKS}/mask_{number}.npy"} for number in (0, 1, 3)
    ]
    test = [{"image": "0031/b/image.npy", "label": "0031/b/masks/mask_2.npy"}]
    listed(tmp_path / "0031/0031.json", labels=LABELS, train=train, test=test)
    return tmp_path


def read(root: Path, split: str = "train", **options: Any) -> list[Sample]:
    return seg.read(root, "0031", split, **options)


def of(samples: list[Sample], row: int, task: Task) -> list[Sample]:
    return [each for each in samples if f"#train/{row}:{task}" in each.id]


def rewritten(root: Path, **content: Any) -> None:
    path = root / "0031/0031.json"
    listed(path, **(json.loads(path.read_text()) | content))


def test_a_mask_is_asked_for_by_its_name_and_by_its_description(root: Path) -> None:
    samples = read(root)
    (named,) = of(samples, 2, Task.SEMANTIC_SEGMENTATION)
    (described,) = of(samples, 2, Task.REFERRING_SEGMENTATION)
    assert "the left kidney" in named.question
    assert "left kidney" not in described.question
    assert "on the left side" in described.question
    assert "left kidney" in described.answer
    for each in (named, described):
        assert each.answer.count(SEG) == 1
        assert (each.kind, each.side, each.absent) == ("left kidney", "left", False)
        assert np.array_equal(load_mask(each), np.load(root / MASKS / "mask_1.npy"))


def test_boxes_are_those_of_the_mask(root: Path) -> None:
    samples = read(root)
    expected = box(np.load(root / MASKS / "mask_0.npy"))
    assert expected == (0, 1 / 8, 0, 1 / 4, 4 / 8, 2 / 8)
    for each in of(samples, 1, Task.REC):
        assert each.box == expected
        assert box_text(expected) in each.answer  # type: ignore[arg-type]
        assert "<bx_start>" not in each.question
    for each in of(samples, 1, Task.REG):
        assert each.box == expected
        assert box_text(expected) in each.question  # type: ignore[arg-type]
        assert "liver" in each.answer
    assert {each.kind for each in of(samples, 1, Task.REC)} == {"word", "description"}


def test_boxes_are_written_as_the_reference_measures_them() -> None:
    told = json.loads((reference.folder("text") / "metrics.json").read_text())["mask2box"]
    assert len(told) == 4
    for each in told:
        mask_zyx = np.zeros(each["shape"], np.bool_)
        first, last = each["min_index"], each["max_index"]
        mask_zyx[tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))] = True
        found = seg.box_of(mask_zyx[None])
        assert found is not None
        assert box_text(found) == f"<bx_start>{each['box']}<bx_end>"
    assert seg.box_of(np.zeros((1, 4, 4, 4), np.bool_)) is None


def test_what_is_absent_is_said_and_has_neither_mask_nor_box(root: Path) -> None:
    absent = [each for each in read(root) if "#train/3:" in each.id]
    assert {each.task for each in absent} == set(seg.TASKS)
    for each in absent:
        assert each.absent
        assert (each.mask, each.box) == (None, None)
        assert SEG not in each.answer
        assert "<bx_start>" not in each.answer
        assert "spleen" in each.answer or each.answer == "No"
    (wrong,) = of(absent, 3, Task.REG)
    present = [box(np.load(root / MASKS / f"mask_{number}.npy")) for number in (0, 1)]
    assert any(box_text(each) in wrong.question for each in present)  # type: ignore[arg-type]


def test_what_is_there_is_not_called_absent_in_any_words(root: Path) -> None:
    present = [each for each in read(root) if "#train/3:" not in each.id]
    assert len(present) == 2 * 7
    assert not any(each.absent for each in present)
    presence = [each for each in present if each.kind == "presence"]
    assert [(each.answer, each.choices) for each in presence] == [("Yes", ("Yes", "No"))] * 2


def test_an_id_names_the_row_and_is_given_once(root: Path) -> None:
    ids = [each.id for each in read(root)]
    assert len(set(ids)) == len(ids)
    assert all(each.startswith("0031/0031.json#train/") for each in ids)


def test_only_the_tasks_that_are_wanted_are_made(root: Path) -> None:
    samples = read(root, tasks=[Task.REC])
    assert {each.task for each in samples} == {Task.REC}
    assert len(samples) == 6


def test_words_follow_from_the_seed_and_the_row(root: Path) -> None:
    assert read(root) == read(root)
    assert [each.question for each in read(root, seed=1)] != [each.question for each in read(root)]


def test_a_name_that_is_not_in_the_dictionary_is_asked_for_by_its_word_alone(root: Path) -> None:
    rewritten(root, labels=LABELS | {"3": "xyzzy duct"})
    samples = read(root, "test")
    assert {each.task for each in samples} == set(seg.TASKS) - {Task.REFERRING_SEGMENTATION}
    assert all("xyzzy duct" in each.question + each.answer for each in samples)


def test_class_names_that_say_too_little_are_put_right(root: Path) -> None:
    for code, number, name in (("0005", 4, "kidney tumour"), ("0014", 21, "vertebra L2")):
        folder = root / code / "a"
        image(folder / "image.npy")
        mask(folder / "masks" / f"mask_{number - 1}.npy", LIVER)
        entry = {
            "image": f"{code}/a/image.npy",
            "label": f"{code}/a/masks/mask_{number - 1}.npy",
        }
        names = {str(number): "tumor" if code == "0005" else "lumbar spine L1"}
        listed(root / code / f"{code}.json", labels=names, train=[entry])
        assert seg.read(root, code, "train")[0].kind == name
    (first, *_) = read(root, "test")
    assert first.kind == "tumour"


def test_paths_of_another_machine_are_found_below_the_root(root: Path) -> None:
    path = root / "0031/0031.json"
    path.write_text(path.read_text().replace('"0031/', '"/data/M3D_Seg_npy/0031/'))
    assert len(read(root)) == 7 * 2 + 6


def test_lists_of_ours_hold_the_boxes_so_that_no_mask_is_read(root: Path) -> None:
    entries = [
        {
            "image": "0031/a/image.npy",
            "label": f"{MASKS}/mask_0.npy",
            "box": [0, 0.25, 0, 0.5, 0.5, 1],
        },
        {"image": "0031/a/image.npy", "label": f"{MASKS}/mask_3.npz", "box": None},
    ]
    rewritten(root, train=entries)
    (root / MASKS / "mask_0.npy").write_bytes(b"never read")
    (root / MASKS / "mask_3.npy").unlink()
    samples = read(root)
    assert {each.box for each in of(samples, 1, Task.REC)} == {(0, 0.25, 0, 0.5, 0.5, 1)}
    assert all(each.absent for each in samples if "#train/2:" in each.id)


@pytest.mark.parametrize(
    "found", [[0, 0, 0, 1, 1], "box", 7, [0, 0, 0, 1, 1, "z"], [0.5, 0, 0, 0.4, 1, 1]]
)
def test_a_box_that_is_none_is_named(root: Path, found: object) -> None:
    entry = {"image": "0031/a/image.npy", "label": f"{MASKS}/mask_0.npy", "box": found}
    rewritten(root, train=[entry])
    with pytest.raises(DataError, match=r"^0031/0031.json, row train/1(:\w+)?: expected a box"):
        read(root)


def test_two_masks_of_one_structure_in_one_image_are_an_error(root: Path) -> None:
    rewritten(root, labels=LABELS | {"2": "Liver"})
    with pytest.raises(DataError, match="row train/1: expected one mask of the liver, got another"):
        read(root)


def test_a_structure_is_not_absent_under_another_of_its_names(root: Path) -> None:
    rewritten(root, labels=LABELS | {"4": "left kidney"})
    samples = read(root)
    assert not [each for each in samples if each.absent or "#train/3" in each.id]
    assert len(samples) == 14


def test_missing_masks_and_images_are_counted_together(root: Path) -> None:
    (root / MASKS / "mask_1.npy").unlink()
    (root / "0031/a/image.npy").unlink()
    with pytest.raises(DataError, match="expected 3 files, got 2 missing, first: ") as caught:
        read(root)
    assert f"{root / MASKS / 'mask_1.npy'}" in str(caught.value)
    image(root / "0031/a/image.npy")
    left = read(root, skip=True)
    assert {each.id.split(":")[0].rpartition("/")[2] for each in left} == {"1", "3"}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"labels": None}, '"labels": {number: name} of the classes, got None'),
        ({"labels": {"one": "liver"}}, '"labels": {number: name} of the classes'),
        ({"labels": {"1": "liver"}}, "a class of [1], got 2"),
        ({"train": [{"image": "0031/a/image.npy", "label": "0031/a/m.npy"}]}, "a mask named"),
        ({"train": [{"image": "0031/a/image.npy"}]}, "text in label, got nothing"),
    ],
)
def test_a_list_or_a_row_that_is_broken_is_named(
    root: Path, content: dict[str, Any], told: str
) -> None:
    rewritten(root, **content)
    with pytest.raises(DataError) as caught:
        read(root)
    assert f"expected {told}" in str(caught.value)
    assert "0031/0031.json" in str(caught.value)


def test_a_mask_that_is_no_array_is_named_with_its_row(root: Path) -> None:
    (root / MASKS / "mask_1.npy").write_bytes(b"\x93NUMPY nothing")
    with pytest.raises(DataError, match=r"^0031/0031.json, row train/2: expected an array in"):
        read(root)


def test_a_mask_of_an_archive_is_read(root: Path) -> None:
    voxels = np.load(root / MASKS / "mask_0.npy")
    np.savez_compressed(root / MASKS / "mask_0.npz", mask=voxels)
    rewritten(root, train=[{"image": "0031/a/image.npy", "label": f"{MASKS}/mask_0.npz"}])
    samples = read(root)
    assert samples[0].box == box(voxels)
    assert np.array_equal(load_mask(samples[0]), voxels)
