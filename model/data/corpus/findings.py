"""What is planted in a patient: findings, each with its mask, its side and its place.

Knows masks and the label map of organs; paints no intensity. A finding lies where it belongs: a
nodule inside a lung, fluid at the lung's lowest place of a patient who lies on the back.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .organs import ABDOMEN, CHEST, HEAD, ORGANS
from .shapes import Inside, Point, ellipsoid, lumpy
from .space import Space

Labels = NDArray[np.uint8]
Random = np.random.Generator
SMALLEST: Final = 6  # voxels: what is smaller cannot be seen, so it is not planted
MOST: Final = 0.35  # of its organ that a ball may fill


@dataclass(frozen=True)
class Kind:
    """A kind of finding: which organs hold it, and how it looks.

    `values` is (mean, spread) of its intensity for each modality that shows it; of a `relative`
    one it is the step from the organ around it; `darker` is by how much it is below that organ at
    least, which otherwise would hide it.
    """

    name: str
    region: str
    organs: tuple[str, ...]
    values: Mapping[str, tuple[float, float]]
    radius_mm: tuple[float, float] = (0.0, 0.0)
    relative: bool = False
    darker: float = 0.0


@dataclass(frozen=True)
class Finding:
    """One planted finding; `number` is its value in the map of findings, 0 if it has no mask.

    `zone` is "upper" or "lower" in the chest, "anterior" or "posterior" in the head.
    """

    kind: str
    organ: str  # without its side
    side: str
    zone: str
    number: int


LUNGS: Final = ("right lung", "left lung")
KIDNEYS: Final = ("right kidney", "left kidney")
KINDS: Final = {
    each.name: each
    for each in (
        Kind("nodule", CHEST, LUNGS, {"CT": (40, 15)}, (9, 15)),
        Kind("mass", CHEST, LUNGS, {"CT": (45, 15)}, (18, 30)),
        Kind("consolidation", CHEST, LUNGS, {"CT": (25, 15)}, (26, 40)),
        Kind("effusion", CHEST, LUNGS, {"CT": (10, 6)}),
        Kind("fracture", CHEST, ("spine",), {"CT": (45, 10)}),
        Kind("lesion", ABDOMEN, ("liver",), {"CT": (-32, 5)}, (14, 28), relative=True),
        Kind("cyst", ABDOMEN, KIDNEYS, {"CT": (4, 4)}, (14, 26), darker=25),
        Kind("stone", ABDOMEN, KIDNEYS, {"CT": (650, 150)}, (7, 12)),
        Kind("gallstone", ABDOMEN, ("gallbladder",), {"CT": (350, 120)}, (7, 11)),
        Kind("haemorrhage", HEAD, ("brain",), {"CT": (70, 5)}, (14, 26)),
        Kind("tumour", HEAD, ("brain",), {"MR": (1.0, 0.1)}, (14, 26)),
    )
}
REMOVABLE: Final = ("right kidney", "left kidney", "spleen", "gallbladder")


@dataclass
class Patient:
    """A patient being made: organs, what is planted, and what it is called."""

    space: Space
    labels: Labels
    planted: Labels
    findings: list[Finding]

    def organ(self, name: str) -> Inside:
        """Give the mask of an organ."""
        return np.asarray(self.labels == ORGANS[name].number)


def plant(random: Random, patient: Patient, kind: Kind, organ: str) -> bool:
    """Plant one finding; tell whether there was room for it."""
    host = patient.organ(organ) & (patient.planted == 0)
    if np.count_nonzero(host) < 20 * SMALLEST:
        return False
    draw = _DRAWN.get(kind.name, _ball)
    mask = draw(random, patient.space, host, kind)
    if np.count_nonzero(mask) < SMALLEST:
        return False
    number = len([each for each in patient.findings if each.number]) + 1
    patient.planted[mask] = number
    if kind.name == "effusion":
        patient.labels[mask] = ORGANS["inside of the abdomen"].number  # fluid is no lung
    known = ORGANS[organ]
    side = known.side or (_side(patient, mask) if organ == "brain" else "")
    zone = _zone(patient.space, host, mask, kind)
    patient.findings.append(Finding(kind.name, known.plain, side, zone, number))
    return True


def remove(patient: Patient, organ: str) -> bool:
    """Take an organ out; tell whether it was there."""
    mask = patient.organ(organ)
    if not mask.any():
        return False
    patient.labels[mask] = ORGANS["inside of the abdomen"].number
    known = ORGANS[organ]
    patient.findings.append(Finding("absence", known.plain, known.side, "", 0))
    return True


def _ball(random: Random, space: Space, host: Inside, kind: Kind) -> Inside:
    """Draw a lumpy ball around a voxel of the organ, as far inside as it goes; the organ stays."""
    room = MOST * np.count_nonzero(host) * float(np.prod(space.spacing_mm))
    radius = min(random.uniform(*kind.radius_mm), float(np.cbrt(0.75 * room / np.pi)))
    middle = _place(random, space, host, radius)
    stretch = random.uniform(0.8, 1.2, 3) * radius
    lumps: list[tuple[Point, float, float]] = []
    for _ in range(3):
        z, y, x = random.normal(size=3)
        length = float(np.sqrt(z * z + y * y + x * x))
        direction = (float(z / length), float(y / length), float(x / length))
        lumps.append((direction, float(random.uniform(3, 8)), 0.06))
    radii = (float(stretch[0]), float(stretch[1]), float(stretch[2]))
    return space.draw(lumpy(middle, radii, lumps)) & host


def _effusion(random: Random, space: Space, host: Inside, _: Kind) -> Inside:
    """Draw the lung's lowest part of one who lies on the back: behind, and towards the feet."""
    depth = space.at[1] - 0.35 * space.at[0]
    return np.asarray(host & (depth > np.quantile(depth[host], random.uniform(0.72, 0.9))))


