"""Patients of the corpus as DICOM: the node sees the voxels that were made, right on the right."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from corpus_scan import CACHE, real_scan
from numpy.typing import NDArray
from pydicom import dcmread
from test_sample import judged

from dicom_node import volume
from dicom_node.__main__ import main
from dicom_node.demo import patients, sample
from model.data.corpus.case import VIEWS, Case
from model.data.corpus.organs import ORGANS
from model.data.corpus.telling import report

NAMES = {view: f"{view.region} {view.modality}" for view in VIEWS}
SIDED = ("lung", "kidney", "eye")


def written(case: Case, folder: Path, *, scanned: bool = False) -> list[Path]:
    paths = sample.write(patients.series(case, scanned=scanned), folder)
    return list(np.random.default_rng(0).permutation(np.array(paths)))


def check_voxels(case: Case, loaded: volume.SourceVolume) -> None:
    assert np.array_equal(loaded.image.array, np.rint(case.voxels))
    assert loaded.spacing_mm == pytest.approx(case.spacing_mm, rel=1e-6)


def check_sides(case: Case, loaded: volume.SourceVolume) -> None:
    """Place organs by the affine that was read: patient axes are left, posterior, head."""
    sides = [each for each in case.present if ORGANS[each].side]
    for name in sides:
        left, _, _ = centre(loaded.image.affine, case.organ(name))
        assert (left > 0) == (ORGANS[name].side == "left"), name
    if "liver" in case.present:
        assert centre(loaded.image.affine, case.organ("liver"))[0] < 0
    if "brain" not in case.present:
        _, back, _ = centre(loaded.image.affine, case.organ("spine"))
        assert back > centre(loaded.image.affine, case.labels > 0)[1]


def centre(affine: NDArray[np.float64], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    place: NDArray[np.float64] = affine[:3, :3] @ np.argwhere(mask).mean(axis=0) + affine[:3, 3]
    return place


@pytest.mark.parametrize("view", VIEWS, ids=NAMES.get)
def test_a_phantom_is_read_as_it_was_made(view: object, tmp_path: Path) -> None:
    case = Case.make(3, view=view)  # type: ignore[arg-type]
    loaded = volume.load(written(case, tmp_path))
    check_voxels(case, loaded)
    check_sides(case, loaded)
    assert any(each.endswith(SIDED) for each in case.present if ORGANS[each].side == "right")


def test_a_patient_out_of_the_scan_is_read_as_it_was_made(tmp_path: Path) -> None:
    scan = real_scan()
    seed = next(each for each in range(20) if "right kidney" in scan.case(each).present)
    case = scan.case(seed)
    loaded = volume.load(written(case, tmp_path, scanned=True))
    check_voxels(case, loaded)
    check_sides(case, loaded)
    assert centre(loaded.image.affine, case.organ("right kidney"))[0] < -20


@pytest.mark.parametrize("view", VIEWS, ids=NAMES.get)
def test_the_instances_say_in_their_own_words_where_right_is(view: object, tmp_path: Path) -> None:
    """Read as PS3.3 C.7.6.2.1.1 and C.11.1 say, without the node's own reader."""
    case = Case.make(5, view=view)  # type: ignore[arg-type]
    for path in written(case, tmp_path)[:4]:
        each = dcmread(path)
        index = each.InstanceNumber - 1
        stored = each.pixel_array * float(each.get("RescaleSlope", 1))
        values = stored + float(each.get("RescaleIntercept", 0))
        assert np.array_equal(values, np.rint(case.voxels[index]))
        assert list(map(float, each.ImageOrientationPatient)) == [1, 0, 0, 0, 1, 0]
        corner = np.array(each.ImagePositionPatient, float)
        middle = (np.array(case.voxels.shape) - 1) / 2
        step_z, step_y, step_x = case.spacing_mm
        wanted = [-middle[2] * step_x, -middle[1] * step_y, (index - middle[0]) * step_z]
        assert corner == pytest.approx(wanted, abs=1e-4)
        assert list(map(float, each.PixelSpacing)) == pytest.approx([step_y, step_x])


