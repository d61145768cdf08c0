"""Many raw studies: what fails, what is done again, and what a kill leaves behind."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from raw_studies import GRID, SMALL, arrays, listed, marked, pictures

from model import ModelError
from model.data.prepare import STAMP, Summary, prepare
from model.data.sample import DataError
from model.data.studies import Options


def files(folder: Path) -> dict[str, bytes]:
    """Give everything that was made; a stamp holds times, so its content is left out."""
    return {
        each.relative_to(folder).as_posix(): b"" if each.name == STAMP else each.read_bytes()
        for each in sorted(folder.rglob("*"))
        if each.is_file()
    }


def cap_studies(root: Path, count: int) -> Path:
    random = np.random.default_rng(0)
    for number in range(count):
        case = root / "raw" / "ct_case" / f"{number:06d}"
        pictures(case / "Axial", random.integers(0, 255, (3, 20, 20), dtype=np.uint8))
        (case / "text.txt").write_text(f"study_findings: Case {number} is normal.")
    (root / "raw" / "M3D_Cap.json").write_text('{"train": []}')
    return root / "raw"


def stamps(target: Path) -> dict[str, int]:
    return {each.parent.name: each.stat().st_mtime_ns for each in sorted(target.rglob(STAMP))}


def test_a_broken_study_is_told_with_its_path_and_the_others_are_done(tmp_path: Path) -> None:
    source = cap_studies(tmp_path, 4)
    (source / "ct_case/000001/Axial/3.png").write_bytes(b"no picture")
    (source / "ct_case/000002/Axial/cover.png").write_bytes(
        (source / "ct_case/000002/Axial/1.png").read_bytes()
    )
    seen: list[tuple[int, int]] = []
    summary = prepare(
        "cap",
        source,
        tmp_path / "out",
        SMALL,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [each.study for each in summary.failed] == ["ct_case/000001", "ct_case/000002"]
    assert summary.told == {"studies": 4, "made": 2, "before": 0, "failed": 2, "left_out": []}
    with pytest.raises(ModelError) as caught:
        summary.check()
    told = str(caught.value)
    assert "2 of 4 studies could not be prepared; the others are done" in told
    assert str(source / "ct_case/000001/Axial/3.png") in told
    assert str(source / "ct_case/000002/Axial/cover.png") in told
    assert sorted(stamps(tmp_path / "out")) == ["000000", "000003"]


def test_what_is_done_is_not_done_again_and_what_changed_is(tmp_path: Path) -> None:
    source, target = cap_studies(tmp_path, 3), tmp_path / "out"
    prepare("cap", source, target, SMALL).check()
    before, made = stamps(target), files(target)
    assert prepare("cap", source, target, SMALL).told["before"] == 3
    assert stamps(target) == before
    Image.fromarray(np.full((20, 20), 9, np.uint8)).save(source / "ct_case/000001/Axial/7.png")
    (target / "ct_case/000002/text.txt").unlink()
    assert prepare("cap", source, target, SMALL).told["made"] == 2
    assert stamps(target)["000000"] == before["000000"]
    assert files(target)["ct_case/000002/text.txt"] == made["ct_case/000002/text.txt"]
    assert files(target)["ct_case/000001/Axial.npy"] != made["ct_case/000001/Axial.npy"]


def test_other_options_make_every_study_anew_and_leave_nothing_of_the_old(tmp_path: Path) -> None:
    voxels, labels, _ = marked("LAS")
    entry = arrays(tmp_path / "raw", "0018/case", voxels[None], (labels == 1)[None])
    listed(tmp_path / "raw", "0018", train=[entry], test=[])
    prepared = [STAMP, "image.npy"]
    for options, mask in (
        (Options(axes="LAS", grid=GRID), "masks/mask_0.npz"),
        (Options("reference", grid=GRID), "masks/mask_0.npy"),
    ):
        prepare("seg", tmp_path / "raw", tmp_path / "out", options).check()
        there = ["0018/0018.json", *(f"0018/case/{each}" for each in (*prepared, mask))]
        assert sorted(files(tmp_path / "out")) == there


def test_lists_are_taken_along(tmp_path: Path) -> None:
    source = cap_studies(tmp_path, 1)
    prepare("cap", source, tmp_path / "out", SMALL).check()
    assert (tmp_path / "out/M3D_Cap.json").read_text() == '{"train": []}'


def command(source: Path, target: Path) -> list[str]:
    code = (
        "import sys; from pathlib import Path\n"
        "from model.data.prepare import prepare; from model.data.studies import Options\n"
        "if __name__ == '__main__':\n"
        "    source, target = map(Path, sys.argv[1:])\n"
        "    prepare('cap', source, target, Options(grid=(8, 16, 16)), workers=2).check()"
    )
    return [sys.executable, "-c", code, str(source), str(target)]


def children(of: int) -> set[int]:
    """Find the processes that one has started: the fourth field of its stat is the parent."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            after = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(after[1]) == of:
            found.add(int(stat.parent.name))
    return found


