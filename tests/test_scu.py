import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pydicom
import pytest

from dicom_node import sample, scu
from dicom_node.config import Destination
from dicom_node.errors import BadInput, PeerError
from dicom_node.scp import Scp

Tool = Callable[[str], str]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@pytest.fixture
def storescp(tool: Tool, tmp_path: Path) -> Iterator[Callable[..., Destination]]:
    running: list[subprocess.Popen[bytes]] = []

    def start(*options: str) -> Destination:
        folder = tmp_path / "storescp"
        folder.mkdir()
        port = free_port()
        command = [tool("storescp"), *options, "-od", str(folder), str(port)]
        running.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        until = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                return Destination("STORESCP", "127.0.0.1", port)
            except OSError:
                assert time.monotonic() < until, "storescp does not listen"
                time.sleep(0.02)

    yield start
    for each in running:
        each.terminate()
        each.wait()


def send(paths: list[Path], to: Destination, timeout_s: float = 3) -> list[int]:
    seen: list[int] = []
    scu.send(paths, to, calling_ae="LAMED", timeout_s=timeout_s, on_progress=seen.append)
    return seen


def test_dcmtk_gets_every_file_with_its_pixels(
    storescp: Callable[..., Destination], ct_files: list[Path], tmp_path: Path
) -> None:
    assert send(ct_files, storescp("+xa")) == [1, 2, 3, 4, 5]
    arrived = {
        each.SOPInstanceUID: each.PixelData
        for each in map(pydicom.dcmread, (tmp_path / "storescp").iterdir())
    }
    assert arrived == {
        each.SOPInstanceUID: each.PixelData for each in map(pydicom.dcmread, ct_files)
    }


def test_a_peer_that_refuses_the_association_is_quoted(
    storescp: Callable[..., Destination], ct_files: list[Path]
) -> None:
    with pytest.raises(PeerError, match="rejected the association"):
        send(ct_files, storescp("--refuse"), timeout_s=30)


def test_a_class_the_peer_does_not_take_is_named(
    storescp: Callable[..., Destination], tmp_path: Path
) -> None:
    odd = sample.series(shape=(2, 16, 16))[0]
    odd.SOPClassUID = odd.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.66.7"
    with pytest.raises(PeerError, match=r"none of|does not accept"):
        send(sample.write([odd], tmp_path / "odd"), storescp())


def test_a_peer_that_hangs_up_in_the_middle_is_said(
    storescp: Callable[..., Destination], ct_files: list[Path]
) -> None:
    with pytest.raises(PeerError, match="hung up"):
        send(ct_files, storescp("--abort-after"))


def test_nobody_there_is_said(ct_files: list[Path]) -> None:
    with pytest.raises(PeerError, match="cannot be reached"):
        send(ct_files, Destination("NOBODY", "127.0.0.1", free_port()))
    with pytest.raises(PeerError, match="no host is called"):
        send(ct_files, Destination("NOBODY", "no.such.host.invalid", 104))


def test_a_silent_peer_holds_us_no_longer_than_said(ct_files: list[Path]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        to = Destination("SILENT", "127.0.0.1", silent.getsockname()[1])
        start = time.monotonic()
        with pytest.raises(PeerError, match="did not answer"):
            send(ct_files, to, timeout_s=0.5)
        assert time.monotonic() - start < 10


def test_what_is_no_dicom_file_is_named(tmp_path: Path, scp: Scp) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("Dear colleague")
    with pytest.raises(BadInput, match=r"letter\.txt"):
        send([path], Destination("LAMED", "127.0.0.1", scp.port))


def test_a_folder_is_searched_for_dicom_files(tmp_path: Path, ct_files: list[Path]) -> None:
    (tmp_path / "ct" / "notes.txt").write_text("no image")
    assert scu.find_dicom(tmp_path / "ct") == sorted(ct_files)
    assert scu.find_dicom(ct_files[0]) == [ct_files[0]]
    with pytest.raises(BadInput, match="no such"):
        scu.find_dicom(tmp_path / "nowhere")


def test_more_classes_than_one_association_can_hold(scp: Scp, tmp_path: Path) -> None:
    many = []
    for number in range(130):
        odd = sample.series(shape=(2, 8, 8))[0]
        odd.SOPClassUID = odd.file_meta.MediaStorageSOPClassUID = f"1.3.12.2.99.{number + 1}"
        odd.SOPInstanceUID = odd.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number + 1}"
        many.append(odd)
    paths = sample.write(many, tmp_path / "many")
    assert send(paths, Destination("LAMED", "127.0.0.1", scp.port))[-1] == 130


def test_no_thread_is_left_behind(scp: Scp, ct_files: list[Path]) -> None:
    to = Destination("LAMED", "127.0.0.1", scp.port)
    send(ct_files, to)
    deadline = time.monotonic() + 5
    while any("Timer" in each.name for each in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
