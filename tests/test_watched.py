import os
import shutil
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from orthanc_server import eventually

from dicom_node.errors import OutOfResources
from dicom_node.ledger import Ledger
from dicom_node.network.part10 import Part10
from dicom_node.spool import Spool
from dicom_node.ways_in import watched
from dicom_node.ways_in.watched import Watched

MOST = 1 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "in"
    made.mkdir()
    return made


@pytest.fixture
def look(folder: Path, spool: Spool, ledger: Ledger) -> Callable[[], int]:
    """Look twice: what is as it was the first time is whole."""
    watching = Watched(folder, spool, ledger, MOST, settled_s=0)

    def twice() -> int:
        return watching.step() + watching.step()

    return twice


def stored(ledger: Ledger) -> int:
    return sum(each.instance_count for each in ledger.studies())


def refused(folder: Path) -> dict[str, str]:
    """Give the reasons by the names of the files."""
    return {each.stem: each.read_text() for each in (folder / "refused").glob("*.txt")}


def test_files_are_taken_as_they_are_and_removed(
    look: Callable[[], int], folder: Path, ledger: Ledger, ct_files: list[Path]
) -> None:
    (folder / "CD" / "IMAGES").mkdir(parents=True)
    for number, path in enumerate(ct_files):
        shutil.copy(path, (folder if number % 2 else folder / "CD" / "IMAGES") / f"IM{number}")
    assert look() == len(ct_files)
    assert not [each for each in folder.rglob("*") if each.is_file()]
    study = str(pydicom.dcmread(ct_files[0]).StudyInstanceUID)
    there = {each.sop_uid: Part10.read(each.path) for each in ledger.instances(study)}
    for sent in map(Part10.read, ct_files):
        kept = there[sent.sop_uid]
        assert kept.path.read_bytes()[kept.offset :] == sent.path.read_bytes()[sent.offset :]


def test_a_file_that_grows_is_left_until_it_has_stopped(
    folder: Path, spool: Spool, ledger: Ledger, ct_files: list[Path]
) -> None:
    content = ct_files[0].read_bytes()
    watching = Watched(folder, spool, ledger, MOST, settled_s=0)
    for length in (100, 200, len(content)):
        (folder / "a").write_bytes(content[:length])
        assert watching.step() == 0
    assert watching.step() == 1
    assert stored(ledger) == 1


def test_what_is_being_written_under_another_name_is_left(
    look: Callable[[], int], folder: Path, ct_files: list[Path]
) -> None:
    names = {".hidden", "a.part", "b.TMP", "c.filepart"}
    for name in names:
        shutil.copy(ct_files[0], folder / name)
    assert look() == 0
    assert {each.name for each in folder.iterdir()} == names


def test_what_is_no_dicom_is_put_aside_with_the_reason(
    look: Callable[[], int], folder: Path, ledger: Ledger, ct_files: list[Path]
) -> None:
    (folder / "Doe^John.pdf").write_bytes(b"%PDF-1.7")
    (folder / "empty").touch()
    (folder / "half").write_bytes(ct_files[0].read_bytes()[:600])
    assert look() == 0
    assert set(refused(folder)) == {"Doe^John.pdf", "empty", "half"}
    assert (folder / "refused" / "Doe^John.pdf").read_bytes() == b"%PDF-1.7"
    assert "no DICOM file" in refused(folder)["Doe^John.pdf"]
    assert not ledger.studies()
    events = [each for each in ledger.events() if each.kind == "watched.refused"]
    assert len(events) == 3
    assert "Doe" not in str([each.data for each in events])
    assert look() == 0  # what was put aside is not looked at again


def test_a_second_file_of_the_same_name_is_put_aside_too(
    look: Callable[[], int], folder: Path
) -> None:
    for content in (b"one", b"two"):
        (folder / "a").write_bytes(content)
        look()
    assert {each.read_bytes() for each in (folder / "refused").iterdir()} >= {b"one", b"two"}


def test_links_are_not_followed(
    look: Callable[[], int], folder: Path, tmp_path: Path, ledger: Ledger, ct_files: list[Path]
) -> None:
    (folder / "file").symlink_to(ct_files[0])
    (folder / "folder").symlink_to(ct_files[0].parent)
    (folder / "up").symlink_to("..")
    before = sorted(tmp_path.joinpath("ct").iterdir())
    look()
    assert not ledger.studies()
    assert sorted(tmp_path.joinpath("ct").iterdir()) == before
    assert set(refused(folder)) == {"file", "folder", "up"}
    assert all("link" in each for each in refused(folder).values())


