"""A peer that gets results and what it can show; a site's own description of what one can show.

Knows how both are written in settings. Must not know what a profile holds: its name and its fields
are checked where `sr_templates` is known, when the node starts.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final, Self

from .errors import ConfigError

DEFAULT_PROFILE: Final = "generic-pacs"
TEXT: Final = "text:"  # before a folder: where a draft goes as plain text


@dataclass(frozen=True)
class Destination:
    """A peer that receives results: AE title, host name or address, port, and its profile."""

    ae_title: str
    host: str
    port: int
    profile: str = DEFAULT_PROFILE

    def __post_init__(self) -> None:
        check_ae_title("the ae_title of a destination", self.ae_title)
        check_host("the host of a destination", self.host)
        if type(self.port) is not int or not 1 <= self.port <= 65535:  # noqa: PLR2004 - TCP's range
            raise ConfigError(
                f"the port of a destination must be a whole number, 1 to 65535, not {self.port!r}"
            )
        _check_name("the profile of a destination", self.profile)

    def __str__(self) -> str:
        shown = "" if self.profile == DEFAULT_PROFILE else f"/{self.profile}"
        return f"{self.ae_title}@{self.host}:{self.port}{shown}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``AET@HOST:PORT`` or ``AET@HOST:PORT/PROFILE``; IPv6 may stand in brackets."""
        # An AE title may hold an @, a host may not.
        form = r"(.+)@(\[[^@\[\]]+\]|[^@\[\]]+):([0-9]{1,5})(?:/([^/]*))?"
        match = re.fullmatch(form, text.strip())
        if match is None:
            raise ConfigError(
                f"a destination is AET@HOST:PORT or AET@HOST:PORT/PROFILE, not {text!r}"
            )
        profile = DEFAULT_PROFILE if match[4] is None else match[4]
        return cls(match[1], match[2].strip("[]"), int(match[3]), profile)

    @classmethod
    def read(cls, value: object) -> Self:
        """Read a destination from a text, or from a table of the settings file."""
        if isinstance(value, str):
            return cls.parse(value)
        names = {each.name for each in fields(cls)}
        if not isinstance(value, dict) or set(value) | {"profile"} != names:
            raise ConfigError(
                f"a destination has ae_title, host, port and perhaps profile, not {value!r}"
            )
        return cls(**value)


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
