"""The instances of one CT or MR series -> one volume feet first, and masks back on its slices.

Knows which images are read at all, how stored numbers become modality units (PS3.3 C.11.1), and
the way between the source's grid and the one the model sees. Where planes lie is decided in
`geometry`, how bytes become integers in `pixels`. Knows nothing of questions or answers. What is
not surely right is refused with a reason.
"""

import itertools
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    MRImageStorage,
)

from dicom_node.errors import UnusableSeries

from .geometry import Grid, Plane, regular_grid
from .headers import Headers, macro
from .opening import foreign_header, open_instances
from .pixels import LAYOUT, Instance, Stored, shared

log = logging.getLogger(__name__)

CLASSES: Final = frozenset(
    {
        CTImageStorage,
        EnhancedCTImageStorage,
        LegacyConvertedEnhancedCTImageStorage,
        MRImageStorage,
        EnhancedMRImageStorage,
        LegacyConvertedEnhancedMRImageStorage,
    }
)
ORIENTATION: Final = "HPL"
"""Slices go from foot to head, rows from anterior to posterior, columns from right to left."""

REQUIRED: Final = (
    "SOPInstanceUID",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
)
"""Without these nothing can be read; the other attributes have their own reasons."""

NAMED: Final = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")
"""What the results refer to; only the last two have their own reasons to be missing."""

ALIKE: Final = frozenset(
    {
        *LAYOUT,
        "FrameOfReferenceUID",
        "FrameType",
        "ImageOrientationPatient",
        "ImageType",
        "Modality",
        "PatientID",
        "PerFrameFunctionalGroupsSequence",
        "PhotometricInterpretation",
        "PixelPaddingRangeLimit",
        "PixelPaddingValue",
        "PixelSpacing",
        "RescaleIntercept",
        "RescaleSlope",
        "SOPClassUID",
        "SeriesInstanceUID",
        "SharedFunctionalGroupsSequence",
        "StudyInstanceUID",
    }
)
"""All that is read of a header but for the name and the place of its instance. Of instances that
have this in common, to the last byte, only the first is asked for it."""

MOST_VOXELS: Final = 1 << 31
"""8 GB of float32; a whole body of 2,000 slices with 1,024 x 1,024 pixels fits."""

Values = NDArray[np.float32]
Mask = NDArray[np.bool_] | NDArray[np.uint8]