def test_a_folder_for_the_refused_that_is_a_link_is_not_written_into(
    look: Callable[[], int], folder: Path, tmp_path: Path, ct_files: list[Path]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (folder / "refused").symlink_to(elsewhere)
    (folder / "a").write_bytes(b"x")
    shutil.copy(ct_files[0], folder / "b")
    assert look() == 1  # what is good is taken all the same
    assert not list(elsewhere.iterdir())
    assert (folder / "a").exists()


def test_a_name_of_any_length_can_be_put_aside(look: Callable[[], int], folder: Path) -> None:
    names = ["a" * 255, "ä" * 127, "b" * 250]
    for name in names:
        (folder / name).write_bytes(b"x")
    look()
    assert len(refused(folder)) == len(names)


def test_a_pipe_keeps_nobody_waiting(
    look: Callable[[], int], folder: Path, ledger: Ledger, ct_files: list[Path]
) -> None:
    os.mkfifo(folder / "a-pipe")
    shutil.copy(ct_files[0], folder / "b")
    assert look() == 1
    assert refused(folder) == {"a-pipe": "no regular file\n"}
    assert stored(ledger) == 1


def test_an_archive_is_taken_file_by_file(
    look: Callable[[], int], folder: Path, ledger: Ledger, ct_files: list[Path]
) -> None:
    with zipfile.ZipFile(folder / "cd.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("IMAGES")
        archive.writestr("DICOMDIR", b"a list")
        for number, path in enumerate(ct_files):
            archive.write(path, f"IMAGES/../../../IM{number}")
    assert look() == 1
    assert stored(ledger) == len(ct_files)
    assert not list(folder.rglob("*.zip"))
    assert sorted(each.name for each in folder.parent.iterdir()) == ["ct", "in", "node"]


def test_what_of_an_archive_is_no_dicom_is_told_and_the_rest_is_stored(
    look: Callable[[], int], folder: Path, ledger: Ledger, ct_files: list[Path]
) -> None:
    with zipfile.ZipFile(folder / "cd.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(ct_files[0], "IM0")
        archive.writestr("README.TXT", "read me")
        archive.writestr("bomb", bytes(MOST + 1))
    look()
    assert stored(ledger) == 1
    reason = refused(folder)["cd.zip"]
    assert "2 files of the archive" in reason
    assert "README.TXT: no DICOM file" in reason
    assert f"bomb: more than {MOST} bytes" in reason


@pytest.mark.parametrize("cut", [5, 100, 600])
def test_an_archive_that_is_broken_is_put_aside(
    look: Callable[[], int], folder: Path, ct_files: list[Path], cut: int
) -> None:
    with zipfile.ZipFile(folder / "cd.zip", "w") as archive:
        archive.write(ct_files[0], "IM0")
    whole = (folder / "cd.zip").read_bytes()
    (folder / "cd.zip").write_bytes(whole[:-cut])
    look()
    assert "no zip archive" in refused(folder)["cd.zip"]


def test_a_file_above_the_limit_is_not_read(look: Callable[[], int], folder: Path) -> None:
    with (folder / "large").open("wb") as file:
        file.truncate(1 << 40)
    look()
    assert "the limit is" in refused(folder)["large"]


def test_the_list_of_a_medium_goes_with_its_files(look: Callable[[], int], folder: Path) -> None:
    (folder / "DICOMDIR").write_bytes(b"a list")
    assert look() == 1
    assert not list(folder.iterdir())


def test_without_room_everything_stays_where_it_is(
    folder: Path, ledger: Ledger, tmp_path: Path, ct_files: list[Path]
) -> None:
    full = Spool(tmp_path / "spool", ledger, minimum_free_mb=1_000_000_000)
    shutil.copy(ct_files[0], folder / "a")
    watching = Watched(folder, full, ledger, MOST, settled_s=0)
    assert [watching.step() for _ in range(3)] == [0, 0, 0]
    assert (folder / "a").exists()
    assert not (folder / "refused").exists()


def test_what_cannot_be_stored_now_is_tried_again(
    look: Callable[[], int],
    folder: Path,
    spool: Spool,
    ct_files: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise OutOfResources("no room")

    shutil.copy(ct_files[0], folder / "a")
    with monkeypatch.context() as patch:
        patch.setattr(spool, "store", full)
        assert look() == 0
    assert (folder / "a").exists()
    assert look() == 1


def test_an_empty_folder_goes_when_it_is_long_since_left(
    look: Callable[[], int], folder: Path
) -> None:
    for name in ("old", "new"):
        (folder / name).mkdir()
    os.utime(folder / "old", (0, 0))
    look()
    assert [each.name for each in folder.iterdir()] == ["new"]


def test_the_loop_goes_on_while_the_folder_is_away(
    folder: Path, spool: Spool, ledger: Ledger, ct_files: list[Path]
) -> None:
    watching, stop = Watched(folder, spool, ledger, MOST, settled_s=0.05), threading.Event()
    folder.rmdir()
    thread = threading.Thread(target=watching.run, args=(stop,))
    thread.start()
    try:
        folder.mkdir()
        shutil.copy(ct_files[0], folder / "a")
        eventually(lambda: stored(ledger) == 1)
        eventually(lambda: not (folder / "a").exists())
    finally:
        stop.set()
        thread.join()
    assert watched.REFUSED not in {each.name for each in folder.iterdir()}
