"""Associations come in: who may, what is negotiated, what is served."""

from .scp import Scp

__all__ = ["Scp"]
