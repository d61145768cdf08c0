import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import model
from dicom_node import serve, supervisor
from dicom_node.config import Config, Destination, SiteProfile
from dicom_node.config.peers import Peer
from dicom_node.errors import BadInput, ConfigError, NodeError, Unavailable
from dicom_node.supervisor import (
    Supervisor,
    announce,
    announced,
    is_served,
    settings_for,
    settings_from,
    withdraw,
)


def test_a_role_gets_the_settings_as_they_are() -> None:
    config = Config(
        ae_title="A,B",  # what neither a variable nor a list of them could carry
        data_dir=Path("some where"),
        calling_ae_titles=("CT,1", "ÄRGER".encode("ascii", "replace").decode()),
        destinations=(Destination("P@CS", "::1", 104), Destination("A,B", "host", 4242, "mine")),
        profiles=(SiteProfile("mine", "ohif", (("extras", ("pdf",)), ("maximum_frames", 9))),),
        peers=(Peer("CT 1", addresses=("192.0.2.0/24",), allowed=False),),
        quiet_s=0.1,
        manufacturer='Ünlü "quoted"',
    )
    assert settings_from(settings_for(config)) == config


def test_a_folder_is_served_by_one_at_a_time(config: Config) -> None:
    assert not is_served(config)
    with Supervisor(config):
        assert is_served(config)
        with pytest.raises(Unavailable, match=rf"another node serves {config.data_dir}; stop it"):
            Supervisor(config).__enter__()
    assert not is_served(config)
    with Supervisor(config):
        assert is_served(config)


def test_a_role_that_outlives_its_supervisor_is_waited_for(config: Config) -> None:
    told: list[str] = []
    with Supervisor(config) as first:
        inherited = os.dup(first._locks[1])
    assert is_served(config)
    threading.Timer(0.5, lambda: os.close(inherited)).start()
    start = time.monotonic()
    with Supervisor(config, told.append):
        assert 0.3 < time.monotonic() - start < 10
    assert told == ["waiting for the roles of a node that was killed to end"]


def test_a_role_that_does_not_end_is_said(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "DRAIN_S", -4.8)
    with Supervisor(config) as first:
        inherited = os.dup(first._locks[1])
    with pytest.raises(Unavailable, match="a role of a node that was killed still serves"):
        Supervisor(config).__enter__()
    os.close(inherited)
    with Supervisor(config):
        assert is_served(config)


def test_a_role_is_announced_while_it_lives(config: Config) -> None:
    announce(config, "scp", port=11112)
    assert announced(config) == {"scp": 11112}
    withdraw(config, "scp")
    assert announced(config) == {}
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = {"role": "qa", "pid": dead.pid, "port": 8181}
    (config.data_dir / "run" / f"qa-{dead.pid}.json").write_text(json.dumps(left))
    assert announced(config) == {}
    with Supervisor(config):
        assert list((config.data_dir / "run").glob("*.json")) == []


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (2, ConfigError, "no manifest"),
        (3, BadInput, "no manifest"),
        (4, Unavailable, "no manifest"),
        (5, NodeError, "no manifest"),
        (1, NodeError, "ended with code 1"),
        (-9, NodeError, "ended with signal 9 (SIGKILL)"),
        (-11, NodeError, "ended with signal 11 (SIGSEGV)"),
    ],
)
def test_the_end_of_a_role_is_an_error_of_its_kind(
    code: int, kind: type[NodeError], words: str
) -> None:
    said = {"error": words} if words == "no manifest" else {}
    failure = supervisor._failure("worker", code, said)
    assert type(failure) is kind
    assert str(failure) == f"worker: {words}"


def test_a_signal_in_the_middle_of_a_wait_does_not_lock_it() -> None:
    program = (
        "import os, signal\n"
        "from dicom_node.supervisor import stop_signal\n"
        "stop = stop_signal()\n"
        "with stop._cond:  # as `wait` holds it for an instant, again and again\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "assert stop.wait(20)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, timeout=60)
    assert done.returncode == 0


def test_before_it_is_ready_a_signal_ends_a_role_at_once() -> None:
    program = (
        "import threading, time\n"
        "from dicom_node.supervisor import stop_signal\n"
        "stop_signal(threading.Event())\n"
        "print('loading', flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as loading:
        assert loading.stdout is not None
        assert loading.stdout.readline() == b"loading\n"
        loading.send_signal(signal.SIGTERM)
        assert loading.wait(10) == 0


def test_what_dies_again_and_again_is_started_ever_later(config: Config) -> None:
    with Supervisor(config) as minder:
        ended = subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"])
        ended.wait()
        pauses = []
        for _ in range(9):
            minder._started["qa"] = time.monotonic()
            pauses.append(minder._mourn("qa", ended))
        minder._started["qa"] = time.monotonic() - 2 * supervisor.STEADY_S
        pauses.append(minder._mourn("qa", ended))
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0, 1.0]


def test_the_token_of_the_interface_is_made_once_and_for_the_owner(config: Config) -> None:
    token = serve.api_token(config)
    assert len(token) > 40
    assert serve.api_token(config) == token
    path = config.data_dir / "api-token"
    assert path.stat().st_mode & 0o077 == 0
    assert sorted(each.name for each in config.data_dir.iterdir()) == [
        "api-token",
        "api-token.lock",
    ]


def test_without_a_setting_the_checkpoint_is_the_one_that_ships(config: Config) -> None:
    shipped = Path(model.__file__).parent / "demo"
    assert serve.checkpoint_folder(config) == shipped
    expected = json.loads((shipped / "manifest.json").read_text())
    assert serve.checkpoint_digest(config) == expected["sha256"]
    assert expected["untrained"] is False
