import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import trustme
from certificates import Authority, Pem
from cryptography.hazmat.primitives import serialization
from listener import ABORT, ASSOCIATE_RQ, HOST, LONG_S, Listener, ask, connect, failure, outcome

from dicom_node.config import Config
from dicom_node.config.peers import Identity, Peer
from dicom_node.errors import ConfigError, PeerError, SilentPeer
from dicom_node.network import tls

Tool = Callable[[str], str]
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@dataclass(frozen=True)
class Pki:
    """An authority, and what may be shown: ours, a client's, one that is over, a stranger's."""

    ca: Authority
    other: Authority
    node: Pem
    client: Pem
    expired: Pem
    stranger: Pem


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """Certificates that no test changes."""
    folder = tmp_path_factory.mktemp("pki")
    ca, other = Authority(folder / "ca"), Authority(folder / "other")
    return Pki(
        ca,
        other,
        node=ca.issue("node"),
        client=ca.issue("ct1", "ct1.clinic.example", "10.0.0.5"),
        expired=ca.issue("expired", days=-1),
        stranger=other.issue("stranger"),
    )


def config(pki: Pki, shown: Pem | None = None, **settings: Any) -> Config:
    files = shown.settings if shown else {}
    return Config(**{"tls_ca": str(pki.ca.path), "network_timeout_s": 5, **files, **settings})


@pytest.fixture
def listening(pki: Pki) -> Iterator[Listener]:
    with Listener(config(pki, pki.node)) as listener:
        yield listener


# --- it works -------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS, ids=lambda each: each.name)
@pytest.mark.parametrize("profile", ["bcp195", "modified"])
def test_both_sides_show_their_certificates(
    version: ssl.TLSVersion, profile: str, pki: Pki
) -> None:
    with Listener(config(pki, pki.node, tls_profile=profile)) as listener:
        assert ask(listener, config(pki, pki.client, tls_profile=profile), version) == ABORT
        spoken, identity = outcome(listener)
        assert spoken == {"TLSv1_2": "TLSv1.2", "TLSv1_3": "TLSv1.3"}[version.name]
        assert identity == Identity(pki.client.sha256, "ct1", ("ct1.clinic.example", "10.0.0.5"))
        assert identity.marks >= {"cn:ct1", "san:10.0.0.5", f"sha256:{pki.client.sha256}"}


@pytest.mark.parametrize("key", list(trustme.KeyType), ids=lambda each: each.name)
def test_keys_of_either_kind_are_taken(key: trustme.KeyType, pki: Pki, tmp_path: Path) -> None:
    ca = Authority(tmp_path)
    ours, client = (ca.issue(name, key_type=key) for name in ("node", "client"))
    trusted = {"tls_ca": str(ca.path)}
    with Listener(config(pki, ours, **trusted)) as listener:
        for version in VERSIONS:
            assert ask(listener, config(pki, client, **trusted), version) == ABORT


@pytest.mark.parametrize("version", VERSIONS, ids=lambda each: each.name)
def test_where_a_certificate_is_optional_who_shows_one_is_known(
    version: ssl.TLSVersion, pki: Pki
) -> None:
    ours = config(pki, pki.node, tls_client_certificate="optional")
    with Listener(ours) as listener:
        assert ask(listener, config(pki), version) == ABORT
        assert outcome(listener)[1] is None
        assert ask(listener, config(pki, pki.client), version) == ABORT
        assert outcome(listener)[1].common_name == "ct1"
    with Listener(replace(ours, tls_ca="")) as listener:  # nothing to verify one against
        assert ask(listener, config(pki, pki.client), version) == ABORT
        assert outcome(listener)[1] is None


def test_every_association_shows_its_certificate_anew(pki: Pki, listening: Listener) -> None:
    context = tls.client_context(config(pki, pki.client))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with tls.handshake(connect(listening), context, LONG_S, server_hostname=HOST) as secured:
        assert secured.session is not None
        assert not secured.session.has_ticket


def test_the_socket_keeps_its_own_time_limit(pki: Pki, listening: Listener) -> None:
    plain = connect(listening)
    plain.settimeout(17)
    context = tls.client_context(config(pki, pki.client))
    with tls.handshake(plain, context, LONG_S, server_hostname=HOST) as secured:
        assert secured.gettimeout() == 17


