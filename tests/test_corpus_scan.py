"""The real half of the corpus: what is fetched is what is known, and bent patients stay true."""

import hashlib
import io
import socket
import tarfile
from pathlib import Path

import numpy as np
import pytest
from corpus_scan import CACHE, real_scan

from model.data.corpus import paint, scan
from model.data.corpus.case import Case
from model.data.corpus.findings import KINDS
from model.data.corpus.organs import ORGANS
from model.data.corpus.scan import Scan
from model.errors import ModelError

SEEDS = range(6)
EVIL = """
from pathlib import Path
Path({ran!r}).touch()
from setuptools import setup
setup(name="totalsegmentator", version="2.18.0")
"""


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return [real_scan().case(seed) for seed in SEEDS]


@pytest.fixture
def index(tmp_path: Path, packages: Path) -> Path:
    """Let pip know one source distribution alone, that tells if it ran."""
    files = {
        "setup.py": EVIL.format(ran=str(tmp_path / "ran")),
        "PKG-INFO": "Metadata-Version: 2.1\nName: totalsegmentator\nVersion: 2.18.0\n",
        "LICENSE": "as you like",
    }
    with tarfile.open(packages / scan.SDIST_FILE, "w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"{scan.ROOT}/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return packages


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / scan.SDIST_FILE).read_bytes()).hexdigest()


