"""The main job for somebody who has just cloned, and synthetic patients to try the node with."""

from .demo import run

__all__ = ["run"]
