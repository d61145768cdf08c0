"""One raw study becomes a prepared one: equal to the reference, or in one orientation."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import reference
from PIL import Image
from raw_studies import SMALL, Array, arrays, listed, marked, nifti, pictures
from safetensors.numpy import load_file

from model import ModelError
from model.data.prepare import prepare
from model.data.seg import box_of
from model.data.studies import Options

REFERENCE = Options("reference")
STRIDES = np.s_[..., ::4, ::16, ::16]


@pytest.fixture(scope="module")
def raw() -> dict[str, Array]:
    return load_file(reference.folder("preproc") / "inputs.safetensors")


@pytest.fixture(scope="module")
def expected() -> dict[str, Array]:
    return load_file(reference.folder("preproc") / "expected.safetensors")


@pytest.fixture(scope="module")
def cases() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((reference.folder("preproc") / "cases.json").read_text())
    return found


def box(mask: Array) -> list[list[int]]:
    return [[int(each.min()), int(each.max())] for each in np.nonzero(mask)[-3:]]


# equal to the reference


def test_pictures_become_what_the_reference_makes_of_them(
    raw: dict[str, Array], expected: dict[str, Array], cases: dict[str, Any], tmp_path: Path
) -> None:
    folder, case = tmp_path / "raw" / "ct_case" / "000001", cases["cap"]
    pictures(folder / "Axial_Pöschl", raw["cap_slices_u8"], first=5)  # 10 comes after 9
    (folder / "text.txt").write_text(case["text_in"])
    assert prepare("cap", tmp_path / "raw", tmp_path / "out", REFERENCE).failed == []
    made = np.load(tmp_path / "out" / "ct_case" / "000001" / "Axial_Poschl.npy")
    assert (list(made.shape), str(made.dtype)) == (case["shape"], case["dtype"])
    np.testing.assert_allclose(made[STRIDES], expected["cap_sample"], atol=1e-6)
    np.testing.assert_allclose(made.sum(dtype=np.float64), case["sum"], rtol=1e-6)
    assert (made.min(), made.max()) == pytest.approx((case["min"], case["max"]), abs=1e-6)
    text = (tmp_path / "out" / "ct_case" / "000001" / "text.txt").read_text()
    assert text == case["text_out"]


def test_arrays_and_sparse_masks_become_what_the_reference_makes_of_them(
    raw: dict[str, Array], expected: dict[str, Array], cases: dict[str, Any], tmp_path: Path
) -> None:
    source, target, case = tmp_path / "M3D_Seg", tmp_path / "M3D_Seg_npy", cases["seg"]
    entry = arrays(source, "0000/case_train", raw["seg_image_1xyz_f32"], raw["seg_label_cxyz_u8"])
    listed(source, "0000", name="x", train=[entry], test=[])
    assert prepare("seg", source, target, REFERENCE).failed == []
    folder = target / "0000" / "case_train"
    made = np.load(folder / "image.npy")
    assert (list(made.shape), str(made.dtype)) == (case["shape"], case["dtype"])
    np.testing.assert_allclose(made[STRIDES], expected["seg_image_sample"], atol=1e-6)
    np.testing.assert_allclose(made.sum(dtype=np.float64), case["sum"], rtol=1e-6)
    for number, told in enumerate(case["masks"]):
        mask = np.load(folder / "masks" / f"mask_{number}.npy")
        assert (list(mask.shape), str(mask.dtype)) == (told["shape"], told["dtype"])
        assert int(mask.sum()) == told["sum"]
        assert (box(mask) if told["box_zyx"] else None) == told["box_zyx"]
    after = (target / "0000" / "0000.json").read_text().replace(f"{tmp_path}/", "PATH/data/")
    assert json.loads(after) == case["json_after"]


def test_referred_lesions_become_what_the_reference_makes_of_them(
    raw: dict[str, Array], expected: dict[str, Array], cases: dict[str, Any], tmp_path: Path
) -> None:
    source, case = tmp_path / "raw", cases["refseg"]
    nifti(source / "s0001" / "ct.nii.gz", raw["refseg_ct_xyz_i16"], np.eye(4))
    nifti(source / "s0001" / "mask.nii.gz", raw["refseg_mask_xyz_u8"], np.eye(4))
    (source / "s0001" / "text.json").write_text('{"1": "A cyst."}')
    assert prepare("refseg", source, tmp_path / "out", REFERENCE).failed == []
    made = np.load(tmp_path / "out" / "s0001" / "ct.npy")
    mask = np.load(tmp_path / "out" / "s0001" / "mask.npy")
    assert list(made.shape) == list(mask.shape) == case["shape"]
    assert (str(made.dtype), str(mask.dtype)) == (case["dtype"], case["mask_dtype"])
    np.testing.assert_allclose(made[STRIDES], expected["refseg_ct_sample"], atol=1e-6)
    np.testing.assert_allclose(made.sum(dtype=np.float64), case["sum"], rtol=1e-6)
    labels, counts = np.unique(mask, return_counts=True)
    told = {str(int(each)): int(count) for each, count in zip(labels, counts, strict=True)}
    assert told == case["mask_counts"]
    assert {each: box(mask == int(each)) for each in ("1", "2")} == case["mask_boxes"]
    assert (tmp_path / "out" / "s0001" / "text.json").read_text() == '{"1": "A cyst."}'


def test_an_empty_class_of_the_test_split_is_prepared_where_the_reference_crashes(
    raw: dict[str, Array], cases: dict[str, Any], tmp_path: Path
) -> None:
    assert "no attribute 'int'" in cases["notes"]["seg_test_split_with_empty_class"]
    masks = raw["seg_label_cxyz_u8"]
    assert not masks[1].any()
    entry = arrays(tmp_path / "raw", "0003/7", raw["seg_image_1xyz_f32"], masks)
    listed(tmp_path / "raw", "0003", training=[], test=[entry])
    prepare("seg", tmp_path / "raw", tmp_path / "out", REFERENCE).check()
    after = json.loads((tmp_path / "out" / "0003" / "0003.json").read_text())
    assert [Path(each["label"]).name for each in after["test"]] == [
        "mask_0.npy",
        "mask_1.npy",
        "mask_2.npy",
    ]
    assert after["train"] == []


def test_a_picture_of_another_size_is_left_out_as_the_reference_does_and_told(
    tmp_path: Path,
) -> None:
    slices = np.random.default_rng(1).integers(1, 255, (4, 20, 24), dtype=np.uint8)
    folder = tmp_path / "raw" / "ct_case" / "1" / "Axial"
    pictures(folder, slices)
    options = Options("reference", grid=(4, 20, 24))
    prepare("cap", tmp_path / "raw", tmp_path / "out", options).check()
    before = np.load(tmp_path / "out" / "ct_case" / "1" / "Axial.npy")
    Image.fromarray(np.full((9, 9), 255, np.uint8)).save(folder / "99.png")
    summary = prepare("cap", tmp_path / "raw", tmp_path / "out", options)
    assert summary.told["left_out"] == ["ct_case/1"]
    assert np.array_equal(np.load(tmp_path / "out" / "ct_case" / "1" / "Axial.npy"), before)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("study_findings: A\ncyst is seen.", "A cyst is seen."),
        ("study_findings: \ndiscussion: Known renal cyst.", "discussion: Known renal cyst."),
        ("study_findings:\n", "study_findings:"),
        ("discussion: A stone\n of old.", "discussion: A stone  of old."),
        ("ab\ndiscussion: c", "ab discussion: c"),
    ],
)
def test_the_text_of_a_case_is_its_findings(tmp_path: Path, text: str, kept: str) -> None:
    case = tmp_path / "raw" / "ct_case" / "1"
    case.mkdir(parents=True)
    (case / "text.txt").write_text(text)
    prepare("cap", tmp_path / "raw", tmp_path / "out", REFERENCE).check()
    assert (tmp_path / "out" / "ct_case" / "1" / "text.txt").read_text() == kept


# canonical


def canonical_seg(root: Path, axes: str, **options: Any) -> dict[str, Any]:
    voxels, labels, affine = marked(axes)
    nifti(root / "raw/0018/case/image.nii.gz", voxels, affine)
    nifti(root / "raw/0018/case/label.nii.gz", labels, affine)
    names = {"0": "background", "1": "liver", "2": "spleen", "3": "brain"}
    entry = {"image": "0018/case/image.nii.gz", "label": "0018/case/label.nii.gz"}
    listed(root / "raw", "0018", labels=names, training=[entry], test=[])
    grid = (12, 18, 24)
    prepare("seg", root / "raw", root / "out", Options(grid=grid, **options)).check()
    folder = root / "out" / "0018"
    masks = {
        number: np.load(folder / "case" / "masks" / f"mask_{number}.npz")["mask"]
        for number in (0, 1, 2)
    }
    told = json.loads((folder / "0018.json").read_text())
    return {"image": np.load(folder / "case" / "image.npy"), "masks": masks, "list": told}


@pytest.mark.parametrize("axes", ["RAS", "LPS", "LAS", "SPL", "IAR", "PSR", "ASL", "RIP"])
@pytest.mark.parametrize("masks", ["linear", "nearest"])
def test_every_orientation_becomes_one(tmp_path: Path, axes: str, masks: Any) -> None:
    assert "".join(nibabel.aff2axcodes(marked(axes)[2])) == axes
    made = canonical_seg(tmp_path, axes, masks=masks, window=(500.0, 100_000.0))
    voxels, labels, _ = marked("SPL")
    image, low, high = made["image"][0], voxels.min(), voxels.max()
    # Only the darkest corner is no foreground: nothing is cut, so the grid is the array's own.
    np.testing.assert_allclose(image, (voxels - low) / (high - low), atol=1e-5)
    assert np.array_equal(made["masks"][0][0], labels == 1)
    assert np.array_equal(made["masks"][1][0], labels == 2)


def test_boxes_of_the_list_are_those_of_the_masks_and_an_absent_class_has_none(
    tmp_path: Path,
) -> None:
    made = canonical_seg(tmp_path, "RAS")
    by_class = {each["label"]: each["box"] for each in made["list"]["train"]}
    assert by_class == {
        "0018/case/masks/mask_0.npz": list(box_of(made["masks"][0]) or ()),
        "0018/case/masks/mask_1.npz": list(box_of(made["masks"][1]) or ()),
        "0018/case/masks/mask_2.npz": None,
    }
    assert not made["masks"][2].any()
    assert "training" not in made["list"]
    # foot, front and right come first
    assert all(
        first < last
        for first, last in zip(
            by_class["0018/case/masks/mask_0.npz"],
            by_class["0018/case/masks/mask_1.npz"],
            strict=True,
        )
    )


def test_what_is_too_small_for_the_grid_is_not_called_absent(tmp_path: Path) -> None:
    voxels, labels, affine = marked("RAS")
    labels[:] = 0
    labels[0, 0, 0] = 1
    nifti(tmp_path / "raw/0001/a/image.nii.gz", voxels, affine)
    nifti(tmp_path / "raw/0001/a/label.nii.gz", labels, affine)
    entry = {"image": "0001/a/image.nii.gz", "label": "0001/a/label.nii.gz"}
    listed(tmp_path / "raw", "0001", labels={"1": "eye", "2": "skull"}, train=[entry], test=[])
    summary = prepare("seg", tmp_path / "raw", tmp_path / "out", Options(grid=(3, 4, 5)))
    after = json.loads((tmp_path / "out/0001/0001.json").read_text())
    assert [each["label"] for each in after["train"]] == ["0001/a/masks/mask_1.npz"]
    assert summary.told["left_out"] == ["0001/a"]


def test_a_canonical_image_is_what_the_network_reads(tmp_path: Path) -> None:
    from model.preprocess import prepare as read

    made = canonical_seg(tmp_path, "LAS", window=(300.0, 350.0))
    voxels, _, _ = marked("SPL")
    assert np.array_equal(
        made["image"][0], read(voxels, (12, 18, 24), window=(300.0, 350.0)).image[0, 0].numpy()
    )


def test_labels_do_not_mix_between_their_neighbours(tmp_path: Path) -> None:
    voxels, _, affine = marked("SPL")
    labels = np.zeros(voxels.shape, np.uint8)
    labels[:, :, 8:16], labels[:, :, 16:] = 1, 5  # between 0, 1 and 5 lie 2, 3 and 4
    for name, each in (("ct", voxels), ("mask", labels)):
        nifti(tmp_path / f"raw/s0001/{name}.nii.gz", each, affine)
    for masks in ("linear", "nearest"):
        options = Options(masks=masks, grid=(7, 31, 37))  # type: ignore[arg-type]
        prepare("refseg", tmp_path / "raw", tmp_path / "out", options).check()
        mask = np.load(tmp_path / "out/s0001/mask.npy")
        assert set(np.unique(mask)) == {0, 1, 5}
        assert np.all(np.diff(mask[0].astype(int), axis=-1) >= 0)
        assert mask.shape == (1, 7, 31, 37)
        assert mask.dtype.kind == "u"
        edges = [np.argmax(mask[0, 0, 0] == each) / 37 for each in (1, 5)]
        assert edges == pytest.approx([8 / 24, 16 / 24], abs=1 / 37)


def test_arrays_without_a_header_are_canonical_when_their_axes_are_told(tmp_path: Path) -> None:
    voxels, labels, _ = marked("LAS")
    masks = np.stack([labels == 1, labels == 2])
    entry = arrays(tmp_path / "raw", "0002/a", voxels[None], masks)
    listed(tmp_path / "raw", "0002", train=[entry], test=[])
    options = Options(axes="LAS", grid=(12, 18, 24))
    prepare("seg", tmp_path / "raw", tmp_path / "out", options).check()
    made = [
        np.load(tmp_path / f"out/0002/a/masks/mask_{number}.npz")["mask"][0] for number in (0, 1)
    ]
    canonical = marked("SPL")[1]
    assert np.array_equal(made[0], canonical == 1)
    assert np.array_equal(made[1], canonical == 2)


def test_arrays_without_a_header_are_not_guessed(tmp_path: Path) -> None:
    voxels, labels, _ = marked("LAS")
    entry = arrays(tmp_path / "raw", "0002/a", voxels[None], (labels == 1)[None])
    listed(tmp_path / "raw", "0002", train=[entry], test=[])
    (failed,) = prepare("seg", tmp_path / "raw", tmp_path / "out", SMALL).failed
    assert "expected NIfTI, or axes that say how the array lies" in failed.error


def test_pictures_stay_as_they_are_displayed(tmp_path: Path) -> None:
    slices = np.random.default_rng(2).integers(0, 255, (5, 12, 14), dtype=np.uint8)
    slices[0, 0, 0] = 0
    for plane in ("Axial", "Coronal"):
        pictures(tmp_path / "raw/ct_quizze/1" / plane, slices, "jpeg")
    options = Options(grid=(5, 12, 14))
    prepare("cap", tmp_path / "raw", tmp_path / "out", options).check()
    made = np.load(tmp_path / "out/ct_quizze/1/Axial.npy")[0]
    shown = np.stack(
        [
            np.asarray(Image.open(tmp_path / f"raw/ct_quizze/1/Axial/{number}.jpeg"), np.float32)
            for number in range(1, 6)
        ]
    )
    low, high = np.percentile(shown, (0.5, 99.5))
    np.testing.assert_allclose(made, (shown.clip(low, high) - low) / (high - low), atol=1e-5)
    assert np.array_equal(made, np.load(tmp_path / "out/ct_quizze/1/Coronal.npy")[0])


# what is refused


def scan(root: Path, change: Callable[[dict[str, Any]], None]) -> str:
    """Prepare one study of M3D-RefSeg after a change; give the error."""
    voxels, labels, affine = marked("RAS")
    given: dict[str, Any] = {
        "ct": [voxels, affine],
        "mask": [labels, affine.copy()],
        "said": True,
    }
    change(given)
    for name in ("ct", "mask"):
        nifti(root / f"raw/s1/{name}.nii.gz", *given[name], said=given["said"])
    (outcome,) = prepare("refseg", root / "raw", root / "out", SMALL).outcomes
    return outcome.error


def oblique(given: dict[str, Any]) -> None:
    half = np.sqrt(0.5)
    turn = np.eye(4)
    turn[:3, :3] = [[half, -half, 0], [half, half, 0], [0, 0, 1]]
    given["ct"][1] = turn @ given["ct"][1]


def moved(given: dict[str, Any]) -> None:
    given["mask"][1][0, 3] += 1.3


def test_a_whole_study_has_no_error(tmp_path: Path) -> None:
    assert scan(tmp_path, lambda _: None) == ""


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda given: given.update(said=False), "an orientation (qform_code or sform_code)"),
        (oblique, "axes along the patient's"),
        (moved, "a mask that lies on its image, got 1.3 mm away"),
        (lambda given: given["mask"].__setitem__(0, given["mask"][0][:-1]), "expected shape"),
        (
            lambda given: given["mask"].__setitem__(0, given["mask"][0] * np.float32(0.5)),
            "expected whole numbers as labels",
        ),
        (lambda given: given["ct"].__setitem__(0, given["ct"][0] * 0), "contrast"),
        (
            lambda given: given["ct"].__setitem__(0, given["ct"][0] * np.float32(np.nan)),
            "NaN or infinity",
        ),
        (
            lambda given: given["ct"].__setitem__(0, np.stack([given["ct"][0]] * 2, -1)),
            "a volume (x, y, z)",
        ),
    ],
)
def test_a_scan_that_could_be_taken_wrongly_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], told: str
) -> None:
    assert told in scan(tmp_path, change)
    assert not list((tmp_path / "out").rglob("*.npy"))


def test_two_orientations_in_one_header_are_refused(tmp_path: Path) -> None:
    voxels, labels, affine = marked("RAS")
    image = nibabel.Nifti1Image(voxels, affine)
    image.set_qform(affine, 1)
    image.set_sform(np.diag([-1, 1, 1, 1]) @ affine, 1)  # left and right change places
    path = tmp_path / "raw/s1/ct.nii.gz"
    path.parent.mkdir(parents=True)
    nibabel.save(image, path)
    nifti(tmp_path / "raw/s1/mask.nii.gz", labels, affine)
    (failed,) = prepare("refseg", tmp_path / "raw", tmp_path / "out", SMALL).failed
    assert "expected one orientation" in failed.error
    assert "RAS" in failed.error
    assert "LAS" in failed.error


def test_a_label_without_a_class_is_refused(tmp_path: Path) -> None:
    voxels, labels, affine = marked("RAS")
    nifti(tmp_path / "raw/0001/a/image.nii.gz", voxels, affine)
    nifti(tmp_path / "raw/0001/a/label.nii.gz", labels, affine)
    entry = {"image": "0001/a/image.nii.gz", "label": "0001/a/label.nii.gz"}
    listed(tmp_path / "raw", "0001", labels={"0": "background", "1": "eye"}, train=[entry])
    (failed,) = prepare("seg", tmp_path / "raw", tmp_path / "out", SMALL).failed
    assert "expected labels of [0, 1], got [2]" in failed.error


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"mode": "other"}, "mode and masks"),
        ({"masks": "cubic"}, "mode and masks"),
        ({"axes": "RAR"}, "each direction once"),
        ({"axes": "RA"}, "each direction once"),
        ({"mode": "reference", "axes": "RAS"}, "for canonical mode"),
        ({"mode": "reference", "window": (40.0, 400.0)}, "for canonical mode"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ModelError, match=told):
        Options(**options)
