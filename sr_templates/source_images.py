"""Which source image a slice of the masks lies on, and how another object refers to it.

Knows positions (PS3.3 C.7.6.2.1.1) of single frames and of the frames of a multi-frame image. By
position and never by index: a stack may be sent in any order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset

from .protocol import TemplateError

TOLERANCE_MM = 0.1


@dataclass(frozen=True)
class SourceImage:
    """One source slice: its instance, and its frame from 1 on if the instance has several."""

    sop_class_uid: str
    sop_instance_uid: str
    frame: int | None
    position: tuple[float, float, float]
    header: Dataset

    @property
    def frames(self) -> list[int] | None:
        """What highdicom takes as referenced frame numbers."""
        return None if self.frame is None else [self.frame]


def by_slice(
    sources: Sequence[Dataset], grid: hd.Volume | hd.VolumeGeometry
) -> tuple[SourceImage, ...]:
    """Return the source image of each slice of `grid`, which has the source's slices.

    Raises
    ------
    TemplateError
        No source image lies where a slice of the grid does, or its pixels lie otherwise.
    """
    _check_pixels(sources[0], grid)
    images = [image for source in sources for image in _images(source)]
    places = np.array([each.position for each in images])
    starts = grid.affine[:3, 3] + np.arange(grid.spatial_shape[0])[:, None] * grid.affine[:3, 0]
    return tuple(_nearest(images, places, start) for start in starts)


def cosines(source: Dataset) -> tuple[float, ...]:
    """Return Image Orientation (Patient) of an image or of its frames (PS3.3 C.7.6.2.1.1)."""
    group = _macro(source, "PlaneOrientationSequence")
    return tuple(float(each) for each in group.ImageOrientationPatient)


def spacing_mm(source: Dataset) -> tuple[float, float]:
    """Return Pixel Spacing of an image or of its frames: between rows, between columns."""
    between_rows, between_columns = _macro(source, "PixelMeasuresSequence").PixelSpacing
    return float(between_rows), float(between_columns)


def _check_pixels(source: Dataset, grid: hd.Volume | hd.VolumeGeometry) -> None:
    """Refuse a grid whose rows and columns are not those of the images: mirrored, or turned."""
    lead = np.array(cosines(source))
    between_rows, between_columns = spacing_mm(source)
    steps = np.stack([lead[3:] * between_rows, lead[:3] * between_columns], 1)
    # At the far corner of a slice the difference adds up to this.
    off_mm = np.abs(grid.affine[:3, 1:3] - steps) @ np.array(grid.spatial_shape[1:])
    if off_mm.max() > TOLERANCE_MM:
        raise TemplateError(
            f"expected the rows and columns of the source, {np.round(steps.T, 4).tolist()} mm, "
            f"got {np.round(grid.affine[:3, 1:3].T, 4).tolist()} mm"
        )


def _macro(source: Dataset, sequence: str) -> Dataset:
    """Return what holds the attributes of a functional group; in a classic image the header."""
    if "PerFrameFunctionalGroupsSequence" not in source:
        return source
    groups = [
        *(source.get("SharedFunctionalGroupsSequence") or []),
        *source.PerFrameFunctionalGroupsSequence,
    ]
    for group in groups:
        if group.get(sequence):
            item: Dataset = group[sequence][0]
            return item
    raise TemplateError(f"expected {sequence} in {source.SOPInstanceUID}")


def _nearest(images: Sequence[SourceImage], places: np.ndarray, start: np.ndarray) -> SourceImage:
    distances = np.linalg.norm(places - start, axis=1)
    nearest = int(distances.argmin())
    if distances[nearest] > TOLERANCE_MM:
        raise TemplateError(
            f"expected a source image at {np.round(start, 2).tolist()} mm, the nearest is "
            f"{distances[nearest]:.2f} mm away"
        )
    return images[nearest]


def _images(source: Dataset) -> list[SourceImage]:
    names = str(source.SOPClassUID), str(source.SOPInstanceUID)
    groups = source.get("PerFrameFunctionalGroupsSequence")
    if not groups:
        return [SourceImage(*names, None, _place(source.ImagePositionPatient), source)]
    return [
        SourceImage(
            *names, frame, _place(group.PlanePositionSequence[0].ImagePositionPatient), source
        )
        for frame, group in enumerate(groups, 1)
    ]


def _place(values: Sequence[float]) -> tuple[float, float, float]:
    left, posterior, head = (float(each) for each in values)
    return left, posterior, head
