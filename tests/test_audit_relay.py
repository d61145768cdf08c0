import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import audit_schema
import pytest
from certificates import Authority
from commands import served, short_protocols, until
from keeping import Node, Stopped
from syslog_receiver import SyslogReceiver, xml_of

from dicom_node import audit
from dicom_node.audit import relay, store, syslog
from dicom_node.config import Config
from dicom_node.errors import ConfigError, PeerError


@pytest.fixture
def node(config: Config) -> Iterator[Node]:
    with Node(config) as made:
        yield made


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


@contextmanager
def relaying(node: Node, config: Config) -> Iterator[None]:
    stop = threading.Event()
    places = audit.places(config)
    thread = threading.Thread(target=audit.run, args=(node.ledger, config, places, stop))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def place_of(config: Config) -> Iterator[relay.Place]:
    (place,) = audit.places(config)
    try:
        yield place
    finally:
        place.close()


def numbers(messages: list[bytes]) -> list[int]:
    """Give which logins were told, by the number in their session."""
    roots = [audit_schema.check(each) for each in messages]
    return [int(audit_schema.participants(each)[0].get("UserID").split()[1]) for each in roots]


def login(node: Node, *sessions: int) -> None:
    for each in sessions:
        node.ledger.event("qa.login", session=str(each), address="192.0.2.7")


def test_messages_go_by_tls_with_certificates_on_both_sides(
    node: Node, authority: Authority
) -> None:
    server, ours = authority.issue("collector"), authority.issue("lamed")
    with SyslogReceiver(server, authority.path) as receiver:
        config = replace(
            node.config,
            audit_syslog=f"tls://localhost:{receiver.port}",
            tls_ca=str(authority.path),
            **ours.settings,
        )
        login(node, 1, 2)
        with relaying(node, config):
            assert numbers(receiver.wait(2)) == [1, 2]
            login(node, 3)
            assert numbers(receiver.wait(3)) == [1, 2, 3]
            until(lambda: relay.cursor(node.ledger, "audit.syslog") == 3)
        assert receiver.names == ["lamed"]  # one connection for all of them


def test_a_receiver_of_another_authority_gets_nothing(
    node: Node, authority: Authority, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path / "other").issue("collector")
    with SyslogReceiver(stranger) as receiver:
        config = replace(
            node.config,
            audit_syslog=f"tls://localhost:{receiver.port}",
            tls_ca=str(authority.path),
        )
        login(node, 1)
        (place,) = audit.places(config)
        with pytest.raises(PeerError, match="certificate verify failed"):
            relay.step(node.ledger, config, place)
        assert (receiver.got, relay.cursor(node.ledger, "audit.syslog")) == ([], 0)