def _fracture(random: Random, space: Space, host: Inside, _: Kind) -> Inside:
    """Draw a vertebral body gone soft over a few millimetres."""
    height = space.at[0]
    level = random.uniform(*np.quantile(height[host], (0.2, 0.8)))
    thick = max(8.0, 1.2 * space.spacing_mm[0])
    front = space.at[1] < np.quantile(space.at[1][host], 0.6)
    return np.asarray(host & front & (np.abs(height - level) < thick))


_DRAWN: Final[Mapping[str, Callable[[Random, Space, Inside, Kind], Inside]]] = {
    "effusion": _effusion,
    "fracture": _fracture,
}


def _place(random: Random, space: Space, host: Inside, radius: float) -> Point:
    """Find a middle: of some voxels the one that has the most of the organ around it."""
    voxels = np.argwhere(host)
    best, most = voxels[0], -1.0
    for index in random.integers(0, len(voxels), 8):
        point = _point(space, voxels[index])
        around = space.draw(ellipsoid(point, (radius, radius, radius)))
        share = int(np.count_nonzero(around & host)) / max(1, int(np.count_nonzero(around)))
        if share > most:
            best, most = voxels[index], share
    return _point(space, best)


def _point(space: Space, voxel: Sequence[int]) -> Point:
    z, y, x = (float(each[tuple(voxel)]) for each in space.at)
    return z, y, x


def _side(patient: Patient, mask: Inside) -> str:
    """Tell the side of a place in the brain, by the patient's own middle."""
    return "left" if float(patient.space.at[2][mask].mean()) > 0 else "right"


def _zone(space: Space, host: Inside, mask: Inside, kind: Kind) -> str:
    if kind.name in {"nodule", "mass", "consolidation"}:
        height = space.at[0]
        return "upper" if height[mask].mean() > np.median(height[host]) else "lower"
    if kind.region == HEAD:
        return "posterior" if space.at[1][mask].mean() > 0 else "anterior"
    return ""
