"""What comes back from a radiologist: which object it answers, and how far outlines were changed.

Knows the references of SR documents and segmentations (PS3.3 C.17.2, C.8.20.2) of any maker.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset

from . import foreign

SEGMENTATIONS = frozenset({"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"})
# What a person dictates into; other SR classes hold doses, CAD marks, logs.
REPORTS = frozenset(f"1.2.840.10008.5.1.4.1.1.88.{each}" for each in (11, 22, 33, 34, 35))
LONGEST = 64
HALF = 0.5


@dataclass(frozen=True)
class Comparison:
    """How a segmentation differs from ours, by the labels of our segments.

    `dice` is 2 |A and B| / (|A| + |B|) over all voxels, of each segment that both have. `removed`
    are ours that it lacks, `added` are its own. `reason` says why there are no numbers, or nothing.
    """

    dice: dict[str, float]
    removed: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    reason: str = ""


def predecessors(answer: Dataset) -> set[str]:
    """Return the SOP Instance UIDs that a document says it takes the place of."""
    return set(_instances(answer.get("PredecessorDocumentsSequence") or ()))


def references(answer: Dataset) -> set[str]:
    """Return the SOP Instance UIDs that an SR document or a segmentation refers to."""
    found: set[str] = set()
    for keyword in (
        "CurrentRequestedProcedureEvidenceSequence",
        "PertinentOtherEvidenceSequence",
        "StudiesContainingOtherReferencedInstancesSequence",
        "ReferencedSeriesSequence",
    ):
        found |= set(_instances(answer.get(keyword) or ()))
    return found


def is_final(report: Dataset) -> bool:
    """Tell whether a document counts as somebody's word on the study, though it names no draft."""
    if report.get("VerificationFlag") == "VERIFIED":
        return True
    return str(report.SOPClassUID) in REPORTS and report.get("PreliminaryFlag") != "PRELIMINARY"


def verifier(report: Dataset) -> str:
    """Return who verified a document, as written; empty if nobody did."""
    observers = report.get("VerifyingObserverSequence") or ()
    names = [str(each.get("VerifyingObserverName") or "") for each in observers]
    return foreign.line("; ".join(filter(None, names)), LONGEST)


def compare(ours: Dataset, theirs: Dataset) -> Comparison:
    """Compare an edited segmentation with ours, segment by segment.

    Segments are the same if they have one Tracking UID, or else one label. Both may have any
    encoding, and lie in any order of slices, but on one grid.
    """
    if ours.get("FrameOfReferenceUID") != theirs.get("FrameOfReferenceUID"):
        return Comparison({}, reason="it has another frame of reference")
    pairs = _paired(ours, theirs)
    labels = {int(each.SegmentNumber): _label(each) for each in _segments(ours)}
    its = {int(each.SegmentNumber): _label(each) for each in _segments(theirs)}
    removed = tuple(label for number, label in labels.items() if number not in pairs)
    added = tuple(label for number, label in its.items() if number not in pairs.values())
    try:
        own = hd.seg.Segmentation.from_dataset(ours, copy=False)
        other = hd.seg.Segmentation.from_dataset(theirs, copy=False)
        dice = {
            labels[number]: _dice(_mask(own, number), _mask(other, its_number))
            for number, its_number in pairs.items()
        }
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = f"it cannot be laid on our grid: {foreign.line(str(error), 200)}"
        return Comparison({}, removed, added, reason)
    return Comparison(dice, removed, added)


def _instances(sequence: object) -> Iterator[str]:
    """Go through the hierarchies of references, by study, series and instance or less."""
    for item in sequence:  # type: ignore[attr-defined]
        if "ReferencedSOPInstanceUID" in item:
            yield str(item.ReferencedSOPInstanceUID)
        for keyword in (
            "ReferencedSeriesSequence",
            "ReferencedSOPSequence",
            "ReferencedInstanceSequence",
        ):
            yield from _instances(item.get(keyword) or ())


def _segments(segmentation: Dataset) -> list[Dataset]:
    # Number 0 of a LABELMAP is what lies outside (PS3.3 C.8.20.2.4).
    return [each for each in segmentation.SegmentSequence if int(each.SegmentNumber) > 0]


def _paired(ours: Dataset, theirs: Dataset) -> dict[int, int]:
    """Give the number of its segment for each of ours that it has."""
    by_name = {
        name: int(each.SegmentNumber)
        for each in _segments(theirs)
        for name in (_label(each).casefold(), str(each.get("TrackingUID") or ""))
        if name
    }
    return {
        int(each.SegmentNumber): by_name[name]
        for each in _segments(ours)
        for name in (_first(by_name, each),)
        if name
    }


def _first(names: dict[str, int], segment: Dataset) -> str:
    wanted = (str(segment.get("TrackingUID") or ""), _label(segment).casefold())
    return next((each for each in wanted if each in names), "")


def _label(segment: Dataset) -> str:
    return foreign.line(str(segment.get("SegmentLabel") or ""), LONGEST)


def _mask(segmentation: hd.seg.Segmentation, number: int) -> hd.Volume:
    volume = segmentation.get_volume(segment_numbers=[number], combine_segments=False)
    return volume.with_array(np.asarray(volume.array)[..., 0] > HALF)


def _dice(own: hd.Volume, other: hd.Volume) -> float:
    both = int(own.array.sum()) + int(other.array.sum())
    # Volumes are trimmed to the slices that have something: outside, there is nothing in common.
    shared = int(np.logical_and(own.array, other.match_geometry(own).array).sum())
    return round(2 * shared / both, 4) if both else 1.0
