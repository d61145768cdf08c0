"""What a checkpoint is called and which weights it holds; written into everything it makes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """The identity of a checkpoint.

    `sha256` covers the weights, `untrained` says that its answers mean nothing.
    """

    name: str
    version: str
    sha256: str
    untrained: bool
