"""What the benchmark asks: which questions, of whom, and what is true."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from published_data import REFSEG, VQA, image, listed, mask, nothing, table

from model.bench.folders import Folders, Part
from model.bench.items import LIMITS, OUTLINED, Item, chosen
from model.bench.patients import FIRST_SEED, Patients
from model.data.corpus.case import Case
from model.data.corpus.organs import ORGANS
from model.data.sample import DataError, Task
from model.errors import ModelError

GRID = (32, 64, 64)
CASES = 8
Asked = tuple[Task, str, bool]


def of(asked: list[Asked], limit: int, turn: int = 0) -> list[Asked]:
    return chosen(asked, lambda each: each, dict.fromkeys(Task, limit), turn)


def test_what_is_there_and_what_is_not_are_asked_for_in_turn() -> None:
    asked = [(Task.REC, str(number), number >= 3) for number in range(6)]
    there, gone = asked[:3], asked[3:]
    assert of(asked, 4) == [there[0], gone[0], there[1], gone[1]]
    assert of(asked, 4, turn=1) == [gone[0], there[0], gone[1], there[1]]
    assert of(asked, 1) + of(asked, 1, turn=1) == [there[0], gone[0]]
    assert of(there, 2) == there[:2]


def test_kinds_of_questions_are_asked_in_turn() -> None:
    asked = [
        (Task.OPEN_VQA, kind, False) for kind in ("topic", "topic", "topic", "yes_no", "beyond")
    ]
    assert Counter(kind for _, kind, _ in of(asked, 3)) == {"topic": 1, "yes_no": 1, "beyond": 1}
    assert Counter(kind for _, kind, _ in of(asked, 4)) == {"topic": 2, "yes_no": 1, "beyond": 1}
    first = {of(asked, 1, turn=turn)[0][1] for turn in range(3)}
    assert first == {"topic", "yes_no", "beyond"}
    assert of(asked, 0) == []


# --- the corpus ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def patients() -> Patients:
    return Patients(GRID, CASES, LIMITS)


@pytest.fixture(scope="module")
def items(patients: Patients) -> list[tuple[Case, Item, np.ndarray | None]]:
    found = []
    for number in range(len(patients)):
        subject = patients.subject(number)
        case = Case.make(FIRST_SEED + number)
        found += [(case, each, subject.masks.get(each.id)) for each in subject.items]
    return found


def test_a_patient_is_asked_the_same_each_time(patients: Patients) -> None:
    one, again = patients.subject(3), patients.subject(3)
    assert one.items == again.items
    assert one.id == patients.name(3) == f"phantom/{FIRST_SEED + 3}"
    assert one.prepared.image.equal(again.prepared.image)
    assert one.spacing_mm == Case.make(FIRST_SEED + 3).spacing_mm


def test_no_image_is_asked_more_than_its_share_and_every_task_comes(
    items: list[tuple[Case, Item, np.ndarray | None]],
) -> None:
    counts = Counter((each.patient, each.task) for _, each, _ in items)
    assert all(count <= LIMITS[Task(task)] for (_, task), count in counts.items())
    assert {task for _, task in counts} == {each.value for each in Task}
    assert len({each.id for _, each, _ in items}) == len(items)
    for task in (*OUTLINED, Task.REC):
        absent = [each.absent for _, each, _ in items if each.task == task]
        assert 0.25 < sum(absent) / len(absent) < 0.75, task


def test_true_masks_are_those_of_the_patient_on_its_own_grid(
    items: list[tuple[Case, Item, np.ndarray | None]],
) -> None:
    lesions = 0
    for case, each, truth in items:
        assert (truth is not None) == (each.task in OUTLINED)
        if truth is None:
            continue
        assert truth.shape == case.voxels.shape
        assert each.absent == (not truth.any())
        if each.groups["target"] == "organ" and not each.absent:
            side = f"{each.side} " if each.side else ""
            number = ORGANS[side + each.groups["organ"]].number
            assert np.array_equal(truth, case.labels == number)
        elif not each.absent:
            lesions += 1
            values = np.unique(case.planted[truth])
            assert len(values) == 1
            kinds = [one.kind for one in case.findings if one.number == values[0]]
            assert kinds == [each.groups["finding"]]
            assert np.array_equal(truth, case.planted == values[0])
    assert lesions


def test_what_is_absent_is_told_apart_by_how_hard_it_is_to_decline(
    items: list[tuple[Case, Item, np.ndarray | None]],
) -> None:
    for case, each, _ in items:
        how = each.groups.get("absence")
        assert (how is not None) == (each.absent and each.task in {*OUTLINED, Task.REC})
        if how == "finding":
            assert each.groups["finding"] not in {one.kind for one in case.findings}
        elif how:
            organs = [one for one in ORGANS.values() if one.plain == each.groups["organ"]]
            assert {case.region in one.region for one in organs} == {how == "same region"}
            assert not any(one.name in case.present for one in organs if one.name in each.question)


def test_seeds_of_training_are_not_asked() -> None:
    names = [Patients(GRID, 2, LIMITS).name(number) for number in range(2)]
    assert names == ["phantom/1000000", "phantom/1000001"]
    assert Patients(GRID, 2, LIMITS).told != Patients(GRID, 3, LIMITS).told


# --- prepared folders ---------------------------------------------------------------------------

PLANE = ("ct_case/7/Axial.npy", "", 1, "Which plane?", "Axial", "Coronal", "NA", "NA", "Axial", "A")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    image(tmp_path / "ct_case/7/Axial.npy", 1)
    (tmp_path / "ct_case/7/text.txt").write_text("There is a stone in the left kidney.")
    row = {"image": "ct_case/7/Axial.npy", "text": "ct_case/7/text.txt"}
    listed(tmp_path / "M3D_Cap.json", train=[], validation=[], test=[row])
    table(tmp_path / "vqa.csv", VQA, [PLANE])
    image(tmp_path / "0003/c1/image.npy", 2)
    mask(tmp_path / "0003/c1/masks/mask_0.npy", (1, 3, 2, 6, 2, 7))
    nothing(tmp_path / "0003/c1/masks/mask_1.npy")
    case = "0003/c1"
    rows = [{"image": f"{case}/image.npy", "label": f"{case}/masks/mask_{n}.npy"} for n in (0, 1)]
    listed(tmp_path / "0003/0003.json", labels={"1": "liver", "2": "spleen"}, train=[], test=rows)
    image(tmp_path / "s1/ct.npy", 3)
    mask(tmp_path / "s1/mask.npy", (0, 1, 0, 2, 0, 2), (2, 4, 4, 8, 4, 8), label=1)
    asked = ("s1/ct.nii.gz", "s1/mask.nii.gz", 2, 0, "Where is the cyst?", "It is [SEG].")
    table(tmp_path / "M3D_RefSeg.csv", REFSEG, [asked])
    return tmp_path


def folders(root: Path, **options: object) -> Folders:
    files = {
        "cap": "M3D_Cap.json", "vqa-closed": "vqa.csv", "vqa-open": "vqa.csv",
        "seg": "0003/0003.json", "refseg": "M3D_RefSeg.csv",
    }  # fmt: skip
    parts = [Part(kind, root / file, root) for kind, file in files.items()]
    return Folders(parts, **({"grid": (4, 8, 8), "count": 9, "limits": LIMITS} | options))


def test_prepared_folders_are_asked_by_image(root: Path) -> None:
    asked = folders(root)
    subjects = [asked.subject(number) for number in range(len(asked))]
    assert [each.id for each in subjects] == [
        "0003/c1/image.npy", "ct_case/7/Axial.npy", "s1/ct.npy",
    ]  # fmt: skip
    seg, cap, refseg = subjects
    assert {each.task for each in cap.items} == {"caption", "closed_vqa", "open_vqa"}
    assert cap.report == "There is a stone in the left kidney."
    assert len({each.id for each in cap.items}) == 3
    outlines = [each for each in seg.items if each.task == "semantic_segmentation"]
    assert {each.groups["organ"]: int(seg.masks[each.id].sum()) for each in outlines} == {
        "liver": 2 * 4 * 5, "spleen": 0,
    }  # fmt: skip
    (cyst,) = refseg.items
    assert int(refseg.masks[cyst.id].sum()) == 2 * 4 * 4
    assert cyst.groups["target"] == "lesion"
    assert all(each.spacing_mm is None for each in subjects)


def test_fewer_images_are_drawn_with_the_seed(root: Path) -> None:
    drawn = {folders(root, count=1, seed=seed).name(0) for seed in range(12)}
    assert len(drawn) == 3
    assert len(folders(root, count=2)) == 2
    assert folders(root, count=2).told != folders(root).told


def test_a_list_that_changed_is_another_source(root: Path) -> None:
    before = folders(root).told
    (root / "vqa.csv").write_text((root / "vqa.csv").read_text() + "\n")
    assert folders(root).told != before


WRONG: tuple[tuple[str, Callable[[Path], object]], ...] = (
    (r"expected an image of \(8, 8, 8\), got \(4, 8, 8\)",
     lambda root: folders(root, grid=(8, 8, 8)).subject(0)),
    ("cannot be read",
     lambda root: Folders([Part("cap", root / "no.json", root)], GRID, 1, LIMITS).told),
    ("a folder is of cap, ", lambda root: Part("cup", root / "vqa.csv", root).read()),
)  # fmt: skip


@pytest.mark.parametrize(("reason", "call"), WRONG, ids=[reason for reason, _ in WRONG])
def test_a_folder_that_cannot_be_asked_says_why(
    root: Path, reason: str, call: Callable[[Path], object]
) -> None:
    with pytest.raises(ModelError, match=reason):
        call(root)


def test_the_row_of_an_image_that_does_not_fit_is_named(root: Path) -> None:
    with pytest.raises(DataError) as caught:
        folders(root, grid=(8, 8, 8)).subject(1)
    assert (str(caught.value.file), caught.value.row) == ("M3D_Cap.json", "test/1")
