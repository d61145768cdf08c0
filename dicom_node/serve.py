"""The node in service: three roles, each a process, and what they are put together from.

    scp      associations, spool, completion, routing, delivery    no torch: up in a second
    worker   reading                                               holds the model
    qa       the pages of the QA reader and the HTTP interface     no torch

`role` is one of them in this process; `running` is the whole node, minded by a `Supervisor`.
"""

import fcntl
import importlib.util
import json
import logging
import os
import secrets
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import Config
from .errors import ConfigError, NodeError, Unavailable
from .ledger import Ledger
from .supervisor import (
    Supervisor,
    Tell,
    announce,
    announced,
    mind_parent,
    settings_from,
    stop_signal,
    withdraw,
)

if TYPE_CHECKING:
    from sr_templates import Protocol

    from .routing import Rule
    from .routing.rules import RuleBook
    from .routing.trial import Trial
    from .scp.services import Handler

log = logging.getLogger(__name__)

Ready = Callable[[int], None]
RETRY_S = 5.0
ANY_ADDRESS = {"0.0.0.0", "::", ""}  # noqa: S104 - compared with, not bound to


def serve(config: Config, greet: Callable[[dict[str, int]], None], tell: Tell) -> None:
    """Keep the whole node up until SIGINT or SIGTERM, then drain it."""
    stop = stop_signal()
    with running(config, stop, tell) as supervisor:
        if not stop.is_set():
            greet(supervisor.ports)
        supervisor.mind(stop)


@contextmanager
def running(
    config: Config, stop: threading.Event, tell: Tell = lambda _: None
) -> Iterator[Supervisor]:
    """Give the supervisor of a node whose roles are all ready; drain it in the end.

    Raises
    ------
    NodeError
        A setting cannot be used, a port is taken, or another node serves the data folder.
    """
    from . import profiles

    with Supervisor(config, tell) as supervisor:
        rulebook(config, protocols(config))
        profiles.known(config)
        api_token(config)
        checkpoint_digest(config)
        supervisor.start(stop)
        yield supervisor


def role(name: str, config: Config, ready: Ready, *, parent: int | None = None) -> None:
    """Run one role in this process until SIGINT, SIGTERM or the end of the parent process.

    Parameters
    ----------
    ready
        Called once with the port that the role listens on; 0 for the worker.
    """
    is_ready = threading.Event()
    stop = stop_signal(is_ready)
    if parent is not None:
        mind_parent(parent, stop)

    def tell(port: int) -> None:
        is_ready.set()
        announce(config, name, port=port)
        ready(port)

    with Ledger(config.ledger_path) as ledger:
        ledger.event("role.started", role=name, pid=os.getpid())
        try:
            {"scp": _scp, "worker": _worker, "qa": _qa}[name](config, ledger, stop, tell)
        finally:
            withdraw(config, name)
        ledger.event("role.stopped", role=name, pid=os.getpid())


def child(name: str, parent: int) -> None:
    """Run one role under a supervisor, which hands over the settings and is told of errors."""
    config = settings_from(sys.stdin.buffer.read())
    try:
        role(name, config, lambda _: None, parent=parent)
    except NodeError as error:
        announce(config, name, error=str(error))
        raise SystemExit(error.exit_code) from error


