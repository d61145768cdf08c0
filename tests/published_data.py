"""Tiny data sets in the published layouts, with texts of our own."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHAPE = (1, 4, 8, 8)
VQA = (
    "Image Path",
    "Text",
    "Question Type",
    "Question",
    "Choice A",
    "Choice B",
    "Choice C",
    "Choice D",
    "Answer",
    "Answer Choice",
)
REFSEG = ("Image", "Mask", "Mask_ID", "Question_Type", "Question", "Answer")


def image(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.random.default_rng(seed).random(SHAPE, dtype=np.float32))
    return path


def mask(path: Path, *boxes: tuple[int, int, int, int, int, int], label: int = 1) -> Path:
    """Write a mask with boxes (z0, z1, y0, y1, x0, x1), half open; labels from `label` on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = np.zeros(SHAPE, np.uint8)
    for number, (z0, z1, y0, y1, x0, x1) in enumerate(boxes, label):
        labels[0, z0:z1, y0:y1, x0:x1] = number
    np.save(path, labels if len(boxes) > 1 else labels > 0)
    return path


def nothing(path: Path) -> Path:
    """Write the mask of an absent class, as published."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.zeros((1, 1, 1, 1), np.int8))
    return path


def table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    return path


def listed(path: Path, **content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def edited(path: Path, change: Mapping[str, str]) -> None:
    text = path.read_text(encoding="utf-8")
    for old, new in change.items():
        assert old in text
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


def box(array: NDArray[np.bool_]) -> tuple[float, ...]:
    """Measure a box by its voxels, the last one inside as its end."""
    places = np.argwhere(array.reshape(array.shape[-3:]))
    size = np.array(array.shape[-3:])
    return (*(places.min(0) / size), *(places.max(0) / size))
