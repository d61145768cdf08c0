"""Every setting of the node: name, default, help; read once, checked once, then frozen.

Knows: a TOML file, the environment (``LAMED_*``), the ranges. The only reader of ``os.environ``.
Must not know: who uses a setting.

The file holds the fields of `Config` at its top level and one ``[[destinations]]`` table for each
peer that gets results. The environment wins over the file: ``LAMED_QUIET_S=5``,
``LAMED_DESTINATIONS=PACS@10.0.0.5:104,VIEWER@localhost:4242``.
"""

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

from .errors import ConfigError

PREFIX = "LAMED_"


def _setting(default: object, text: str) -> Any:  # noqa: ANN401 - a dataclass field poses as its value
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Destination:
    """A peer that receives results: AE title, host name or address, port."""

    ae_title: str
    host: str
    port: int

    def __post_init__(self) -> None:
        _check_ae_title("destination", self.ae_title)
        _check_port("destination", self.port)

    def __str__(self) -> str:
        return f"{self.ae_title}@{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> "Destination":
        """Read ``AET@HOST:PORT``."""
        match = re.fullmatch(r"([^@]+)@(.+):(\d+)", text.strip())
        if match is None:
            raise ConfigError(f"a destination is AET@HOST:PORT, not {text!r}")
        return cls(match[1], match[2], int(match[3]))


@dataclass(frozen=True)
class Config:
    """The settings of one node, checked when made.

    Raises
    ------
    ConfigError
        A value is out of its range; the message names the setting, the range and the value.
    """

    ae_title: str = _setting("LAMED", "our application entity title, 1 to 16 characters")
    dicom_host: str = _setting(
        "127.0.0.1", "address the SCP listens on; 0.0.0.0 for every interface"
    )
    dicom_port: int = _setting(11112, "port of the SCP; 0 lets the system choose")
    http_host: str = _setting("127.0.0.1", "address of the QA pages and of the HTTP interface")
    http_port: int = _setting(8181, "port of the QA pages; 0 lets the system choose")
    data_dir: Path = _setting(Path("lamed-data"), "folder of spool, ledger and results")  # noqa: RUF009 - a path is a value
    checkpoint: str = _setting("", "folder of the checkpoint; empty makes the untrained tiny one")
    device: str = _setting("auto", "auto, cpu, cuda or cuda:N")
    dtype: str = _setting("auto", "auto (float32 on cpu, bfloat16 on cuda), float32, bfloat16")
    protocols: str = _setting("", "folder of further protocol TOML files; same names replace ours")
    fallback_protocol: str = _setting(
        "", "protocol for a CT or MR study that no rule fits; empty refuses it"
    )
    calling_ae_titles: tuple[str, ...] = _setting((), "AE titles that may call; empty admits any")
    maximum_associations: int = _setting(64, "associations served at once, 1 to 1000")
    quiet_s: float = _setting(30.0, "seconds without a new instance until a study is complete")
    open_limit_s: float = _setting(
        3600.0, "seconds after which a study that keeps growing is taken as it is"
    )
    minimum_free_mb: int = _setting(
        1024, "free space in MB below which instances are refused with 0xA700"
    )
    lease_s: float = _setting(60.0, "seconds after which a silent worker loses its job")
    maximum_attempts: int = _setting(3, "times a job is begun before it counts as failed")
    delivery_attempts: int = _setting(
        8, "times a result is sent to a destination before it is given up"
    )
    delivery_backoff_s: float = _setting(
        5.0, "seconds before the second attempt; doubles each time"
    )
    network_timeout_s: float = _setting(30.0, "seconds a peer may be silent")
    manufacturer: str = _setting("LaMed Node", "Manufacturer written into results")
    destinations: tuple[Destination, ...] = _setting(
        (), "peers that get the results, AET@HOST:PORT"
    )

    def __post_init__(self) -> None:
        _check_ae_title("ae_title", self.ae_title)
        for title in self.calling_ae_titles:
            _check_ae_title("calling_ae_titles", title)
        for name in ("dicom_port", "http_port"):
            _check_port(name, getattr(self, name), lowest=0)
        for name in (
            "quiet_s",
            "open_limit_s",
            "lease_s",
            "delivery_backoff_s",
            "network_timeout_s",
        ):
            _check_at_least(name, getattr(self, name), 0.05)
        for name in ("maximum_associations", "maximum_attempts", "delivery_attempts"):
            _check_at_least(name, getattr(self, name), 1)
        _check_at_least("minimum_free_mb", self.minimum_free_mb, 0)
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, not {self.device!r}")
        if self.dtype not in {"auto", "float32", "bfloat16"}:
            raise ConfigError(f"dtype must be auto, float32 or bfloat16, not {self.dtype!r}")

    @property
    def spool_dir(self) -> Path:
        """Where received instances lie."""
        return self.data_dir / "spool"

    @property
    def results_dir(self) -> Path:
        """Where the results of each job lie, one folder for each job."""
        return self.data_dir / "results"

    @property
    def ledger_path(self) -> Path:
        """The SQLite file of the ledger."""
        return self.data_dir / "ledger.sqlite"


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
            raise ConfigError(f"{path}: no setting is called {name!r}; see `lamed-node config`")
        values[name], origins[name] = _typed(known[name], value), str(path)
    for variable, text in environ.items():
        name = variable.removeprefix(PREFIX).lower()
        if variable.startswith(PREFIX) and name in known:
            values[name], origins[name] = _typed(known[name], text), variable
    return replace(Config(), **values), origins


def _file(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the settings file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error


def _typed(setting: Field[Any], value: object) -> object:
    """Turn a TOML value or an environment string into the type of the setting's default."""
    if setting.name == "destinations":
        return tuple(_destination(each) for each in _items(value))
    kind = type(setting.default)
    try:
        if kind is tuple:
            return tuple(str(each) for each in _items(value))
        if not (kind in {int, float} and isinstance(value, bool)):
            return cast("Callable[[object], object]", kind)(value)
    except (TypeError, ValueError):
        pass
    raise ConfigError(f"{setting.name} must be {kind.__name__}, not {value!r}")


def _items(value: object) -> list[Any]:
    if isinstance(value, str):
        return [part for part in (each.strip() for each in value.split(",")) if part]
    if isinstance(value, list):
        return value
    raise ConfigError(f"expected a list, not {value!r}")


def _destination(value: object) -> Destination:
    if isinstance(value, str):
        return Destination.parse(value)
    try:
        return Destination(**cast("dict[str, Any]", value))
    except TypeError as error:
        raise ConfigError(f"a destination has ae_title, host and port, not {value!r}") from error


def _shown(value: object) -> str:
    return ", ".join(str(each) for each in value) if isinstance(value, tuple) else str(value)


def _check_ae_title(name: str, title: str) -> None:
    # PS3.5 6.2: AE is 1-16 characters of the default repertoire without backslash and control.
    if not re.fullmatch(r"[\x20-\x5b\x5d-\x7e]{1,16}", title) or not title.strip():
        raise ConfigError(f"{name} must be an AE title of 1-16 characters, not {title!r}")


def _check_port(name: str, port: int, lowest: int = 1) -> None:
    if not lowest <= port <= 65535:  # noqa: PLR2004 - the largest port
        raise ConfigError(f"{name} must be a port from {lowest} to 65535, not {port!r}")


def _check_at_least(name: str, value: float, lowest: float) -> None:
    if value < lowest:
        raise ConfigError(f"{name} must be at least {lowest}, not {value!r}")
