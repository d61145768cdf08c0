import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pydicom
import pytest
from orthanc_server import DICOMWEB, Orthanc

from dicom_node.config import Config, Destination
from dicom_node.demo import sample
from dicom_node.errors import OutOfResources
from dicom_node.ledger import Ledger
from dicom_node.network.part10 import Part10
from dicom_node.qa import Server
from dicom_node.scu import stow
from dicom_node.spool import Spool
from dicom_node.ways_in import stow_in

TOKEN = "a-token-that-is-not-guessed"
TYPE = 'multipart/related; type="application/dicom"; boundary=XX'
FAILED, REFERENCED, OTHER = "00081198", "00081199", "0008119A"
MOST = 1 << 20

Post = Callable[..., httpx.Response]


@pytest.fixture
def url(spool: Spool, ledger: Ledger) -> Iterator[str]:
    app = stow_in.create_app(spool, ledger, api_token=TOKEN, most=MOST, silence_s=5)
    with Server(app, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.port}/dicom-web"


@pytest.fixture
def post(url: str) -> Iterator[Post]:
    with httpx.Client(timeout=30, trust_env=False) as client:

        def send(content: Any, path: str = "/studies", **headers: str) -> httpx.Response:
            told = {"Authorization": f"Bearer {TOKEN}", "Content-Type": TYPE} | {
                key.replace("_", "-"): value for key, value in headers.items()
            }
            return client.post(url + path, content=content, headers=told)

        yield send


def body(*parts: bytes, end: bytes = b"--XX--\r\n") -> bytes:
    head = b"--XX\r\nContent-Type: application/dicom\r\n\r\n"
    return b"".join(head + each + b"\r\n" for each in parts) + end


def uids(answer: httpx.Response, sequence: str) -> set[str]:
    items = answer.json().get(sequence, {}).get("Value", [])
    return {each["00081155"]["Value"][0] for each in items}


def reasons(answer: httpx.Response, sequence: str) -> list[int]:
    items = answer.json().get(sequence, {}).get("Value", [])
    return [each["00081197"]["Value"][0] for each in items]


def test_what_is_posted_is_in_the_spool_as_it_came(
    post: Post, ledger: Ledger, ct_files: list[Path]
) -> None:
    answer = post(body(*(each.read_bytes() for each in ct_files)))
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/dicom+json"
    heads = [pydicom.dcmread(each) for each in ct_files]
    assert uids(answer, REFERENCED) == {str(each.SOPInstanceUID) for each in heads}
    assert FAILED not in answer.json()
    stored = {each.sop_uid: each for each in ledger.instances(str(heads[0].StudyInstanceUID))}
    for path, head in zip(ct_files, heads, strict=True):
        there = Part10.read(stored[str(head.SOPInstanceUID)].path)
        sent = Part10.read(path)
        assert there.path.read_bytes()[there.offset :] == path.read_bytes()[sent.offset :]
    (event,) = [each for each in ledger.events() if each.kind == "stow.received"]
    assert (event.data["stored"], event.data["failed"]) == (len(ct_files), 0)


def test_orthanc_stores_a_study_by_stow(url: str, ledger: Ledger, tmp_path: Path) -> None:
    paths = sample.write(sample.series(shape=(4, 32, 32)), tmp_path / "ct")
    servers = {"lamed": {"Url": url, "HttpHeaders": {"Authorization": f"Bearer {TOKEN}"}}}
    settings = {"DicomWeb": {"Enable": True, "Servers": servers}}
    with Orthanc(tmp_path / "orthanc", plugins=[DICOMWEB], settings=settings) as orthanc:
        study = orthanc.upload(paths)
        wanted = {"Resources": [study], "Synchronous": True}
        orthanc.post("/dicom-web/servers/lamed/stow", json=wanted)
    assert len(ledger.instances(str(pydicom.dcmread(paths[0]).StudyInstanceUID))) == 4


