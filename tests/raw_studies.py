"""Raw studies as the published downloads have them: pictures, arrays with sparse masks, NIfTI."""

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.data.studies import Options

Array = NDArray[Any]
GRID = (8, 16, 16)
SMALL = Options("canonical", grid=GRID)


def pictures(folder: Path, slices: Array, suffix: str = "png", first: int = 1) -> None:
    folder.mkdir(parents=True)
    for number, each in enumerate(slices, first):
        Image.fromarray(each).save(folder / f"{number}.{suffix}")


def sparse(folder: Path, masks: Array) -> Path:
    """Write masks (C, x, y, z) as scipy writes sparse rows, their shape in the name."""
    rows = masks.reshape(len(masks), -1)
    ends = np.concatenate([[0], np.cumsum((rows != 0).sum(axis=1))]).astype(np.int32)
    indices = np.nonzero(rows)[1].astype(np.int32)
    path = folder / f"mask_{masks.shape}.npz"
    np.savez_compressed(
        path,
        indices=indices,
        indptr=ends,
        format=np.array(b"csr"),
        shape=np.array(rows.shape),
        data=np.ones(len(indices), np.int32),
    )
    return path


def arrays(root: Path, case: str, image: Array, masks: Array) -> dict[str, str]:
    """Write one study of M3D-Seg as arrays; give its entry of the list."""
    folder = root / case
    folder.mkdir(parents=True)
    np.save(folder / "image.npy", image)
    return {"image": f"{case}/image.npy", "label": f"{case}/{sparse(folder, masks).name}"}


def nifti(path: Path, voxels: Array, affine: Array, *, said: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(voxels, affine)
    image.set_sform(affine, 1 if said else 0)
    image.set_qform(affine, 1 if said else 0)
    nibabel.save(image, path)


def listed(root: Path, code: str, **content: Any) -> None:
    (root / code).mkdir(parents=True, exist_ok=True)
    (root / code / f"{code}.json").write_text(json.dumps(content))


def marked(axes: str) -> tuple[Array, Array, Array]:
    """Make a scan with its axes as told: brighter to the head, back and left, and labels.

    Nothing in it is symmetric: label 1 is a box at foot, front and right, label 2 at head, back
    and left. Gives voxels, labels and the affine (RAS+ millimetres, as NIfTI has it).
    """
    slices, rows, columns = 12, 18, 24
    z, y, x = np.meshgrid(*map(np.arange, (slices, rows, columns)), indexing="ij")
    canonical = (100 + 40 * z + 7 * y + x).astype(np.float32)  # (S, P, L)
    labels = np.zeros(canonical.shape, np.uint8)
    labels[1:4, 2:6, 3:9] = 1
    labels[8:11, 11:17, 15:23] = 2
    # Voxel steps of S, P, L in RAS+ millimetres: P goes against A, L against R.
    steps = {"S": (0, 0, 4.0), "P": (0, -1.5, 0), "L": (-1.25, 0, 0)}
    order = ["SPL".index({"I": "S", "A": "P", "R": "L"}.get(each, each)) for each in axes]
    affine, size = np.eye(4), np.array(canonical.shape)
    corner = np.array([80.0, 60.0, -30.0])  # where voxel (0, 0, 0) of the canonical array lies
    for place, (letter, axis) in enumerate(zip(axes, order, strict=True)):
        step = np.array(steps["SPL"[axis]])
        if letter not in "SPL":  # this axis runs the other way: it begins at the far end
            corner = corner + step * (size[axis] - 1)
            step = -step
        affine[:3, place] = step
    affine[:3, 3] = corner
    flips = [axis for place, axis in enumerate(order) if axes[place] not in "SPL"]
    return (
        np.flip(canonical, flips).transpose(order).copy(),
        np.flip(labels, flips).transpose(order).copy(),
        affine,
    )