@dataclass(frozen=True)
class SourceVolume:
    """One series as the model sees it, and the way back to the grid it was sent on.

    Parameters
    ----------
    image
        float32 (slices, rows, columns) in modality units (HU for CT), axes foot to head, anterior
        to posterior, right to left; of an oblique series the axes nearest to these.
    grid
        Shape and affine of the slices as they were sent.
    headers
        What `sources` are made of.
    """

    image: hd.Volume
    grid: hd.VolumeGeometry
    headers: Headers

    @cached_property
    def sources(self) -> list[Dataset]:
        """Headers without pixels, in source slice order, made when they are first asked for.

        One if the series is one multi-frame instance. Positions and directions are those of the
        regular grid, free of the rounding that they were sent with, so that what is drawn on the
        grid refers to its slices.
        """
        with foreign_header("broken-header"):
            return self.headers.straight()

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Return the spacing of `image` between slices, rows and columns."""
        slices, rows, columns = self.image.spacing
        return float(slices), float(rows), float(columns)

    def on_source(self, mask: Mask) -> hd.Volume:
        """Put a mask (slices, rows, columns) on `image`'s grid back on the source's slices.

        No voxel is interpolated: axes are exchanged and turned as the two affines say.
        """
        return self.image.with_array(mask).match_geometry(self.grid)


def load(instances: Sequence[Path | Dataset]) -> SourceVolume:
    """Stack one CT or MR series into one volume, feet first.

    Parameters
    ----------
    instances
        Every instance of the series, in any order: single frames, or one multi-frame instance. A
        repeated instance counts once.

    Raises
    ------
    UnusableSeries
        With one of the reasons in `geometry` and `pixels`, or: two-series, unsupported-class,
        not-an-image, localizer, colour, inverted-grey, duplicate-position, several-stacks,
        illegal-uid, no-geometry, no-rescale, broken-header, too-large.
    """
    with foreign_header("broken-header"):
        opened = _once(open_instances(instances, ALIKE))
        _check_series(opened)
        for each in opened:
            _check_names(each)
            _check_image(each)
        _check_size(opened)
        frames = _frames(opened)
        planes = [each.plane for each in frames]
    grid = regular_grid(planes)
    image = _blank(grid, planes[0].frame_of_reference_uid)
    source = hd.VolumeGeometry(
        grid.affine, grid.shape, "PATIENT", frame_of_reference_uid=image.frame_of_reference_uid
    )
    # The image's own memory, seen as the source's slices: what is written there lands turned.
    slices = image.match_geometry(source).array
    places = np.argsort(grid.order)
    with foreign_header("broken-header"):
        _fill([slices[place] for place in places], frames)
    log.info("volume.loaded", extra={"shape": image.spatial_shape, "spacing_mm": image.spacing})
    return SourceVolume(image, source, Headers([each.read for each in opened], grid))


@dataclass(frozen=True)
class _Frame:
    """One slice of the series, as a frame of an instance."""

    instance: Instance
    index: int
    first: "_Frame | None" = None
    """That of the instance that this one's is like; None: it is a first."""

    def macro(self, sequence: str) -> Dataset:
        """Return what holds the attributes of a functional group, empty if there is none."""
        return macro(self.instance.header, self.index, sequence)

    def numbers(self, sequence: str, keyword: str, count: int) -> tuple[float, ...]:
        """Return an attribute of exactly `count` finite numbers."""
        try:
            found = (
                self.macro(sequence)[keyword].value
                if self.first is None
                else self.instance.get(keyword)
            )
            values = tuple(float(each) for each in found)
        except (KeyError, TypeError, ValueError):
            values = ()
        if len(values) != count or not all(map(math.isfinite, values)):
            raise UnusableSeries(
                "no-geometry", f"{keyword} of {self.instance.uid} is not {count} numbers"
            )
        return values

    @property
    def plane(self) -> Plane:
        """Return where it lies; refuse what is no slice of a stack."""
        plane = self._first_plane
        if self.first is None:
            return plane
        position = self.numbers("PlanePositionSequence", "ImagePositionPatient", 3)
        return replace(plane, position=position)

    @shared
    def _first_plane(self) -> Plane:
        header = self.instance.header
        kind = self.macro(f"{header.Modality}ImageFrameTypeSequence").get("FrameType") or ()
        if "LOCALIZER" in (*kind, *(header.get("ImageType") or ())):
            raise UnusableSeries("localizer", f"{self.instance.uid} is a localizer")
        spacing = self.numbers("PixelMeasuresSequence", "PixelSpacing", 2)
        if min(spacing) <= 0:
            raise UnusableSeries("no-geometry", f"pixels of {spacing} mm in {self.instance.uid}")
        return Plane(
            position=self.numbers("PlanePositionSequence", "ImagePositionPatient", 3),
            cosines=self.numbers("PlaneOrientationSequence", "ImageOrientationPatient", 6),
            spacing_mm=spacing,
            shape=self.instance.shape,
            frame_of_reference_uid=str(header.get("FrameOfReferenceUID") or ""),
        )

    @shared
    def rescale(self) -> tuple[float, float]:
        """Return slope and intercept (PS3.3 C.11.1.1.2); without them values are as stored."""
        macro = self.macro("PixelValueTransformationSequence")
        try:
            slope = float(1 if macro.get("RescaleSlope") is None else macro.RescaleSlope)
            intercept = float(macro.get("RescaleIntercept") or 0)
        except (TypeError, ValueError) as error:
            raise UnusableSeries("no-rescale", f"in {self.instance.uid}: {error}") from error
        if slope == 0:
            raise UnusableSeries("no-rescale", f"the slope is 0 in {self.instance.uid}")
        return slope, intercept

    @shared
    def padding(self) -> list[int] | None:
        """Return the limits of what is padding (PS3.3 C.7.5.1.1.2); None if there is none."""
        header = self.instance.header
        value = header.get("PixelPaddingValue")
        return None if value is None else [value, header.get("PixelPaddingRangeLimit", value)]


def _frames(opened: Sequence[Instance]) -> list[_Frame]:
    firsts: dict[Instance | None, _Frame] = {
        each.first: _Frame(each.first, 0) for each in opened if each.first is not None
    }
    return [
        _Frame(each, index, firsts.get(each.first))
        for each in opened
        for index in range(each.frame_count)
    ]


def _once(opened: Sequence[Instance]) -> list[Instance]:
    """Drop repeats of the same instance."""
    kept: dict[str, Instance] = {}
    for each in opened:
        known = kept.setdefault(each.uid, each)
        if known is not each and known.header != each.header:
            raise UnusableSeries("duplicate-position", f"two different instances are {each.uid}")
    return list(kept.values())


def _check_series(opened: Sequence[Instance]) -> None:
    if not opened:
        raise UnusableSeries("too-few-slices", "there is no instance")
    firsts = list(dict.fromkeys(each.first or each for each in opened))
    for each in firsts:
        if each.header.get("SOPClassUID") not in CLASSES:
            kind = UID(each.header.get("SOPClassUID", "")).name or "no SOP class"
            raise UnusableSeries("unsupported-class", f"expected CT or MR images, got {kind}")
    for keyword in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID"):
        if len({each.header.get(keyword) for each in firsts}) > 1:
            raise UnusableSeries("two-series", f"the instances differ in {keyword}")
    if len(opened) > 1 and any(each.frame_count > 1 for each in opened):
        raise UnusableSeries(
            "several-stacks", f"expected one multi-frame instance, got {len(opened)} instances"
        )


