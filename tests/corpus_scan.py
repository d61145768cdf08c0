"""The real scan of the corpus for tests: fetched once into a folder that all tests share."""

from functools import cache
from pathlib import Path

from conftest import missing

from model.data.corpus.scan import Scan
from model.errors import ModelError

CACHE = Path(".cache")


@cache
def real_scan() -> Scan:
    """Load the scan; without a network a skip on a desk, and a failure with CI=true."""
    try:
        return Scan.load(CACHE)
    except ModelError as error:
        missing(f"the scan of the corpus ({error})")
        raise
