import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)
from pynetdicom import AE
from pynetdicom.sop_class import CTImageStorage

from dicom_node import scu
from dicom_node.config import Config, Destination
from dicom_node.demo import sample
from dicom_node.errors import PeerError, Unavailable
from dicom_node.ledger import Ledger
from dicom_node.scp import Scp
from dicom_node.spool import Spool

Tool = Callable[[str], str]


def us(scp: Scp, ae_title: str = "LAMED") -> Destination:
    return Destination(ae_title, "127.0.0.1", scp.port)


def send(scp: Scp, paths: list[Path]) -> None:
    scu.send(paths, us(scp), calling_ae="SCANNER", timeout_s=5)


def kinds(ledger: Ledger) -> list[str]:
    return [each.kind for each in ledger.events()]


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def data_set(path: Path) -> bytes:
    meta = pydicom.filereader.read_file_meta_info(path)
    return path.read_bytes()[128 + 4 + 12 + meta.FileMetaInformationGroupLength :]


def test_dcmtk_gets_an_echo(scp: Scp, tool: Tool) -> None:
    subprocess.run([tool("echoscu"), "-aec", "LAMED", "127.0.0.1", str(scp.port)], check=True)


def test_dcmtk_sends_a_series(scp: Scp, ledger: Ledger, tool: Tool, ct_files: list[Path]) -> None:
    for program in ("storescu", "dcmsend"):
        command = [tool(program), "-aec", "LAMED", "127.0.0.1", str(scp.port), *map(str, ct_files)]
        subprocess.run(command, check=True, capture_output=True)
    study = str(pydicom.dcmread(ct_files[0]).StudyInstanceUID)
    assert len(ledger.instances(study)) == len(ct_files)
    assert kinds(ledger).count("instance.duplicate") == len(ct_files)


@pytest.mark.parametrize(
    "syntax",
    [
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
        JPEG2000Lossless,
    ],
)
def test_every_transfer_syntax_is_stored_as_it_came(
    scp: Scp, ledger: Ledger, tmp_path: Path, syntax: str
) -> None:
    paths = sample.write(sample.series(shape=(2, 32, 32), transfer_syntax=syntax), tmp_path / "in")
    send(scp, paths)
    stored = ledger.instances(str(pydicom.dcmread(paths[0]).StudyInstanceUID))
    assert {each.transfer_syntax_uid for each in stored} == {syntax}
    assert sorted(data_set(each.path) for each in stored) == sorted(map(data_set, paths))


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_any_storage_class_is_taken(scp: Scp, ledger: Ledger, tmp_path: Path) -> None:
    odd = sample.series(shape=(2, 16, 16))[0]
    for uid in (
        "1.2.840.10008.5.1.4.1.1.104.1",
        "1.3.12.2.1107.5.9.1",
        "1.2.840.10008.5.1.4.1.1.66.7",
    ):
        odd.SOPClassUID = odd.file_meta.MediaStorageSOPClassUID = uid
        odd.SOPInstanceUID = odd.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{uid[-4:]}"
        send(scp, sample.write([odd], tmp_path / uid))
    assert len(ledger.instances(str(odd.StudyInstanceUID))) == 3


def test_a_wrong_called_title_is_rejected_and_remembered(scp: Scp, ledger: Ledger) -> None:
    with pytest.raises(PeerError, match=r"(?i)called ae title not recogni"):
        scu.echo(us(scp, "OTHER"), calling_ae="SCANNER", timeout_s=5)
    eventually(lambda: "association.rejected" in kinds(ledger))
    event = next(each for each in ledger.events() if each.kind == "association.rejected")
    assert (event.data["called_ae"], event.data["reason"]) == (
        "OTHER",
        "called AE title not recognized",
    )


def test_only_the_titles_of_the_list_may_call(config: Config, spool: Spool, ledger: Ledger) -> None:
    with Scp(replace(config, calling_ae_titles=("PACS",)), spool, ledger) as scp:
        scu.echo(us(scp), calling_ae="PACS", timeout_s=5)
        with pytest.raises(PeerError, match=r"(?i)calling ae title"):
            scu.echo(us(scp), calling_ae="STRANGER", timeout_s=5)


def test_a_refused_instance_has_status_reason_and_event(
    scp: Scp, ledger: Ledger, ct_files: list[Path]
) -> None:
    ct = pydicom.dcmread(ct_files[0])
    del ct.StudyInstanceUID
    ae = AE("SCANNER")
    ae.add_requested_context(CTImageStorage)
    assoc = ae.associate("127.0.0.1", scp.port, ae_title="LAMED")
    answer = assoc.send_c_store(ct)
    good = assoc.send_c_store(pydicom.dcmread(ct_files[1]))
    assoc.release()
    assert (answer.Status, good.Status) == (0xA900, 0x0000)
    assert "StudyInstanceUID" in answer.ErrorComment
    refused = next(each for each in ledger.events() if each.kind == "instance.refused")
    assert refused.data["status"] == "0xA900"