def test_our_own_stow_client_is_understood(
    url: str, config: Config, ledger: Ledger, ct_files: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(TOKEN)
    us = Destination(url=url, token_file=str(tmp_path / "token"))
    stow.send([Part10.read(each) for each in ct_files], us, config)
    assert ledger.studies()[0].instance_count == len(ct_files)


def test_any_cut_of_the_body_into_pieces_is_the_same_body(
    post: Post, ledger: Ledger, ct_files: list[Path]
) -> None:
    content = body(*(each.read_bytes() for each in ct_files[:2]))
    for size in (7, 4097):
        pieces = (content[at : at + size] for at in range(0, len(content), size))
        assert post(pieces).status_code == 200
    assert ledger.studies()[0].instance_count == 2


def test_the_study_in_the_path_must_be_theirs(post: Post, ct_files: list[Path]) -> None:
    content = body(ct_files[0].read_bytes())
    study = str(pydicom.dcmread(ct_files[0]).StudyInstanceUID)
    assert post(content, f"/studies/{study}").status_code == 200
    other = post(content, "/studies/1.2.3")
    assert (other.status_code, reasons(other, FAILED)) == (409, [0xA900])
    assert post(content, "/studies/..%2f..").status_code in {400, 404}


def test_what_is_good_of_a_body_is_stored_and_what_is_not_is_named(
    post: Post, ledger: Ledger, ct_files: list[Path], tmp_path: Path
) -> None:
    wrong = pydicom.dcmread(ct_files[1])
    wrong.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    wrong.save_as(tmp_path / "wrong.dcm")
    worklist = pydicom.dcmread(ct_files[2])
    worklist.SOPClassUID = worklist.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.31"
    worklist.save_as(tmp_path / "worklist.dcm")
    parts = [ct_files[0], tmp_path / "wrong.dcm", tmp_path / "worklist.dcm"]
    answer = post(body(*(each.read_bytes() for each in parts), b"no DICOM"))
    assert answer.status_code == 202
    assert len(uids(answer, REFERENCED)) == 1
    assert uids(answer, FAILED) == {"1.2.3", str(worklist.SOPInstanceUID)}
    assert reasons(answer, FAILED) == [0xA900, 0x0122]
    assert reasons(answer, OTHER) == [0xC000]
    refused = [each for each in ledger.events() if each.kind == "instance.refused"]
    assert len(refused) == 3
    assert ledger.studies()[0].instance_count == 1


def test_nothing_stored_is_a_conflict(post: Post) -> None:
    answer = post(body(b"no DICOM", b""))
    assert (answer.status_code, reasons(answer, OTHER)) == (409, [0xC000, 0xC000])


@pytest.mark.parametrize("shown", ["", "Bearer wrong", "Basic eDp5", "Bearer \xe4"])
def test_who_shows_no_token_is_not_let_in(
    url: str, ledger: Ledger, ct_files: list[Path], shown: str
) -> None:
    headers = [(b"Content-Type", TYPE.encode()), (b"Authorization", shown.encode("latin-1"))]
    content = body(ct_files[0].read_bytes())
    answer = httpx.post(f"{url}/studies", content=content, headers=headers, trust_env=False)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert not ledger.studies()


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        ("Content_Type", "application/dicom", 415),
        ("Content_Type", 'multipart/related; type="application/dicom+json"; boundary=XX', 415),
        ("Content_Type", "multipart/form-data; boundary=XX", 415),
        ("Content_Type", 'multipart/related; type="application/dicom"', 400),
        ("Content_Type", f"multipart/related; boundary={'X' * 5000}", 400),
        ("Content_Encoding", "gzip", 415),
        ("Accept", "application/dicom+xml", 406),
    ],
)
def test_what_we_do_not_speak_is_refused(post: Post, header: str, value: str, status: int) -> None:
    answer = post(body(b"x"), **{header: value})
    assert (answer.status_code, "error" in answer.json()) == (status, True)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no multipart at all",
        b"--XX\r\nContent-Type: application/dicom\r\n\r\nhalf",
        b"--XX--\r\n",
        b"--XX\r\n" + b"X-Header: " + b"x" * 100_000 + b"\r\n\r\n",
        b"--XX\r\n" + b"X: y\r\n" * 10_000 + b"\r\n",
        b"--XX\r\nno header\r\n\r\n\r\n--XX--",
        b"\x00" * 50_000,
    ],
)
def test_a_body_that_is_none_is_a_bad_request(post: Post, ledger: Ledger, content: bytes) -> None:
    answer = post(content)
    assert answer.status_code == 400, answer.text
    assert not ledger.studies()


