"""What each series of a study says about itself, as far as choosing one needs it.

Knows pydicom and the headers of stored instances; one that cannot be read is told, not raised.
Never decodes pixels, and knows no protocol: what is done with a series is decided in `routing`.
"""

import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset

from .instance import Instance

log = logging.getLogger(__name__)

# PS3.4 B.5: the image storage classes of CT and MR; what else has these modalities is no volume.
VOLUMES = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.2",  # CT
        "1.2.840.10008.5.1.4.1.1.2.1",  # Enhanced CT
        "1.2.840.10008.5.1.4.1.1.2.2",  # Legacy Converted Enhanced CT
        "1.2.840.10008.5.1.4.1.1.4",  # MR
        "1.2.840.10008.5.1.4.1.1.4.1",  # Enhanced MR
        "1.2.840.10008.5.1.4.1.1.4.4",  # Legacy Converted Enhanced MR
    }
)
KEYWORDS = (
    "Modality",
    "SeriesDescription",
    "StudyDescription",
    "ProtocolName",
    "BodyPartExamined",
    "ImageType",
    "NumberOfFrames",
    "SliceThickness",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "ConvolutionKernel",
    # Enhanced objects keep geometry in the functional groups (PS3.3 C.7.6.16).
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)
TAGS = [tag for tag in map(tag_for_keyword, KEYWORDS) if tag is not None]
AXIAL = 0.8  # cosine between the slice normal and the patient's long axis
SAME_MM = 0.01  # positions nearer than this are one


@dataclass(frozen=True)
class SeriesSummary:
    """What one series says about itself; text is as sent, empty when absent."""

    uid: str
    modality: str
    sop_class_uid: str
    description: str = ""
    study_description: str = ""
    protocol_name: str = ""
    body_part: str = ""
    image_type: tuple[str, ...] = ()
    sop_uids: tuple[str, ...] = ()  # of its images; what else lies in the series is left out
    slices: int = 0  # frames of all its images
    positions: int | None = None  # different places of them; None: not said
    slice_thickness_mm: float | None = None  # None: not said
    axial: bool | None = None  # None: no orientation
    kernel: str = ""
    unreadable: str = ""  # why its headers cannot be read

    @property
    def instance_count(self) -> int:
        """Count its images."""
        return len(self.sop_uids)


def summarize(instances: Sequence[Instance]) -> list[SeriesSummary]:
    """Read the headers of a study and tell of each series, in the order of their UIDs.

    Every header of a CT or MR series is read, because only all of them tell whether several
    images lie at one place; of any other series none is.
    """
    ordered = sorted(instances, key=lambda each: (each.series_uid, each.sop_uid))
    return [
        _summary(uid, list(members))
        for uid, members in groupby(ordered, key=lambda each: each.series_uid)
    ]


def _summary(uid: str, members: Sequence[Instance]) -> SeriesSummary:
    classes = Counter(each.sop_class_uid for each in members)
    sop_class_uid = max(classes, key=lambda each: (each in VOLUMES, classes[each]))
    images = [each for each in members if each.sop_class_uid == sop_class_uid]
    middle, sop_uids = images[len(images) // 2], tuple(each.sop_uid for each in images)
    known = SeriesSummary(
        uid,
        middle.modality,
        sop_class_uid,
        study_description=middle.study_description,
        sop_uids=sop_uids,
    )
    if sop_class_uid not in VOLUMES:
        return known
    try:
        return _told(known, [_header(each) for each in images])
    except Exception as error:  # noqa: BLE001 - the edge of one series: the others are to be read
        log.warning("series.unreadable", extra={"series": uid, "error": type(error).__name__})
        why = f"{type(error).__name__} in one of its {len(images)} headers"
        return replace(known, unreadable=why)


def _told(known: SeriesSummary, headers: Sequence[Dataset]) -> SeriesSummary:
    """Add what the headers say; the one in the middle speaks for the series."""
    header = headers[len(headers) // 2]
    places = [place for each in headers for place in _places(each)]
    return replace(
        known,
        modality=_text(header, "Modality"),
        description=_text(header, "SeriesDescription"),
        study_description=_text(header, "StudyDescription"),
        protocol_name=_text(header, "ProtocolName"),
        body_part=_text(header, "BodyPartExamined"),
        # Of any of its images: one localizer among them spoils the volume.
        image_type=tuple(dict.fromkeys(v for each in headers for v in _texts(each, "ImageType"))),
        slices=sum(frames for _, frames in places),
        positions=None if any(at is None for at, _ in places) else len({at for at, _ in places}),
        slice_thickness_mm=_thickness(header),
        axial=_axial(header),
        kernel=" ".join(_texts(header, "ConvolutionKernel")),
    )


def _header(instance: Instance) -> Dataset:
    return pydicom.dcmread(instance.path, stop_before_pixels=True, specific_tags=TAGS)


def _value(header: Dataset, keyword: str) -> Any:  # noqa: ANN401 - pydicom's values are of any type
    """Give a value; what cannot be understood counts as absent."""
    try:
        return header.get(keyword)
    except Exception:  # noqa: BLE001 - the edge: pydicom raises whatever a broken value makes it
        return None


def _texts(header: Dataset, keyword: str) -> tuple[str, ...]:
    value = _value(header, keyword)
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(map(str, value))


def _text(header: Dataset, keyword: str) -> str:
    # A description with a backslash has several values in many archives, though it must not.
    return " ".join(_texts(header, keyword)).strip()


def _numbers(value: object) -> tuple[float, ...] | None:
    try:
        numbers = tuple(map(float, value))  # type: ignore[call-overload]
    except (TypeError, ValueError):
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def _places(header: Dataset) -> Iterator[tuple[tuple[int, ...] | None, int]]:
    """Tell where frames lie, in steps of `SAME_MM`, None where it is not said; and how many do."""
    groups = _value(header, "PerFrameFunctionalGroupsSequence")
    if not groups:
        # The number is only a claim: nothing of its size is made.
        yield _place(header), _frame_count(header)
        return
    for group in groups:
        yield _place(_item(group, "PlanePositionSequence")), 1


def _place(plane: Dataset) -> tuple[int, ...] | None:
    position = _numbers(_value(plane, "ImagePositionPatient"))
    return None if position is None else tuple(round(each / SAME_MM) for each in position)


def _frame_count(header: Dataset) -> int:
    count = _numbers([_value(header, "NumberOfFrames")])
    return max(1, int(count[0])) if count else 1


def _item(group: Dataset, keyword: str) -> Dataset:
    """Give the only item of a functional group's macro; empty if it has none."""
    items = _value(group, keyword)
    return items[0] if items else Dataset()


def _shared(header: Dataset, macro: str, keyword: str) -> Any:  # noqa: ANN401 - as `_value`
    direct = _value(header, keyword)
    if direct is not None:
        return direct
    return _value(_item(_item(header, "SharedFunctionalGroupsSequence"), macro), keyword)


def _thickness(header: Dataset) -> float | None:
    thickness = _numbers([_shared(header, "PixelMeasuresSequence", "SliceThickness")])
    return thickness[0] if thickness else None


def _axial(header: Dataset) -> bool | None:
    orientation = _shared(header, "PlaneOrientationSequence", "ImageOrientationPatient")
    cosines = _numbers(orientation)
    if cosines is None or len(cosines) != 6:  # noqa: PLR2004 - two directions of three
        return None
    x1, y1, _, x2, y2, _ = cosines
    return abs(x1 * y2 - y1 * x2) > AXIAL
