"""A peer that gets results and what it can show; a site's own description of what one can show.

Knows how both are written in settings. Must not know what a profile holds: its name and its fields
are checked where `sr_templates` is known, when the node starts.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Final, Self

from dicom_node.errors import ConfigError

DEFAULT_PROFILE: Final = "generic-pacs"
TEXT: Final = "text:"  # before a folder: where a draft goes as plain text
# auto: commitment if the peer takes it in negotiation, and a query if it takes that; none: the
# peer's answer to the store is all there is.
PROOFS: Final = ("auto", "commitment", "query", "none")
MOST_ATTEMPTS: Final = 1000
URL: Final = r"https?://[^\s/?#@,]+(/[^\s?#@,]*)?"


@dataclass(frozen=True)
class Destination:
    """A peer that receives results: by DIMSE under its AE title, or by STOW-RS under a URL.

    With `url` (PS3.18 10.5, its base, as ``https://pacs.example/dicom-web``) there are no AE title,
    host and port. `token_file` holds a bearer token, `user_file` a line ``USER:PASSWORD``; they are
    read anew for each delivery. `proof` is what makes a delivery delivered, see `PROOFS`;
    `attempts` is how often it is tried, 0 for the node's own `delivery_attempts`.
    """

    ae_title: str = ""
    host: str = ""
    port: int = 0
    profile: str = DEFAULT_PROFILE
    tls: bool = False
    url: str = ""
    token_file: str = ""
    user_file: str = ""
    proof: str = "auto"
    attempts: int = 0

    def __post_init__(self) -> None:
        if self.url:
            self._check_url()
        else:
            self._check_peer()
        _check_name("the profile of a destination", self.profile)
        if self.proof not in PROOFS:
            words = ", ".join(PROOFS)
            raise ConfigError(f"the proof of {self} must be one of {words}, not {self.proof!r}")
        if type(self.attempts) is not int or not 0 <= self.attempts <= MOST_ATTEMPTS:
            raise ConfigError(
                f"the attempts of {self} must be a whole number, 0 to {MOST_ATTEMPTS},"
                f" not {self.attempts!r}"
            )

    def _check_peer(self) -> None:
        check_ae_title("the ae_title of a destination", self.ae_title)
        check_host("the host of a destination", self.host)
        if type(self.port) is not int or not 1 <= self.port <= 65535:  # noqa: PLR2004 - TCP's range
            raise ConfigError(
                f"the port of a destination must be a whole number, 1 to 65535, not {self.port!r}"
            )
        if type(self.tls) is not bool:
            raise ConfigError(f"the tls of a destination must be true or false, not {self.tls!r}")
        if self.token_file or self.user_file:
            raise ConfigError(f"{self}: token_file and user_file are for a destination with a url")

    def _check_url(self) -> None:
        if not re.fullmatch(URL, str(self.url)):
            raise ConfigError(
                "the url of a destination must be http:// or https:// with a host, and neither"
                f" query nor user, not {self.url!r}"
            )
        if self.ae_title or self.host or self.port or self.tls:
            raise ConfigError(
                f"{self}: a destination has a url, or ae_title, host, port and perhaps tls"
            )
        if self.proof == "commitment":
            raise ConfigError(f"{self}: over HTTP the proof is auto, query or none")
        for each in (self.token_file, self.user_file):
            if not isinstance(each, str):
                raise ConfigError(f"{self}: token_file and user_file name a file, not {each!r}")
        if self.token_file and self.user_file:
            raise ConfigError(f"{self} has a token_file or a user_file, not both")

    def __str__(self) -> str:
        shown = "" if self.profile == DEFAULT_PROFILE else self.profile
        if self.url:
            return f"{self.url}#{shown}" if shown else self.url
        secured = "+tls" if self.tls else ""
        return f"{self.ae_title}@{self.host}:{self.port}{secured}" + (f"/{shown}" if shown else "")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``AET@HOST:PORT``, ``AET@HOST:PORT/PROFILE``, or a URL, ``URL#PROFILE``.

        IPv6 may stand in brackets; ``PORT+tls`` speaks TLS.
        """
        url, _, profile = text.strip().partition("#")
        if re.match(r"https?://", url):
            return cls(url=url, profile=profile or DEFAULT_PROFILE)
        # An AE title may hold an @, a host may not.
        form = r"(.+)@(\[[^@\[\]]+\]|[^@\[\]]+):([0-9]{1,5})(\+tls)?(?:/([^/]*))?"
        match = re.fullmatch(form, text.strip())
        if match is None:
            raise ConfigError(
                f"a destination is AET@HOST:PORT or AET@HOST:PORT/PROFILE, not {text!r}"
            )
        profile = DEFAULT_PROFILE if match[5] is None else match[5]
        return cls(match[1], match[2].strip("[]"), int(match[3]), profile, tls=bool(match[4]))

    @classmethod
    def read(cls, value: object) -> Self:
        """Read a destination from a text, or from a table of the settings file."""
        if isinstance(value, str):
            return cls.parse(value)
        names = [each.name for each in fields(cls)]
        given = set(value) if isinstance(value, dict) else set()
        if not isinstance(value, dict) or given - set(names) or not _is_whole(given):
            raise ConfigError(
                "a destination has ae_title, host, port and perhaps"
                f" {', '.join(each for each in names[3:] if each != 'url')}; or url in their place,"
                f" not {value!r}"
            )
        return cls(**value)


def named(known: Sequence[Destination], name: str) -> Destination:
    """Find a destination by how it is written in the ledger; one that is no longer set is read.

    Raises
    ------
    ConfigError
        It is none.
    """
    return next((each for each in known if str(each) == name), None) or Destination.parse(name)


def _is_whole(given: set[str]) -> bool:
    return {"ae_title", "host", "port"} <= given or "url" in given


@dataclass(frozen=True)
class SiteProfile:
    """A profile that a site describes: `like` another one, with what is `changed`, by field."""

    name: str
    like: str = DEFAULT_PROFILE
    changed: tuple[tuple[str, object], ...] = ()

    def __post_init__(self) -> None:
        _check_name("the name of a profile", self.name)
        _check_name(f"what profile {self.name} is like", self.like)

    def __str__(self) -> str:
        told = "".join(f" {key}={value}" for key, value in self.changed)
        return f"{self.name} like {self.like}{told}"

    @classmethod
    def read(cls, value: object) -> Self:
        """Read a table ``[[profiles]]`` of the settings file."""
        if not isinstance(value, Mapping) or "name" not in value:
            raise ConfigError(
                "a profile is a table [[profiles]] of the settings file with a name, perhaps like,"
                f" and what differs, not {value!r}"
            )
        rest = {key: each for key, each in value.items() if key not in {"name", "like"}}
        changed = tuple((key, _frozen(each)) for key, each in sorted(rest.items()))
        return cls(value["name"], value.get("like", DEFAULT_PROFILE), changed)


def check_ae_title(name: str, title: object) -> None:
    """Refuse what is no AE title.

    PS3.5 6.2: 1-16 characters of the default repertoire without backslash and control; spaces
    around it do not count, so none are taken.
    """
    fits = isinstance(title, str) and re.fullmatch(r"[\x20-\x5b\x5d-\x7e]{1,16}", title)
    if not fits or title != str(title).strip():
        raise ConfigError(
            f"{name} must be an AE title of 1-16 characters without spaces around, not {title!r}"
        )


def check_host(name: str, host: object) -> None:
    """Refuse what is no host name and no address."""
    if not isinstance(host, str) or not re.fullmatch(r"[^\s@\[\],]+", host):
        raise ConfigError(f"{name} must be a host name or an address, not {host!r}")


def _check_name(what: str, name: object) -> None:
    # It becomes part of a label, where dots and bare numbers have a meaning of their own.
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9-]{0,31}", name):
        raise ConfigError(
            f"{what} must be 1-32 characters a-z, 0-9 and -, the first a letter, not {name!r}"
        )


def _frozen(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value
