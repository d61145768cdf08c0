"""The node in service: three roles, each a process, and the one that minds them.

    scp      associations, spool, completion and routing       no torch: up in a second
    worker   reading and delivery                               holds the model
    qa       the pages of the QA reader and the HTTP interface

`role` is one of them in this process; `Supervisor` starts all three, restarts what dies, and
drains them on SIGINT or SIGTERM.
"""

import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import Config
from .errors import ConfigError, NodeError, Unavailable
from .ledger import Ledger

if TYPE_CHECKING:
    from sr_templates import Protocol

    from .routing import Rule

log = logging.getLogger(__name__)

ROLES = ("scp", "worker", "qa")
DRAIN_S = 30.0
LONGEST_PAUSE_S = 30.0
POLL_S = 0.2


def role(name: str, config: Config, *, parent: int | None = None) -> None:
    """Run one role in this process until SIGINT, SIGTERM or the end of the parent process."""
    stop = stop_signal()
    if parent is not None:
        threading.Thread(target=_mind_parent, args=(parent, stop), daemon=True).start()
    with Ledger(config.ledger_path) as ledger:
        ledger.event("role.started", role=name, pid=os.getpid())
        {"scp": _scp, "worker": _worker, "qa": _qa}[name](config, ledger, stop)
        ledger.event("role.stopped", role=name, pid=os.getpid())


def _scp(config: Config, ledger: Ledger, stop: threading.Event) -> None:
    from .intake import Intake
    from .jobs import Jobs
    from .scp import Scp
    from .spool import Spool

    spool = Spool(config.spool_dir, ledger, minimum_free_mb=config.minimum_free_mb)
    spool.recover()
    intake = Intake(
        ledger,
        Jobs(ledger, maximum_attempts=config.maximum_attempts),
        rules(protocols(config)),
        model_digest=checkpoint_digest(config),
        fallback=config.fallback_protocol,
        quiet_s=config.quiet_s,
        open_limit_s=config.open_limit_s,
    )
    with Scp(config, spool, ledger) as scp:
        announce(config, "scp", port=scp.port)
        intake.run(stop)


def _worker(config: Config, ledger: Ledger, stop: threading.Event) -> None:
    from model.checkpoint import load

    from . import delivery
    from .jobs import Jobs
    from .worker import Worker

    worker = Worker(
        ledger,
        Jobs(ledger, maximum_attempts=config.maximum_attempts),
        load(ensure_checkpoint(config), config.device, config.dtype),
        protocols(config),
        config,
        name=f"{socket.gethostname()}:{os.getpid()}",
    )
    courier = threading.Thread(target=delivery.run, args=(ledger, config, stop), name="delivery")
    courier.start()
    try:
        announce(config, "worker", port=0)
        worker.run(stop)
    finally:
        stop.set()
        courier.join()


def _qa(config: Config, ledger: Ledger, stop: threading.Event) -> None:
    from . import qa

    app = qa.create_app(ledger, results_dir=config.results_dir, api_token=api_token(config))
    with qa.Server(app, config.http_host, config.http_port) as server:
        announce(config, "qa", port=server.port)
        stop.wait()


@dataclass
class Supervisor:
    """Starts the roles as child processes and keeps them up.

    Raises
    ------
    ConfigError
        A role ended at once because of a setting; its own message has been printed.
    Unavailable
        A role was not ready in time.
    """

    config: Config
    config_path: Path | None = None
    children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    starts: dict[str, list[float]] = field(default_factory=dict)

    @contextmanager
    def running(self, ready_s: float = 120.0) -> Iterator[dict[str, int]]:
        """Start all roles and yield the port of each when every one is ready."""
        self.config.data_dir.mkdir(parents=True, exist_ok=True)
        api_token(self.config)
        ensure_checkpoint(self.config)
        try:
            for name in ROLES:
                self._start(name)
            yield self._ready(time.monotonic() + ready_s)
        finally:
            self._drain()

    def mind(self, stop: threading.Event) -> None:
        """Restart what dies, later each time, until told to stop."""
        due: dict[str, float] = {}
        while not stop.wait(POLL_S):
            for name, child in self.children.items():
                if child.poll() is None:
                    continue
                if name not in due:
                    due[name] = time.monotonic() + self._pause(name)
                    log.error("role.died", extra={"role": name, "code": child.returncode})
                elif time.monotonic() >= due[name]:
                    del due[name]
                    self._start(name)

    def _start(self, name: str) -> None:
        _announcement(self.config, name).unlink(missing_ok=True)
        command = [sys.executable, "-m", "dicom_node", "serve", "--only", name]
        if self.config_path is not None:
            command += ["--config", str(self.config_path)]
        command += ["--parent", str(os.getpid())]
        self.starts.setdefault(name, []).append(time.monotonic())
        self.children[name] = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603 - our own module

    def _pause(self, name: str) -> float:
        recent = [each for each in self.starts[name] if time.monotonic() - each < 120.0]  # noqa: PLR2004 - two minutes
        return float(min(LONGEST_PAUSE_S, 0.5 * 2 ** len(recent)))

    def _ready(self, deadline: float) -> dict[str, int]:
        ports: dict[str, int] = {}
        while len(ports) < len(ROLES):
            for name, child in self.children.items():
                ports |= _port_of(self.config, name, child)
                if child.poll() is not None:
                    error = (
                        ConfigError if child.returncode == ConfigError.exit_code else Unavailable
                    )
                    raise error(f"the role {name} ended with code {child.returncode} at its start")
            if time.monotonic() > deadline:
                missing = ", ".join(sorted(set(ROLES) - set(ports)))
                raise Unavailable(f"not ready in time: {missing}")
            time.sleep(POLL_S / 2)
        return ports

    def _drain(self) -> None:
        for child in self.children.values():
            if child.poll() is None:
                child.terminate()
        deadline = time.monotonic() + DRAIN_S
        for name, child in self.children.items():
            try:
                child.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("role.killed", extra={"role": name})
                child.kill()
                child.wait()