def _asked(instance: Instance, keywords: Iterable[str]) -> list[str]:
    """Leave out what was asked of the first instance that this one is like."""
    return [each for each in keywords if instance.first is None or each not in ALIKE]


def _check_names(instance: Instance) -> None:
    """Refuse UIDs that are none (PS3.5 9.1).

    Results that refer to them would be invalid, and lead nowhere if the UIDs were mended.
    """
    for keyword in _asked(instance, NAMED):
        value = str(instance.get(keyword) or "")
        if not UID(value).is_valid and (value or keyword in NAMED[:2]):
            raise UnusableSeries(
                "illegal-uid",
                f"{keyword} must be up to 64 digits and dots without leading zeros, "
                f"not {value!r} in {instance.uid}",
            )


def _check_image(instance: Instance) -> None:
    """Refuse what is no plain grey slice of the patient."""
    for keyword in _asked(instance, REQUIRED):
        if instance.get(keyword) in (None, ""):
            raise UnusableSeries("not-an-image", f"{keyword} is missing in {instance.uid}")
    if instance.first is not None:
        return
    header = instance.header
    if header.SamplesPerPixel != 1 or not header.PhotometricInterpretation.startswith("MONO"):
        raise UnusableSeries(
            "colour", f"{instance.uid} is {header.PhotometricInterpretation}, not grey"
        )
    if header.PhotometricInterpretation == "MONOCHROME1":
        # Original slices are never written so. Whether the numbers or only their display are
        # inverted is not sure enough to show them to a model that knows bright as bright.
        raise UnusableSeries("inverted-grey", f"{instance.uid} shows high values as dark")
    if not header.BitsStored <= header.HighBit + 1 <= header.BitsAllocated:
        raise UnusableSeries(
            "undecodable",
            f"{header.BitsStored} bits below bit {header.HighBit} of {header.BitsAllocated} "
            f"in {instance.uid}",
        )
    groups = header.get("PerFrameFunctionalGroupsSequence")
    if groups is not None and len(groups) < instance.frame_count:
        raise UnusableSeries(
            "no-geometry", f"{instance.frame_count} frames, but places for {len(groups)}"
        )


def _check_size(opened: Sequence[Instance]) -> None:
    """Refuse what no memory holds, or what the files do not, before any of it is allocated."""
    claimed = sum(each.pixel_count for each in opened)
    if claimed > MOST_VOXELS:
        raise UnusableSeries("too-large", f"{claimed} voxels are claimed, at most {MOST_VOXELS}")
    for each in opened:
        each.check_length()


def _blank(grid: Grid, frame_of_reference_uid: str) -> hd.Volume:
    """Return an image without values yet, turned to the model's orientation."""
    turned = hd.VolumeGeometry(grid.affine, grid.shape, "PATIENT").to_patient_orientation(
        ORIENTATION
    )
    return hd.Volume(
        np.empty(turned.spatial_shape, np.float32),
        turned.affine,
        "PATIENT",
        frame_of_reference_uid=frame_of_reference_uid,
    )


def _fill(slices: Sequence[Values], frames: Sequence[_Frame]) -> None:
    """Decode every frame into its slice.

    Padding is what lies outside the scanned field and measures nothing; a CT may write -3024
    there. It becomes the lowest value that was measured in the series: darker than all, yet no
    stretch of the range that percentiles and minima see.
    """
    padded = []
    room = bytearray(slices[0].nbytes)  # for any frame: pixels have at most 32 bits
    stored = itertools.chain.from_iterable(
        frame.instance.frames(room) for frame in frames if frame.index == 0
    )
    for target, frame, values in zip(slices, frames, stored, strict=True):
        padding = _convert(target, values, frame)
        if padding is not None:
            target[padding] = np.nan
            padded.append(target)
    if padded:
        floor = min(np.fmin.reduce(each, axis=None, initial=np.inf) for each in slices)
        for target in padded:
            target[np.isnan(target)] = floor if np.isfinite(floor) else 0


def _convert(target: Values, stored: Stored, frame: _Frame) -> NDArray[np.bool_] | None:
    """Write a frame in modality units; tell which pixels are padding, None if none is."""
    slope, intercept = frame.rescale
    padding = _padding(stored, frame)
    target[...] = frame.instance.significant(stored)
    if slope != 1:
        target *= slope
    if intercept:
        target += intercept
    return padding


def _padding(stored: Stored, frame: _Frame) -> NDArray[np.bool_] | None:
    if frame.padding is None:
        return None
    # Signed pixels with an unsigned padding value are common: compare the bits, not the numbers.
    low, high = sorted(np.array(frame.padding, np.int64).astype(stored.dtype))
    padding: NDArray[np.bool_] = (stored >= low) & (stored <= high)
    return padding if padding.any() else None
