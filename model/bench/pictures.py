"""Slices with the true outline and the drawn one, as PNG that a page can hold.

Knows volumes and masks on the grid an image came from. Rows run from anterior to posterior and
columns from the patient's right to left, so that slices show as a radiologist looks at them;
the coronal one has the head above.
"""

import base64
import io
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_dilation, binary_erosion

from .geometry import Mask

HEIGHT: Final = 260  # pixels
DASH: Final = 5
TRUE_COLOUR: Final = (64, 224, 255)  # dashed
DRAWN_COLOUR: Final = (255, 150, 0)
Grey = NDArray[np.floating[Any]]
Colours = NDArray[np.uint8]


def outlined(
    image: Grey, truth: Mask, drawn: Mask | None, spacing_mm: Sequence[float] | None
) -> str:
    """Show side by side the axial and the coronal slice with most of both outlines.

    Parameters
    ----------
    image
        (slices, rows, columns) in 0..1.
    drawn
        None where nothing was drawn.

    Returns
    -------
    A ``data:`` URI of a PNG.
    """
    said = np.zeros_like(truth) if drawn is None else drawn
    z_mm, y_mm, x_mm = spacing_mm or (max(1.0, truth.shape[1] / truth.shape[0]), 1.0, 1.0)
    z, y = _fullest(truth, said, 0), _fullest(truth, said, 1)
    axial = _slice(image[z], truth[z], said[z], (y_mm, x_mm))
    flipped = slice(None, None, -1)
    coronal = _slice(image[flipped, y], truth[flipped, y], said[flipped, y], (z_mm, x_mm))
    return uri(np.concatenate([axial, np.zeros((HEIGHT, 4, 3), np.uint8), coronal], axis=1))


def _fullest(truth: Mask, said: Mask, axis: int) -> int:
    """Give the slice with most of both; of several such, as a box has, the middle one."""
    others = tuple({0, 1, 2} - {axis})
    held = truth.sum(axis=others) + said.sum(axis=others)
    best = np.flatnonzero(held == held.max())
    return int(best[len(best) // 2])


def uri(pixels: Colours) -> str:
    """Write pixels (rows, columns, 3) as a PNG in a ``data:`` URI."""
    file = io.BytesIO()
    Image.fromarray(pixels).convert("P", palette=Image.Palette.ADAPTIVE).save(
        file, "PNG", optimize=True
    )
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _slice(image: Grey, truth: Mask, drawn: Mask, pixel_mm: tuple[float, float]) -> Colours:
    """Draw one slice, with square pixels."""
    rows, columns = image.shape
    width = round(HEIGHT * columns * pixel_mm[1] / (rows * pixel_mm[0]))
    grey = (np.clip(image, 0, 1) * 255).astype(np.uint8)
    shown = np.array(_resized(grey, width).convert("RGB"))
    outline = _outline(truth, width)
    y, x = np.indices(outline.shape)
    shown[outline & ((x + y) // DASH % 2 == 0)] = TRUE_COLOUR
    shown[_outline(drawn, width)] = DRAWN_COLOUR
    return shown


def _resized(grey: NDArray[np.uint8], width: int) -> Image.Image:
    return Image.fromarray(grey).resize((max(width, 1), HEIGHT), Image.Resampling.BILINEAR)


def _outline(mask: Mask, width: int) -> Mask:
    """Give the border of a mask, two pixels wide, smooth as the image is."""
    large = np.asarray(_resized(mask.astype(np.uint8) * 255, width)) > 127  # noqa: PLR2004 - half
    return np.asarray(binary_dilation(large) & ~binary_erosion(large, border_value=1))
