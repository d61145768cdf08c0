import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest
from orthanc_server import DICOMWEB, Orthanc, eventually, free_ports
from pydicom.uid import JPEG2000Lossless

from dicom_node import scu, supervisor
from dicom_node.__main__ import main
from dicom_node.config import Config, Destination
from dicom_node.config.sources import Source
from dicom_node.demo import sample
from dicom_node.errors import BadInput, PeerError
from dicom_node.ledger import Ledger
from dicom_node.network.part10 import Part10
from dicom_node.scp import Scp
from dicom_node.spool import Spool
from dicom_node.ways_in import expectations, fetching, holdings, pull

Tool = Callable[[str], str]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Give a series of five, of which two are compressed."""
    folder = tmp_path_factory.mktemp("study")
    series = sample.series(shape=(5, 32, 32))
    paths = sample.write(series, folder)
    for path in paths[:2]:
        ds = pydicom.dcmread(path)
        ds.compress(JPEG2000Lossless, generate_instance_uid=False)
        ds.save_as(path)
    return paths


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory, files: list[Path]) -> Iterator[Orthanc]:
    settings = {"DicomWeb": {"Enable": True}, "DicomAlwaysAllowGet": True}
    settings |= {"DicomAlwaysAllowMove": True, "DicomAlwaysAllowFind": True}
    folder = tmp_path_factory.mktemp("orthanc")
    with Orthanc(folder, plugins=[DICOMWEB], settings=settings) as started:
        started.upload(files)
        yield started


def study_of(files: list[Path]) -> str:
    return str(pydicom.dcmread(files[0]).StudyInstanceUID)


def source_of(orthanc: Orthanc, method: str) -> Source:
    if method == "wado-rs":
        return Source("PACS", Destination(url=f"{orthanc.url}/dicom-web"), method)
    return Source("PACS", Destination.parse(orthanc.address), method)


@contextmanager
def dcmqrscp(tool: Tool, folder: Path, ours: int) -> Iterator[Source]:
    """Run DCMTK's archive, which knows our AE, as a source by C-GET."""
    (port,) = free_ports(1)
    (folder / "store").mkdir(parents=True)
    (folder / "qr.cfg").write_text(
        f"NetworkTCPPort = {port}\nMaxPDUSize = 16384\nMaxAssociations = 16\n"
        f"HostTable BEGIN\nus = (LAMED, 127.0.0.1, {ours})\nHostTable END\n"
        f"VendorTable BEGIN\nVendorTable END\n"
        f"AETable BEGIN\nQR {folder / 'store'} RW (200, 1024mb) ANY\nAETable END\n"
    )
    peer = Destination("QR", "127.0.0.1", port)
    command = [tool("dcmqrscp"), "-c", str(folder / "qr.cfg")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:

        def is_up() -> bool:
            with suppress(PeerError):
                scu.echo(peer, calling_ae="LAMED", timeout_s=5)
                return True
            return False

        eventually(is_up, 20)
        yield Source("QR", peer, "c-get")
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()


def assert_is_here_as_it_was(ledger: Ledger, files: list[Path]) -> None:
    stored = {each.sop_uid: each.path for each in ledger.instances(study_of(files))}
    assert len(stored) == len(files)
    for sent in map(Part10.read, files):
        there = Part10.read(stored[sent.sop_uid])
        assert there.transfer_syntax_uid == sent.transfer_syntax_uid
        pixels = [pydicom.dcmread(each.path).PixelData for each in (there, sent)]
        assert pixels[0] == pixels[1]


@pytest.mark.orthanc
@pytest.mark.parametrize("method", ["c-get", "wado-rs"])
def test_a_study_comes_from_orthanc_as_it_is_there(
    orthanc: Orthanc, files: list[Path], config: Config, ledger: Ledger, spool: Spool, method: str
) -> None:
    told: list[tuple[int, int]] = []
    source, uid = source_of(orthanc, method), study_of(files)
    count = pull.pull(source, config, ledger, spool, uid, lambda *each: told.append(each))
    assert (count, told[0], told[-1]) == (5, (0, 5), (5, 5))
    assert_is_here_as_it_was(ledger, files)
    assert expectations.expected(ledger, uid) == 5


@pytest.mark.orthanc
def test_a_study_is_moved_to_us_by_orthanc(
    orthanc: Orthanc, files: list[Path], config: Config, ledger: Ledger, spool: Spool
) -> None:
    with Scp(config, spool, ledger) as scp:
        orthanc.know(scp.port)
        pull.pull(source_of(orthanc, "c-move"), config, ledger, spool, study_of(files))
    assert_is_here_as_it_was(ledger, files)


def test_an_archive_that_does_not_know_us_cannot_move_anything_here(
    tool: Tool, tmp_path: Path, config: Config, ledger: Ledger, spool: Spool
) -> None:
    files = sample.write(sample.series(shape=(2, 16, 16)), tmp_path / "ct")
    stranger = replace(config, ae_title="STRANGER")
    with dcmqrscp(tool, tmp_path / "qr", 104) as source:
        scu.send(files, source.peer, calling_ae="LAMED", timeout_s=5)
        way = replace(source, method="c-move")
        with pytest.raises(PeerError, match=r"0xA801 \(it does not know our AE title"):
            pull.pull(way, stranger, ledger, spool, study_of(files))


@pytest.mark.parametrize("method", ["c-get", "c-move"])
def test_a_study_comes_from_dcmtk(
    tool: Tool, tmp_path: Path, config: Config, ledger: Ledger, spool: Spool, method: str
) -> None:
    files = sample.write(sample.series(shape=(4, 16, 16)), tmp_path / "ct")
    with Scp(config, spool, ledger) as scp, dcmqrscp(tool, tmp_path / "qr", scp.port) as source:
        scu.send(files, source.peer, calling_ae="LAMED", timeout_s=5)
        way = replace(source, method=method)
        assert pull.pull(way, config, ledger, spool, study_of(files)) == 4
        assert holdings.count(way, config, study_of(files)) == 4
    assert_is_here_as_it_was(ledger, files)


@pytest.mark.orthanc
@pytest.mark.parametrize("method", ["c-get", "wado-rs"])
def test_a_source_tells_what_it_has(
    orthanc: Orthanc, files: list[Path], config: Config, method: str
) -> None:
    source, head = source_of(orthanc, method), pydicom.dcmread(files[0])
    uid = study_of(files)
    assert holdings.count(source, config, uid) == 5
    assert holdings.count(source, config, "1.2.3") is None
    classes = holdings.instances(source, config, uid)
    assert set(classes) == {str(pydicom.dcmread(each).SOPInstanceUID) for each in files}
    assert set(classes.values()) == {str(head.SOPClassUID)}
    for wanted in (
        {"AccessionNumber": str(head.AccessionNumber)},
        {"PatientID": str(head.PatientID), "StudyDate": str(head.StudyDate)},
    ):
        assert holdings.studies(source, config, wanted) == [uid]
    assert holdings.studies(source, config, {"AccessionNumber": "NONE"}) == []


@pytest.mark.orthanc
def test_a_request_is_done_and_forgets_whose_it_was(
    orthanc: Orthanc, files: list[Path], config: Config, ledger: Ledger, spool: Spool
) -> None:
    config = replace(config, sources=(source_of(orthanc, "c-get"),))
    accession = str(pydicom.dcmread(files[0]).AccessionNumber)
    number = pull.ask(ledger, "PACS", {"AccessionNumber": accession}, by="somebody")
    assert pull.step(ledger, config, spool)
    done = pull.find(ledger, number)
    assert (done.state, done.stored, done.expected, done.wanted) == ("done", 5, 5, {})
    assert_is_here_as_it_was(ledger, files)
    kinds = [each.kind for each in ledger.events() if each.kind.startswith("pull.")]
    assert kinds == ["pull.asked", "pull.done"]
    assert accession not in "".join(str(each.data) for each in ledger.events())
    assert not pull.step(ledger, config, spool)


@pytest.mark.orthanc
@pytest.mark.parametrize("method", ["c-get", "wado-rs"])
def test_a_node_that_stops_leaves_the_rest_for_its_next_start(
    orthanc: Orthanc, files: list[Path], config: Config, ledger: Ledger, spool: Spool, method: str
) -> None:
    config = replace(config, sources=(source_of(orthanc, method),))
    number = pull.ask(ledger, "PACS", {"StudyInstanceUID": study_of(files)})
    stop = threading.Event()
    store = spool.store

    def store_and_stop(*given: Any) -> Any:
        stop.set()
        return store(*given)

    spool.store = store_and_stop  # type: ignore[method-assign]
    assert not pull.step(ledger, config, spool, stop)
    assert pull.find(ledger, number).state == "pulling"
    spool.store = store  # type: ignore[method-assign]
    pull.restart(ledger)
    assert pull.step(ledger, config, spool)
    assert_is_here_as_it_was(ledger, files)


@pytest.mark.orthanc
def test_the_command_watches_the_node_fetch(  # noqa: PLR0917
    orthanc: Orthanc,
    files: list[Path],
    config: Config,
    ledger: Ledger,
    spool: Spool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    peer = Destination.parse(orthanc.address)
    (tmp_path / "node.toml").write_text(
        f'data_dir = "{config.data_dir}"\n[[sources]]\nname = "PACS"\n'
        f'ae_title = "{peer.ae_title}"\nhost = "{peer.host}"\nport = {peer.port}\n'
    )
    command = ["pull", "--config", str(tmp_path / "node.toml"), "--from", "PACS"]
    command += ["--study", study_of(files)]
    assert main(command) == 4  # nobody would fetch it
    assert "node is not up" in capsys.readouterr().err
    config = replace(config, sources=(source_of(orthanc, "c-get"),))
    stop = threading.Event()
    thread = threading.Thread(target=pull.run, args=(ledger, config, spool, stop))
    supervisor.announce(config, "scp", port=1)
    thread.start()
    try:
        assert main(command) == 0
        assert "5 instances from PACS" in capsys.readouterr().out
        assert main([*command[:-1], "1.2.3"]) == 4
        assert "no such study" in capsys.readouterr().err
    finally:
        stop.set()
        thread.join()
        supervisor.withdraw(config, "scp")


def test_a_source_that_is_down_fails_the_request_and_says_so(
    config: Config, ledger: Ledger, spool: Spool
) -> None:
    (port,) = free_ports(1)
    down = Source("PACS", Destination("PACS", "127.0.0.1", port), "c-get")
    number = pull.ask(ledger, "PACS", {"StudyInstanceUID": "1.2.3"})
    assert pull.step(ledger, replace(config, sources=(down,)), spool)
    failed = pull.find(ledger, number)
    assert failed.state == "failed"
    assert "cannot be reached" in failed.detail


def test_a_source_that_is_no_longer_set_fails_the_request(
    config: Config, ledger: Ledger, spool: Spool
) -> None:
    number = pull.ask(ledger, "GONE", {"StudyInstanceUID": "1.2.3"})
    assert pull.step(ledger, config, spool)
    assert "no source is called 'GONE'" in pull.find(ledger, number).detail


def test_a_node_that_does_not_retrieve_is_said_to(
    config: Config, ledger: Ledger, spool: Spool, scp: Scp
) -> None:
    us = Source("PACS", Destination("LAMED", "127.0.0.1", scp.port), "c-get")
    with pytest.raises(PeerError, match="C-GET"):
        fetching.fetch(us, config, spool, "1.2.3", {}, lambda _: None)
    assert not ledger.studies()


def test_what_a_source_says_it_has_and_does_not_send_is_missed(
    config: Config, ledger: Ledger, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holdings, "instances", lambda *_: {"1.2.1": "", "1.2.2": ""})
    monkeypatch.setattr(fetching, "fetch", lambda *_: None)
    source = Source("PACS", Destination("PACS", "127.0.0.1", 104), "c-get")
    with pytest.raises(PeerError, match=r"2 of 2 instances of 1\.2 did not come"):
        pull.pull(source, config, ledger, spool, "1.2")


def test_a_full_disk_leaves_the_request_waiting(config: Config, ledger: Ledger) -> None:
    full = Spool(config.spool_dir, ledger, minimum_free_mb=1_000_000_000)
    number = pull.ask(ledger, "PACS", {"StudyInstanceUID": "1.2.3"})
    assert not pull.step(ledger, config, full)
    assert pull.find(ledger, number).state == "waiting"


def test_what_was_being_fetched_when_the_process_ended_is_fetched_again(
    config: Config, ledger: Ledger, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = pull.ask(ledger, "PACS", {"StudyInstanceUID": "1.2.3"})

    def killed(*_: Any) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(pull, "_fetch", killed)
        pull.step(ledger, config, spool)
    assert pull.find(ledger, number).state == "pulling"
    pull.restart(ledger)
    assert pull.find(ledger, number).state == "waiting"


@pytest.mark.orthanc
def test_an_instance_that_is_too_large_is_not_taken(
    config: Config, spool: Spool, ledger: Ledger, orthanc: Orthanc
) -> None:
    made = sample.series(shape=(2, 1024, 1024), seed=77)
    uid = str(made[0].StudyInstanceUID)
    orthanc.upload(sample.write(made, config.data_dir / "large"))
    limited = replace(config, maximum_instance_mb=1)
    with pytest.raises(PeerError, match="0xA702"):
        pull.pull(source_of(orthanc, "c-get"), limited, ledger, spool, uid)
    assert ledger.instances(uid) == []


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"AccessionNumber": "*"},
        {"AccessionNumber": "A?"},
        {"StudyInstanceUID": "1.2\\1.3"},
        {"PatientID": " "},
        {"StudyDate": "20260101"},
        {"PatientID": "P", "StudyDate": "20260101-20261231"},
        {"PatientName": "A"},
        {"PatientID": "P" * 65},
    ],
)
def test_what_could_be_half_an_archive_is_not_fetched(
    ledger: Ledger, wanted: dict[str, str]
) -> None:
    with pytest.raises(BadInput):
        pull.ask(ledger, "PACS", wanted)


def test_the_command_says_what_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "node.toml").write_text(f'data_dir = "{tmp_path}"\n')
    begin = ["pull", "--config", str(tmp_path / "node.toml")]
    for rest, told in (
        (["--study", "1.2"], "--from"),
        (["--from", "X"], "one of the arguments"),
        (["--from", "X", "--study", "1.2"], "no source is called 'X'"),
    ):
        assert main([*begin, *rest]) == 2
        assert told in capsys.readouterr().err
    shutil.rmtree(tmp_path)


def test_many_classes_still_fit_into_one_association() -> None:
    few = fetching.contexts_of({str(n): f"1.2.{n}" for n in range(3)})
    assert len(few) == 3 * len(fetching.SYNTAXES)
    many = fetching.contexts_of({str(n): f"1.2.{n}" for n in range(500)})
    assert len(many) == 127
    assert len(fetching.contexts_of({"1": ""})) < 128


def test_an_unknown_number_is_bad_input(ledger: Ledger) -> None:
    with pytest.raises(BadInput):
        pull.find(ledger, 7)
