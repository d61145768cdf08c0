"""What each series of a study says about itself, as far as choosing one needs it.

Knows pydicom and the headers of stored instances; one that cannot be read is told, not raised.
Never decodes pixels, and knows no protocol: what is done with a series is decided in `routing`.
"""

import logging
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from dicom_node.instance import Instance

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
    "ContrastBolusAgent",
    # Enhanced objects keep geometry in the functional groups (PS3.3 C.7.6.16).
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)
TAGS = [tag for tag in map(tag_for_keyword, KEYWORDS) if tag is not None]
AXIAL = 0.8  # cosine between the slice normal and the patient's long axis
SAME_MM = 0.01  # positions nearer than this are one
PLANES = ("sagittal", "coronal", "axial")  # by the axis of the patient that a slice lies across
LONGEST = 1024  # characters of a value that are kept


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
    plane: str = ""  # axial, coronal, sagittal or oblique; empty: no orientation
    coverage_mm: float | None = None  # from the outer face of its first slice to that of its last
    contrast_agent: str = ""
    # Of the image in the middle, by keyword: what was asked for and is there.
    values: Mapping[str, tuple[str | float, ...]] = field(default_factory=dict, hash=False)

    @property
    def instance_count(self) -> int:
        """Count its images."""
        return len(self.sop_uids)


def summarize(instances: Sequence[Instance], keywords: Collection[str] = ()) -> list[SeriesSummary]:
    """Read the headers of a study and tell of each series, in the order of their UIDs.

    Every header of a CT or MR series is read, because only all of them tell whether several
    images lie at one place; of any other series none is, or one if `keywords` are asked for.

    Parameters
    ----------
    keywords
        Attributes whose values are wanted besides.
    """
    ordered = sorted(instances, key=lambda each: (each.series_uid, each.sop_uid))
    return [
        _summary(uid, list(members), keywords)
        for uid, members in groupby(ordered, key=lambda each: each.series_uid)
    ]


def of_header(header: Dataset, keywords: Collection[str] = ()) -> SeriesSummary:
    """Tell of a series what one of its images says."""
    known = SeriesSummary(
        _text(header, "SeriesInstanceUID"),
        _text(header, "Modality"),
        _text(header, "SOPClassUID"),
        study_description=_text(header, "StudyDescription"),
        sop_uids=(_text(header, "SOPInstanceUID"),),
    )
    if known.sop_class_uid not in VOLUMES:
        return replace(known, values=_values(header, keywords))
    return _told(known, [header], keywords)


def _summary(uid: str, members: Sequence[Instance], keywords: Collection[str]) -> SeriesSummary:
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
    if sop_class_uid not in VOLUMES and not keywords:
        return known
    tags = [*TAGS, *(tag for tag in map(tag_for_keyword, keywords) if tag is not None)]
    try:
        if sop_class_uid not in VOLUMES:
            return replace(known, values=_values(_header(middle, tags), keywords))
        return _told(known, [_header(each, tags) for each in images], keywords)
    except Exception as error:  # noqa: BLE001 - the edge of one series: the others are to be read
        log.warning("series.unreadable", extra={"series": uid, "error": type(error).__name__})
        why = f"{type(error).__name__} in one of its {len(images)} headers"
        return replace(known, unreadable=why)


def _told(
    known: SeriesSummary, headers: Sequence[Dataset], keywords: Collection[str]
) -> SeriesSummary:
    """Add what the headers say; the one in the middle speaks for the series."""
    header = headers[len(headers) // 2]
    places = [place for each in headers for place in _places(each)]
    thickness_mm, normal = _thickness(header), _normal(header)
    values = _values(header, keywords)
    if thickness_mm is not None and "SliceThickness" in keywords:
        values["SliceThickness"] = (thickness_mm,)  # Enhanced objects have it elsewhere
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
        slice_thickness_mm=thickness_mm,
        axial=None if normal is None else abs(normal[2]) > AXIAL,
        plane=_plane(normal),
        coverage_mm=_coverage([at for at, _ in places], normal, thickness_mm),
        contrast_agent=_text(header, "ContrastBolusAgent"),
        kernel=" ".join(_texts(header, "ConvolutionKernel")),
        values=values,
    )


def _header(instance: Instance, tags: list[int]) -> Dataset:
    return pydicom.dcmread(instance.path, stop_before_pixels=True, specific_tags=tags)


def _values(header: Dataset, keywords: Collection[str]) -> dict[str, tuple[str | float, ...]]:
    """Give the values that are asked for and there, numbers as such."""
    found = {}
    for keyword in keywords:
        value = _value(header, keyword)
        several = value if isinstance(value, list | tuple | MultiValue) else [value]
        known = [each for each in several if each is not None and str(each).strip()]
        if known:
            found[keyword] = tuple(
                float(each) if isinstance(each, int | float) else str(each).strip()[:LONGEST]
                for each in known
            )
    return found


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


def _normal(header: Dataset) -> tuple[float, float, float] | None:
    """Give the direction across the slices; None if there is no orientation."""
    orientation = _shared(header, "PlaneOrientationSequence", "ImageOrientationPatient")
    cosines = _numbers(orientation)
    if cosines is None or len(cosines) != 6:  # noqa: PLR2004 - two directions of three
        return None
    x1, y1, z1, x2, y2, z2 = cosines
    return y1 * z2 - z1 * y2, z1 * x2 - x1 * z2, x1 * y2 - y1 * x2


def _plane(normal: tuple[float, float, float] | None) -> str:
    if normal is None:
        return ""
    return next(
        (name for name, along in zip(PLANES, normal, strict=True) if abs(along) > AXIAL), "oblique"
    )


def _coverage(
    places: Sequence[tuple[int, ...] | None],
    normal: tuple[float, float, float] | None,
    thickness_mm: float | None,
) -> float | None:
    """Measure a stack across its slices; None if it is not said where they lie."""
    known = [at for at in places if at is not None and len(at) == 3]  # noqa: PLR2004 - x, y, z
    if normal is None or not known or len(known) < len(places):
        return None
    along = [sum(a * b for a, b in zip(at, normal, strict=True)) * SAME_MM for at in known]
    return max(along) - min(along) + (thickness_mm or 0.0)
