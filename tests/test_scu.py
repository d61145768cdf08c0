import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom
import pytest
from certificates import Authority
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.sop_class import CTImageStorage, MRImageStorage

from dicom_node import scu
from dicom_node.config import Config, Destination
from dicom_node.demo import sample
from dicom_node.errors import BadInput, NotTaken, PeerError
from dicom_node.network import dimse, negotiation, requestor, tls
from dicom_node.network.dimse import Answer
from dicom_node.network.part10 import Part10
from dicom_node.network.upper_layer import Connection, encode_acceptance
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


# --- what goes over the wire ----------------------------------------------------------------------


@contextmanager
def pynetdicom(handlers: dict[Any, Any], maximum_pdu: int = 16382) -> Iterator[Destination]:
    ae = AE("PEER")
    ae.maximum_pdu_size = maximum_pdu
    for each in (CTImageStorage, MRImageStorage):
        ae.add_supported_context(each, [ImplicitVRLittleEndian, "1.2.840.10008.1.2.1"])
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=list(handlers.items()))
    try:
        yield Destination("PEER", "127.0.0.1", int(server.server_address[1]))
    finally:
        server.shutdown()


@pytest.mark.parametrize("maximum_pdu", [0, 512, 16382, 1 << 20])
def test_no_pdu_is_longer_than_the_peer_takes_and_every_byte_arrives(
    maximum_pdu: int, tmp_path: Path
) -> None:
    lengths: list[int] = []
    arrived: list[bytes] = []

    def pdu(event: Any) -> None:
        if event.pdu.pdu_type == 4:
            lengths.append(event.pdu.pdu_length)

    def store(event: Any) -> int:
        arrived.append(event.request.DataSet.getvalue())
        return 0x0000

    images = sample.series(shape=(2, 900, 600))  # more than is framed at once
    paths = sample.write(images, tmp_path / "large")
    with pynetdicom({evt.EVT_C_STORE: store, evt.EVT_PDU_RECV: pdu}, maximum_pdu) as peer:
        send(paths, peer, timeout_s=30)
    assert max(lengths) <= (maximum_pdu or requestor.UNLIMITED)
    assert arrived == [path.read_bytes()[Part10.read(path).offset :] for path in paths]
    assert len(arrived[0]) > requestor.BLOCK


def test_a_compressed_data_set_goes_as_it_is(scp: Scp, tmp_path: Path) -> None:
    (image,) = sample.series(shape=(1, 16, 16))
    image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    paths = sample.write([image], tmp_path / "deflated")
    send(paths, Destination("LAMED", "127.0.0.1", scp.port))
    (kept,) = scp._config.spool_dir.rglob("*.dcm")
    assert kept.read_bytes().endswith(paths[0].read_bytes()[Part10.read(paths[0]).offset :])


@contextmanager
def accepting(
    serve: Callable[[Connection, socket.socket], None], more: bytes = b""
) -> Iterator[Any]:
    """Accept one association, with `more` user information, and let `serve` go on with it."""

    def run() -> None:
        accepted, _ = listening.accept()
        connection = Connection(accepted, timeout_s=10)
        proposal = connection.proposal()
        contexts = negotiation.accept(proposal, [])
        said = bytearray(encode_acceptance(proposal, contexts, uid="1.2.3", name="PEER"))
        # The user information comes last (PS3.8 Table 9-17).
        place = said.rindex(b"\x50\x00", 0, said.index(b"\x51\x00\x00\x04"))
        said += more
        struct.pack_into(">H", said, place + 2, len(said) - place - 4)
        struct.pack_into(">I", said, 2, len(said) - 6)
        accepted.sendall(said)
        serve(connection, accepted)
        accepted.close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield Destination("PEER", "127.0.0.1", int(listening.getsockname()[1]))
        finally:
            thread.join()


@pytest.mark.parametrize(("granted", "window"), [(3, 3), (0, 5), (None, 1)])
def test_several_are_under_way_where_that_was_negotiated_and_only_there(
    granted: int | None, window: int, ct_files: list[Path]
) -> None:
    """The peer answers only when `window` requests lie before it; 0 grants without limit."""
    answered: list[int] = []

    def serve(connection: Connection, _: socket.socket) -> None:
        held = []
        for message in connection.messages():
            held.append(message)
            if len(held) == window:
                # In another order than they came in.
                answered.extend(each.command.number(dimse.MESSAGE_ID) for each in reversed(held))
                while held:
                    connection.respond(held.pop(), Answer())
            elif len(answered) + len(held) == len(ct_files):
                answered.extend(each.command.number(dimse.MESSAGE_ID) for each in held)
                while held:
                    connection.respond(held.pop(0), Answer())

    more = b"" if granted is None else struct.pack(">BxHHH", 0x53, 4, granted, 1)
    with accepting(serve, more) as peer:
        assert send(ct_files, peer, timeout_s=10) == [1, 2, 3, 4, 5]
    expected = {1: [1, 2, 3, 4, 5], 3: [3, 2, 1, 4, 5], 5: [5, 4, 3, 2, 1]}
    assert answered == expected[window]


