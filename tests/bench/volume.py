"""Seconds and memory until a CT series is one float32 array in Hounsfield units.

Bare numpy is the floor: it knows beforehand where every number stands and checks nothing. Headers
are made of their series' first one when results are written: the time with them is told too. Each
has read the series once before: memory that a virtual machine never used is slow the first time.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from .lab import OURS, Lab, files

BENCH = "volume"


def run(lab: Lab) -> None:
    slices, size = lab.size(200, 8), lab.size(512, 64)
    folder = lab.ct(slices, size)
    subjects = {
        OURS: ours,
        "numpy frombuffer": bare,
        "ours, with every header": with_headers,
        "highdicom": highdicom,
    }
    for path in files(folder):
        path.read_bytes()  # everybody finds the files in the page cache
    lab.turns(
        BENCH,
        f"{slices} x {size} x {size}",
        {name: partial(lab.alone, function, folder) for name, function in subjects.items()},
    )


def ours(folder: str, *, headers: bool = False) -> Callable[[], None]:
    from dicom_node import volume

    paths = list(files(Path(folder)))

    def work() -> None:
        found = volume.load(paths)
        if headers:
            found.sources  # noqa: B018 - made when they are asked for

    work()
    return work


def with_headers(folder: str) -> Callable[[], None]:
    return ours(folder, headers=True)


def bare(folder: str) -> Callable[[], None]:
    import numpy as np

    paths = list(files(Path(folder)))
    header = paths[0].read_bytes()
    size = 1 << (((len(header) // 2).bit_length() - 1) // 2)  # the greatest square that fits

    def work() -> None:
        made = np.empty((len(paths), size, size), np.float32)
        for each, path in zip(made, paths, strict=True):
            data = path.read_bytes()
            offset = len(data) - 2 * size * size  # pixels are the last element
            each[...] = np.frombuffer(data, "<u2", offset=offset).reshape(size, size)
        made -= 1024

    work()
    return work


def highdicom(folder: str) -> Callable[[], None]:
    import highdicom as hd
    import numpy as np
    from pydicom import dcmread

    paths = list(files(Path(folder)))

    def work() -> None:
        hd.get_volume_from_series([dcmread(path) for path in paths], dtype=np.float32)

    work()
    return work