def _scp(config: Config, ledger: Ledger, stop: threading.Event, ready: Ready) -> None:
    from . import profiles, ways_in
    from .intake import Intake
    from .jobs import Jobs
    from .scp import Scp
    from .spool import Spool

    profiles.known(config)
    keepers = _keepers(config, ledger, stop)
    spool = Spool(config.spool_dir, ledger, minimum_free_mb=config.minimum_free_mb)
    spool.recover()
    known = protocols(config)
    intake = Intake(
        ledger,
        Jobs(ledger, maximum_attempts=config.maximum_attempts),
        rules(known),
        book=rulebook(config, known),
        model_digest=checkpoint_digest(config),
        fallback=config.fallback_protocol,
        quiet_s=config.quiet_s,
        open_limit_s=config.open_limit_s,
    )
    # Here and not in the worker: a model that cannot be loaded holds no result back.
    courier = threading.Thread(target=_deliver, args=(config, ledger, stop), name="delivery")
    threads = [courier, *keepers, *ways_in.threads(config, ledger, spool, stop)]
    with (
        Scp(config, spool, ledger, _services(config, ledger)) as scp,
        ways_in.stow(config, ledger, spool, api_token(config)),
    ):
        for each in threads:
            each.start()
        try:
            ready(scp.port)
            intake.run(stop)
        finally:
            stop.set()
            for each in threads:
                each.join()


def _keepers(config: Config, ledger: Ledger, stop: threading.Event) -> list[threading.Thread]:
    """Give the threads that let go of what is old, tell the audit, and report commitments."""
    from . import audit, retention
    from .scp.commitment import Provider

    places = audit.places(config)
    # Before the spool looks for files that the ledger does not know.
    retention.recover(ledger, config)
    expiring = threading.Thread(target=retention.run, args=(ledger, config, stop), name="retention")
    telling = threading.Thread(target=audit.run, args=(ledger, config, places, stop), name="audit")
    reporting = threading.Thread(
        target=Provider(config=config, ledger=ledger).run, args=(stop,), name="commitment"
    )
    return [expiring, telling, reporting]


def _services(config: Config, ledger: Ledger) -> "dict[tuple[int, str], Handler]":
    """Put together what is answered besides C-STORE and C-ECHO."""
    from .delivery import proof
    from .network import dimse, negotiation
    from .scp.commitment import Provider
    from .ways_in import expectations

    return {
        (dimse.N_EVENT_REPORT_RQ, negotiation.COMMITMENT): partial(proof.reported, ledger, config),
        (dimse.N_ACTION_RQ, negotiation.COMMITMENT): Provider(ledger, config).asked,
        **expectations.handlers(ledger),
    }


def _deliver(config: Config, ledger: Ledger, stop: threading.Event) -> None:
    from . import delivery

    while not stop.is_set():
        try:
            delivery.run(ledger, config, stop)
        except Exception:  # the loop's edge: a locked database must not end delivery
            log.exception("delivery.error")
            stop.wait(RETRY_S)


def _worker(config: Config, ledger: Ledger, stop: threading.Event, ready: Ready) -> None:
    from model import ModelError
    from model.checkpoint import choose, load

    from .jobs import Jobs
    from .worker import Worker

    try:
        choose(config.device, config.dtype)
    except ModelError as error:
        raise Unavailable(str(error)) from error
    try:
        lamed = load(checkpoint_folder(config), config.device, config.dtype)
    except ModelError as error:
        raise ConfigError(f"checkpoint: {error}") from error
    worker = Worker(
        ledger,
        Jobs(ledger, maximum_attempts=config.maximum_attempts),
        lamed,
        protocols(config),
        config,
        name=f"{socket.gethostname()}:{os.getpid()}",
    )
    ready(0)
    worker.run(stop)


def _qa(config: Config, ledger: Ledger, stop: threading.Event, ready: Ready) -> None:
    from . import qa

    app = qa.create_app(
        ledger,
        results_dir=config.results_dir,
        api_token=api_token(config),
        trial=trial(config).of_bytes,
    )
    with qa.Server(app, config.http_host, config.http_port) as server:
        ready(server.port)
        stop.wait()


def protocols(config: Config) -> "dict[str, Protocol]":
    """Read our protocols and those of the site.

    Raises
    ------
    ConfigError
        One of them is not as it must be, or the fallback is none of them.
    """
    from sr_templates import TemplateError, load_protocols

    try:
        known = load_protocols(Path(config.protocols) if config.protocols else None)
    except TemplateError as error:
        raise ConfigError(f"protocols: {error}") from error
    if config.fallback_protocol and config.fallback_protocol not in known:
        raise ConfigError(
            f"fallback_protocol must be one of {', '.join(known)}, not {config.fallback_protocol!r}"
        )
    return known