def serve(
    config: Config, config_path: Path | None, greet: Callable[[dict[str, int]], None]
) -> None:
    """Keep the whole node up until SIGINT or SIGTERM, then drain it."""
    stop = stop_signal()
    supervisor = Supervisor(config, config_path)
    with supervisor.running() as ports:
        greet(ports)
        supervisor.mind(stop)


def protocols(config: Config) -> "dict[str, Protocol]":
    """Read our protocols and those of the site.

    Raises
    ------
    ConfigError
        One of them is not as it must be.
    """
    from sr_templates import TemplateError, load_protocols

    try:
        return load_protocols(Path(config.protocols) if config.protocols else None)
    except TemplateError as error:
        raise ConfigError(f"protocols: {error}") from error


def rules(known: "Mapping[str, Protocol]") -> "list[Rule]":
    """Tell routing which exams each protocol is for."""
    from .routing import Rule

    return [
        Rule(each.name, each.modality, each.body_parts, each.keywords, each.minimum_slices)
        for each in known.values()
    ]


def login_link(config: Config, port: int) -> str:
    """Make a one-time link to the QA pages."""
    from . import qa

    with Ledger(config.ledger_path) as ledger:
        return qa.login_link(ledger, f"http://{config.http_host}:{port}")


def announce(config: Config, name: str, *, port: int) -> None:
    """Tell the supervisor that a role is ready, and on which port."""
    path = _announcement(config, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"pid": os.getpid(), "port": port}))
    partial.replace(path)


def api_token(config: Config) -> str:
    """Read the token of the HTTP interface; made at the first start, readable by the owner only."""
    path = config.data_dir / "api-token"
    config.data_dir.mkdir(parents=True, exist_ok=True)
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(32))
    except FileExistsError:
        pass
    return path.read_text().strip()


def checkpoint_folder(config: Config) -> Path:
    """Where the checkpoint lies: the setting, or the untrained tiny one made at the first start."""
    if config.checkpoint:
        return Path(config.checkpoint)
    return config.data_dir / "checkpoints" / "lamed-tiny-untrained"


def ensure_checkpoint(config: Config) -> Path:
    """Find the checkpoint; without a configured one the untrained tiny one is made once."""
    folder = checkpoint_folder(config)
    if config.checkpoint or (folder / "manifest.json").exists():
        return folder
    command = [sys.executable, "-m", "model", "init", "--size", "tiny", "--out", str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603 - our own module
    if done.returncode:
        raise NodeError(f"cannot make the untrained checkpoint: {done.stderr.strip()}")
    return folder


def checkpoint_digest(config: Config) -> str:
    """Read the digest of the weights from the manifest, without torch.

    Raises
    ------
    ConfigError
        The folder holds no checkpoint in our layout.
    """
    path = checkpoint_folder(config) / "manifest.json"
    try:
        return str(json.loads(path.read_text())["sha256"])
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"checkpoint: no readable manifest.json in {path.parent};"
            " `lamed-node checkpoint import` makes one from a released checkpoint"
        ) from error


def stop_signal() -> threading.Event:
    """Give an event that SIGINT and SIGTERM set."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _mind_parent(parent: int, stop: threading.Event) -> None:
    """Drain when the supervisor is gone: a killed one must not leave its ports taken."""
    while os.getppid() == parent and not stop.wait(POLL_S):
        pass
    stop.set()


def _announcement(config: Config, name: str) -> Path:
    return config.data_dir / "run" / f"{name}.json"


def _port_of(config: Config, name: str, child: subprocess.Popen[bytes]) -> dict[str, int]:
    try:
        told: dict[str, Any] = json.loads(_announcement(config, name).read_text())
    except (OSError, ValueError):
        return {}
    return {name: int(told["port"])} if told["pid"] == child.pid else {}
