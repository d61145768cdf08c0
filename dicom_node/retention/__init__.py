"""What leaves the node: by age, by size, or because a person asks for it."""

from .erasure import resume
from .leaving import PATIENCE_S, alone
from .retention import Going, plan, recover, run, sweep

__all__ = ["PATIENCE_S", "Going", "alone", "plan", "recover", "resume", "run", "sweep"]
