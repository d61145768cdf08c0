"""What a destination can show: which objects it gets, and in which form.

Knows what PACS and viewers are known to do with each object, and nothing of what is inside one. A
profile decides; the modules that write the objects obey. What only one profile wants differs by
its label, and so by its UIDs: no two different objects have one UID.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from .protocol import TemplateError

Encoding = Literal["BINARY", "LABELMAP", "FRACTIONAL"]
Measuring = Literal["volumetric", "planar"]
Report = Literal["enhanced", "basic"]
ENCODINGS: Final = ("BINARY", "LABELMAP", "FRACTIONAL")
MEASURING: Final = ("volumetric", "planar")
REPORTS: Final = ("enhanced", "basic")
PDF, KEY_IMAGES, PRESENTATION, KEY_OBJECTS = "pdf", "key-images", "presentation", "key-objects"
EXTRAS: Final = (PDF, KEY_IMAGES, PRESENTATION, KEY_OBJECTS)


@dataclass(frozen=True)
class Profile:
    """What one kind of destination gets.

    `segmentation`: how the SEG is encoded; None: it gets no SEG. `maximum_frames` and
    `maximum_segments` are those of one SEG object, above which there are several; 0: no limit.
    `measurements`: TID 1500 that refers to the segments ("volumetric"), or that draws a contour on
    each key slice ("planar"); None: none. `report`: Enhanced SR ("enhanced") or Basic Text SR
    ("basic"). `extras`: what it gets besides, of `EXTRAS`.

    Raises
    ------
    TemplateError
        A value is none of those above.
    """

    name: str
    segmentation: Encoding | None = "BINARY"
    omit_empty_frames: bool = True
    maximum_frames: int = 0
    maximum_segments: int = 0
    measurements: Measuring | None = "volumetric"
    report: Report = "enhanced"
    extras: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._one_of("segmentation", self.segmentation, (*ENCODINGS, None))
        self._one_of("measurements", self.measurements, (*MEASURING, None))
        self._one_of("report", self.report, REPORTS)
        for each in self.extras:
            self._one_of("extras", each, EXTRAS)
        for key in ("maximum_frames", "maximum_segments"):
            if getattr(self, key) < 0:
                raise TemplateError(f"profile {self.name}: {key} must be 0 or more")
        if self.measurements and not self.segmentation:
            raise TemplateError(f"profile {self.name}: measurements refer to a SEG, there is none")

    def _one_of(self, key: str, value: object, choices: Iterable[object]) -> None:
        if value not in choices:
            told = ", ".join(str(each) for each in choices)
            raise TemplateError(f"profile {self.name}: {key} must be one of {told}, not {value!r}")

    def like(self, **changed: Any) -> "Profile":  # noqa: ANN401 - fields of this class
        """Return this profile with some things changed."""
        return replace(self, **changed)

    def variant(self, *keys: str) -> str:
        """Return what marks the label of an object that depends on `keys`.

        Nothing where this profile wants it as `GENERIC` does, else the profile's name.
        """
        same = all(getattr(self, key) == getattr(GENERIC, key) for key in keys)
        return "" if same else self.name


GENERIC: Final = Profile("generic-pacs")  # with neither limit: what all others are compared with
PROFILES: Final = {
    each.name: each
    for each in (
        GENERIC,
        # OHIF 3.13 shows a TID 1500 as a blank viewport if one group of it has no coordinates.
        Profile("ohif", measurements="planar"),
        Profile("orthanc-stone", extras=(PDF,)),
        # Weasis 4.6 disables a SEG of more than 400 frames (nroduit/Weasis#680).
        Profile("weasis", maximum_frames=400, extras=(KEY_OBJECTS,)),
        Profile("slicer"),
        Profile(
            "legacy-pacs",
            segmentation=None,
            measurements=None,
            report="basic",
            extras=(PDF, KEY_IMAGES, PRESENTATION, KEY_OBJECTS),
        ),
    )
}


def chosen(profile: Profile, labels: Iterable[str]) -> tuple[str, ...]:
    """Return which of the objects with these labels go to a destination of `profile`, in order.

    A label is ``kind``, ``kind.profile``, ``kind.number`` or ``kind.profile.number``. What was made
    for this profile takes the place of what all others get.
    """
    found = tuple(labels)
    wanted = {
        kind
        for kind, is_wanted in (
            ("seg", profile.segmentation),
            ("measurements", profile.measurements),
            ("draft", True),
            *((each, True) for each in profile.extras),
        )
        if is_wanted
    }
    own = {split(each)[0] for each in found if split(each)[1] == profile.name}
    return tuple(
        each
        for each in found
        for kind, variant in (split(each),)
        if kind in wanted and variant == (profile.name if kind in own else "")
    )


def split(label: str) -> tuple[str, str]:
    """Return the kind of a label and the profile that it was made for alone, or nothing."""
    kind, *rest = label.split(".")
    return kind, next((each for each in rest if not each.isdigit()), "")
