"""Results are brought to every destination, until it is proven that they are there."""

from .delivery import deliver, run

__all__ = ["deliver", "run"]
