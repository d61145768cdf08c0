"""Seconds and memory until a CT series is one float32 array in Hounsfield units.

Bare numpy is the floor: it knows beforehand where every number stands and checks nothing.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from .lab import OURS, Lab, files

BENCH = "volume"


def run(lab: Lab) -> None:
    slices, size = lab.size(200, 8), lab.size(512, 64)
    folder = lab.ct(slices, size)
    subjects = {OURS: ours, "numpy frombuffer": bare, "highdicom": highdicom}
    for path in files(folder):
        path.read_bytes()  # everybody finds the files in the page cache
    lab.turns(
        BENCH,
        f"{slices} x {size} x {size}",
        {name: partial(lab.alone, function, folder) for name, function in subjects.items()},
    )


def ours(folder: str) -> Callable[[], None]:
    from dicom_node import volume

    paths = list(files(Path(folder)))
    volume.load(paths[:3])  # what is loaded at its first use

    def work() -> None:
        volume.load(paths)

    return work


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

    return work


def highdicom(folder: str) -> Callable[[], None]:
    import highdicom as hd
    import numpy as np
    from pydicom import dcmread

    paths = list(files(Path(folder)))
    hd.get_volume_from_series([dcmread(path) for path in paths[:3]])  # as for ours

    def work() -> None:
        hd.get_volume_from_series([dcmread(path) for path in paths], dtype=np.float32)

    return work
