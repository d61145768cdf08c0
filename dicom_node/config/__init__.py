"""What is set for a node, by whom, and within which limits."""

from .config import Config, Destination, SiteProfile, describe, load

__all__ = ["Config", "Destination", "SiteProfile", "describe", "load"]