def wait_for(what: Callable[[], bool], running: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + 150
    while not what():
        assert time.monotonic() < deadline
        assert running is None or running.poll() is None
        time.sleep(0.005)


@pytest.mark.slow
def test_a_killed_run_leaves_no_process_and_no_half_file_and_goes_on(tmp_path: Path) -> None:
    source, target = cap_studies(tmp_path, 200), tmp_path / "out"
    (source / "ct_case/000199/Axial/2.png").write_bytes(b"")
    running = subprocess.Popen(command(source, target))
    try:
        wait_for(lambda: len(stamps(target)) >= 2, running)
        workers = children(running.pid)
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
    assert len(workers) >= 2
    wait_for(lambda: not any(Path(f"/proc/{each}").exists() for each in workers))
    done = stamps(target)
    assert 2 <= len(done) < 199
    for each in target.rglob("[!.]*.npy"):
        assert np.load(each).shape == (1, *GRID)
    assert not (target / "M3D_Cap.json").exists()
    summary = prepare("cap", source, target, SMALL)
    assert [each.study for each in summary.failed] == ["ct_case/000199"]
    assert (summary.told["before"], summary.told["made"]) == (len(done), 199 - len(done))
    assert {name: stamps(target)[name] for name in done} == done
    assert not list(target.rglob("*.part"))
    prepare("cap", source, tmp_path / "whole", SMALL)
    assert files(target) == files(tmp_path / "whole"), "two processes made something else than one"


def test_the_target_must_not_lie_in_the_source(tmp_path: Path) -> None:
    source = cap_studies(tmp_path, 1)
    with pytest.raises(ModelError, match="must lie outside"):
        prepare("cap", source, source / "prepared", SMALL)


def test_a_folder_without_studies_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    with pytest.raises(DataError, match="expected studies of refseg, got none"):
        prepare("refseg", tmp_path / "raw", tmp_path / "out", SMALL)
    with pytest.raises(DataError, match="expected a folder"):
        prepare("refseg", tmp_path / "nowhere", tmp_path / "out", SMALL)


@pytest.mark.parametrize("image", ["../elsewhere/a/image.npy", "/etc/0001x/image.npy"])
def test_a_list_cannot_lead_out_of_its_folder(tmp_path: Path, image: str) -> None:
    listed(tmp_path / "raw", "0001", train=[{"image": image, "label": "0001/a/m.npz"}], test=[])
    with pytest.raises(DataError, match="studies below this folder"):
        prepare("seg", tmp_path / "raw", tmp_path / "out", SMALL)
    assert [each.name for each in tmp_path.iterdir()] == ["raw"]


def test_two_studies_of_one_folder_are_refused(tmp_path: Path) -> None:
    entry = {"image": "0001/a/image.npy", "label": "0001/a/mask_(1, 2, 2, 2).npz"}
    listed(tmp_path / "raw", "0001", train=[entry], test=[entry])
    with pytest.raises(DataError, match="a folder for each study, got 2 in 0001/a"):
        prepare("seg", tmp_path / "raw", tmp_path / "out", SMALL)


def test_a_summary_without_failures_raises_nothing() -> None:
    summary = Summary(())
    summary.check()
    assert summary.told["failed"] == 0