@pytest.fixture
def known(index: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small source distribution is the known one."""
    monkeypatch.setattr(scan, "SDIST_SHA256", digest(index))
    return index


# --- the fetch ----------------------------------------------------------------------------------


def test_the_scan_that_is_used_is_the_known_file() -> None:
    real_scan()
    found = hashlib.sha256((CACHE / "totalsegmentator-2.18.0.tar.gz").read_bytes()).hexdigest()
    assert found == "5d4223ef93973bc36d710869d11e7742ead2c154c72f7f9edcaaadd5b6c4bd03"
    assert "Apache License" in scan.licence(CACHE)


def test_another_file_than_the_known_one_is_refused_and_never_run(
    index: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError) as error:
        Scan.load(tmp_path / "cache")
    assert str(error.value) == (
        f"{scan.SDIST_FILE} should have sha256 {scan.SDIST_SHA256}, got {digest(index)}"
    )
    assert list((tmp_path / "cache").iterdir()) == []
    assert not (tmp_path / "ran").exists()


def test_what_cannot_be_downloaded_is_said_in_one_line_with_the_reason_of_pip(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (index / scan.SDIST_FILE).unlink()
    with pytest.raises(ModelError, match="is there a network") as error:
        scan.fetch(tmp_path / "cache")
    assert "No matching distribution found for totalsegmentator==2.18.0" in str(error.value)
    assert "\n" not in str(error.value)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple")
    with pytest.raises(ModelError, match=r"^totalsegmentator==2\.18\.0 cannot be downloaded"):
        scan.fetch(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_came_half_is_fetched_again_and_what_is_whole_is_not(
    known: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    whole = (known / scan.SDIST_FILE).read_bytes()
    (cache / scan.SDIST_FILE).write_bytes(whole[:99])
    archive = scan.fetch(cache)
    assert archive.read_bytes() == whole
    (known / scan.SDIST_FILE).unlink()
    assert scan.fetch(cache) == archive
    assert scan.licence(cache) == "as you like"
    assert [each.name for each in cache.iterdir()] == [scan.SDIST_FILE]


def test_a_file_without_the_scan_is_told(known: Path) -> None:
    with pytest.raises(ModelError, match=r"should hold .*example_ct\.nii\.gz; it does not"):
        Scan.load(known)


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="cannot be kept in"):
        scan.fetch(tmp_path / "file" / "cache")


# --- the scan -----------------------------------------------------------------------------------


def test_the_scan_lies_foot_to_head_front_to_back_right_to_left() -> None:
    whole = real_scan()

    def place(name: str) -> np.ndarray:
        return np.argwhere(whole.labels == ORGANS[name].number).mean(axis=0)

    assert place("liver")[0] > place("urinary bladder")[0]
    assert place("spine")[1] > place("stomach")[1]
    for right, left in (("liver", "spleen"), ("right kidney", "left kidney")):
        assert place(right)[2] < place(left)[2]
    # What organs are made of on CT, whatever somebody called them.
    for name, low, high in (("right lung", -950, -500), ("liver", 20, 130), ("spine", 60, 400)):
        assert low < np.median(whole.voxels[whole.labels == ORGANS[name].number]) < high, name


def test_right_organs_stay_on_the_right(cases: list[Case]) -> None:
    checked = set()
    for case in cases:
        middle = np.argwhere(case.labels > 0).mean(axis=0)
        for name in case.present:
            place = np.argwhere(case.organ(name)).mean(axis=0) - middle
            if ORGANS[name].side:
                assert (place[2] > 0) == (ORGANS[name].side == "left"), (case.seed, name)
                checked.add(name)
            elif name in {"liver", "spleen"}:
                assert (place[2] > 0) == (name == "spleen"), (case.seed, name)
        if "spine" in case.present:
            assert np.argwhere(case.organ("spine")).mean(axis=0)[1] > middle[1]
    assert checked >= {"right kidney", "left kidney"}


def test_a_seed_is_one_patient(cases: list[Case]) -> None:
    again = real_scan().case(SEEDS[1])
    assert again.voxels.tobytes() == cases[1].voxels.tobytes()
    assert again.truth == cases[1].truth
    assert (
        cases[0].voxels.shape != cases[1].voxels.shape or (cases[0].voxels != cases[1].voxels).any()
    )


def test_voxels_are_hounsfield_units(cases: list[Case]) -> None:
    for case in cases:
        assert case.voxels.dtype == np.float32
        assert np.isfinite(case.voxels).all()
        assert -1024 <= case.voxels.min() < -900
        assert case.voxels.max() <= 3071
        assert np.array_equal(case.voxels, np.rint(case.voxels))
        assert abs(np.median(case.voxels[case.labels == 0]) + 1000) < 60
        assert 0 < np.median(case.voxels[case.organ("liver")]) < 180


def test_findings_are_planted_where_it_is_told(cases: list[Case]) -> None:
    kinds = set()
    more = [real_scan().case(seed) for seed in range(100, 106)]
    for case in [*cases, *more]:
        numbers = [each.number for each in case.findings if each.number]
        assert sorted(numbers) == sorted(set(np.unique(case.planted)) - {0})
        for each in case.findings:
            if each.number:
                host = f"{each.side} {each.organ}".strip()
                inside = case.labels[case.finding(each)]
                assert (inside == ORGANS[host].number).all()
                assert seen_apart(case, each.kind, case.finding(each)), each
                kinds.add(each.kind)
    assert kinds >= {"lesion", "cyst", "stone"}


def seen_apart(case: Case, kind: str, mask: np.ndarray) -> bool:
    """Whether a finding is as bright or as dark against its organ as its kind says."""
    host = (case.labels == case.labels[mask][0]) & (case.planted == 0)
    step = np.median(case.voxels[mask]) - np.median(case.voxels[host])
    mean = KINDS[kind].values["CT"][0]
    return bool(step > 25 if mean > 100 else step < -5)


def test_an_organ_that_was_removed_is_in_neither_labels_nor_voxels() -> None:
    whole = real_scan()
    for seed in range(60):
        case = whole.case(seed)
        gone = [each for each in case.findings if each.kind == "absence"]
        if not gone:
            continue
        name = f"{gone[0].side} {gone[0].organ}".strip()
        assert name in case.missing
        assert not case.organ(name).any()
        place = was(whole, case, name)
        # Fat is where the organ was, however it was painted: neither tissue nor contrast.
        assert np.median(case.voxels[place]) < -50, (seed, name)
        return
    pytest.fail("no organ was ever removed")


def was(whole: Scan, case: Case, name: str) -> np.ndarray:
    """Where an organ was before it was taken out: the scan bent in the same way, nothing done."""
    at = whole._indices(whole._space(np.random.default_rng([20_260_102, case.seed])))
    nearest = tuple(
        np.clip(np.rint(each), 0, count - 1).astype(int)
        for each, count in zip(at, whole.labels.shape, strict=True)
    )
    inside = np.all(
        [
            (each > 1) & (each < count - 2)
            for each, count in zip(at, whole.labels.shape, strict=True)
        ],
        axis=0,
    )
    return (whole.labels[nearest] == ORGANS[name].number) & inside & (case.planted == 0)


def test_half_keep_the_texture_of_the_scanner_and_half_are_painted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, given = real_scan(), []
    ask = paint.computed_tomography

    def noted(*words: object, scanned: object = None) -> object:
        given.append(scanned is not None)
        return ask(*words, scanned=scanned)  # type: ignore[arg-type]

    monkeypatch.setattr(paint, "computed_tomography", noted)
    for seed in range(10):
        whole.case(seed)
    assert 2 <= sum(given) <= 8


@pytest.mark.parametrize("keep", [True, False], ids=["scanned", "painted"])
def test_only_a_scanned_patient_follows_the_scan(
    *, keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within one organ, what the scanner saw can only be known from the scan."""
    whole = real_scan()
    monkeypatch.setattr(scan, "PAINTED", 0.0 if keep else 1.0)
    alike = []
    for seed in range(3):
        case = whole.case(seed)
        at = whole._indices(whole._space(np.random.default_rng([20_260_102, seed])))
        nearest = tuple(
            np.clip(np.rint(each), 0, count - 1).astype(int)
            for each, count in zip(at, whole.labels.shape, strict=True)
        )
        spine = case.organ("spine") & (case.planted == 0)
        alike.append(np.corrcoef(case.voxels[spine], whole.voxels[nearest][spine])[0, 1])
    assert min(alike) > 0.4 if keep else max(alike) < 0.2, alike
