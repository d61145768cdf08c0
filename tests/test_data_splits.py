"""Splits by patient, and what leaks between two of them."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from published_data import SHAPE, image

from model import ModelError
from model.data.sample import DataError, Sample, Task
from model.data.splits import Leakage, Pair, assign, leakage, split

PATIENTS = [f"ct_case/{number:06d}" for number in range(3000)]
LONG = (
    "The liver is enlarged with a nodular border and a widened portal vein. The spleen measures "
    "sixteen centimetres. There is free fluid around the liver and in the pelvis. No focal lesion "
    "is seen in the liver. The kidneys, the pancreas and the adrenal glands are normal."
)


def sample(
    patient: str, path: Path, answer: str = "No.", number: int = 1, **more: object
) -> Sample:
    options = {"task": Task.CAPTION} | more
    return Sample(
        f"{patient}.json#{number}",
        image=path,
        question="Report.",
        answer=answer,
        patient=patient,
        **options,
    )  # type: ignore[arg-type]


def test_fractions_are_kept_about_and_everybody_is_somewhere() -> None:
    counts = Counter(assign(each) for each in PATIENTS)
    assert set(counts) == {"train", "validation", "test"}
    assert counts["train"] / 3000 == pytest.approx(0.8, abs=0.025)
    assert counts["test"] / 3000 == pytest.approx(0.1, abs=0.02)


def test_patients_that_come_later_move_nobody(tmp_path: Path) -> None:
    some = [sample(each, tmp_path / "a.npy") for each in PATIENTS[:200:2]]
    more = [sample(each, tmp_path / "a.npy") for each in PATIENTS[200:0:-1]]
    before = {each.patient: name for name, group in split(some).items() for each in group}
    after = {each.patient: name for name, group in split(more + some).items() for each in group}
    assert len(before) == 100
    assert {each: after[each] for each in before} == before


def test_all_of_a_patient_is_in_one_split(tmp_path: Path) -> None:
    samples = [
        sample(each, tmp_path / f"{plane}.npy", number=plane)
        for each in PATIENTS[:100]
        for plane in range(3)
    ]
    groups = split(samples, seed=4)
    assert sum(map(len, groups.values())) == 300
    patients = [{each.patient for each in group} for group in groups.values()]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 100


def test_a_seed_decides_and_stays() -> None:
    assert [assign(each, seed=1) for each in PATIENTS[:50]] != [
        assign(each) for each in PATIENTS[:50]
    ]
    # Held for good: whoever trained on a split must find it again.
    told = "".join(assign(each, seed=7)[1] for each in PATIENTS[:24])
    assert told == "rerraarrrrrrrrrrreearrrr"
    assert split([], seed=1) == {"train": [], "validation": [], "test": []}


def test_a_split_of_nothing_gets_nobody() -> None:
    fractions = {"train": 0.5, "none": 0.0, "test": 0.5}
    counts = Counter(assign(each, fractions=fractions) for each in PATIENTS)
    assert set(counts) == {"train", "test"}


@pytest.mark.parametrize("fractions", [{"train": 0.8}, {}, {"train": 1.2, "test": -0.2}])
def test_fractions_that_are_no_shares_are_refused(fractions: dict[str, float]) -> None:
    with pytest.raises(ModelError, match="fractions must be shares that sum to 1"):
        assign("p", fractions=fractions)


def found(train: list[Sample], test: list[Sample]) -> Leakage:
    return leakage(train, test)


def test_clean_splits_are_clean(tmp_path: Path) -> None:
    train = [sample("a", image(tmp_path / "a.npy", 1), LONG)]
    test = [sample("b", image(tmp_path / "b.npy", 2), LONG.replace("liver", "heart"))]
    told = found(train, test)
    assert told.clean
    assert told.told == {
        "clean": True,
        "test_samples": 1,
        "leaked_samples": 0,
        "patients": [],
        "images": [],
        "texts": [],
    }


def test_a_patient_in_both_is_named_once_with_the_first_pair(tmp_path: Path) -> None:
    paths = [image(tmp_path / f"{number}.npy", number) for number in range(4)]
    train = [sample("a", paths[0], number=1), sample("a", paths[1], number=2)]
    test = [sample("b", paths[2]), sample("a", paths[3], number=3), sample("a", paths[3], number=4)]
    told = found(train, test)
    assert told.patients == (Pair("a.json#1", "a.json#3", "a"),)
    assert (told.test_samples, told.leaked_samples) == (3, 2)
    assert not told.clean


def test_the_same_voxels_under_another_name_are_found(tmp_path: Path) -> None:
    first = image(tmp_path / "a.npy", 1)
    other = tmp_path / "b" / "renamed.npy"
    other.parent.mkdir()
    # Other bytes, the same voxels: the header of an older format.
    with other.open("wb") as file:
        np.lib.format.write_array(file, np.load(first), version=(2, 0))
    assert first.read_bytes() != other.read_bytes()
    told = found(
        [sample("a", first)], [sample("b", other), sample("c", image(tmp_path / "c.npy", 2))]
    )
    (pair,) = told.images
    assert (pair.train, pair.test) == ("a.json#1", "b.json#1")
    assert told.leaked_samples == 1
    assert not told.patients


def test_voxels_that_differ_by_one_are_not_the_same(tmp_path: Path) -> None:
    first = image(tmp_path / "a.npy", 1)
    voxels = np.load(first)
    voxels[0, 0, 0, 0] = np.nextafter(voxels[0, 0, 0, 0], np.float32(1))
    np.save(tmp_path / "b.npy", voxels)
    assert found([sample("a", first)], [sample("b", tmp_path / "b.npy")]).clean


def test_images_are_not_read_when_not_wanted(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere.npy"
    assert leakage([sample("a", nowhere)], [sample("b", nowhere)], images=False).clean
    with pytest.raises(DataError, match=r"^a.json, row 1: expected the file"):
        leakage([sample("a", nowhere)], [sample("b", nowhere)])


@pytest.mark.parametrize(
    ("change", "alike"),
    [
        (lambda text: text, True),
        (lambda text: text.upper().replace(".", " ;"), True),
        (lambda text: text.replace("sixteen", "seventeen"), True),
        (lambda text: "Clinical history: pain. " + text, True),
        (lambda text: " ".join(reversed(text.split())), False),
        (
            lambda text: text.replace("liver", "lung").replace("is", "was").replace("the", "a"),
            False,
        ),
    ],
)
def test_texts_that_are_nearly_one_are_found(tmp_path: Path, change: object, alike: bool) -> None:  # noqa: FBT001
    paths = [image(tmp_path / f"{number}.npy", number) for number in range(3)]
    train = [sample("a", paths[0], "Another text. " * 20), sample("b", paths[1], LONG)]
    told = found(train, [sample("c", paths[2], change(LONG))])  # type: ignore[operator]
    assert [(each.train, each.test) for each in told.texts] == [("b.json#1", "c.json#1")] * alike
    assert told.leaked_samples == int(alike)


def test_short_answers_are_alike_by_nature(tmp_path: Path) -> None:
    paths = [image(tmp_path / f"{number}.npy", number) for number in range(2)]
    answer = "There is no pleural effusion on either side, and the heart is normal."
    assert found([sample("a", paths[0], answer)], [sample("b", paths[1], answer)]).clean


@pytest.mark.parametrize("task", [Task.REC, Task.REG, Task.SEMANTIC_SEGMENTATION])
def test_answers_in_words_of_a_template_are_nobodys(tmp_path: Path, task: Task) -> None:
    paths = [image(tmp_path / f"{number}.npy", number) for number in range(2)]
    train, test = (
        [sample(name, path, LONG, task=task)] for name, path in zip("ab", paths, strict=True)
    )
    assert found(train, test).clean
    told = [sample("c", paths[0], LONG, task=Task.OPEN_VQA)]
    assert (
        len(found(told, [sample("d", paths[1], LONG, task=Task.REFERRING_SEGMENTATION)]).texts) == 1
    )


def test_many_texts_are_compared_without_comparing_each_with_each(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    words = [f"word{number}" for number in range(400)]
    texts = [" ".join(random.choice(words, 60)) for _ in range(600)]
    path = image(tmp_path / "a.npy")
    train = [sample(f"a{number}", path, each) for number, each in enumerate(texts[:500])]
    test = [sample(f"b{number}", path, each) for number, each in enumerate(texts[450:])]
    told = leakage(train, test, images=False)
    assert {(each.train, each.test) for each in told.texts} == {
        (f"a{450 + number}.json#1", f"b{number}.json#1") for number in range(50)
    }
    assert told.leaked_samples == 50


def test_progress_is_told_for_every_image_once(tmp_path: Path) -> None:
    paths = [image(tmp_path / f"{number}.npy", number) for number in range(3)]
    seen: list[tuple[int, int]] = []
    train = [sample("a", paths[0]), sample("a", paths[0], number=2), sample("a", paths[1])]
    leakage(train, [sample("b", paths[2])], on_progress=lambda *each: seen.append(each))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert np.load(paths[0]).shape == SHAPE
