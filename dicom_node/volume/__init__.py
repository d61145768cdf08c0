"""The instances of one series -> one volume, and masks back on its slices."""

from .volume import SourceVolume, load

__all__ = ["SourceVolume", "load"]
