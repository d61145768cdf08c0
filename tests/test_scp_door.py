"""The real SCP behind its door: TLS with DCMTK, allow-lists, caps; who is kept out and told so."""

import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pydicom
import pytest
from certificates import Authority, Pem
from raw_peer import RELEASE_RQ, VERIFICATION, RawPeer, command, fragments, request
from test_scp import eventually

from dicom_node.config import Config
from dicom_node.config.peers import Peer
from dicom_node.ledger import Ledger
from dicom_node.network import tls
from dicom_node.scp import Scp
from dicom_node.spool import Spool

Tool = Callable[[str], str]
HOST = "127.0.0.1"
STRANGER, CONGESTION, LIMIT = (1, 1, 3), (2, 3, 1), (2, 3, 2)


@dataclass(frozen=True)
class Pki:
    ca: Authority
    node: Pem
    scanner: Pem
    stranger: Pem


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    folder = tmp_path_factory.mktemp("pki")
    ca = Authority(folder / "ca")
    return Pki(
        ca, ca.issue("node"), ca.issue("scanner"), Authority(folder / "other").issue("stranger")
    )


@contextmanager
def up(config: Config, spool: Spool, ledger: Ledger, **settings: Any) -> Iterator[Scp]:
    with Scp(replace(config, network_timeout_s=5, **settings), spool, ledger) as scp:
        yield scp


@pytest.fixture
def secured(config: Config, spool: Spool, ledger: Ledger, pki: Pki) -> Iterator[Scp]:
    settings = pki.node.settings | {"tls_ca": str(pki.ca.path)}
    with up(config, spool, ledger, **settings) as scp:
        yield scp


def told(ledger: Ledger) -> list[str]:
    """Give the reasons for which somebody was kept out."""
    return [each.data["reason"] for each in ledger.events() if each.kind == "association.rejected"]


def dcmtk(tool: Tool, pki: Pki, scp: Scp, files: list[Path], *, shown: Pem | None) -> int:
    mine = ["+tls", str(shown.key), str(shown.certificate)] if shown else ["+tla"]
    trusted = ["+cf", str(pki.ca.path)]
    to = ["-aec", "LAMED", HOST, str(scp.port)]
    done = subprocess.run(
        [tool("storescu"), *mine, *trusted, *to, *map(str, files)], check=False, capture_output=True
    )
    return done.returncode


def rejected(scp: Scp, calling: str = "SCANNER") -> tuple[int, ...]:
    """Ask for an association and let go of it; what it was rejected with, empty if it was not."""
    with RawPeer(scp.port) as raw:
        raw.send(request(calling=calling))
        answer = raw.pdu()
        if answer[0] == 3:
            return tuple(answer[7:10])
        raw.send(RELEASE_RQ)
        assert raw.pdu()[0] == 6
    return ()


def test_dcmtk_sends_a_series_by_tls_and_only_with_a_certificate_that_holds(
    secured: Scp, ledger: Ledger, pki: Pki, tool: Tool, ct_files: list[Path]
) -> None:
    assert dcmtk(tool, pki, secured, ct_files, shown=pki.scanner) == 0
    study = str(pydicom.dcmread(ct_files[0]).StudyInstanceUID)
    assert len(ledger.instances(study)) == len(ct_files)
    assert dcmtk(tool, pki, secured, ct_files[:1], shown=pki.stranger) != 0
    assert dcmtk(tool, pki, secured, ct_files[:1], shown=None) != 0
    eventually(lambda: bool(told(ledger)))


def test_a_silent_client_holds_up_no_handshake(
    secured: Scp, pki: Pki, tool: Tool, ct_files: list[Path]
) -> None:
    silent = [socket.create_connection((HOST, secured.port)) for _ in range(8)]
    assert dcmtk(tool, pki, secured, ct_files, shown=pki.scanner) == 0
    for each in silent:
        each.close()


def test_plain_dicom_to_a_port_with_tls_is_told_in_plain_words(
    secured: Scp, ledger: Ledger
) -> None:
    with RawPeer(secured.port) as raw:
        raw.send(request())
        raw.pdu()
    eventually(lambda: any("plain DICOM" in each for each in told(ledger)))


def test_tls_to_a_plain_port_is_told_in_plain_words(
    config: Config, spool: Spool, ledger: Ledger, pki: Pki, tool: Tool, ct_files: list[Path]
) -> None:
    with up(config, spool, ledger) as scp:
        assert dcmtk(tool, pki, scp, ct_files[:1], shown=pki.scanner) != 0
        eventually(lambda: tls.SPEAKS_TLS in told(ledger))


def test_a_certificate_may_not_use_the_title_of_another(
    config: Config, spool: Spool, ledger: Ledger, pki: Pki, tool: Tool, ct_files: list[Path]
) -> None:
    peers = (Peer("ct", ("STORESCU",), certificates=("cn:somebody else",)), Peer("rest"))
    settings = pki.node.settings | {"tls_ca": str(pki.ca.path)}
    with up(config, spool, ledger, peers=peers, **settings) as scp:
        assert dcmtk(tool, pki, scp, ct_files, shown=pki.scanner) != 0
        eventually(lambda: "calling AE title not recognized" in told(ledger))
    peers = (Peer("ct", ("STORESCU",), certificates=("cn:scanner",)),)
    with up(config, spool, ledger, peers=peers, **settings) as scp:
        assert dcmtk(tool, pki, scp, ct_files, shown=pki.scanner) == 0


def test_an_address_that_is_not_on_the_list_is_not_even_listened_to(
    config: Config, spool: Spool, ledger: Ledger
) -> None:
    peers = (Peer("ward", addresses=("192.0.2.0/24",)),)
    with up(config, spool, ledger, peers=peers) as scp, RawPeer(scp.port) as raw:
        assert raw.pdu() == b""
        eventually(lambda: told(ledger) == ["no peer is allowed from this address"])


def test_titles_and_limits_are_those_of_the_peer(
    config: Config, spool: Spool, ledger: Ledger
) -> None:
    peers = (
        Peer("ct", ("CT",), (HOST,), maximum_associations=1),
        Peer("mr", ("MR",), (HOST,), associations_per_minute=2),
        Peer("old", ("OLD",), allowed=False),
    )
    with up(config, spool, ledger, peers=peers) as scp:
        assert rejected(scp, "NOBODY") == STRANGER
        assert rejected(scp, "OLD") == STRANGER
        with RawPeer(scp.port) as first:
            first.associate(request(calling="CT"))
            assert rejected(scp, "CT") == LIMIT
            first.send(fragments(1, command(0x30, VERIFICATION, data=False), command=True))
            assert first.status() == 0
        eventually(lambda: rejected(scp, "CT") == ())
        assert [rejected(scp, "MR") for _ in range(3)] == [(), (), CONGESTION]


def test_the_limit_of_all_is_kept_and_given_back(
    config: Config, spool: Spool, ledger: Ledger
) -> None:
    with up(config, spool, ledger, maximum_associations=2) as scp:
        with RawPeer(scp.port) as one, RawPeer(scp.port) as two:
            one.associate(request())
            two.associate(request())
            assert rejected(scp) == LIMIT
        eventually(lambda: rejected(scp) == ())
