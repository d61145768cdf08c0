"""Raw downloads as arrays: stacks of pictures, sparse masks, NIfTI with its orientation.

Knows file formats and patient axes. An axis is named by the way it goes: S to the head, P to the
back, L to the patient's left; "SPL" is slices foot to head, rows anterior to posterior, columns
right to left. Has never heard of the network's grid.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import nibabel
import numpy as np
from nibabel.orientations import (
    aff2axcodes,
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from numpy.typing import NDArray
from PIL import Image

from .sample import DataError

CANONICAL: Final = "SPL"
PICTURES: Final = (".jpeg", ".jpg", ".png")
EIGHT_BIT: Final = 255.0
SHORTEST_REPORT: Final = 5  # letters: less is no report
HEADINGS: Final = ("study_findings:", "discussion:")
SHAPE: Final = re.compile(r"\(([\d, ]+)\)")
STRAIGHT: Final = 0.8  # cosine: an axis further from a patient axis (37 degrees) has no name
DIMENSIONS: Final = 3


@dataclass(frozen=True)
class Stack:
    """Pictures of one size, (slices, rows, columns) float32 0..1, and which were of another."""

    voxels: NDArray[np.float32]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Scan:
    """An array with axes as its letters say, and the patient position of its voxels in mm."""

    voxels: NDArray[Any]
    affine: NDArray[np.float64]

    def turned(self, axes: str = CANONICAL) -> "Scan":
        """Turn the axes: no voxel changes its value or its place in the patient."""
        turn = ornt_transform(io_orientation(self.affine), axcodes2ornt(tuple(axes)))
        affine = self.affine @ inv_ornt_aff(turn, self.voxels.shape)
        return Scan(apply_orientation(self.voxels, turn), affine)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance of neighbours along each axis."""
        z, y, x = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(z), float(y), float(x)


def pictures(folder: Path) -> Stack:
    """Read numbered pictures as a stack, in the order of their numbers.

    Raises
    ------
    DataError
        There is none, one has no number or cannot be read, or has more than eight bits.
    """
    files = [each for each in folder.iterdir() if each.suffix.lower() in PICTURES]
    if not files:
        raise DataError(folder, None, f"pictures ({', '.join(PICTURES)})", "none")
    for each in files:
        if not each.stem.isdecimal():
            raise DataError(each, None, "a number as the name of a picture", each.stem)
    slices = {each: _picture(each) for each in sorted(files, key=lambda each: int(each.stem))}
    [(shape, _)] = Counter(each.shape for each in slices.values()).most_common(1)
    voxels = np.stack([each for each in slices.values() if each.shape == shape])
    return Stack(voxels, tuple(path.name for path, each in slices.items() if each.shape != shape))


def report(text: str) -> str:
    """Take the findings out of a Radiopaedia text: the first heading that has any."""
    for heading in HEADINGS:
        _, found, after = text.partition(heading)
        flat = (after if found else text).replace("\n", " ").strip()
        if len(flat.replace(" ", "")) >= SHORTEST_REPORT:
            return flat
    return text.replace("\n", " ").strip()


def without_accents(name: str) -> str:
    """Spell a name as the published lists do: o for ö."""
    parts = unicodedata.normalize("NFD", name)
    return "".join(each for each in parts if unicodedata.category(each) != "Mn")


def classes(path: Path, image: tuple[int, ...]) -> Iterator[NDArray[np.bool_]]:
    """Read the masks of M3D-Seg one by one: sparse rows, their shape in the file's name.

    Each is of the shape that stands in ``mask_(C, x, y, z).npz`` behind the C, which must be that
    of its `image`.
    """
    match = SHAPE.search(path.name)
    shape = tuple(map(int, match[1].split(","))) if match else ()
    if shape[1:] != image:
        raise DataError(path, None, f"(C, x, y, z) with {image} in the file's name", path.name)
    with np.load(path, allow_pickle=False) as file:
        held = {name: file[name] for name in file.files}
    count, size = shape[0], int(np.prod(shape[1:]))
    kind = held.get("format", np.array(b"")).item()
    if kind not in (b"csr", "csr") or tuple(held["shape"]) != (count, size):
        raise DataError(path, None, f"a sparse CSR array {count, size}", f"{kind!r}")
    for first, last in zip(held["indptr"][:-1], held["indptr"][1:], strict=True):
        mask = np.zeros(size, dtype=np.bool_)
        mask[held["indices"][first:last][held["data"][first:last] != 0]] = True
        yield mask.reshape(shape[1:])


