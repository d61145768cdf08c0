"""The node is broken on purpose: fuzzing, crashes and a soak. `python -m tests.breaking --help`."""

from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
CORPUS = ROOT / "tests" / "data" / "fuzz"
