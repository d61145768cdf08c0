"""The picture of a reading: axial slices with the outlines of the masks.

Knows arrays on the canonical grid (foot to head, anterior to posterior, right to left), colours
and labels. Has never heard of DICOM objects. The picture itself says that it is an AI draft.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

TILE = 300  # pixels of a tile's longer side
TILES = 8
COLUMNS = 4
MARGIN = 8
HEAD = 58
LEGEND_ROW = 24
LINE = 2  # pixels
BANNER = "AI DRAFT - not for diagnostic use - unverified"
INK, PAPER, ALARM = (235, 238, 242), (16, 18, 22), (255, 196, 60)


@dataclass(frozen=True)
class Layer:
    """One mask to draw: bool (slices, rows, columns) on the grid of the volume."""

    label: str
    colour_rgb: tuple[int, int, int]
    mask: NDArray[np.bool_]


def montage(
    voxels: NDArray[np.float32],
    spacing_mm: tuple[float, float, float],
    layers: Sequence[Layer],
    *,
    window: tuple[float, float] | None,
    percentiles: tuple[float, float] = (1.0, 99.0),
    note: str = "",
) -> Image.Image:
    """Draw axial slices as a radiologist looks at them, the patient's right on the left.

    Parameters
    ----------
    voxels
        (slices, rows, columns), axes foot to head, anterior to posterior, right to left.
    window
        Level and width in the units of the voxels; None takes the `percentiles`.
    note
        A second line under the banner: which model, whether it is untrained.
    """
    chosen = _slices(len(voxels), layers)
    low, high = _limits(voxels, window, percentiles)
    tiles = [
        _tile(voxels[index], [(each, each.mask[index]) for each in layers], (low, high), spacing_mm)
        for index in chosen
    ]
    for tile, index in zip(tiles, chosen, strict=True):
        _mark(tile, f"slice {index + 1} of {len(voxels)} from the feet")
    return _sheet(tiles, layers, note)


def _slices(count: int, layers: Sequence[Layer]) -> list[int]:
    """Choose the fullest slice of each mask, then fill up evenly over the volume."""
    areas = [each.mask.sum(axis=(1, 2)) for each in layers if each.mask.any()]
    chosen = list(dict.fromkeys(int(area.argmax()) for area in areas))[:TILES]
    even = np.linspace(0, count - 1, TILES + 2)[1:-1].round().astype(int).tolist()
    while len(chosen) < min(TILES, count):
        free = [index for index in [*even, *range(count)] if index not in chosen]
        chosen.append(free[0])
    return sorted(chosen)


def _limits(
    voxels: NDArray[np.float32],
    window: tuple[float, float] | None,
    percentiles: tuple[float, float],
) -> tuple[float, float]:
    if window is not None:
        level, width = window
        return level - width / 2, level + width / 2
    low, high = np.percentile(voxels[:: max(1, len(voxels) // 16)], percentiles)
    return float(low), float(max(high, low + 1e-6))


def _tile(
    pixels: NDArray[np.float32],
    layers: Sequence[tuple[Layer, NDArray[np.bool_]]],
    limits: tuple[float, float],
    spacing_mm: tuple[float, float, float],
) -> Image.Image:
    height_mm, width_mm = pixels.shape[0] * spacing_mm[1], pixels.shape[1] * spacing_mm[2]
    scale = TILE / max(height_mm, width_mm)
    size = (max(1, round(width_mm * scale)), max(1, round(height_mm * scale)))
    grey = np.clip((pixels - limits[0]) / (limits[1] - limits[0]), 0, 1) * 255
    drawn = Image.fromarray(grey.astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
    canvas = np.array(drawn.convert("RGB"), dtype=np.float32)
    for layer, mask in layers:
        # By area, so that no mask is too small to be seen.
        grown = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)
        shape = np.array(grown) > 0
        colour = np.array(layer.colour_rgb, dtype=np.float32)
        canvas[shape] = 0.75 * canvas[shape] + 0.25 * colour
        canvas[_outline(shape)] = colour
    tile = Image.new("RGB", (TILE, TILE), PAPER)
    tile.paste(
        Image.fromarray(canvas.astype(np.uint8)), ((TILE - size[0]) // 2, (TILE - size[1]) // 2)
    )
    return tile


def _outline(shape: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Give the pixels of a shape that are within `LINE` pixels of its outside."""
    inside = shape
    for _ in range(LINE):
        padded = np.pad(inside, 1)
        inside = (
            inside & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        )
    return shape & ~inside


def _mark(tile: Image.Image, text: str) -> None:
    draw = ImageDraw.Draw(tile)
    middle = TILE // 2 - 8
    for place, said, colour, size in (
        ((6, 4), text, INK, 12),
        ((6, middle), "R", ALARM, 16),
        ((TILE - 16, middle), "L", ALARM, 16),
    ):
        # Dark around each letter: it must be read on bone too.
        draw.text(place, said, colour, _font(size), stroke_width=2, stroke_fill=PAPER)


def _sheet(tiles: Sequence[Image.Image], layers: Sequence[Layer], note: str) -> Image.Image:
    columns = min(COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    legend = LEGEND_ROW * -(-max(1, len(layers)) // columns) + MARGIN
    step = TILE + MARGIN
    # One tile alone is narrower than the words that must stand above it.
    width = MARGIN + max(columns * step, round(_font(20).getlength(BANNER)) + MARGIN)
    sheet = Image.new("RGB", (width, HEAD + rows * step + legend), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, 6), BANNER, fill=ALARM, font=_font(20))
    draw.text((MARGIN, 34), _fitted(note, width - 2 * MARGIN), fill=INK, font=_font(14))
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        sheet.paste(tile, (MARGIN + column * step, HEAD + row * step))
    _legend(draw, layers, HEAD + rows * step, columns)
    return sheet


def _legend(draw: ImageDraw.ImageDraw, layers: Sequence[Layer], top: int, columns: int) -> None:
    if not layers:
        draw.text((MARGIN, top), "no mask was drawn", fill=INK, font=_font(14))
    for index, layer in enumerate(layers):
        row, column = divmod(index, columns)
        x, y = MARGIN + column * (TILE + MARGIN), top + row * LEGEND_ROW
        draw.rectangle((x, y + 2, x + 14, y + 16), fill=layer.colour_rgb)
        said = layer.label if layer.mask.any() else f"{layer.label} (nothing)"
        draw.text((x + 22, y), _fitted(said, TILE - 22), fill=INK, font=_font(14))


def _fitted(text: str, width: int) -> str:
    """Cut a text to a width in pixels, and show that it is cut."""
    font = _font(14)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text} ...") > width:
        text = text[:-1]
    return f"{text} ..."


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