def array(path: Path) -> NDArray[Any]:
    """Read an image of M3D-Seg: (1, x, y, z), given as (x, y, z)."""
    voxels = np.load(path, allow_pickle=False)
    if voxels.ndim != 1 + DIMENSIONS or voxels.shape[0] != 1 or voxels.dtype.kind not in "iuf":
        raise DataError(path, None, "numbers (1, x, y, z)", f"{voxels.dtype} {voxels.shape}")
    return np.asarray(voxels[0])


def nifti(path: Path) -> Scan:
    """Read a NIfTI volume as it lies in the file, (x, y, z).

    Raises
    ------
    DataError
        It has not three axes.
    """
    file = nibabel.load(path)
    voxels = np.asarray(file.dataobj)
    while voxels.ndim > DIMENSIONS and voxels.shape[-1] == 1:
        voxels = voxels[..., 0]
    if voxels.ndim != DIMENSIONS or 0 in voxels.shape:
        raise DataError(path, None, "a volume (x, y, z)", f"{voxels.shape}")
    return Scan(voxels, np.asarray(file.affine, dtype=np.float64))


def placed(path: Path) -> Scan:
    """Read a NIfTI volume whose orientation is known.

    Raises
    ------
    DataError
        It says nowhere how it lies in the patient, says it in two ways that differ, or lies
        across the patient's axes.
    """
    scan, header = nifti(path), nibabel.load(path).header
    said = {
        name: matrix
        for name in ("qform", "sform")
        if (matrix := getattr(header, f"get_{name}")(coded=True)[0]) is not None
    }
    if not said:
        raise DataError(path, None, "an orientation (qform_code or sform_code)", "neither")
    sizes = np.linalg.norm(scan.affine[:3, :3], axis=0)
    if not np.isfinite(scan.affine).all() or not sizes.all():
        raise DataError(path, None, "voxels with a size", f"{sizes}")
    ways = {name: "".join(map(str, aff2axcodes(matrix))) for name, matrix in said.items()}
    if len(set(ways.values())) > 1:
        raise DataError(path, None, "one orientation", f"{ways}")
    cosines = np.abs(scan.affine[:3, :3] / sizes)
    if cosines.max(axis=0).min() < STRAIGHT or cosines.max(axis=1).min() < STRAIGHT:
        raise DataError(path, None, "axes along the patient's", np.array2string(cosines))
    return scan


def oriented(voxels: NDArray[Any], axes: str) -> NDArray[Any]:
    """Turn an array whose axes are told, not read."""
    turn = ornt_transform(axcodes2ornt(tuple(axes)), axcodes2ornt(tuple(CANONICAL)))
    return np.asarray(apply_orientation(voxels, turn))


def same_place(path: Path, scan: Scan, other: Scan) -> None:
    """Make sure that a mask lies on its image: the same voxels, within half of one.

    Raises
    ------
    DataError
        It has another shape, or lies elsewhere.
    """
    if scan.voxels.shape != other.voxels.shape:
        raise DataError(path, None, f"shape {other.voxels.shape}", f"{scan.voxels.shape}")
    corners = np.array(np.meshgrid(*[(0, each - 1) for each in scan.voxels.shape])).reshape(3, -1)
    ends = np.vstack([corners, np.ones(corners.shape[1])])
    apart = np.linalg.norm(((scan.affine - other.affine) @ ends)[:3], axis=0).max()
    if apart > min(other.spacing_mm) / 2:
        raise DataError(path, None, "a mask that lies on its image", f"{apart:.1f} mm away")


def _picture(path: Path) -> NDArray[np.float32]:
    try:
        with Image.open(path) as picture:
            if picture.mode.startswith(("I", "F")):
                raise DataError(path, None, "a picture of eight bits", f"mode {picture.mode}")
            grey = np.asarray(picture.convert("L"))
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(path, None, "a picture", f"{type(error).__name__}: {error}") from error
    return (grey / np.float32(EIGHT_BIT)).astype(np.float32)
