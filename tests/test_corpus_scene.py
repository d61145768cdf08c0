"""Patients on the network's grid: prepared as by the node, kept, and read again as they were."""

import multiprocessing
import pickle
import tomllib
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch

from model.data.corpus import scene as scenes
from model.data.corpus.case import VIEWS, Case, View
from model.data.corpus.organs import ABDOMEN, CHEST, HEAD, ORGANS
from model.data.corpus.scene import Pool, Scene, prepared_image
from model.errors import ModelError
from model.preprocess import prepare

GRID = (12, 24, 24)
NAMES = {view: f"{view.region} {view.modality}" for view in VIEWS}
PROTOCOLS = {(CHEST, "CT"): "ct_chest", (ABDOMEN, "CT"): "ct_abdomen", (HEAD, "MR"): "mr_brain"}


@dataclass
class Counted:
    """Makes patients, and remembers for which seeds."""

    seeds: list[int] = field(default_factory=list)

    def __call__(self, seed: int) -> Case:
        self.seeds.append(seed)
        return Case.make(seed)


def same(one: Scene, other: Scene) -> bool:
    return (
        one.truth == other.truth
        and one.image.dtype == other.image.dtype == np.float32
        and np.array_equal(one.image, other.image)
        and np.array_equal(one.labels, other.labels)
        and np.array_equal(one.planted, other.planted)
    )


# --- prepared -----------------------------------------------------------------------------------


@pytest.mark.parametrize("view", VIEWS, ids=NAMES.get)
def test_a_patient_is_prepared_as_the_protocols_of_the_node_say(view: View) -> None:
    case = Case.make(2, view=view)
    name = PROTOCOLS.get((view.region, view.modality))
    if name is None:  # no protocol reads a head CT
        told: dict[str, list[float]] = {"window": [40, 120]}
    else:
        path = files("sr_templates") / "protocols" / f"{name}.toml"
        told = tomllib.loads(path.read_text(encoding="utf-8"))
    how = {key: tuple(told[key]) for key in ("window", "percentiles") if key in told}
    assert len(how) == 1
    wanted = prepare(case.voxels, GRID, **how)  # type: ignore[arg-type]
    found = prepared_image(case, GRID)
    assert torch.equal(found.image, wanted.image)
    assert found.placement == wanted.placement
    assert np.array_equal(Scene.of(case, GRID).image, wanted.image[0, 0].numpy())


@pytest.mark.parametrize("view", VIEWS, ids=NAMES.get)
@pytest.mark.parametrize("grid", [GRID, (32, 64, 48)])
def test_labels_stay_where_the_image_has_them(view: View, grid: tuple[int, int, int]) -> None:
    case = Case.make(6, view=view)
    scene, placement = Scene.of(case, grid), prepared_image(case, grid).placement
    size = np.array(placement.stop) - placement.start
    # Of few voxels on the grid the middle is a matter of chance.
    large = [each for each in case.present if scene.mask(each).sum() > 150]
    assert large
    for name in large:
        # Centres of voxels of the source, as parts of the box that was cut out.
        inside = np.argwhere(case.organ(name)) + 0.5 - placement.start
        inside = inside[((inside >= 0) & (inside < size)).all(axis=1)] / size
        place = (np.argwhere(scene.mask(name)) + 0.5).mean(axis=0) / grid
        assert place == pytest.approx(inside.mean(axis=0), abs=0.04), name


def test_a_bright_organ_is_bright_under_its_own_mask() -> None:
    """The image and the labels go two ways to the grid; a shift between them would show."""
    case = Case.make(1, view=VIEWS[0])
    scene = Scene.of(case, (32, 64, 64))
    lungs = scene.mask("left lung") | scene.mask("right lung")
    spine = scene.mask("spine") & (scene.planted == 0)
    assert np.median(scene.image[lungs]) < 0.05
    assert np.median(scene.image[spine]) > 0.9
    for name in ("left lung", "right lung"):
        whole = scene.mask(name)
        for axis, step in ((axis, step) for axis in range(3) for step in (-3, 3)):
            moved = np.roll(whole, step, axis)
            assert scene.image[whole].mean() < scene.image[moved].mean()


