"""Every setting of the node: name, default, help; read once, checked once, then frozen.

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
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from .destinations import Destination, SiteProfile, check_ae_title, check_host
from .errors import ConfigError

__all__ = ["Config", "Destination", "Setting", "SiteProfile", "describe", "load"]

log = logging.getLogger(__name__)

PREFIX: Final = "LAMED_"
SIMILAR: Final = 0.75  # ratio of difflib from which a name is taken for a mistyped one
HOUR_S, WEEK_S = 3600, 604_800
SHORTEST_S: Final = 0.05
LONG_STRING: Final = 64
LARGEST: Final = 1 << 53  # whole numbers above are no floats, and out of every range
FOLDERS: Final = (
    "data_dir",
    "checkpoint",
    "protocols",
    "report_text_dir",
)  # here ~ is the home folder
TABLES: Final[Mapping[str, Callable[[object], object]]] = {
    "destinations": Destination.read,
    "profiles": SiteProfile.read,
}
WORDS: Final[Mapping[type, str]] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "a list",
    type(Path()): "a folder",
}


def _setting(default: object, text: str) -> Any:  # noqa: ANN401 - a dataclass field poses as its value
    return field(default=default, metadata={"help": text})


def _number(default: float, least: float, most: float, text: str) -> Any:  # noqa: ANN401 - as above
    told = f"{text}, {least:.12g} to {most:.12g}"
    return field(default=default, metadata={"help": told, "range": (least, most)})


@dataclass(frozen=True)
class Config:
    """The settings of one node, checked when made.

    Raises
    ------
    ConfigError
        A value is of another type or out of its range; the message names the setting, what was
        expected and the value.
    """

    ae_title: str = _setting("LAMED", "our application entity title, 1 to 16 characters")
    dicom_host: str = _setting(
        "127.0.0.1", "address the SCP listens on; 0.0.0.0 for every interface"
    )
    dicom_port: int = _number(11112, 0, 65535, "port of the SCP; 0 lets the system choose")
    http_host: str = _setting("127.0.0.1", "address of the QA pages and of the HTTP interface")
    http_port: int = _number(8181, 0, 65535, "port of the QA pages; 0 lets the system choose")
    data_dir: Path = _setting(Path("lamed-data"), "folder of spool, ledger and results")  # noqa: RUF009 - a path is a value
    checkpoint: str = _setting("", "folder of the checkpoint; empty takes the small one that ships")
    device: str = _setting("auto", "auto, cpu, cuda or cuda:N")
    dtype: str = _setting("auto", "auto (float32 on cpu, bfloat16 on cuda), float32, bfloat16")
    protocols: str = _setting("", "folder of further protocol TOML files; same names replace ours")
    fallback_protocol: str = _setting(
        "", "protocol for a CT or MR study whose region nothing names; empty refuses it"
    )
    calling_ae_titles: tuple[str, ...] = _setting((), "AE titles that may call; empty admits any")
    maximum_associations: int = _number(64, 1, 1000, "associations served at once")
    quiet_s: float = _number(
        30.0, SHORTEST_S, WEEK_S, "seconds without a new instance until a study is complete"
    )
    open_limit_s: float = _number(
        3600.0,
        SHORTEST_S,
        WEEK_S,
        "seconds after which a study that keeps growing is taken as it is",
    )
    minimum_free_mb: int = _number(
        1024, 0, 1_000_000_000, "free space in MB below which instances are refused with 0xA700"
    )
    lease_s: float = _number(
        60.0, SHORTEST_S, WEEK_S, "seconds after which a silent worker loses its job"
    )
    maximum_attempts: int = _number(3, 1, 100, "times a job is begun before it counts as failed")
    delivery_attempts: int = _number(
        100, 1, 1000, "times a result is sent to a destination before it is given up"
    )
    delivery_backoff_s: float = _number(
        5.0, SHORTEST_S, HOUR_S, "seconds before the second attempt; doubles up to an hour"
    )
    network_timeout_s: float = _number(30.0, SHORTEST_S, HOUR_S, "seconds a peer may be silent")
    validate: str = _setting(
        "auto",
        "auto (each object is checked if dciodvfy is there), off, required (else none is sent)",
    )
    run_record: bool = _setting(
        default=False, text="whether the record of each run also goes into the study, as an SR"
    )
    report_text_dir: str = _setting(
        "", "folder in which each draft is put as plain text, for a RIS; empty writes none"
    )
    manufacturer: str = _setting(
        "LaMed Node", "Manufacturer written into results, 1 to 64 characters"
    )
    destinations: tuple[Destination, ...] = _setting(
        (), "peers that get the results, AET@HOST:PORT or AET@HOST:PORT/PROFILE"
    )
    profiles: tuple[SiteProfile, ...] = _setting(
        (), "further profiles of destinations: [[profiles]] with name, like and what differs"
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            _check(each, getattr(self, each.name))
        check_ae_title("ae_title", self.ae_title)
        for title in self.calling_ae_titles:
            check_ae_title("calling_ae_titles", title)
        for name in ("dicom_host", "http_host"):
            check_host(name, getattr(self, name))
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, not {self.device!r}")
        if self.dtype not in {"auto", "float32", "bfloat16"}:
            raise ConfigError(f"dtype must be auto, float32 or bfloat16, not {self.dtype!r}")
        if self.validate not in {"auto", "off", "required"}:
            raise ConfigError(f"validate must be auto, off or required, not {self.validate!r}")
        _check_long_string("manufacturer", self.manufacturer)

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


def _check(setting: Field[Any], value: object) -> None:
    """Check type and range; the type is that of the default, and a bool is no number."""
    kind = type(setting.default)
    fits = isinstance(value, kind) or (kind is float and isinstance(value, int))
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{setting.name} must be {WORDS[kind]}, not {value!r}")
    if "range" in setting.metadata:
        least, most = setting.metadata["range"]
        # NaN is within no range.
        if not least <= value <= most:
            raise ConfigError(
                f"{setting.name} must be {WORDS[kind]}, {least:.12g} to {most:.12g}, not {value!r}"
            )


def _check_long_string(name: str, text: str) -> None:
    # PS3.5 6.2: LO is at most 64 characters without backslash and control; type 1 is not empty.
    if not text.strip() or len(text) > LONG_STRING or not text.isprintable() or "\\" in text:
        raise ConfigError(
            f"{name} must be 1-{LONG_STRING} characters on one line without backslash, not {text!r}"
        )