def test_what_came_whole_before_the_body_broke_off_is_stored_and_told(
    post: Post, ledger: Ledger, ct_files: list[Path]
) -> None:
    first, second = (each.read_bytes() for each in ct_files[:2])
    answer = post(body(first, second[:200], end=b""))
    assert answer.status_code == 400
    assert len(uids(answer, REFERENCED)) == 1
    assert "last boundary" in answer.headers["Warning"]
    assert ledger.studies()[0].instance_count == 1


def test_a_part_above_the_limit_is_too_large_and_those_before_it_are_stored(
    post: Post, ledger: Ledger, ct_files: list[Path]
) -> None:
    answer = post(body(ct_files[0].read_bytes(), b"x" * (MOST + 1)))
    assert answer.status_code == 413
    assert len(uids(answer, REFERENCED)) == 1
    assert ledger.studies()[0].instance_count == 1


def test_without_room_nothing_is_read(config: Config, ledger: Ledger, ct_files: list[Path]) -> None:
    full = Spool(config.spool_dir, ledger, minimum_free_mb=1_000_000_000)
    app = stow_in.create_app(full, ledger, api_token=TOKEN, most=MOST, silence_s=5)
    with Server(app, "127.0.0.1", 0) as server:
        answer = httpx.post(
            f"http://127.0.0.1:{server.port}/dicom-web/studies",
            content=body(ct_files[0].read_bytes()),
            headers={"Authorization": f"Bearer {TOKEN}", "Content-Type": TYPE},
            trust_env=False,
        )
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "30")


def test_a_disk_that_fills_up_under_way_says_to_come_back(
    post: Post, spool: Spool, ct_files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OutOfResources("no room")

    monkeypatch.setattr(spool, "store", full)
    answer = post(body(ct_files[0].read_bytes()))
    assert (answer.status_code, reasons(answer, FAILED)) == (503, [0xA700])
    assert answer.headers["Retry-After"] == "30"


def test_a_sender_that_falls_silent_is_not_waited_for(spool: Spool, ledger: Ledger) -> None:
    app = stow_in.create_app(spool, ledger, api_token=TOKEN, most=MOST, silence_s=0.2)
    with (
        Server(app, "127.0.0.1", 0) as server,
        socket.create_connection(("127.0.0.1", server.port), 10) as raw,
    ):
        raw.sendall(
            b"POST /dicom-web/studies HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n"
            + f"Authorization: Bearer {TOKEN}\r\nContent-Type: {TYPE}\r\n\r\n--XX\r\n".encode()
        )
        assert raw.recv(100).startswith(b"HTTP/1.1 408")


def test_more_bodies_at_once_than_fit_into_memory_are_told_to_come_back(
    monkeypatch: pytest.MonkeyPatch, spool: Spool, ledger: Ledger
) -> None:
    receiver = stow_in.Receiver(spool, ledger, TOKEN, MOST, 5)
    while not receiver.places.locked():
        receiver.places._value -= 1
    monkeypatch.setattr(stow_in, "Receiver", lambda *_: receiver)
    app = stow_in.create_app(spool, ledger, api_token=TOKEN, most=MOST, silence_s=5)
    with Server(app, "127.0.0.1", 0) as server:
        answer = httpx.post(
            f"http://127.0.0.1:{server.port}/dicom-web/studies",
            content=body(b"x"),
            headers={"Authorization": f"Bearer {TOKEN}", "Content-Type": TYPE},
            trust_env=False,
        )
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "30")
