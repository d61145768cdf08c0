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
        shape = np.array(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST), dtype=bool)
        colour = np.array(layer.colour_rgb, dtype=np.float32)
        canvas[shape] = 0.75 * canvas[shape] + 0.25 * colour
        canvas[_outline(shape)] = colour
    tile = Image.new("RGB", (TILE, TILE), PAPER)
    tile.paste(
        Image.fromarray(canvas.astype(np.uint8)), ((TILE - size[0]) // 2, (TILE - size[1]) // 2)
    )
    return tile


def _outline(shape: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Give the pixels of a shape that touch its outside."""
    padded = np.pad(shape, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return shape & ~inside


def _mark(tile: Image.Image, text: str) -> None:
    draw = ImageDraw.Draw(tile)
    draw.text((6, 4), text, fill=INK, font=_font(12))
    draw.text((6, TILE // 2 - 8), "R", fill=ALARM, font=_font(16))
    draw.text((TILE - 16, TILE // 2 - 8), "L", fill=ALARM, font=_font(16))


def _sheet(tiles: Sequence[Image.Image], layers: Sequence[Layer], note: str) -> Image.Image:
    rows = -(-len(tiles) // COLUMNS)
    columns = min(COLUMNS, len(tiles))
    head, legend = 58, 24 * (-(-max(1, len(layers)) // COLUMNS)) + MARGIN
    width = columns * (TILE + MARGIN) + MARGIN
    sheet = Image.new("RGB", (width, head + rows * (TILE + MARGIN) + legend), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, 6), BANNER, fill=ALARM, font=_font(20))
    draw.text((MARGIN, 34), note, fill=INK, font=_font(14))
    for index, tile in enumerate(tiles):
        row, column = divmod(index, COLUMNS)
        sheet.paste(tile, (MARGIN + column * (TILE + MARGIN), head + row * (TILE + MARGIN)))
    _legend(draw, layers, head + rows * (TILE + MARGIN), (width - MARGIN) // columns)
    return sheet


def _legend(draw: ImageDraw.ImageDraw, layers: Sequence[Layer], top: int, step: int) -> None:
    if not layers:
        draw.text((MARGIN, top), "no mask was drawn", fill=INK, font=_font(14))
    per_row = max(1, COLUMNS)
    for index, layer in enumerate(layers):
        row, column = divmod(index, per_row)
        x, y = MARGIN + column * step, top + row * 24
        draw.rectangle((x, y + 2, x + 14, y + 16), fill=layer.colour_rgb)
        draw.text((x + 22, y), layer.label, fill=INK, font=_font(14))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
