"""The headers of a series as its results need them: made late, and lying exactly on its grid.

Knows how a header says where its frames lie (PS3.3 C.7.6.2, C.7.6.16). Must not know pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.valuerep import format_number_as_ds

from .geometry import Grid
from .pattern import Likeness


@dataclass(frozen=True)
class Headers:
    """What was read of the headers of a series, and the grid that they are to lie on."""

    read: Sequence[Dataset | Likeness]
    grid: Grid

    def straight(self) -> list[Dataset]:
        """Make the headers in slice order.

        A SEG's frame refers to a source slice where both lie within 0.001 mm, and all directions
        must be the same to the last digit; sources rounded to 0.01 mm would lose their references.
        """
        made = [each.dataset() if isinstance(each, Likeness) else each for each in self.read]
        if "PerFrameFunctionalGroupsSequence" in made[0]:
            self._lay(made * len(self.grid.order))
            for sequence in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
                _share(made[0], sequence)
            return made
        self._lay(made)
        headers = [made[index] for index in self.grid.order]
        spacing = _numbers("PixelSpacing", [str(each) for each in headers[0].PixelSpacing])
        for each in headers:
            each[spacing.tag] = spacing
        return headers

    def _lay(self, headers: Sequence[Dataset]) -> None:
        """Write where the frames are, of which these are the headers."""
        cosines = _numbers("ImageOrientationPatient", _decimal(self.grid.cosines))
        for place, index in enumerate(self.grid.order):
            position = _numbers("ImagePositionPatient", _decimal(self.grid.position(place)))
            header = headers[index]
            macro(header, index, "PlanePositionSequence")[position.tag] = position
            macro(header, index, "PlaneOrientationSequence")[cosines.tag] = cosines


def macro(header: Dataset, frame: int, sequence: str) -> Dataset:
    """Return what holds the attributes of a functional group, empty if there is none.

    In a classic image that is the header itself (PS3.3 C.7.6.16.1.1).
    """
    if "PerFrameFunctionalGroupsSequence" not in header:
        return header
    groups = [header.PerFrameFunctionalGroupsSequence[frame]]
    groups += header.get("SharedFunctionalGroupsSequence") or []
    return next((each[sequence][0] for each in groups if each.get(sequence)), Dataset())


def _numbers(keyword: str, values: Sequence[str]) -> RawDataElement:
    """Make an element as it is in a file: it is decoded for whoever asks for it."""
    value = "\\".join(values).encode()
    value += b" " * (len(value) % 2)
    return RawDataElement(Tag(keyword), "DS", len(value), value, 0, False, True)  # noqa: FBT003


def _share(header: Dataset, sequence: str) -> None:
    """Move a functional group that is the same for all frames to where readers look for it."""
    item = macro(header, 0, sequence)
    for group in header.PerFrameFunctionalGroupsSequence:
        if sequence in group:
            del group[sequence]
    if not header.get("SharedFunctionalGroupsSequence"):
        header.SharedFunctionalGroupsSequence = [Dataset()]
    setattr(header.SharedFunctionalGroupsSequence[0], sequence, [item])


def _decimal(values: NDArray[np.float64]) -> list[str]:
    # Adding zero turns -0.0 into 0.0.
    return [format_number_as_ds(float(each) + 0.0) for each in values]