@pytest.mark.parametrize(
    "options",
    [[], ["+py"], ["+px"], ["+pz"]],
    ids=["default", "non-downgrading", "bcp195", "extended"],
)
@pytest.mark.parametrize("profile", ["bcp195", "modified"])
def test_dcmtk_calls_with_each_of_its_profiles(
    options: list[str], profile: str, pki: Pki, tool: Tool
) -> None:
    shown = ["+tls", str(pki.client.key), str(pki.client.certificate), "+cf", str(pki.ca.path)]
    with Listener(config(pki, pki.node, tls_profile=profile)) as listener:
        for called, told in (("LAMED", "Peer aborted"), ("NOBODY", "Called AE Title Not Recogn")):
            end = [*options, "-aet", "CT1", "-aec", called, HOST, str(listener.port)]
            done = subprocess.run(
                [tool("echoscu"), *shown, *end], capture_output=True, text=True, check=False
            )
            assert told in done.stderr
        assert outcome(listener)[1].common_name == "ct1"
        assert outcome(listener).diagnostic == 7


def test_dcmtk_without_a_certificate_comes_in_only_where_that_is_optional(
    pki: Pki, tool: Tool
) -> None:
    command = [tool("echoscu"), "+tla", "+cf", str(pki.ca.path), "-aec", "LAMED", HOST]
    for mode, told in (("optional", "Peer aborted"), ("required", "TLS error")):
        with Listener(config(pki, pki.node, tls_client_certificate=mode)) as listener:
            done = subprocess.run(
                [*command, str(listener.port)], capture_output=True, text=True, check=False
            )
            assert done.returncode
            if mode == "required":
                assert failure(listener) == "the peer showed no certificate, and one is required"
            else:
                assert told in done.stderr


def test_dcmtk_without_tls_is_told_of_by_name(listening: Listener, tool: Tool) -> None:
    command = [tool("echoscu"), "-aec", "LAMED", HOST, str(listening.port)]
    assert subprocess.run(command, capture_output=True, check=False).returncode
    assert failure(listening) == "the peer speaks plain DICOM, and this port speaks TLS only"


def test_a_certificate_comes_in_only_with_the_titles_of_its_peer(pki: Pki) -> None:
    peer = Peer("mr", ae_titles=("MR1",), certificates=(f"sha256:{pki.client.sha256}",))
    ct = replace(peer, name="ct", ae_titles=("CT1",))
    for peers, answered in (((peer, Peer("clinic")), b"\x03"), ((ct, Peer("clinic")), b"\x07")):
        with Listener(config(pki, pki.node, peers=peers)) as listener:
            assert ask(listener, config(pki, pki.client))[:1] == answered


# --- it fails, and says why -----------------------------------------------------------------------


def words(to: Listener, config: Config, version: ssl.TLSVersion | None = None) -> str:
    """Call and fail; what the caller reads: in the handshake or, with TLS 1.3, after it."""
    with pytest.raises((OSError, PeerError)) as failed:
        ask(to, config, version)
    return tls.explain(failed.value)


@pytest.mark.parametrize("version", VERSIONS, ids=lambda each: each.name)
@pytest.mark.parametrize(
    ("shown", "told", "answered"),
    [
        ("", "the peer showed no certificate, and one is required", "demands a certificate"),
        ("stranger", "the authority of the peer's certificate is not in tls_ca", "not trust our"),
        ("expired", "the certificate of the peer has expired", "our certificate has expired"),
    ],
)
def test_a_certificate_that_does_not_hold_is_refused_in_plain_words(
    shown: str, told: str, answered: str, version: ssl.TLSVersion, pki: Pki
) -> None:
    with Listener(config(pki, pki.node)) as listener:
        theirs = config(pki, getattr(pki, shown) if shown else None)
        assert answered in words(listener, theirs, version)
        assert failure(listener) == told
        assert listener.door.waiting == 0


