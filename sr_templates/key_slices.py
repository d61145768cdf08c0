"""The slices that show what was outlined: on which a segment is largest, and what else is there.

Knows segments and source images; how the slices are drawn, marked or referred to is the business
of the modules beside it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from . import foreign
from .document import Document
from .segments import Outlines, Segment
from .source_images import SourceImage, by_slice

SMALL_ML = 10  # below it, volumes are shown with two decimals


@dataclass(frozen=True)
class KeySlice:
    """One slice of the grid, `index` from 0 on, and the image that it was read from.

    `largest`: the segments that are largest here. `segments`: all that are here, with their masks
    (rows, columns).
    """

    index: int
    image: SourceImage
    largest: tuple[Segment, ...]
    segments: tuple[tuple[Segment, NDArray[np.bool_]], ...]

    @property
    def name(self) -> str:
        """What a viewer calls this slice."""
        if self.image.frame is not None:
            return f"frame {self.image.frame}"
        number = self.image.header.get("InstanceNumber")
        return f"slice {self.index + 1}" if number is None else f"image {number}"

    @property
    def shown(self) -> str:
        """What is largest on this slice, for a list."""
        return f"{self.name}: {', '.join(each.target.label for each in self.largest)}"


def find(outlines: Outlines, document: Document) -> tuple[KeySlice, ...]:
    """Return the key slices in the order of the grid: at least one, and at most one a segment."""
    images = by_slice(document.sources, outlines.labels)
    wanted = {each.key_slice for each in outlines.segments}
    return tuple(_outlined(index, images[index], outlines) for index in sorted(wanted))


def _outlined(index: int, image: SourceImage, outlines: Outlines) -> KeySlice:
    labels = outlines.labels.array[index]
    masks = [(each, labels == each.number) for each in outlines.segments]
    return KeySlice(
        index=index,
        image=image,
        largest=tuple(each for each in outlines.segments if each.key_slice == index),
        segments=tuple((each, mask) for each, mask in masks if mask.any()),
    )


def bare(places: Iterable[int], geometry: hd.Volume, document: Document) -> tuple[KeySlice, ...]:
    """Return slices of a grid on which nothing is outlined."""
    images = by_slice(document.sources, geometry)
    return tuple(KeySlice(index, images[index], (), ()) for index in places)


def headers(slices: Sequence[KeySlice]) -> list[Dataset]:
    """Return the headers of the images of these slices, each once and fit to inherit from."""
    found = {each.image.sop_instance_uid: each.image.header for each in slices}
    return [foreign.header(each) for each in found.values()]


def volume(segment: Segment) -> str:
    """Return the volume of a segment as it is shown to people."""
    return f"{segment.volume_ml:.{0 if segment.volume_ml >= SMALL_ML else 2}f} mL"
