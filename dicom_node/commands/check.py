"""The doctor: what an administrator asks first when something does not work, in plain language."""

import errno
import importlib.metadata
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dicom_node import config as settings
from dicom_node.config import Config, Destination
from dicom_node.config.sources import Source
from dicom_node.errors import ConfigError, NodeError, Unavailable
from dicom_node.serve import checkpoint_digest, checkpoint_folder, protocols
from dicom_node.supervisor import announced

MB = 1 << 20


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    what: str
    ok: bool
    detail: str
    exit_code: int = 0


def run(path: Path | None) -> list[Finding]:
    """Look at everything, even if the first thing is broken."""
    try:
        config = settings.load(path)
    except ConfigError as error:
        return [Finding("settings", ok=False, detail=str(error), exit_code=error.exit_code)]
    looks: tuple[Callable[[Config], Iterator[str]], ...] = (
        _settings,
        _names,
        _disk,
        _ports,
        _callers,
        _certificate,
        _ledger,
        _protocols,
        _profiles,
        _validator,
        _checkpoint,
        _device,
        _audit,
    )
    findings = [_look(each.__name__.strip("_"), partial(each, config)) for each in looks]
    peers = [_look(f"peer {each}", partial(_peer, config, each)) for each in config.destinations]
    asked = [
        _look(f"source {each.name}", partial(_source, config, each)) for each in config.sources
    ]
    return findings + peers + asked


def describe(findings: list[Finding]) -> str:
    """Say it in lines a person reads."""
    width = max(len(each.what) for each in findings)
    return "\n".join(
        f"{'ok  ' if each.ok else 'BAD '} {each.what:<{width}}  {each.detail}" for each in findings
    )


def _look(what: str, look: Callable[[], Iterator[str]]) -> Finding:
    try:
        return Finding(what, ok=True, detail="; ".join(look()))
    except NodeError as error:
        detail = " ".join(str(error).split())  # a line for each finding
        return Finding(what, ok=False, detail=detail, exit_code=error.exit_code)
    except Exception as error:  # noqa: BLE001 - the doctor's edge: whatever it is, it is the finding
        detail = f"{type(error).__name__}: {error}"
        return Finding(what, ok=False, detail=detail, exit_code=NodeError.exit_code)


def _settings(config: Config) -> Iterator[str]:
    yield f"AE title {config.ae_title}, data in {config.data_dir.resolve()}"
    if not config.destinations:
        yield "no destination: results stay in the data folder"


def _names(_: Config) -> Iterator[str]:
    """`model` is a greedy name; another package that also brings it would be imported instead."""
    owners = importlib.metadata.packages_distributions()
    for name in ("dicom_node", "model", "sr_templates"):
        found = set(owners.get(name, ["lamed-node"]))
        others = found - {"lamed-node"}
        if others:
            raise ConfigError(
                f"the package name {name} also comes from {', '.join(sorted(others))}"
            )
    yield "the packages are ours alone"


def _disk(config: Config) -> Iterator[str]:
    folder = config.data_dir.absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise ConfigError(f"data_dir: {folder} is a file, not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise Unavailable(f"{folder} cannot be written by this user")
    free = shutil.disk_usage(folder).free // MB
    if free < config.minimum_free_mb:
        raise Unavailable(
            f"{free} MB free in {folder}, below minimum_free_mb={config.minimum_free_mb}:"
            " images are refused"
        )
    yield f"{free} MB free in {folder}"
    text = Path(config.report_text_dir)
    if config.report_text_dir and not (text.is_dir() and os.access(text, os.W_OK | os.X_OK)):
        raise ConfigError(f"report_text_dir: {text} must be a folder that this user can write")


def _ports(config: Config) -> Iterator[str]:
    up = announced(config)
    for name, role, host, port in (
        ("DICOM", "scp", config.dicom_host, config.dicom_port),
        ("HTTP", "qa", config.http_host, config.http_port),
    ):
        if role in up and port in {0, up[role]}:
            yield f"{name} {host}:{up[role]} is this node's, which is up"
        elif port == 0:
            yield f"{name} {host}: the system chooses a port at the start"
        elif _taken(host, port):
            raise Unavailable(f"{name} {host}:{port} is taken by another program")
        else:
            yield f"{name} {host}:{port} is free"


def _taken(host: str, port: int) -> bool:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return True
        raise Unavailable(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return False


def _callers(config: Config) -> Iterator[str]:
    if config.calling_ae_titles:
        yield f"only {', '.join(config.calling_ae_titles)} may call"
    yield from map(str, config.peers)
    if not config.peers and not config.calling_ae_titles:
        yield "anyone may call: neither peers nor calling_ae_titles are set"


def _certificate(config: Config) -> Iterator[str]:
    from dicom_node.network import tls

    tls.client_context(config)
    if tls.server_context(config) is None:
        yield "none: DICOM is spoken without TLS"
        return
    days = tls.days_left(config)
    if days < 0:
        raise Unavailable(f"{config.tls_certificate} has expired: peers refuse it; renew it")
    if days <= config.tls_expiry_days:
        raise Unavailable(f"{config.tls_certificate} expires in {days} days; renew it")
    yield f"{config.tls_certificate} and its key fit, it expires in {days} days"
    yield f"callers: a certificate is {config.tls_client_certificate}"


def _ledger(config: Config) -> Iterator[str]:
    from dicom_node.ledger import Ledger

    if not config.ledger_path.exists():
        yield "none yet; made at the first start"
        return
    with Ledger(config.ledger_path) as ledger:
        yield f"{ledger.verify()} events, the chain is whole"
        held = [each.sop_uid for each in ledger.held()]
    if held:
        yield f"{len(held)} objects are held and not sent (lamed-node release): {', '.join(held)}"


def _protocols(config: Config) -> Iterator[str]:
    yield ", ".join(sorted(protocols(config)))


def _profiles(config: Config) -> Iterator[str]:
    from dicom_node import profiles

    profiles.known(config)
    yield from (f"{each} is shown {each.profile}" for each in config.destinations)
    yield "generic-pacs on the QA pages"


def _validator(config: Config) -> Iterator[str]:
    from dicom_node.validator import Validator

    found = Validator.of(config)
    yield (
        f"each object is checked by {found.program}"
        if found.program
        else (f"{found.absent}: objects are sent unchecked")
    )


def _checkpoint(config: Config) -> Iterator[str]:
    from model import ModelError
    from model.checkpoint import read_card, read_config

    folder = checkpoint_folder(config)
    checkpoint_digest(config)  # says how to get a manifest where there is none
    try:
        card = read_card(folder, read_config(folder))
    except ModelError as error:
        raise ConfigError(str(error)) from error
    untrained = ", UNTRAINED: its answers mean nothing" if card.untrained else ""
    yield f"{card.name} in {folder}, every file as in its manifest{untrained}"


def _device(config: Config) -> Iterator[str]:
    from model import ModelError
    from model.checkpoint import describe_device

    try:
        yield describe_device(config.device, config.dtype)
    except ModelError as error:
        raise Unavailable(str(error)) from error


def _audit(config: Config) -> Iterator[str]:
    from dicom_node import audit

    yield from audit.reach(config)


def _source(config: Config, source: Source) -> Iterator[str]:
    from . import peer_check

    yield from peer_check.source(config, source)


def _peer(config: Config, peer: Destination) -> Iterator[str]:
    from . import peer_check

    yield from peer_check.look(config, peer)