def test_a_receiver_that_is_down_loses_nothing_and_keeps_nobody_waiting(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "POLL_S", 0.02)
    monkeypatch.setattr(relay, "LONGEST_WAIT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    config = replace(node.config, audit_store=True, audit_syslog=f"tcp://127.0.0.1:{port}")
    login(node, 1, 2)
    with relaying(node, config):
        until(lambda: relay.cursor(node.ledger, "audit.store") == 2)
        assert relay.cursor(node.ledger, "audit.syslog") == 0
        with SyslogReceiver(port=port) as receiver:
            assert numbers(receiver.wait(2)) == [1, 2]
            until(lambda: relay.cursor(node.ledger, "audit.syslog") == 2)
        login(node, 3)
        until(lambda: relay.cursor(node.ledger, "audit.store") == 3)
        with SyslogReceiver(port=port) as receiver:
            assert numbers(receiver.wait(1))[-1] == 3
    (day,) = config.audit_dir.glob("*.log")
    assert numbers(day.read_bytes().splitlines()) == [1, 2, 3]


def test_a_receiver_that_hangs_up_in_the_middle_gets_them_again(node: Node) -> None:
    with SyslogReceiver() as receiver:
        receiver.limit = 5
        config = replace(node.config, audit_syslog=f"tcp://127.0.0.1:{receiver.port}")
        login(node, *range(150))
        link_lost = 0
        with place_of(config) as place:
            while relay.cursor(node.ledger, "audit.syslog") < 150:
                try:
                    relay.step(node.ledger, config, place)
                except PeerError:
                    link_lost += 1
        assert set(numbers(receiver.wait(150))) == set(range(150))
        assert link_lost <= 2


def test_a_connection_that_was_closed_meanwhile_is_made_anew(node: Node) -> None:
    with SyslogReceiver() as receiver:
        config = replace(node.config, audit_syslog=f"tcp://127.0.0.1:{receiver.port}")
        with place_of(config) as place:
            login(node, 1)
            relay.step(node.ledger, config, place)
            receiver.wait(1)
            receiver.hang_up()
            login(node, 2)

            def told() -> bool:
                try:
                    return relay.step(node.ledger, config, place) == 1
                except PeerError:
                    return False

            until(told)
            assert numbers(receiver.wait(2))[-1] == 2


def test_after_a_crash_between_sending_and_noting_it_is_sent_again(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise Stopped

    with SyslogReceiver() as receiver:
        config = replace(node.config, audit_syslog=f"tcp://127.0.0.1:{receiver.port}")
        login(node, 1)
        with monkeypatch.context() as patched:
            patched.setattr(relay, "_advance", stop)
            with place_of(config) as place, pytest.raises(Stopped):
                relay.step(node.ledger, config, place)
        node.restart()
        with place_of(config) as place:
            relay.step(node.ledger, config, place)
            assert numbers(receiver.wait(2)) == [1, 1]
            assert relay.step(node.ledger, config, place) == 0


def test_datagrams_carry_one_message_each(node: Node) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(10)
        config = replace(node.config, audit_syslog=f"udp://127.0.0.1:{receiver.getsockname()[1]}")
        login(node, 1, 2)
        relay.step(node.ledger, config, audit.places(config)[0])
        assert numbers([xml_of(receiver.recv(65536)) for _ in range(2)]) == [1, 2]


def test_a_receiver_that_takes_nothing_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1) as silent:
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        receiver = syslog.Receiver("tcp", "127.0.0.1", silent.getsockname()[1])
        link = syslog.Link(receiver, None, 0.3)
        began = time.monotonic()
        with pytest.raises(PeerError, match="audit receiver tcp://127"):
            link.send([bytes(20_000_000)])
        assert time.monotonic() - began < 20
        link.close()


def test_an_event_that_cannot_be_told_does_not_stop_those_after_it(node: Node) -> None:
    config = replace(node.config, audit_store=True)
    login(node, 1)
    node.ledger.event("job.results", destinations=17)
    login(node, 2)
    relay.step(node.ledger, config, audit.places(config)[0])
    (day,) = config.audit_dir.glob("*.log")
    assert numbers(day.read_bytes().splitlines()) == [1, 2]
    assert day.name == f"{datetime.now(UTC):%Y-%m-%d}{store.SUFFIX}"
    assert day.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("text", ["host:1", "https://host", "tls://", "tls://host:x", "tcp://h/p"])
def test_a_receiver_that_is_none_is_refused(config: Config, text: str) -> None:
    with pytest.raises(ConfigError, match="audit_syslog must be"):
        audit.places(replace(config, audit_syslog=text))


def test_ports_have_the_defaults_of_their_transports() -> None:
    parsed = [syslog.Receiver.parse(f"{each}://[::1]") for each in ("tls", "tcp", "udp")]
    assert [each.port for each in parsed] == [6514, 601, 514]
    assert {each.host for each in parsed} == {"::1"}


def test_a_node_in_service_tells_that_it_has_started(tmp_path: Path, checkpoint: Path) -> None:
    settings = {
        "data_dir": tmp_path / "node",
        "dicom_port": 0,
        "checkpoint": checkpoint,
        "protocols": short_protocols(tmp_path / "protocols"),
        "minimum_free_mb": 1,
    }
    with SyslogReceiver() as receiver:
        settings["audit_syslog"] = f"tcp://127.0.0.1:{receiver.port}"
        with served(tmp_path / "log", "--only", "scp", **settings):
            root = audit_schema.check(receiver.wait(1)[0])
            assert root.find("EventIdentification/EventTypeCode").get("csd-code") == "110120"
