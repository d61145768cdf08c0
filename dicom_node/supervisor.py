"""The one that minds the roles: each is a process; what dies is started again.

Knows processes, signals and the folder ``run`` of the data folder, where each role says on which
port it is ready, or why it cannot be. Must not know what a role does. The whole node holds the
folder by a lock that its roles inherit: it is free when the last of them has ended, however.
"""

import fcntl
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .config import Config
from .errors import BadInput, ConfigError, NodeError, Unavailable
from .ledger import Ledger

log = logging.getLogger(__name__)

# In this order: that a port is taken is seen before the model is loaded.
ROLES = ("scp", "qa", "worker")
STARTS = {"worker": ", which loads the model"}
READY_S = 600.0  # a large checkpoint is verified to the last byte
DRAIN_S = 30.0
LONGEST_PAUSE_S = 60.0
STEADY_S = 60.0  # a role that lived so long has not failed at its start
POLL_S = 0.1

Tell = Callable[[str], None]


@dataclass
class Supervisor:
    """Starts all roles of a node, starts again what dies, and drains them when it is left.

    The roles get the settings as they are here, also those that no file and no variable holds.
    Entered, it holds the data folder.

    Raises
    ------
    Unavailable
        Another node serves this data folder, or a role was not ready in time.
    NodeError
        A role ended at its start: of the kind and in the words of that role.
    """

    config: Config
    tell: Tell = lambda _: None
    ports: dict[str, int] = field(default_factory=dict)
    children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _failures: dict[str, int] = field(default_factory=dict)
    _started: dict[str, float] = field(default_factory=dict)
    _locks: tuple[int, ...] = ()

    def __enter__(self) -> Self:
        self._locks = _take(self.config, self.tell)
        for path in _folder(self.config).glob("*-*.json"):  # of an earlier node, all ended
            path.unlink(missing_ok=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._drain()
        finally:
            for each in self._locks:
                os.close(each)

    def start(self, stop: threading.Event) -> None:
        """Start the roles and wait until each is ready, or until told to stop."""
        for name in ROLES:
            self.tell(f"starting {name}{STARTS.get(name, '')}")
            self._start(name)
            self._wait(name, stop)

    def _wait(self, name: str, stop: threading.Event) -> None:
        deadline = time.monotonic() + READY_S
        while name not in self.ports and not stop.wait(POLL_S):
            child = self.children[name]
            ended = child.poll() is not None
            said = _read(_announcement(self.config, name, child.pid))
            if ended:
                raise _failure(name, child.returncode, said)
            if "port" in said:
                self.ports[name] = int(said["port"])
            if time.monotonic() > deadline:
                raise Unavailable(f"{name} is not ready in {READY_S:g} s")

    def mind(self, stop: threading.Event) -> None:
        """Start again what dies, later each time, until told to stop."""
        due: dict[str, float] = {}
        while not stop.wait(POLL_S):
            for name, child in self.children.items():
                if child.poll() is None:
                    continue
                if name not in due:
                    due[name] = time.monotonic() + self._mourn(name, child)
                elif time.monotonic() >= due[name]:
                    del due[name]
                    self._start(name)

    def _start(self, name: str) -> None:
        command = [sys.executable, "-m", "dicom_node", "serve", "--only", name]
        command += ["--parent", str(os.getpid())]
        command += ["--verbose"] if log.isEnabledFor(logging.DEBUG) else []
        # What the system chose once stays: the peers have been told.
        kept = replace(
            self.config,
            dicom_port=self.ports.get("scp") or self.config.dicom_port,
            http_port=self.ports.get("qa") or self.config.http_port,
        )
        with tempfile.TemporaryFile() as settings:
            settings.write(settings_for(kept))
            settings.seek(0)
            # Our standard output holds what we say and nothing else.
            self.children[name] = subprocess.Popen(  # noqa: S603 - our own module
                command, stdin=settings, stdout=2, pass_fds=self._locks[1:]
            )
        self._started[name] = time.monotonic()

    def _mourn(self, name: str, child: subprocess.Popen[bytes]) -> float:
        """Tell that a role has died; return the pause until it is started again."""
        lived_s = time.monotonic() - self._started[name]
        self._failures[name] = 1 if lived_s > STEADY_S else self._failures.get(name, 0) + 1
        pause_s = float(min(LONGEST_PAUSE_S, 0.5 * 2 ** self._failures[name]))
        path = _announcement(self.config, name, child.pid)
        reason = str(_failure(name, child.returncode, _read(path)))
        path.unlink(missing_ok=True)
        log.error("role.died", extra={"role": name, "reason": reason, "again_in_s": pause_s})
        try:
            with Ledger(self.config.ledger_path) as ledger:
                ledger.event("role.died", role=name, reason=reason, again_in_s=pause_s)
        except NodeError as error:
            log.error("ledger.error", extra={"reason": str(error)})  # noqa: TRY400 - it is told whole
        return pause_s

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


def announce(config: Config, name: str, **said: object) -> None:
    """Say from within a role on which port it is ready, or why it cannot be."""
    path = _announcement(config, name, os.getpid())
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"role": name, "pid": os.getpid(), **said}))
    partial.replace(path)