@pytest.mark.parametrize("version", VERSIONS, ids=lambda each: each.name)
def test_we_call_nobody_whose_certificate_does_not_hold(version: ssl.TLSVersion, pki: Pki) -> None:
    elsewhere = pki.ca.issue("elsewhere", "pacs.clinic.example")
    theirs = config(pki, pki.client)
    for shown, told in (
        (pki.expired, "the certificate of the peer has expired"),
        (pki.stranger, "the authority of the peer's certificate is not in tls_ca"),
        (elsewhere, "names another address than we call (tls_check_hostname)"),
    ):
        with Listener(config(pki, shown)) as listener:
            assert told in words(listener, theirs, version)
            assert failure(listener)
    with Listener(config(pki, elsewhere)) as listener:
        assert ask(listener, replace(theirs, tls_check_hostname=False), version) == ABORT


def old_client(**given: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers(given.get("ciphers", "ALL:@SECLEVEL=0"))
    for name, value in given.items():
        if name != "ciphers":
            setattr(context, name, value)
    return context


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
@pytest.mark.parametrize("profile", ["bcp195", "modified"])
def test_nobody_is_served_below_the_profile(profile: str, pki: Pki) -> None:
    versions = {
        "minimum_version": ssl.TLSVersion.TLSv1,
        "maximum_version": ssl.TLSVersion.TLSv1_1,
    }
    twelve = {"maximum_version": ssl.TLSVersion.TLSv1_2}
    with Listener(config(pki, pki.node, tls_profile=profile)) as listener:
        for client, told in (
            (old_client(**versions), "no common TLS version: 1.2 or 1.3 is needed"),
            (old_client(ciphers="AES128-GCM-SHA256", **twelve), "no common cipher suite"),
            (old_client(ciphers="ECDHE-RSA-AES128-SHA256", **twelve), "no common cipher suite"),
            (old_client(ciphers="DHE-RSA-AES128-SHA", **twelve), "no common cipher suite"),
        ):
            with pytest.raises(PeerError, match="no common"):
                tls.handshake(connect(listener), client, LONG_S)
            assert told in failure(listener)


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (b"\x01\x00\x00\x00\x00\xcd", "the peer speaks plain DICOM, and this port speaks TLS only"),
        (b"GET / HTTP/1.1\r\n\r\n", "the peer speaks plain HTTP, and this port speaks DICOM"),
        (b"\x99\x98", "the peer speaks no TLS: it began with 0x99"),
        (b"\x16\x03\x01\xff\xff" + bytes(100), "TLS failed: "),
    ],
)
def test_what_is_no_tls_is_told_by_name(sent: bytes, told: str, listening: Listener) -> None:
    with connect(listening) as plain:
        plain.sendall(sent)
        assert told in failure(listening)


def test_a_probe_that_only_connects_is_told_apart(listening: Listener) -> None:
    for _ in range(20):
        connect(listening).close()
        assert isinstance(outcome(listening), SilentPeer)
    assert listening.door.waiting == 0


def test_silent_clients_hold_nobody_up_and_only_for_their_time(pki: Pki) -> None:
    with Listener(config(pki, pki.node), limit_s=5) as listener:
        silent = [connect(listener) for _ in range(12)]
        silent[0].sendall(b"\x16\x03\x01")
        assert (
            ask(listener, config(pki, pki.client)) == ABORT
        )  # all the silent ones are still there
        assert outcome(listener)[1].common_name == "ct1"
        assert {failure(listener) for _ in silent} == {
            "no TLS handshake in time: the peer is silent, or waits for plain DICOM"
        }
        for each in silent:
            assert each.recv(1) == b""
            each.close()
        assert listener.door.waiting == 0


