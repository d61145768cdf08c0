"""The doctor at a destination, each time with something else wrong at a real peer."""

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority
from pynetdicom import AE, AllStoragePresentationContexts
from pynetdicom.sop_class import (
    CTImageStorage,
    StorageCommitmentPushModel,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from dicom_node.commands import peer_check
from dicom_node.config import Config, Destination
from dicom_node.config.sources import Source
from dicom_node.errors import PeerError
from dicom_node.ledger import Ledger
from dicom_node.scp import Scp
from dicom_node.spool import Spool

STORAGE = [each.abstract_syntax for each in AllStoragePresentationContexts]
COMMITS, FINDS = StorageCommitmentPushModel, StudyRootQueryRetrieveInformationModelFind


@contextmanager
def pacs(*classes: Any, callers: Sequence[str] = ()) -> Iterator[Destination]:
    ae = AE("PACS")
    ae.require_called_aet = True
    ae.require_calling_aet = list(callers)
    for each in classes:
        ae.add_supported_context(each)
    server = ae.start_server(("127.0.0.1", 0), block=False)
    try:
        yield Destination("PACS", "127.0.0.1", int(server.server_address[1]))
    finally:
        server.shutdown()


@contextmanager
def secured(pki: Authority, folder: Path) -> Iterator[Destination]:
    """Our own SCP, over TLS."""
    pem = pki.issue("pacs")
    config = Config(
        dicom_port=0,
        data_dir=folder,
        ae_title="PACS",
        tls_ca=str(pki.path),
        tls_client_certificate="optional",
        **pem.settings,
    )
    with (
        Ledger(config.ledger_path) as ledger,
        Scp(config, Spool(config.spool_dir, ledger, minimum_free_mb=1), ledger) as scp,
    ):
        yield Destination("PACS", "127.0.0.1", scp.port, tls=True)


def found(config: Config, destination: Destination) -> str:
    return "; ".join(peer_check.look(config, destination))


def wrong(config: Config, destination: Destination) -> str:
    with pytest.raises(PeerError) as told:
        found(config, destination)
    assert str(told.value).startswith(str(destination))
    return str(told.value)


def test_what_makes_a_delivery_delivered_is_told(config: Config) -> None:
    with pacs(Verification, *STORAGE, COMMITS, FINDS) as peer:
        told = found(config, peer)
        assert told.startswith("answers C-ECHO; proof by storage commitment; to report it must")
        assert "LAMED at port" in told
        assert told.endswith("; proof by C-FIND")
        assert found(config, replace(peer, proof="query")) == "answers C-ECHO; proof by C-FIND"
        assert found(config, replace(peer, proof="none")).endswith("stays sent-unproven")
    with pacs(Verification, *STORAGE, FINDS) as peer:
        told = "answers C-ECHO; storage commitment is not supported; proof by C-FIND"
        assert found(config, peer) == told
        strict = wrong(config, replace(peer, proof="commitment"))
        assert "does not support storage commitment" in strict
        assert "set proof = auto" in strict
    with pacs(Verification, *STORAGE) as peer:
        assert found(config, peer).endswith("no proof at all: what it stores stays sent-unproven")


def test_a_peer_that_does_not_take_what_we_write_is_told(config: Config) -> None:
    with pacs(CTImageStorage, STORAGE[0], COMMITS) as peer:
        told = found(config, peer)
    assert told.startswith("takes an association, but no C-ECHO; it does not take Segmentation")
    assert "choose a profile without" in told


def test_a_wrong_port_is_told(config: Config) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = int(closed.getsockname()[1])
    told = wrong(config, Destination("PACS", "127.0.0.1", port))
    assert "cannot be reached: Connection refused" in told
    assert f"is port {port} right" in told


def test_a_host_that_is_none_is_told(config: Config) -> None:
    told = wrong(config, Destination("PACS", "pacs.invalid", 104))
    assert "no host is called 'pacs.invalid'" in told


def test_who_does_not_know_whom_is_told(config: Config) -> None:
    with pacs(Verification, callers=["SCANNER"]) as peer:
        us = wrong(config, peer)
        them = wrong(config, replace(peer, ae_title="OTHER"))
    assert "it must be told of us: AE title LAMED and our address" in us
    assert "it does not call itself OTHER: correct its ae_title" in them


def test_plain_dicom_to_a_port_for_tls_is_told(config: Config, tmp_path: Path) -> None:
    with secured(Authority(tmp_path / "pki"), tmp_path / "pacs") as peer:
        told = wrong(config, replace(peer, tls=False))
    assert "TLS" in told
    assert "set tls = true" in told


def test_tls_to_a_port_for_plain_dicom_is_told(config: Config, tmp_path: Path) -> None:
    pki = Authority(tmp_path / "pki")
    config = replace(config, tls_ca=str(pki.path), network_timeout_s=3)
    with pacs(Verification) as peer:
        told = wrong(config, replace(peer, tls=True))
    assert "it speaks plain DICOM at this port: set tls = false" in told


def test_tls_that_fits_is_well(config: Config, tmp_path: Path) -> None:
    pki = Authority(tmp_path / "pki")
    with secured(pki, tmp_path / "pacs") as peer:
        assert found(replace(config, tls_ca=str(pki.path)), peer).startswith("answers C-ECHO")
        other = Authority(tmp_path / "other")
        told = wrong(replace(config, tls_ca=str(other.path)), peer)
    assert "the peer's certificate is not in tls_ca" in told


@contextmanager
def web(code: int = 200, ahead_s: float = 0.0) -> Iterator[Destination]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(code)
            self.send_header("Server", "Archive")
            self.send_header("Date", formatdate(time.time() + ahead_s, usegmt=True))
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"[]")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield Destination(url=f"http://127.0.0.1:{server.server_port}/dicom-web")
        finally:
            server.shutdown()
            thread.join()


def test_a_dicomweb_server_is_well_or_not(config: Config) -> None:
    with web() as peer:
        assert found(config, peer) == "answers QIDO-RS: Archive"
        told = wrong(config, replace(peer, url=peer.url.replace("http:", "https:")))
        assert "not in TLS" in told
    for code, hint in ((401, "token_file or user_file"), (404, "is the url right?"), (500, "500")):
        with web(code) as peer:
            assert hint in wrong(config, peer)


@pytest.mark.parametrize(("ahead_s", "told"), [(7200, "ahead of ours"), (-7200, "behind ours")])
def test_a_clock_that_is_wrong_is_told(config: Config, ahead_s: float, told: str) -> None:
    with web(ahead_s=ahead_s) as peer:
        said = wrong(config, peer)
    assert told in said
    assert "its clock is 7" in said


def test_a_source_finds_and_sends_or_is_said_not_to(config: Config) -> None:
    get = StudyRootQueryRetrieveInformationModelGet
    with pacs(Verification, FINDS, get) as peer:
        told = "; ".join(peer_check.source(config, Source("ARCHIVE", peer, "c-get")))
        assert told == "finds studies and sends them by c-get"
        with pytest.raises(PeerError, match=r"does not serve .* - MOVE"):
            list(peer_check.source(config, Source("ARCHIVE", peer, "c-move")))
    with pytest.raises(PeerError, match="nothing listens there"):
        list(peer_check.source(config, Source("ARCHIVE", peer, "c-get")))


def test_a_source_that_moves_must_know_us(config: Config) -> None:
    with pacs(FINDS, StudyRootQueryRetrieveInformationModelMove) as peer:
        told = "; ".join(peer_check.source(config, Source("ARCHIVE", peer, "c-move")))
    assert told.endswith(f"it must know LAMED at port {config.dicom_port}")