def test_no_room_is_0xa700_inside_and_keeps_the_next_ones_out(
    scp: Scp, spool: Spool, ledger: Ledger, ct_files: list[Path]
) -> None:
    ae = AE("SCANNER")
    ae.add_requested_context(CTImageStorage)
    assoc = ae.associate("127.0.0.1", scp.port, ae_title="LAMED")
    spool._minimum_free = 1 << 60
    assert assoc.send_c_store(pydicom.dcmread(ct_files[0])).Status == 0xA700
    with pytest.raises(PeerError, match="Temporary congestion"):
        send(scp, ct_files)
    spool._minimum_free = 1 << 20
    assert assoc.send_c_store(pydicom.dcmread(ct_files[0])).Status == 0x0000
    assoc.release()
    send(scp, ct_files)
    eventually(lambda: "association.rejected" in kinds(ledger))
    reasons = [each.data["reason"] for each in ledger.events() if "reason" in each.data]
    assert "no room on the disk" in reasons


def test_two_send_at_once(scp: Scp, ledger: Ledger, tmp_path: Path) -> None:
    studies = [sample.series(shape=(20, 16, 16), seed=seed) for seed in (1, 2, 2)]
    folders = [sample.write(each, tmp_path / str(n)) for n, each in enumerate(studies)]
    threads = [threading.Thread(target=send, args=(scp, paths)) for paths in folders]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    for study in studies:
        assert len(ledger.instances(str(study[0].StudyInstanceUID))) == 20


def test_noise_on_the_port_disturbs_nobody(scp: Scp, ledger: Ledger) -> None:
    silent = [socket.create_connection(("127.0.0.1", scp.port)) for _ in range(12)]
    silent[0].sendall(b"GET / HTTP/1.1\r\n\r\n" + os.urandom(500))
    silent[1].sendall(b"\x01\x00\xff\xff\xff\xff" + os.urandom(500))
    scu.echo(us(scp), calling_ae="SCANNER", timeout_s=5)
    for each in silent:
        each.close()
    # Also afterwards; and nothing of the noise was taken for an instance.
    scu.echo(us(scp), calling_ae="SCANNER", timeout_s=5)
    assert ledger.studies() == []


def test_what_a_peer_sent_before_it_died_is_kept(scp: Scp, ledger: Ledger, tmp_path: Path) -> None:
    series = sample.series(shape=(60, 64, 64))
    sample.write(series, tmp_path / "in")
    code = (
        "import sys, pathlib\nfrom dicom_node import scu\n"
        "from dicom_node.config import Destination\n"
        "scu.send(scu.find_dicom(pathlib.Path(sys.argv[1])), Destination('LAMED', '127.0.0.1',"
        " int(sys.argv[2])), calling_ae='DYING', timeout_s=5,"
        " on_progress=lambda n: print(n, flush=True))"
    )
    sender = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "in"), str(scp.port)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert sender.stdout is not None
    acknowledged = 0
    while acknowledged < 5:
        acknowledged = int(sender.stdout.readline())
    sender.send_signal(signal.SIGKILL)
    sender.wait()
    acknowledged = max([acknowledged, *map(int, sender.stdout.read().split())])
    sender.stdout.close()
    study = str(series[0].StudyInstanceUID)
    assert len(ledger.instances(study)) >= acknowledged
    for each in ledger.instances(study):
        assert pydicom.dcmread(each.path).SOPInstanceUID == each.sop_uid
    eventually(lambda: {"association.lost", "association.aborted"} & set(kinds(ledger)) != set())


SERVER = """
import sys, pathlib, time
from dicom_node.config import Config
from dicom_node.ledger import Ledger
from dicom_node.scp import Scp
from dicom_node.spool import Spool
config = Config(dicom_port=0, data_dir=pathlib.Path(sys.argv[1]), minimum_free_mb=1)
ledger = Ledger(config.ledger_path)
with Scp(config, Spool(config.spool_dir, ledger, minimum_free_mb=1), ledger) as scp:
    print(scp.port, flush=True)
    time.sleep(600)
"""


def test_what_was_acknowledged_survives_kill_9_of_the_node(tmp_path: Path) -> None:
    folder = tmp_path / "node"
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    to = Destination("LAMED", "127.0.0.1", int(server.stdout.readline()))
    series = sample.series(shape=(60, 32, 32))
    acknowledged: list[int] = []

    def killing(count: int) -> None:
        acknowledged.append(count)
        if count == 20:
            server.send_signal(signal.SIGKILL)

    with pytest.raises(PeerError):
        scu.send(
            sample.write(series, tmp_path / "in"),
            to,
            calling_ae="SCANNER",
            timeout_s=5,
            on_progress=killing,
        )
    server.wait()
    server.stdout.close()
    with Ledger(folder / "ledger.sqlite") as ledger:
        ledger.verify()
        Spool(folder / "spool", ledger, minimum_free_mb=1).recover()
        stored = ledger.instances(str(series[0].StudyInstanceUID))
    assert len(stored) >= max(acknowledged) >= 20
    for each in stored:
        assert pydicom.dcmread(each.path).SOPInstanceUID == each.sop_uid


def test_a_taken_port_is_said_in_plain_words(
    scp: Scp, config: Config, spool: Spool, ledger: Ledger
) -> None:
    second = Scp(replace(config, dicom_port=scp.port), spool, ledger)
    with pytest.raises(Unavailable, match=rf"cannot listen on 127.0.0.1:{scp.port}"):
        second.start()
