"""Every setting of the node as a field of `Config`: name, default, range and help.

Knows what a value may be. Must not know where it came from, or who uses it.
"""

import re
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from dicom_node.errors import ConfigError

from .destinations import Destination, SiteProfile, check_ae_title, check_host
from .peers import Peer
from .sources import Source

HOUR_S, WEEK_S = 3600, 604_800
SHORTEST_S: Final = 0.05
LONG_STRING: Final = 64
LARGEST: Final = 1 << 53  # whole numbers above are no floats, and out of every range
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
    stow_port: int = _number(
        0, 0, 65535, "port of STOW-RS on http_host, by which instances may come; 0 is off"
    )
    data_dir: Path = _setting(Path("lamed-data"), "folder of spool, ledger and results")  # noqa: RUF009 - a path is a value
    checkpoint: str = _setting("", "folder of the checkpoint; empty takes the small one that ships")
    device: str = _setting("auto", "auto, cpu, cuda or cuda:N")
    dtype: str = _setting("auto", "auto (float32 on cpu, bfloat16 on cuda), float32, bfloat16")
    protocols: str = _setting("", "folder of further protocol TOML files; same names replace ours")
    rules: str = _setting(
        "",
        "TOML file of the site's rules, see `lamed-node rules check`; empty: which study is read"
        " follows from the protocols",
    )
    fallback_protocol: str = _setting(
        "", "protocol for a CT or MR study whose region nothing names; empty refuses it"
    )
    calling_ae_titles: tuple[str, ...] = _setting((), "AE titles that may call; empty admits any")
    peers: tuple[Peer, ...] = _setting(
        (),
        "who may call: [[peers]] with name and perhaps ae_titles, addresses, certificates,"
        " maximum_associations, associations_per_minute, allowed; none admits anyone",
    )
    tls_certificate: str = _setting(
        "", "PEM file of our certificate and its chain; empty speaks DICOM without TLS"
    )
    tls_key: str = _setting(
        "", "PEM file of the private key; empty looks for it in the file of the certificate"
    )
    tls_ca: str = _setting(
        "",
        "PEM file of the authorities that peers' certificates must be of; empty takes the system's"
        " where we call",
    )
    tls_profile: str = _setting(
        "bcp195", "TLS profile of PS3.15: bcp195 (B.12) or modified (B.13); TLS 1.2 and 1.3"
    )
    tls_client_certificate: str = _setting(
        "required", "whether a peer that calls by TLS must show a certificate: required or optional"
    )
    tls_check_hostname: bool = _setting(
        default=True, text="whether the certificate of a peer we call must name the host we call"
    )
    tls_handshake_s: float = _number(
        10.0, SHORTEST_S, HOUR_S, "seconds a peer has for its whole TLS handshake"
    )
    tls_expiry_days: int = _number(
        30, 0, 365, "days before the end of our certificate from which it is told"
    )
    maximum_associations: int = _number(64, 1, 1000, "associations served at once")
    maximum_instance_mb: int = _number(
        2048, 1, 4095, "size in MB above which an instance is refused with 0xA700"
    )
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
    retain_spool_days: float = _number(
        30.0,
        0,
        36_500,
        "days that received images are kept once their results are there; 0 for ever",
    )
    retain_results_days: float = _number(
        365.0, 0, 36_500, "days that results are kept once they are delivered; 0 for ever"
    )
    retain_spool_gb: float = _number(
        0.0, 0, 1_000_000, "GB of received images above which the oldest go early; 0 is no limit"
    )
    retain_results_gb: float = _number(
        0.0, 0, 1_000_000, "GB of results above which the oldest go early; 0 is no limit"
    )
    retain_unproven: bool = _setting(
        default=True,
        text="whether to keep what a peer has stored but not proven to have; false lets it expire",
    )
    audit_store: bool = _setting(
        default=False,
        text="whether audit messages (PS3.15 A.5) are kept as files by day, in audit/ of data_dir",
    )
    audit_retain_days: float = _number(
        365.0, 0, 36_500, "days that the files of audit_store are kept; 0 for ever"
    )
    audit_syslog: str = _setting(
        "",
        "who gets audit messages: tls://HOST:PORT (RFC 5425), tcp:// or udp://; empty sends none",
    )
    audit_source: str = _setting(
        "", "AuditSourceID in audit messages; empty takes our AE title @ name of the machine"
    )
    audit_site: str = _setting("", "AuditEnterpriseSiteID in audit messages; empty names none")
    lease_s: float = _number(
        60.0, SHORTEST_S, WEEK_S, "seconds after which a silent worker loses its job"
    )
    maximum_attempts: int = _number(3, 1, 100, "times a job is begun before it counts as failed")
    delivery_attempts: int = _number(
        200, 1, 1000, "times a result is sent to a destination before it is given up"
    )
    delivery_backoff_s: float = _number(
        5.0, SHORTEST_S, HOUR_S, "most seconds before the second attempt; doubles up to an hour"
    )
    proof_s: float = _number(
        900.0,
        SHORTEST_S,
        WEEK_S,
        "seconds in which a peer is to prove that it has what it stored; then it is sent-unproven",
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
    sources: tuple[Source, ...] = _setting(
        (),
        "where studies are fetched from: [[sources]] with name, place (as a destination), and"
        " perhaps method (c-get, c-move, wado-rs) and expects",
    )
    watch_dir: str = _setting(
        "", "folder from which DICOM files are taken in, and removed; empty watches none"
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
        self._check_tls()
        self._check_watched()

    def _check_watched(self) -> None:
        """Refuse to watch our own data: what is taken in is removed."""
        if not self.watch_dir:
            return
        watched, ours = Path(self.watch_dir).resolve(), self.data_dir.resolve()
        if watched == ours or watched in ours.parents or ours in watched.parents:
            raise ConfigError(
                f"watch_dir must be apart from data_dir {self.data_dir}, not {self.watch_dir!r}"
            )

    def _check_tls(self) -> None:
        for name, words in (
            ("tls_profile", ("bcp195", "modified")),
            ("tls_client_certificate", ("required", "optional")),
        ):
            if getattr(self, name) not in words:
                raise ConfigError(
                    f"{name} must be {' or '.join(words)}, not {getattr(self, name)!r}"
                )
        names = [each.name for each in self.peers]
        if len(set(names)) < len(names):
            raise ConfigError(f"each of peers must have a name of its own, not {names}")
        sources = [each.name for each in self.sources]
        if len(set(sources)) < len(sources):
            raise ConfigError(f"each of sources must have a name of its own, not {sources}")
        bound = [each.name for each in self.peers if each.certificates]
        if bound and not self.tls_certificate:
            raise ConfigError(
                f"peers {', '.join(bound)} must show a certificate, but tls_certificate is not set"
            )

    @property
    def spool_dir(self) -> Path:
        """Where received instances lie."""
        return self.data_dir / "spool"

    @property
    def results_dir(self) -> Path:
        """Where the results of each job lie, one folder for each job."""
        return self.data_dir / "results"

    @property
    def audit_dir(self) -> Path:
        """Where audit messages lie, one file for each day."""
        return self.data_dir / "audit"

    @property
    def ledger_path(self) -> Path:
        """The SQLite file of the ledger."""
        return self.data_dir / "ledger.sqlite"


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