def rules(known: "Mapping[str, Protocol]") -> "list[Rule]":
    """Tell routing which exams each protocol is for."""
    from .routing import Rule

    return [
        Rule(each.name, each.modality, each.body_parts, each.keywords, each.minimum_slices)
        for each in known.values()
    ]


def rulebook(config: Config, known: "Mapping[str, Protocol]") -> "RuleBook | None":
    """Read the rules of the site; None if there are none.

    Raises
    ------
    ConfigError
        Names the file, the rule, what was expected and what came.
    """
    from .routing.rules import read

    if not config.rules:
        return None
    sources = [each.name for each in config.sources]
    return read(Path(config.rules), list(known), config.destinations, sources)


def trial(config: Config) -> "Trial":
    """Give what tries the rules on files that are only shown; raises as `rulebook`."""
    from .routing.trial import Trial

    known = protocols(config)
    return Trial(rulebook(config, known), rules(known), config.fallback_protocol)


def login_link(config: Config, port: int | None = None) -> str:
    """Make a one-time link to the QA pages; without a port, to those that are up.

    Raises
    ------
    Unavailable
        The system chooses the port, and the pages are not up.
    """
    from . import qa

    with Ledger(config.ledger_path) as ledger:
        return qa.login_link(ledger, url(config, port))


def first_login_link(config: Config, port: int) -> str:
    """Make a link only if none was ever made, else nothing: each is a key to the pages."""
    with Ledger(config.ledger_path) as ledger:
        first = not ledger.token_was_issued("login")
    return login_link(config, port) if first else ""


def url(config: Config, port: int | None = None) -> str:
    """Say where a browser on this machine finds the QA pages."""
    found = port or announced(config).get("qa") or config.http_port
    if not found:
        raise Unavailable("the QA pages are not up, and the system chooses their port (http_port)")
    host = "localhost" if config.http_host in ANY_ADDRESS else config.http_host
    return f"http://[{host}]:{found}" if ":" in host else f"http://{host}:{found}"


def api_token(config: Config) -> str:
    """Read the token of the HTTP interface; made at the first start, readable by the owner only."""
    path = config.data_dir / "api-token"
    if not path.exists():
        with _alone(config.data_dir / "api-token.lock"):
            if not path.exists():
                _write_secret(path, secrets.token_urlsafe(32))
    return path.read_text().strip()


def _write_secret(path: Path, secret: str) -> None:
    partial = path.with_suffix(".partial")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(secret)
    partial.replace(path)


def checkpoint_folder(config: Config) -> Path:
    """Where the checkpoint lies: the setting, or the small trained one that ships with `model`."""
    if config.checkpoint:
        return Path(config.checkpoint)
    # Looked up, not imported: what asks for it may be light, and stay so.
    found = importlib.util.find_spec("model")
    if found is None or found.origin is None:
        raise ConfigError(
            "checkpoint: none is set, and the package model that ships one is missing"
        )
    return Path(found.origin).parent / "demo"


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes from making the same thing at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def checkpoint_digest(config: Config) -> str:
    """Read the digest of the weights from the manifest, without torch.

    Raises
    ------
    ConfigError
        The folder holds no checkpoint in our layout.
    """
    return str(checkpoint_manifest(config)["sha256"])


def checkpoint_manifest(config: Config) -> dict[str, Any]:
    """Read who the checkpoint is, without torch; raises as `checkpoint_digest`."""
    path = checkpoint_folder(config) / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        return manifest | {"sha256": manifest["sha256"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"checkpoint: no readable manifest.json in {path.parent};"
            " `lamed-node checkpoint import` makes one from a released checkpoint"
        ) from error
