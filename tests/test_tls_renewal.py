import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from certificates import Authority
from listener import ABORT, ASSOCIATE_RQ, HOST, LONG_S, Listener, ask, connect, failure, outcome

from dicom_node.config import Config
from dicom_node.errors import PeerError, Unavailable
from dicom_node.ledger import Ledger
from dicom_node.network import tls


@dataclass
class Renewing:
    """A node's files that change while it listens."""

    folder: Path
    ca: Authority
    certificates: tls.Certificates
    config: Config
    listener: Listener
    ledger: Ledger

    def shown(self) -> str:
        """Call; the fingerprint of the certificate that is shown."""
        client = self.ca.issue("client")
        context = tls.client_context(replace(self.config, **client.settings))
        with tls.handshake(connect(self.listener), context, LONG_S, server_hostname=HOST) as to:
            identity = tls.peer_identity(to)
        outcome(self.listener)
        assert identity is not None
        return identity.sha256

    def told(self) -> list[tuple[str, dict[str, object]]]:
        return [(each.kind, each.data) for each in self.ledger.events()]


@pytest.fixture
def renewing(tmp_path: Path, ledger: Ledger) -> Iterator[Renewing]:
    ca = Authority(tmp_path / "pki")
    ours = Config(tls_ca=str(ca.path), **ca.issue("node").settings)
    certificates = tls.Certificates(ours, ledger.event)
    with Listener(ours, contexts=certificates.server) as listener:
        yield Renewing(tmp_path / "pki", ca, certificates, ours, listener, ledger)


def test_a_renewed_certificate_is_shown_without_a_restart(renewing: Renewing) -> None:
    first = renewing.shown()
    assert renewing.shown() == first
    assert renewing.told() == []
    renewed = renewing.ca.issue("node", days=200)
    assert renewing.shown() == renewed.sha256 != first
    assert renewing.shown() == renewed.sha256
    assert renewing.told() == [("tls.renewed", {"certificate": str(renewed.certificate)})]


@pytest.mark.parametrize("spoilt", ["node.pem", "node.key", "ca.pem"])
@pytest.mark.parametrize("how", ["empty", "gone", "cut"])
def test_a_renewal_that_cannot_be_used_keeps_the_old_one_and_is_told_once(
    spoilt: str, how: str, renewing: Renewing
) -> None:
    first = renewing.shown()
    path = renewing.folder / spoilt
    well = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(b"" if how == "empty" else well[: len(well) // 2])
    for _ in range(3):
        assert renewing.certificates.server() is not None
    ((kind, data),) = renewing.told()
    assert kind == "tls.renewal_failed"
    assert str(path) in str(data["reason"])
    path.write_bytes(well)
    assert renewing.shown() == first
    assert [kind for kind, _ in renewing.told()] == ["tls.renewal_failed", "tls.renewed"]


def test_an_association_that_is_open_keeps_the_certificate_it_began_with(
    renewing: Renewing,
) -> None:
    client = renewing.ca.issue("client")
    context = tls.client_context(replace(renewing.config, **client.settings))
    to = renewing.listener
    with tls.handshake(connect(to), context, LONG_S, server_hostname=HOST) as secured:
        renewing.ca.issue("node", days=200)
        renewing.shown()
        secured.sendall(ASSOCIATE_RQ)
        assert secured.recv(64) == ABORT


def test_an_authority_that_is_taken_out_certifies_nobody_any_more(
    renewing: Renewing, tmp_path: Path
) -> None:
    """Ours stays of the old one, which the callers still trust."""
    callers = replace(renewing.config, tls_ca=str(shutil.copy(renewing.ca.path, tmp_path)))
    successor = Authority(tmp_path / "successor")
    old = replace(callers, **renewing.ca.issue("client").settings)
    new = replace(callers, **successor.issue("client").settings)
    assert ask(renewing.listener, old) == ABORT
    assert outcome(renewing.listener)
    shutil.copy(successor.path, renewing.ca.path)
    assert ask(renewing.listener, new) == ABORT
    assert outcome(renewing.listener)[1].common_name == "client"
    with pytest.raises((OSError, PeerError)):
        ask(renewing.listener, old)
    assert failure(renewing.listener) == "the authority of the peer's certificate is not in tls_ca"


def test_a_ledger_that_is_out_of_order_keeps_nobody_out(tmp_path: Path) -> None:
    def tell(kind: str, **_: object) -> None:
        raise Unavailable(kind)

    ca = Authority(tmp_path)
    ours = Config(tls_ca=str(ca.path), **ca.issue("node", days=1).settings)
    assert tls.Certificates(ours, tell).server() is not None


def test_the_end_of_a_certificate_is_told_ahead_once_a_day(tmp_path: Path, ledger: Ledger) -> None:
    ca = Authority(tmp_path)
    now = [datetime.now(UTC).timestamp()]
    ours = Config(tls_ca=str(ca.path), tls_expiry_days=10, **ca.issue("node", days=12.5).settings)
    certificates = tls.Certificates(ours, ledger.event, clock=lambda: now[0])
    told: list[list[object]] = []
    for _ in range(8):
        certificates.server()
        told.append([each.data["days"] for each in ledger.events() if each.kind == "tls.expires"])
        now[0] += 86_400 / 2
    assert told == [[], [], [], [], [10], [10], [10, 9], [10, 9]]
    ca.issue("node", days=300)
    certificates.server()
    assert [each.kind for each in ledger.events()] == ["tls.expires"] * 2 + ["tls.renewed"]


def test_without_tls_there_is_nothing_to_renew(ledger: Ledger) -> None:
    assert tls.Certificates(Config(), ledger.event).server() is None