@pytest.mark.parametrize("view", VIEWS, ids=NAMES.get)
def test_the_instances_are_valid(view: object, tool: Callable[[str], str], tmp_path: Path) -> None:
    for path in written(Case.make(4, view=view), tmp_path)[:2]:  # type: ignore[arg-type]
        assert judged(tool("dciodvfy"), path) == []


def test_instances_out_of_the_scan_are_valid_and_say_what_they_are(
    tool: Callable[[str], str], tmp_path: Path
) -> None:
    path = written(real_scan().case(1), tmp_path, scanned=True)[0]
    assert judged(tool("dciodvfy"), path) == []
    made = dcmread(path)
    assert made.ImageComments == (
        "Synthetic: scan totalsegmentator==2.18.0, seed 1. Nobody was scanned so."
    )
    assert str(made.PatientName).startswith("SYNTHETIC^")


def test_long_times_make_an_image_t2_weighted() -> None:
    times = {}
    for seed in range(12):
        case = Case.make(seed, view=VIEWS[3])
        made = patients.series(case)[0]
        times[case.phase] = (float(made.RepetitionTime), float(made.EchoTime))
        assert case.phase in made.SeriesDescription
    assert times == {"T1": (500, 15), "T2": (4000, 100)}


def test_patients_have_uids_of_their_own_that_stay() -> None:
    case = Case.make(1)
    one, again, other = patients.series(case), patients.series(case), patients.series(Case.make(2))
    out_of_the_scan = patients.series(case, scanned=True)
    assert [each.SOPInstanceUID for each in one] == [each.SOPInstanceUID for each in again]
    studies = {each[0].StudyInstanceUID for each in (one, other, out_of_the_scan)}
    assert len(studies) == 3
    assert one[0].StudyInstanceUID != sample.series(shape=(3, 8, 8), seed=1)[0].StudyInstanceUID


def test_the_command_writes_a_study_and_tells_the_truth(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = Case.make(2)
    assert main(["sample", "--seed", "2", "--out", str(tmp_path / "a"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    paths = list((tmp_path / "a").iterdir())
    assert told["instances"] == len(paths) == len(case.voxels)
    assert {str(dcmread(each).StudyInstanceUID) for each in paths} == {told["study_instance_uid"]}
    assert told["report"] == report(case)
    assert told["findings"] == [vars(each) for each in case.findings]
    check_voxels(case, volume.load(paths))
    assert main(["sample", "--seed", "2", "--out", str(tmp_path / "b")]) == 0
    shown = capsys.readouterr().out
    assert "SYNTHETIC" in shown
    assert report(case) in shown


def test_the_command_bends_a_patient_out_of_the_scan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = real_scan().case(2)
    words = ["sample", "--seed", "2", "--scan", str(CACHE), "--out", str(tmp_path), "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["report"] == report(case)
    check_voxels(case, volume.load(list(tmp_path.iterdir())))


def test_no_seed_and_no_folder_for_the_scan_have_their_codes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", "--seed", "-1", "--out", str(tmp_path / "a")]) == 3
    assert "a seed is 0 or more, not -1" in capsys.readouterr().err
    (tmp_path / "file").touch()
    words = ["--scan", str(tmp_path / "file"), "--out", str(tmp_path / "a")]
    assert main(["sample", "--seed", "1", *words]) == 4
    assert "cannot be kept in" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_dcmtk_reads_the_folder(tool: Callable[[str], str], tmp_path: Path) -> None:
    written(Case.make(0), tmp_path)
    for path in sorted(tmp_path.iterdir())[:3]:
        ran = subprocess.run(
            [tool("dcmftest"), str(path)], capture_output=True, text=True, check=False
        )
        assert (ran.returncode, ran.stdout.split(":")[0]) == (0, "yes")
