"""Slices as pictures: grey values in the protocol's window, outlines in the segments' colours.

Knows pixels and how a radiologist looks at them: as the source is stored, in true proportions,
with letters at the edges that tell the sides. Has never heard of the objects the pictures go into.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from . import grid, typefaces
from .key_slices import KeySlice, volume
from .protocol import Protocol
from .segments import Segment
from .tracing import contours

Colour = tuple[int, int, int]
INK, PAPER, ALARM = (235, 238, 242), (12, 13, 16), (255, 196, 60)
FINER = 2  # lines are drawn at this many times the size, and are smooth when it is reduced
OUTLINED = "Outlined by a computer program, checked by nobody."
SAMPLED = 16  # slices that the percentiles are taken from


@dataclass(frozen=True)
class Scene:
    """An image on its grid and the window to show it in, modality units; made by `scene`."""

    image: hd.Volume
    low: float
    high: float

    @property
    def orientation(self) -> tuple[str, str]:
        """Patient Orientation (0020,0020) of every slice."""
        return grid.orientation(self.image)


def scene(image: hd.Volume, protocol: Protocol) -> Scene:
    """Choose the window: the protocol's, or its percentiles of some slices."""
    return Scene(image, *limits(image, protocol))


def limits(image: hd.Volume, protocol: Protocol) -> tuple[float, float]:
    """Return the lowest and the highest grey value to tell apart, in the image's units."""
    if protocol.window:
        level, width = protocol.window
        return level - width / 2, level + width / 2
    voxels = image.array[:: max(1, len(image.array) // SAMPLED)]
    finite = voxels[np.isfinite(voxels)]
    if not finite.size:
        return 0.0, 1.0
    low, high = np.percentile(finite, protocol.percentiles or (1.0, 99.0))
    return float(low), float(max(high, low + 1e-6))


def picture(seen: Scene, shown: KeySlice, pixels: int) -> Image.Image:
    """Draw one slice with its outlines; `pixels` is the length of the longer side."""
    size = _size(seen.image, pixels * FINER)
    drawn = _grey(seen, shown.index).resize(size, Image.Resampling.BICUBIC).convert("RGB")
    rows, columns = seen.image.spatial_shape[1:]
    scale = np.array([size[0] / columns, size[1] / rows])
    pen, stroke = ImageDraw.Draw(drawn), max(2, round(pixels * FINER / 220))
    for segment, mask in shown.segments:
        for contour in contours(mask):
            line = [(float(x), float(y)) for x, y in contour[:, ::-1] * scale]
            # Dark beside the colour: it must be seen on bone too.
            for colour, width in ((PAPER, 2 * stroke), (segment.target.colour_rgb, stroke)):
                pen.line(line, fill=colour, width=width, joint="curve")
    reduced = drawn.resize(_size(seen.image, pixels), Image.Resampling.LANCZOS)
    _letter(reduced, seen)
    return reduced


def plate(seen: Scene, shown: KeySlice, notice: str, pixels: int) -> Image.Image:
    """Draw a slice that stands alone: a notice above it, name and legend below it."""
    drawn = picture(seen, shown, pixels)
    size = max(14, pixels // 40)
    step = round(size * 1.6)
    lines = -(-len(shown.segments) // 2)
    sheet = Image.new("RGB", (pixels, drawn.height + step * (3 + lines)), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.rectangle((0, 0, pixels, round(step * 1.4)), fill=ALARM)
    _centred(pen, pixels, step, notice, size)
    top = round(step * 1.5)
    sheet.paste(drawn, ((pixels - drawn.width) // 2, top))
    top += drawn.height + step
    typefaces.draw(pen, (size, top), f"{capital(shown.name)}. {OUTLINED}", size, INK)
    for place, (segment, _) in enumerate(shown.segments):
        row, column = divmod(place, 2)
        _entry(
            pen, (size + column * pixels // 2, top + (row + 1) * step), segment, size, pixels // 2
        )
    return sheet


def capital(text: str) -> str:
    """Return the text with a capital letter first."""
    return text[:1].upper() + text[1:]


def _centred(pen: ImageDraw.ImageDraw, pixels: int, base: int, text: str, size: int) -> None:
    while size > 8 and typefaces.width(text, size, typefaces.BOLD) > pixels * 0.96:  # noqa: PLR2004
        size -= 1
    left = (pixels - typefaces.width(text, size, typefaces.BOLD)) / 2
    typefaces.draw(pen, (left, base), text, size, PAPER, weight=typefaces.BOLD)


def _entry(
    pen: ImageDraw.ImageDraw, place: tuple[int, int], segment: Segment, size: int, room: int
) -> None:
    x, y = place
    pen.rectangle((x, y - size * 0.8, x + size * 0.8, y), fill=segment.target.colour_rgb)
    said = f"{segment.target.label}  {volume(segment)}"
    said = typefaces.fitted(said, size, room - 4 * size)
    typefaces.draw(pen, (x + size * 1.4, y), said, size, INK)


def _size(image: hd.Volume, pixels: int) -> tuple[int, int]:
    """Return width and height in pixels, in the proportions of millimetres."""
    rows, columns = image.spatial_shape[1:]
    height, width = rows * image.spacing[1], columns * image.spacing[2]
    scale = pixels / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _grey(seen: Scene, index: int) -> Image.Image:
    values: NDArray[np.float64] = np.asarray(seen.image.array[index], np.float64)
    shade = np.clip((values - seen.low) / (seen.high - seen.low), 0, 1) * 255
    return Image.fromarray(np.nan_to_num(shade).round().astype(np.uint8))


def _letter(drawn: Image.Image, seen: Scene) -> None:
    """Write at each edge where it lies in the patient."""
    size = max(11, max(drawn.size) // 22)
    pen = ImageDraw.Draw(drawn)
    for letters, (x, y) in _edges(seen, drawn.size, size):
        typefaces.draw(pen, (x, y), letters, size, ALARM, weight=typefaces.BOLD, halo=PAPER)


def _edges(
    seen: Scene, drawn: Sequence[int], size: int
) -> Iterator[tuple[str, tuple[float, float]]]:
    width, height = drawn
    right, bottom = seen.orientation
    left, top = grid.opposite(right), grid.opposite(bottom)
    gap = size / 3
    middle = height / 2 + gap
    yield left, (gap, middle)
    yield right, (width - gap - typefaces.width(right, size, typefaces.BOLD), middle)
    for letters, base in ((top, size + gap / 2), (bottom, height - gap)):
        yield letters, ((width - typefaces.width(letters, size, typefaces.BOLD)) / 2, base)