def withdraw(config: Config, name: str) -> None:
    """Say from within a role that it is ready no more."""
    _announcement(config, name, os.getpid()).unlink(missing_ok=True)


def announced(config: Config) -> dict[str, int]:
    """Tell which roles are up on this machine, and on which port each."""
    said = [_read(path) for path in _folder(config).glob("*-*.json")]
    return {
        str(each["role"]): int(each["port"])
        for each in said
        if "port" in each and _is_alive(int(each["pid"]))
    }


def is_served(config: Config) -> bool:
    """Tell whether a node, or a role that one left, is at work on a data folder."""
    locks = [_locked(path, 0.0) for path in _folder(config).glob("*.lock")]
    for each in locks:
        if each is not None:
            os.close(each)
    return None in locks


def settings_for(config: Config) -> bytes:
    """Write the settings for a role."""
    return pickle.dumps(config)


def settings_from(parent: bytes) -> Config:
    """Read in a role what its supervisor wrote for it."""
    config = pickle.loads(parent)  # noqa: S301 - a file that only the two hold open
    if not isinstance(config, Config):
        raise ConfigError(
            f"a role gets the settings of its supervisor, not {type(config).__name__}"
        )
    return config


def stop_signal(ready: threading.Event | None = None) -> threading.Event:
    """Give an event that SIGINT and SIGTERM set.

    Before `ready` is set (None: from the start) there is nothing to drain, and the process ends.
    """
    stop = threading.Event()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def watch() -> None:
        os.read(reading, 1)
        if ready is not None and not ready.is_set():
            os._exit(0)
        stop.set()

    # Not in the handler: it interrupts whoever waits for the event, and holds its lock.
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    threading.Thread(target=watch, name="signals", daemon=True).start()
    return stop


def mind_parent(parent: int, stop: threading.Event) -> None:
    """Drain when the supervisor is gone: a killed one must leave neither ports nor folder taken."""

    def watch() -> None:
        while os.getppid() == parent and not stop.wait(POLL_S):
            pass
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(DRAIN_S)
            os._exit(Unavailable.exit_code)  # as the supervisor would: what is leased is found

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _take(config: Config, tell: Tell) -> tuple[int, int]:
    """Hold the data folder by two locks: our own, and the one that the roles inherit."""
    _folder(config).mkdir(parents=True, exist_ok=True)
    taken = f"serves {config.data_dir.absolute()}; stop it, or give this one a data_dir of its own"
    ours = _locked(_folder(config) / "node.lock", 0.0)
    if ours is None:
        raise Unavailable(f"another node {taken}")
    inherited = _locked(_folder(config) / "roles.lock", 0.0)
    if inherited is None:
        tell("waiting for the roles of a node that was killed to end")
        inherited = _locked(_folder(config) / "roles.lock", DRAIN_S + 5.0)
    if inherited is None:
        os.close(ours)
        raise Unavailable(f"a role of a node that was killed still {taken}")
    return ours, inherited


def _locked(path: Path, patience_s: float) -> int | None:
    """Lock a file and return its handle; None if another has it for so long."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(handle)
                return None
            time.sleep(POLL_S)
        else:
            return handle


def _failure(name: str, code: int, said: dict[str, Any]) -> NodeError:
    """Make of a role's end an error of its kind, in its words."""
    kinds = {each.exit_code: each for each in (ConfigError, BadInput, Unavailable)}
    how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"code {code}"
    reason = said.get("error") or f"ended with {how}"
    return kinds.get(code, NodeError)(f"{name}: {reason}")


def _folder(config: Config) -> Path:
    return config.data_dir / "run"


def _announcement(config: Config, name: str, pid: int) -> Path:
    return _folder(config) / f"{name}-{pid}.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        said: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return said


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's: it lives
        return True
    return pid > 0
