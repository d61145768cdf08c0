"""A source that studies are fetched from, and that says how many instances a study has.

Knows how ``[[sources]]`` is written in settings. Must not know sockets, or how a study is fetched.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

from dicom_node.errors import ConfigError

from .destinations import Destination

DIMSE: Final = ("c-get", "c-move")
WADO: Final = "wado-rs"
PLACE: Final = ("ae_title", "host", "port", "tls", "url", "token_file", "user_file")
NAME: Final = r"\S(.{0,62}\S)?"


@dataclass(frozen=True)
class Source:
    """One ``[[sources]]`` table: a name, where it is, and how it is asked.

    `peer` is written as a destination is: ae_title, host, port, perhaps tls; or url, perhaps
    token_file or user_file. `method` is ``c-get`` or ``c-move``, with a url ``wado-rs``.
    `expects` has it asked how many instances each study has that is being received.

    Raises
    ------
    ConfigError
        A field is not as it must be; the message names the source and the field.
    """

    name: str
    peer: Destination
    method: str
    expects: bool = False

    def __post_init__(self) -> None:
        _check_name(self.name)
        methods = (WADO,) if self.peer.url else DIMSE
        if self.method not in methods:
            raise ConfigError(
                f"the method of source {self.name} must be {' or '.join(methods)},"
                f" not {self.method!r}"
            )
        if type(self.expects) is not bool:
            raise ConfigError(f"expects of source {self.name} must be true or false")

    def __str__(self) -> str:
        return f"{self.name}: {self.peer} by {self.method}"

    @classmethod
    def read(cls, value: object) -> Self:
        """Read a table ``[[sources]]`` of the settings file."""
        own = {"name", "method", "expects"}
        if not isinstance(value, Mapping) or "name" not in value or set(value) - own - set(PLACE):
            raise ConfigError(
                "a source is a table [[sources]] of the settings file with a name, with ae_title,"
                " host, port and perhaps tls, or with url and perhaps token_file or user_file; and"
                f" perhaps method and expects, not {value!r}"
            )
        peer = Destination.read({key: each for key, each in value.items() if key in PLACE})
        method = value.get("method", WADO if peer.url else DIMSE[0])
        return cls(value["name"], peer, method, value.get("expects", False))


def named(known: Sequence[Source], name: str) -> Source:
    """Find a source by its name; raises `ConfigError` if there is none."""
    for each in known:
        if each.name == name:
            return each
    told = ", ".join(each.name for each in known) or "none is set"
    raise ConfigError(f"no source is called {name!r}; [[sources]] has {told}")


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        raise ConfigError(f"the name of a source must be 1-64 characters, not {name!r}")
