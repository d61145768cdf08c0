"""How a grid of voxels lies in the patient, and how an image is turned onto it.

Knows axes (PS3.3 C.7.6.2.1.1) and nothing of what the voxels are.
"""

from collections.abc import Sequence

import highdicom as hd
import numpy as np
from numpy.typing import NDArray

from .protocol import TemplateError

LETTERS = (("R", "L"), ("A", "P"), ("F", "H"))  # where each patient axis comes from, and goes to
OPPOSITE = str.maketrans("RLAPFH", "LRPAHF")
SLANTED = 0.25  # an axis that an edge leans to by some 15 degrees is told too


def aligned(image: hd.Volume, grid: hd.Volume) -> hd.Volume:
    """Turn an image to the orientation of a grid, voxel for voxel.

    Raises
    ------
    TemplateError
        The image does not lie on the voxels of the grid.
    """
    try:
        turned = image.match_geometry(grid)
    except RuntimeError as error:
        raise TemplateError(f"the image does not lie on the masks' grid: {error}") from error
    # `match_geometry` also crops and pads, and lets another spacing pass.
    same_size = sorted(image.spatial_shape) == sorted(grid.spatial_shape)
    if not same_size or not turned.geometry_equal(grid):
        raise TemplateError(
            f"expected an image on the masks' grid of {grid.spatial_shape} voxels, "
            f"got {image.spatial_shape} voxels of {image.spacing} mm"
        )
    return turned


def as_stored(image: hd.Volume, cosines: Sequence[float]) -> hd.Volume:
    """Turn an image so that its slices are those of the source.

    `cosines` are those of a row and of a column (PS3.3 C.7.6.2.1.1): where the column index leads
    to, and then the row index.
    """
    axes = np.asarray(image.affine)[:3, :3] / np.asarray(image.spacing)
    leads = np.array([cosines[3:], cosines[:3]], float) @ axes
    rows, columns = (int(each) for each in np.abs(leads).argmax(axis=1))
    if rows == columns:
        raise TemplateError(f"expected an image along the source's rows and columns, {leads}")
    turned = image.permute_spatial_axes([3 - rows - columns, rows, columns])
    reverse = [axis for axis, lead in ((1, leads[0, rows]), (2, leads[1, columns])) if lead < 0]
    return turned.flip_spatial(reverse) if reverse else turned


def orientation(grid: hd.Volume | hd.VolumeGeometry) -> tuple[str, str]:
    """Return Patient Orientation (0020,0020) of a slice: where its rows and its columns lead."""
    axes = np.asarray(grid.affine)[:3, :3]
    return _towards(axes[:, 2]), _towards(axes[:, 1])


def opposite(letters: str) -> str:
    """Return the letters of the other end."""
    return letters.translate(OPPOSITE)


def _towards(step: NDArray[np.float64]) -> str:
    """Name the direction of a step in patient coordinates: what it leans to most comes first."""
    direction = step / np.linalg.norm(step)
    order = np.argsort(-np.abs(direction), kind="stable")
    return "".join(
        LETTERS[axis][int(direction[axis] > 0)] for axis in order if abs(direction[axis]) >= SLANTED
    )
