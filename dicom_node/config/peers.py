"""A peer that may call, and its certificate: who it is, from where, as which AE titles, how often.

Knows how ``[[peers]]`` is written in settings. Must not know sockets, TLS or who decides.
"""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Self

from dicom_node.errors import ConfigError

from .destinations import check_ae_title

MOST_A_MINUTE: Final = 100_000
MOST_ASSOCIATIONS: Final = 1000
KINDS: Final = ("sha256", "cn", "san")


@dataclass(frozen=True)
class Identity:
    """What a verified certificate says of its holder.

    `common_name` of the subject, the `names` it holds for (SAN: DNS, IP address, URI, mail), and
    the SHA-256 fingerprint of the whole certificate, in hexadecimal without colons.
    """

    sha256: str
    common_name: str = ""
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.common_name or '/'.join(self.names) or 'no name'} (sha256:{self.sha256})"

    @property
    def marks(self) -> frozenset[str]:
        """How settings may name this certificate, in small letters."""
        named = {f"san:{each.lower()}" for each in self.names}
        if self.common_name:
            named.add(f"cn:{self.common_name.lower()}")
        return frozenset(named | {f"sha256:{self.sha256.lower()}"})


@dataclass(frozen=True)
class Peer:
    """One ``[[peers]]`` table: an empty list is no condition, a limit of 0 is none.

    Raises
    ------
    ConfigError
        A field is not as it must be; the message names the peer and the field.
    """

    name: str
    ae_titles: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    certificates: tuple[str, ...] = ()
    maximum_associations: int = 0
    associations_per_minute: int = 0
    allowed: bool = True

    def __post_init__(self) -> None:
        _check_name(self.name)
        for title in self.ae_titles:
            check_ae_title(f"ae_titles of peer {self.name}", title)
        for each in self.addresses:
            self._check_network(each)
        for each in self.certificates:
            self._check_certificate(each)
        self._check_limit("maximum_associations", MOST_ASSOCIATIONS)
        self._check_limit("associations_per_minute", MOST_A_MINUTE)
        if not isinstance(self.allowed, bool):
            raise ConfigError(f"allowed of peer {self.name} must be true or false")

    def __str__(self) -> str:
        lists = (self.ae_titles, self.addresses, self.certificates)
        told = " ".join("/".join(each) for each in lists if each)
        return f"{self.name}{'' if self.allowed else ' REFUSED'}: {told or 'anyone'}"

    @classmethod
    def read(cls, value: object) -> Self:
        """Read a table ``[[peers]]`` of the settings file."""
        names = {each.name for each in fields(cls)}
        if not isinstance(value, Mapping) or "name" not in value or set(value) - names:
            raise ConfigError(
                "a peer is a table [[peers]] of the settings file with a name and perhaps"
                f" {', '.join(sorted(names - {'name'}))}, not {value!r}"
            )
        held: dict[str, Any] = {key: _frozen(str(key), each) for key, each in value.items()}
        return cls(**held)

    @property
    def networks(self) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        """The addresses, as networks."""
        return tuple(ipaddress.ip_network(each) for each in self.addresses)

    @property
    def marks(self) -> frozenset[str]:
        """The certificates, as `Identity.marks` writes them."""
        return frozenset(_mark(each) for each in self.certificates)

    def _check_network(self, text: object) -> None:
        try:
            ipaddress.ip_network(str(text))
        except ValueError as error:
            raise ConfigError(
                f"addresses of peer {self.name} must be IP addresses or networks such as"
                f" 192.0.2.0/24, not {text!r}"
            ) from error

    def _check_certificate(self, text: object) -> None:
        kind, _, rest = str(text).partition(":")
        fits = kind in KINDS and bool(rest.strip())
        if kind == "sha256":
            fits = bool(re.fullmatch(r"[0-9a-fA-F]{64}", rest.replace(":", "")))
        if not fits:
            raise ConfigError(
                f"certificates of peer {self.name} must be sha256:FINGERPRINT, cn:NAME or san:NAME,"
                f" not {text!r}"
            )

    def _check_limit(self, name: str, most: int) -> None:
        value = getattr(self, name)
        if type(value) is not int or not 0 <= value <= most:
            raise ConfigError(
                f"{name} of peer {self.name} must be a whole number, 0 to {most}, not {value!r}"
            )


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not re.fullmatch(r"\S(.{0,62}\S)?", name):
        raise ConfigError(f"the name of a peer must be 1-64 characters, not {name!r}")


def _mark(text: str) -> str:
    kind, _, rest = text.partition(":")
    return f"{kind}:{(rest.replace(':', '') if kind == 'sha256' else rest.strip()).lower()}"


def _frozen(key: str, value: object) -> object:
    if key not in {"ae_titles", "addresses", "certificates"}:
        return value
    if not isinstance(value, list):
        raise ConfigError(f"{key} of a peer must be a list, not {value!r}")
    return tuple(value)