def test_a_byte_now_and_then_does_not_make_the_time_longer(pki: Pki) -> None:
    hello = b"\x16\x03\x01\x40\x00\x01" + bytes(500)
    with Listener(config(pki, pki.node), limit_s=0.5) as listener, connect(listener) as slow:
        sent = 0
        while listener.outcomes.empty():
            assert sent < len(hello), "it waits as long as bytes come"
            slow.send(hello[sent : sent + 1])
            sent += 1
            threading.Event().wait(0.1)
        assert "no TLS handshake in time" in failure(listener)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (ABORT, "the peer answers, but not in TLS: probably a port for plain DICOM"),
        (b"", "the peer hung up during the TLS handshake: it may expect plain DICOM"),
        (None, "no TLS handshake in time: the peer is silent, or waits for plain DICOM"),
    ],
)
def test_a_call_by_tls_to_a_plain_port_is_told_by_name(
    answer: bytes | None, told: str, pki: Pki
) -> None:
    with socket.create_server((HOST, 0)) as plain:
        ours = socket.create_connection(plain.getsockname())
        theirs, _ = plain.accept()

        def reply() -> None:
            assert tls.is_tls(theirs.recv(4096))
            if answer is not None:
                theirs.sendall(answer)
                theirs.close()

        thread = threading.Thread(target=reply)
        thread.start()
        context = tls.client_context(config(pki, pki.client))
        with pytest.raises(PeerError) as failed:
            tls.handshake(ours, context, 1 if answer is None else LONG_S, server_hostname=HOST)
        thread.join()
        theirs.close()
    assert told in str(failed.value)
    assert tls.explain(failed.value) == str(failed.value)
    assert ours.fileno() == -1


def test_what_has_nothing_to_do_with_tls_keeps_its_words() -> None:
    assert tls.explain(ValueError("something else")) == "something else"
    assert tls.explain(OSError(113, "No route to host")) == "[Errno 113] No route to host"
    assert not tls.is_tls(ASSOCIATE_RQ)
    assert not tls.is_tls(b"")


# --- files ----------------------------------------------------------------------------------------


def encrypted(pem: Pem, folder: Path) -> Path:
    key = serialization.load_pem_private_key(pem.key.read_bytes(), None)
    secret = serialization.BestAvailableEncryption(b"secret")
    path = folder / "encrypted.key"
    pem_8 = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    path.write_bytes(key.private_bytes(*pem_8, secret))
    return path


def test_files_that_cannot_be_used_are_named_with_the_setting(pki: Pki, tmp_path: Path) -> None:
    text, none = tmp_path / "text.pem", tmp_path / "none.pem"
    text.write_text("no certificate")
    for settings, told in (
        ({"tls_certificate": none}, f"tls_certificate: cannot read {none}: No such file"),
        ({"tls_certificate": text}, f"tls_certificate: {text} holds no certificate in PEM"),
        ({"tls_key": none}, f"tls_key: cannot read {none}: No such file"),
        ({"tls_key": text}, f"tls_key: {text} holds no private key in PEM that has no password"),
        ({"tls_key": encrypted(pki.node, tmp_path)}, "private key in PEM that has no password"),
        ({"tls_key": ""}, "holds no private key in PEM that has no password"),
        ({"tls_key": pki.client.key}, f"{pki.client.key} is not the key of the certificate"),
        ({"tls_ca": none}, f"tls_ca: cannot read {none}: No such file"),
        ({"tls_ca": text}, f"tls_ca: {text} holds no certificates in PEM"),
    ):
        wrong = replace(config(pki, pki.node), **{key: str(each) for key, each in settings.items()})
        for make in (tls.server_context, tls.client_context):
            with pytest.raises(ConfigError) as failed:
                make(wrong)
            assert told in str(failed.value)


def test_callers_certificates_need_an_authority_that_is_named(pki: Pki) -> None:
    with pytest.raises(ConfigError, match="tls_ca must name the authority"):
        tls.server_context(config(pki, pki.node, tls_ca=""))
    assert tls.server_context(Config()) is None
    assert tls.client_context(Config()).verify_mode == ssl.CERT_REQUIRED


def test_one_file_may_hold_certificate_and_key(pki: Pki, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(pki.node.certificate.read_bytes() + pki.node.key.read_bytes())
    with Listener(config(pki, tls_certificate=str(both))) as listener:
        assert ask(listener, config(pki, pki.client)) == ABORT


@pytest.mark.parametrize(
    ("name", "told"),
    [("tls_profile", "bcp195 or modified"), ("tls_client_certificate", "required or optional")],
)
def test_a_word_that_is_none_of_the_choices_is_refused(name: str, told: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be {told}, not 'none'"):
        Config(**{name: "none"})
