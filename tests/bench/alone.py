"""The process in which one piece of work is measured: `-m tests.bench.alone MODULE FUNCTION`.

Prints seconds, the peak of resident memory, and how far that is above what was there before.
"""

import importlib
import json
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

Values = Mapping[str, float]  # by unit

MB = 1024  # of the kB that Linux counts in


def main(module: str, function: str, *arguments: str) -> None:
    values = measure(getattr(importlib.import_module(module), function), *arguments)
    sys.stdout.write(json.dumps(values))


def measure(function: Callable[..., Callable[[], Values | None]], *arguments: str) -> Values:
    """Let `function` prepare the work, and measure that; what the work tells is added."""
    work = function(*arguments)
    # From here on the peak is that of the work. (getrusage would also show what the process that
    # started this one had in memory: Linux hands that on.)
    Path("/proc/self/clear_refs").write_text("5")
    before = _memory("VmRSS")
    start = time.perf_counter()
    told = work() or {}
    seconds = time.perf_counter() - start
    peak = _memory("VmHWM")
    return {"s": seconds, "MB added": max(0, peak - before) / MB, "MB peak": peak / MB} | dict(told)


def _memory(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    (found,) = re.findall(rf"{name}:\s+(\d+) kB", status)
    return int(found)


if __name__ == "__main__":
    main(*sys.argv[1:])
