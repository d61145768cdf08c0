"""The ways in besides C-STORE: STOW-RS, a watched folder, and fetching from a source."""

from .ways_in import stow, threads

__all__ = ["stow", "threads"]
