"""What a command of the command line is: what it says, how it is called, what all of them take.

Knows argparse. Must not know any command.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from dicom_node import config as settings
from dicom_node.config import Config
from dicom_node.errors import ConfigError


@dataclass(frozen=True)
class Outcome:
    """What a command has to say: for a program and for a person."""

    data: Any
    text: str
    exit_code: int = 0


Command = Callable[[argparse.Namespace], Outcome | None]


class UsageError(ConfigError):
    """The command line is not one of ours."""


class Parser(argparse.ArgumentParser):
    """Raises what argparse would print, so that a program gets its document of this error too."""

    def error(self, message: str) -> NoReturn:
        """Refuse a command line; `UsageError` tells what was expected."""
        raise UsageError(f"{message}\n{self.format_usage().rstrip()}")


def verb(verbs: Any, name: str, command: Command, text: str) -> argparse.ArgumentParser:  # noqa: ANN401 - argparse has no public name for it
    """Add a command; return what takes its arguments."""
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text)
    parser.set_defaults(command=command)
    common(parser)
    return parser


def common(parser: argparse.ArgumentParser) -> None:
    """Add what every command takes, before its name and after it."""
    add = partial(parser.add_argument, default=argparse.SUPPRESS)
    add("--config", type=Path, help="TOML file of settings")
    add("--json", action="store_true", dest="as_json", help="machine-readable output")
    add("--verbose", action="store_true", help="log to standard error")


def settings_of(arguments: argparse.Namespace) -> Config:
    """Read the settings that a command is to work with."""
    return settings.load(arguments.config)
