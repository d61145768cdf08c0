"""Instances lie on the disk as they came; what is read of them on the way, and room for them."""

from .spool import IMPLEMENTATION_NAME, IMPLEMENTATION_UID, Announced, Spool

__all__ = ["IMPLEMENTATION_NAME", "IMPLEMENTATION_UID", "Announced", "Spool"]
