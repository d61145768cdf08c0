"""Where the numbers of the reference implementation lie that are not ours to copy."""

import os
from pathlib import Path

from conftest import missing


def folder(name: str) -> Path:
    """Find a folder below LAMED_PARITY or beside the repository; a missing one is said."""
    places = [Path(__file__).parents[2] / "shared" / "parity"]
    if os.environ.get("LAMED_PARITY"):
        places.insert(0, Path(os.environ["LAMED_PARITY"]))
    found = [place / name for place in places if (place / name).is_dir()]
    if not found:
        missing(f"the folder parity/{name} of the reference")
    return found[0]
