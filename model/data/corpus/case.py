"""One seeded patient: voxels, organs, findings, and how it was scanned.

Case.make(seed) -> everything that is true of one patient; the same seed, the same patient.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from . import head, paint, torso
from .findings import KINDS, REMOVABLE, Finding, Patient, plant, remove
from .organs import ABDOMEN, CHEST, HEAD, ORGANS
from .shapes import Point
from .space import Shape, Space, bend

Random = np.random.Generator
HEALTHY: Final = 0.12  # how often nothing is planted
PLANTED: Final = 0.55  # how often each kind is, in the others: about as often there as not
REMOVED: Final = 0.3  # how often an organ of the abdomen is missing
BOTH_SIDES: Final = 0.25  # of effusions
SMALLEST_ORGAN: Final = 40  # voxels: less of an organ in the image is not asked about


@dataclass(frozen=True)
class View:
    """How a region is scanned: modality, field of view in mm, middle in the template.

    `share` is how many of the patients are scanned so.
    """

    region: str
    modality: str
    share: float
    extent_mm: Point
    middle: Point
    parts: Callable[[Random], Iterator[tuple[str, object]]]


VIEWS: Final = (
    View(CHEST, "CT", 0.35, (330, 330, 390), (-15, 0, 0), torso.parts),
    View(ABDOMEN, "CT", 0.3, (270, 330, 390), (-215, 0, 0), torso.parts),
    View(HEAD, "CT", 0.175, (200, 250, 210), (-15, 0, 0), head.parts),
    View(HEAD, "MR", 0.175, (200, 250, 210), (-15, 0, 0), head.parts),
)


@dataclass(frozen=True)
class Truth:
    """What is true of a patient, in words; all that questions and reports are made of."""

    seed: int
    region: str
    modality: str
    phase: str  # of contrast for CT, the sequence for MR
    findings: tuple[Finding, ...]
    present: tuple[str, ...]  # organs worth a question of which enough is in the image
    missing: tuple[str, ...]  # organs worth a question of which nothing is in the image


@dataclass(frozen=True)
class Case:
    """A patient as scanned. Axes ascend from foot to head, anterior to posterior, right to left.

    `voxels` is float32 (HU for CT), `labels` the numbers of the organs, `planted` those of the
    findings, all (slices, rows, columns).
    """

    seed: int
    region: str
    modality: str
    phase: str  # of contrast for CT, the sequence for MR
    voxels: NDArray[np.float32]
    labels: NDArray[np.uint8]
    planted: NDArray[np.uint8]
    spacing_mm: Point
    findings: tuple[Finding, ...]

    @classmethod
    def make(cls, seed: int, *, view: View | None = None) -> "Case":
        """Make the patient of a seed; without a `view` the seed decides on it too."""
        random = np.random.default_rng([20_260_101, seed])
        drawn = int(random.choice(len(VIEWS), p=[each.share for each in VIEWS]))
        chosen = view or VIEWS[drawn]
        space = _space(random, chosen)
        patient = Patient(
            space, _organs(random, space, chosen), np.zeros(space.shape, np.uint8), []
        )
        harm(random, patient, chosen)
        if chosen.modality == "CT":
            phases = paint.PHASES if chosen.region != HEAD else paint.PHASES[:1]
            phase = phases[int(random.integers(len(phases)))]
            voxels = paint.computed_tomography(random, patient, phase)
        else:
            phase = paint.SEQUENCES[int(random.integers(len(paint.SEQUENCES)))]
            voxels = paint.magnetic_resonance(random, patient, phase)
        return cls(
            seed=seed,
            region=chosen.region,
            modality=chosen.modality,
            phase=phase,
            voxels=voxels,
            labels=patient.labels,
            planted=patient.planted,
            spacing_mm=space.spacing_mm,
            findings=tuple(patient.findings),
        )

    @property
    def truth(self) -> Truth:
        """Give what is true of the patient, without the voxels."""
        return Truth(
            self.seed,
            self.region,
            self.modality,
            self.phase,
            self.findings,
            self.present,
            self.missing,
        )

    def organ(self, name: str) -> NDArray[np.bool_]:
        """Give the mask of an organ; what is planted inside belongs to it."""
        return np.asarray(self.labels == ORGANS[name].number)

    def finding(self, finding: Finding) -> NDArray[np.bool_]:
        """Give the mask of a finding; nothing for an absence."""
        return np.asarray((self.planted == finding.number) & (finding.number > 0))

    @property
    def present(self) -> tuple[str, ...]:
        """Name the organs that are worth a question and of which enough is in the image."""
        counts = np.bincount(self.labels.ravel(), minlength=256)
        return tuple(
            name
            for name, each in ORGANS.items()
            if each.asked and counts[each.number] >= SMALLEST_ORGAN
        )

    @property
    def missing(self) -> tuple[str, ...]:
        """Name the organs that are worth a question and of which nothing is in the image."""
        counts = np.bincount(self.labels.ravel(), minlength=256)
        return tuple(
            name for name, each in ORGANS.items() if each.asked and not counts[each.number]
        )


def _space(random: Random, view: View) -> Space:
    extent = np.array(view.extent_mm) * random.uniform(0.9, 1.1, 3)
    spacing = np.array([random.uniform(3.5, 7.5), *[random.uniform(2.6, 3.6)] * 2])
    if view.region == HEAD:
        spacing *= 0.75
    shape = np.maximum(16, np.rint(extent / spacing)).astype(int)
    slices, rows, columns = (int(each) for each in shape)
    middle = np.array(view.middle) + random.normal(0, (12, 6, 8))
    grid: Shape = (slices, rows, columns)
    return bend(
        random,
        grid,
        (float(spacing[0]), float(spacing[1]), float(spacing[2])),
        (float(middle[0]), float(middle[1]), float(middle[2])),
        sway_mm=float(random.uniform(3, 9)),
        size=float(np.clip(random.normal(1, 0.07), 0.85, 1.18)),
    )


def _organs(random: Random, space: Space, view: View) -> NDArray[np.uint8]:
    labels = np.zeros(space.shape, np.uint8)
    for name, solid in view.parts(random):
        labels[space.draw(solid)] = ORGANS[name].number  # type: ignore[arg-type]
    return labels


def harm(random: Random, patient: Patient, view: View) -> None:
    """Plant what this patient has, and take out what is missing."""
    if view.region == ABDOMEN and random.random() < REMOVED:
        remove(patient, REMOVABLE[int(random.integers(len(REMOVABLE)))])
    kinds = [
        each
        for each in KINDS.values()
        if each.region == view.region and view.modality in each.values
    ]
    healthy = random.random() < HEALTHY
    for index in random.permutation(len(kinds)):
        kind = kinds[int(index)]
        organs = list(random.permutation(kind.organs))
        if healthy or random.random() >= PLANTED:
            continue
        both = kind.name == "effusion" and random.random() < BOTH_SIDES
        for organ in organs if both else organs[:1]:
            plant(random, patient, kind, str(organ))