def test_masks_are_of_what_is_named() -> None:
    case = next(each for each in map(Case.make, range(20)) if len(each.findings) > 1)
    scene = Scene.of(case, (32, 64, 64))
    assert scene.mask("spine").sum() == (scene.labels == ORGANS["spine"].number).sum()
    for each in case.findings:
        assert np.array_equal(scene.mask(each), (scene.planted == each.number) & (each.number > 0))
    assert not (scene.labels.astype(int) - case.labels.max() > 0).any()


# --- kept ---------------------------------------------------------------------------------------


def test_a_patient_is_made_once_and_read_as_it_was(tmp_path: Path) -> None:
    make = Counted()
    pool = Pool(tmp_path / "pool", GRID, make)
    first, again = pool[7], pool[7]
    assert make.seeds == [7]
    assert same(first, again)
    fresh = Scene.of(Case.make(7), GRID)
    assert first.truth == fresh.truth
    assert np.array_equal(first.labels, fresh.labels)
    assert np.array_equal(first.planted, fresh.planted)
    assert np.abs(first.image - fresh.image).max() < 1e-3
    assert same(Pool(tmp_path / "pool", GRID, make)[7], first)
    assert make.seeds == [7]


def test_seeds_and_grids_are_kept_apart(tmp_path: Path) -> None:
    one, other = Pool(tmp_path, GRID), Pool(tmp_path, (8, 24, 24))
    paths = {pool.path(seed) for pool in (one, other) for seed in (0, 1, 1000, 1_000_000)}
    assert len(paths) == 8
    assert one[0].image.shape == GRID
    assert other[0].image.shape == (8, 24, 24)
    assert one[0].truth == other[0].truth != one[1].truth


def test_another_version_reads_nothing_of_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Counted()
    pool = Pool(tmp_path, (4, 8, 8), make)
    before = pool.path(1)
    assert pool[1].truth.seed == 1
    monkeypatch.setattr(scenes, "VERSION", scenes.VERSION + 1)
    assert pool[1].truth.seed == 1
    assert make.seeds == [1, 1]
    assert pool.path(1) != before


@pytest.mark.parametrize("content", ["empty", "half", "bit", "text", "array", "other", "pickle"])
def test_a_broken_file_is_told_by_its_name(tmp_path: Path, content: str) -> None:
    pool = Pool(tmp_path, (8, 16, 16))
    assert pool[3].truth.seed == 3
    path = pool.path(3)
    spoil(path, content)
    with pytest.raises(ModelError, match="is no prepared patient; remove it") as error:
        pool[3]
    assert str(path) in str(error.value)
    path.unlink()
    assert pool[3].truth.seed == 3


def spoil(path: Path, how: str) -> None:
    whole = path.read_bytes()
    middle = len(whole) // 3
    written = {
        "empty": b"",
        "half": whole[: len(whole) // 2],
        "bit": whole[:middle] + bytes(each ^ 0x55 for each in whole[middle : middle + 40])
        + whole[middle + 40 :],
        "text": b"not a patient",
        "pickle": pickle.dumps({"image": 1}),
    }  # fmt: skip
    if how in written:
        path.write_bytes(written[how])
        return
    with path.open("wb") as file:
        if how == "array":
            np.save(file, np.zeros(3))
        else:
            np.savez(file, image=np.zeros(3), truth=np.array('{"findings": []}'))


def test_a_run_that_fails_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    pool = Pool(tmp_path, (4, 8, 8))
    monkeypatch.setattr(scenes.np, "savez_compressed", full)
    with pytest.raises(OSError, match="No space left"):
        pool[0]
    assert [each for each in tmp_path.rglob("*") if each.is_file()] == []


@pytest.mark.slow
def test_processes_that_make_the_same_patients_do_not_break_each_other(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as workers:
        made = workers.starmap(taken, [(tmp_path, seed % 3) for seed in range(12)], chunksize=1)
    pool = Pool(tmp_path, (8, 16, 16))
    for seed, image in enumerate(made):
        assert image == pool[seed % 3].image.tobytes()
    files_left = [each for each in tmp_path.rglob("*") if each.is_file()]
    assert sorted(files_left) == sorted(pool.path(seed) for seed in range(3))


def taken(folder: Path, seed: int) -> bytes:
    return Pool(folder, (8, 16, 16))[seed].image.tobytes()