def test_what_is_refused_for_good_keeps_no_other_one_back(ct_files: list[Path]) -> None:
    statuses = iter([0x0000, 0xA900, 0x0111, 0xB007, 0xC123])

    def store(_: Any) -> int:
        return next(statuses)

    seen: list[int] = []
    with pynetdicom({evt.EVT_C_STORE: store}) as peer, pytest.raises(NotTaken) as told:
        scu.send(ct_files, peer, calling_ae="LAMED", timeout_s=5, on_progress=seen.append)
    assert seen == [1, 2, 3]  # one that is there already, and a warning: stored
    assert f"refused {ct_files[1].name}: status 0xA900 (Failure)" in str(told.value)
    assert f"refused {ct_files[4].name}: status 0xC123 (Failure)" in str(told.value)


def test_a_peer_that_has_no_room_is_not_pressed(ct_files: list[Path]) -> None:
    asked: list[str] = []

    def store(event: Any) -> int:
        asked.append(str(event.request.AffectedSOPInstanceUID))
        return 0xA700

    with pynetdicom({evt.EVT_C_STORE: store}) as peer:
        with pytest.raises(PeerError, match="0xA700") as told:
            send(ct_files, peer)
        assert not isinstance(told.value, NotTaken)
    assert len(asked) == 1


def test_a_class_that_is_not_accepted_keeps_no_other_one_back(tmp_path: Path) -> None:
    images = sample.series(shape=(2, 16, 16))
    images[0].SOPClassUID = images[0].file_meta.MediaStorageSOPClassUID = "1.3.12.2.99.1"
    arrived: list[str] = []

    def store(event: Any) -> int:
        arrived.append(str(event.request.AffectedSOPInstanceUID))
        return 0x0000

    with (
        pynetdicom({evt.EVT_C_STORE: store}) as peer,
        pytest.raises(NotTaken, match=r"does not accept 1\.3\.12\.2\.99\.1 in"),
    ):
        send(sample.write(images, tmp_path / "two"), peer)
    assert arrived == [str(images[1].SOPInstanceUID)]


def test_a_peer_that_closes_in_the_middle_of_an_instance_is_said(tmp_path: Path) -> None:
    paths = sample.write(sample.series(shape=(1, 900, 900)), tmp_path / "large")

    def serve(_: Connection, accepted: socket.socket) -> None:
        accepted.recv(10_000)

    with accepting(serve) as to, pytest.raises(PeerError, match="hung up before it had stored"):
        send(paths, to)


def test_a_peer_that_takes_no_more_bytes_holds_us_no_longer_than_said(tmp_path: Path) -> None:
    paths = sample.write(sample.series(shape=(1, 2500, 2500)), tmp_path / "large")
    release = threading.Event()

    def hang(event: Any) -> None:
        if event.pdu.pdu_type == 4:
            release.wait(30)

    with pynetdicom({evt.EVT_PDU_RECV: hang}) as peer:
        start = time.monotonic()
        with pytest.raises(PeerError, match=r"took no bytes for 1 s|nothing came for 1 s"):
            send(paths, peer, timeout_s=1)
        assert time.monotonic() - start < 15
        release.set()


def test_dcmtk_gets_it_over_tls(
    ct_files: list[Path], tmp_path: Path, storescp: Callable[..., Destination]
) -> None:
    pki = Authority(tmp_path / "pki")
    pem, ours = pki.issue("storescp"), pki.issue("lamed")
    to = storescp("+tls", str(pem.key), str(pem.certificate), "+cf", str(pki.path), "+xa")
    secured = tls.client_context(Config(tls_ca=str(pki.path), **ours.settings))
    scu.send(ct_files, to, calling_ae="LAMED", timeout_s=10, secured=secured)
    assert len(list((tmp_path / "storescp").iterdir())) == len(ct_files)
    with pytest.raises(PeerError, match=r"did not answer as a DICOM node|TLS"):
        send(ct_files, to)


def test_a_file_that_is_cut_short_or_lies_about_itself_is_none(tmp_path: Path) -> None:
    (image,) = sample.series(shape=(1, 8, 8))
    whole = sample.write([image], tmp_path / "one")[0].read_bytes()
    path = tmp_path / "odd.dcm"
    for content in (b"", whole[:100], whole[:140], whole[:131] + b"X" + whole[132:], whole[:200]):
        path.write_bytes(content)
        with pytest.raises(BadInput, match=r"odd\.dcm is no DICOM file"):
            Part10.read(path)
    with pytest.raises(BadInput, match="no such file"):
        Part10.read(tmp_path / "none.dcm")
