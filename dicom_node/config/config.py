"""Where the settings of a node come from: read once, checked once, then frozen.

Knows: a TOML file, the environment (``LAMED_*``), the ranges. The only reader of ``os.environ``.
Must not know: who uses a setting.

The file holds the fields of `Config` at its top level and one ``[[destinations]]`` table for each
peer that gets results. The environment wins over the file: ``LAMED_QUIET_S=5``,
``LAMED_DESTINATIONS=PACS@10.0.0.5:104,VIEWER@localhost:4242/ohif``.

A variable that is almost a setting (``LAMED_QUITE_S``) is refused: a value that somebody set must
not be lost to a typing error. One that resembles none is only told in the log, since others name
variables so too: Kubernetes gives every container ``LAMED_SERVICE_HOST`` if a service is called
``lamed``.
"""

import difflib
import logging
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from dicom_node.errors import ConfigError

from .destinations import Destination, SiteProfile
from .peers import Peer
from .settings import LARGEST, Config
from .sources import Source

__all__ = ["Config", "Destination", "Setting", "SiteProfile", "describe", "load"]

log = logging.getLogger(__name__)

PREFIX: Final = "LAMED_"
SIMILAR: Final = 0.75  # ratio of difflib from which a name is taken for a mistyped one
FOLDERS: Final = (
    "data_dir",
    "checkpoint",
    "protocols",
    "rules",
    "report_text_dir",
    "watch_dir",
    "tls_certificate",
    "tls_key",
    "tls_ca",
)  # here ~ is the home folder
TABLES: Final[Mapping[str, Callable[[object], object]]] = {
    "destinations": Destination.read,
    "profiles": SiteProfile.read,
    "peers": Peer.read,
    "sources": Source.read,
}


@dataclass(frozen=True)
class Setting:
    """One row of ``lamed-node config``: where a value came from and what it means."""

    name: str
    value: str
    default: str
    origin: str
    help: str


def load(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Config:
    """Read the file, then the environment, and check.

    Raises
    ------
    ConfigError
        The file is missing or not TOML, a name is unknown, a value has the wrong type or range.
    """
    return _merge(path, os.environ if environ is None else environ)[0]


def describe(path: Path | None = None, environ: Mapping[str, str] | None = None) -> list[Setting]:
    """Tell each setting, its value, its default and where the value came from."""
    config, origins = _merge(path, os.environ if environ is None else environ)
    return [
        Setting(
            name=each.name,
            value=_shown(getattr(config, each.name)),
            default=_shown(each.default),
            origin=origins.get(each.name, "default"),
            help=each.metadata["help"],
        )
        for each in fields(Config)
    ]


def _merge(path: Path | None, environ: Mapping[str, str]) -> tuple[Config, dict[str, str]]:
    known = {each.name: each for each in fields(Config)}
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name, value in _file(path).items():
        if name not in known:
            meant = _similar(name, known)
            raise ConfigError(
                f"{path}: no setting is called {name!r}"
                + (f", is {meant} meant?" if meant else "; see `lamed-node config`")
            )
        values[name], origins[name] = _typed(known[name], value), str(path)
    for variable, setting in _variables(environ, known).items():
        text = environ[variable]
        values[setting.name], origins[setting.name] = (
            _typed(setting, _parsed(setting, text)),
            variable,
        )
    return replace(Config(), **values), origins


def _variables(
    environ: Mapping[str, str], known: Mapping[str, Field[Any]]
) -> dict[str, Field[Any]]:
    """Find the settings among the variables; refuse what is a mistyped one."""
    settings = {f"{PREFIX}{name.upper()}": each for name, each in known.items()}
    unknown = [each for each in environ if each.startswith(PREFIX) and each not in settings]
    for each in unknown:
        meant = _similar(each.removeprefix(PREFIX).lower(), known)
        if meant:
            raise ConfigError(f"no setting is called {each}, is {PREFIX}{meant.upper()} meant?")
    if unknown:
        log.warning("config.unknown_variables", extra={"variables": ", ".join(sorted(unknown))})
    return {each: setting for each, setting in settings.items() if each in environ}


def _similar(name: str, known: Mapping[str, object]) -> str:
    return next(iter(difflib.get_close_matches(name, known, 1, SIMILAR)), "")


def _file(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        # Editors of Windows put a mark before the first byte, which TOML does not know.
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"cannot read the settings file {path}: {error.strerror}") from error
    except ValueError as error:  # not TOML, not UTF-8, or a number of thousands of digits
        raise ConfigError(f"{path} is not TOML: {error}") from error


def _parsed(setting: Field[Any], text: str) -> object:
    """Read a variable as what TOML would give; what cannot be read stays a text, and is refused."""
    kind: type = type(setting.default)
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return kind(text) if kind in {int, float} else text
    except ValueError:
        return text


def _typed(setting: Field[Any], value: object) -> object:
    """Bring a value of the file to the type of the setting; another one is refused in `Config`."""
    kind = type(setting.default)
    if setting.name in TABLES:
        return tuple(TABLES[setting.name](each) for each in _items(setting.name, value))
    if kind is tuple:
        return tuple(_items(setting.name, value))
    if setting.name in FOLDERS and isinstance(value, str):
        value = os.path.expanduser(value)  # noqa: PTH111 - an empty text stays empty
    if isinstance(setting.default, Path) and isinstance(value, str) and value:
        return Path(value)
    if kind is float and type(value) is int and abs(value) < LARGEST:
        return float(value)
    return value


def _items(name: str, value: object) -> list[Any]:
    if isinstance(value, str):
        return [part for part in (each.strip() for each in value.split(",")) if part]
    if isinstance(value, list):
        return value
    raise ConfigError(f"{name} must be a list, not {value!r}")


def _shown(value: object) -> str:
    return ", ".join(str(each) for each in value) if isinstance(value, tuple) else str(value)
