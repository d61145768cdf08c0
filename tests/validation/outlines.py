"""Whether a SEG has the voxels that were planted, where they were: by dcmqi and by highdicom.

Compares sets of places in the patient, in whole hundredths of a millimetre; knows neither our
writer nor the order of anybody's frames.
"""

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

from .programs import SEGIMAGE2ITKIMAGE

Places = set[tuple[int, ...]]
HALF = 0.5  # of a probability: above it the outline holds the voxel


def compare(paths: Sequence[Path], planted: Mapping[str, hd.Volume], reader: str) -> list[str]:
    """Say of each segment of one or several SEG objects what is not where it was planted.

    Parameters
    ----------
    paths
        All parts of one segmentation.
    planted
        By Segment Label.
    reader
        ``highdicom`` or ``dcmqi``.
    """
    read = {"highdicom": by_highdicom, "dcmqi": by_dcmqi}[reader]
    found: dict[str, Places] = {}
    for path in paths:
        for label, places in read(path).items():
            found.setdefault(label, set()).update(places)
    wanted = {label: where(mask.affine, mask.array != 0) for label, mask in planted.items()}
    wanted = {label: places for label, places in wanted.items() if places}
    return [
        f"{label}: of {len(wanted.get(label, ()))} voxels {len(lost)} are not read, "
        f"and {len(more)} others are"
        for label in sorted(wanted.keys() | found.keys())
        for lost in [wanted.get(label, set()) - found.get(label, set())]
        for more in [found.get(label, set()) - wanted.get(label, set())]
        if lost or more
    ]


def by_highdicom(path: Path) -> dict[str, Places]:
    seg = hd.seg.segread(path)
    found = {}
    for number in seg.segment_numbers:
        if number:  # 0 is the background of a map
            read = seg.get_volume(segment_numbers=[number], rescale_fractional=False)
            label = seg.get_segment_description(number).segment_label
            array = read.array[..., 0]
            found[label] = where(read.affine, array > _threshold(seg))
    return found


def by_dcmqi(path: Path) -> dict[str, Places]:
    """Read the images that dcmqi makes: one for each segment, or one of their numbers."""
    folder = path.with_suffix(".nrrd")
    folder.mkdir(exist_ok=True)
    SEGIMAGE2ITKIMAGE.run("--inputDICOM", path, "--outputDirectory", folder, "-t", "nrrd")
    seg = dcmread(path, stop_before_pixels=True)
    labels = [each.SegmentLabel for each in seg.SegmentSequence if each.SegmentNumber]
    images = [nrrd(each) for each in sorted(folder.glob("*.nrrd"), key=_number)]
    if seg.SegmentationType == "LABELMAP":
        return {
            label: where(matrix, voxels == number)
            for matrix, voxels in images
            for number, label in enumerate(labels, 1)
        }
    level = _threshold(seg)
    return {
        label: where(matrix, voxels > level)
        for label, (matrix, voxels) in zip(labels, images, strict=False)
    }


def nrrd(path: Path) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Return the matrix to patient coordinates (LPS, mm) and the voxels by (x, y, z)."""
    head, _, body = path.read_bytes().partition(b"\n\n")
    fields = dict(line.split(": ", 1) for line in head.decode().splitlines() if ": " in line)
    kind = {"short": "<i2", "unsigned char": "u1", "float": "<f4"}[fields["type"]]
    sizes = [int(each) for each in fields["sizes"].split()]
    vectors = [*fields["space directions"].split(), fields["space origin"]]
    matrix = np.eye(4)
    matrix[:3] = np.array([each.strip("()").split(",") for each in vectors], float).T
    return matrix, np.frombuffer(gzip.decompress(body), kind).reshape(sizes, order="F")


def where(matrix: NDArray[np.float64], mask: NDArray[np.bool_]) -> Places:
    places = np.argwhere(mask) @ matrix[:3, :3].T + matrix[:3, 3]
    return set(map(tuple, np.rint(places * 100).astype(int).tolist()))


def _threshold(seg: Dataset) -> float:
    return HALF * int(seg.get("MaximumFractionalValue") or 0)


def _number(path: Path) -> int:
    return int("".join(filter(str.isdigit, path.stem)) or 0)
