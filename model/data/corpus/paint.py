"""Labels to intensities: what a scanner would have made of a patient.

Knows modalities, contrast phases, blur and noise. CT comes in HU, MR in arbitrary units.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .findings import KINDS, Finding, Kind, Patient
from .organs import ORGANS

Image = NDArray[np.float32]
Random = np.random.Generator

PHASES: Final = ("without contrast", "arterial", "portal venous")
SEQUENCES: Final = ("T1", "T2")
AIR_HU: Final = -1000.0

# Organ: (mean, spread from patient to patient), HU without contrast; texture is a third of it.
_CT: Final[Mapping[str, tuple[float, float]]] = {
    "body": (-100, 10), "muscle": (52, 6), "inside of the abdomen": (-95, 12), "ribs": (380, 70),
    "sternum": (300, 60), "spine": (330, 60), "right lung": (-840, 35), "left lung": (-840, 35),
    "heart": (42, 5), "aorta": (42, 5), "trachea": (-990, 5), "liver": (58, 8), "spleen": (48, 5),
    "right kidney": (32, 4), "left kidney": (32, 4), "pancreas": (38, 8), "stomach": (15, 25),
    "gallbladder": (8, 6), "inferior vena cava": (42, 5), "bowel": (28, 30),
    "right psoas muscle": (54, 5), "left psoas muscle": (54, 5), "scalp": (10, 25),
    "skull": (800, 120), "cerebrospinal fluid": (6, 3), "brain": (34, 2),
    "ventricles of the brain": (6, 3), "cerebellum": (35, 2), "brainstem": (33, 2),
    "right eye": (12, 4), "left eye": (12, 4), "urinary bladder": (6, 4),
    "table": (-150, 150),
}  # fmt: skip
_ENHANCED: Final[Mapping[str, Mapping[str, float]]] = {
    "arterial": {
        "aorta": 270, "heart": 180, "right kidney": 110, "left kidney": 110, "spleen": 75,
        "pancreas": 60, "liver": 18, "inferior vena cava": 25, "bowel": 25, "stomach": 10,
    },
    "portal venous": {
        "aorta": 120, "heart": 110, "right kidney": 150, "left kidney": 150, "spleen": 70,
        "pancreas": 50, "liver": 55, "inferior vena cava": 110, "bowel": 40, "stomach": 10,
    },
}  # fmt: skip
_MR: Final[Mapping[str, Mapping[str, float]]] = {
    "T1": {
        "scalp": 0.95, "skull": 0.1, "cerebrospinal fluid": 0.15, "brain": 0.62,
        "ventricles of the brain": 0.15, "cerebellum": 0.55, "brainstem": 0.65, "right eye": 0.2,
        "left eye": 0.2,
    },
    "T2": {
        "scalp": 0.75, "skull": 0.08, "cerebrospinal fluid": 1.0, "brain": 0.5,
        "ventricles of the brain": 1.0, "cerebellum": 0.55, "brainstem": 0.42, "right eye": 0.95,
        "left eye": 0.95,
    },
}  # fmt: skip
_TUMOUR: Final = {"T1": 0.36, "T2": 0.85}


def computed_tomography(
    random: Random, patient: Patient, phase: str, *, scanned: Image | None = None
) -> Image:
    """Give float32 HU (slices, rows, columns) in one of `PHASES`.

    `scanned` is what a scanner made of it without contrast; NaN where it is to be painted.
    """
    means = np.full(256, AIR_HU, np.float32)
    spreads = np.zeros(256, np.float32)
    enhanced = np.zeros(256, np.float32)
    for name, (mean, spread) in _CT.items():
        more = _ENHANCED.get(phase, {}).get(name, 0.0) * random.uniform(0.8, 1.2)
        means[ORGANS[name].number] = random.normal(mean, spread) + more
        enhanced[ORGANS[name].number] = more
        spreads[ORGANS[name].number] = spread / 3
    _same(means, "right kidney", "left kidney")
    _same(means, "right lung", "left lung")
    image = means[patient.labels]
    texture = _blurred(random.normal(size=image.shape).astype(np.float32), 2) * 3
    image += texture * spreads[patient.labels]
    if scanned is not None:
        _same(enhanced, "right kidney", "left kidney")
        image = np.where(np.isnan(scanned), image, scanned + _blurred(enhanced[patient.labels], 1))
        means = _medians(image, patient)
    for each in patient.findings:
        if each.number:
            image[patient.planted == each.number] = _value(random, KINDS[each.kind], means, each)
    image = _blurred(image, int(random.integers(0, 3)))
    image += random.normal(0, random.uniform(4, 22), image.shape).astype(np.float32)
    return np.asarray(np.clip(np.rint(image), -1024, 3071), np.float32)


def magnetic_resonance(random: Random, patient: Patient, sequence: str) -> Image:
    """Give float32 intensities without a unit, in one of `SEQUENCES`."""
    means = np.full(256, 0.02, np.float32)
    for name, mean in _MR[sequence].items():
        means[ORGANS[name].number] = mean * random.normal(1, 0.06)
    image = means[patient.labels]
    image += _blurred(random.normal(size=image.shape).astype(np.float32), 2) * 0.03
    for each in patient.findings:
        if each.number:
            image[patient.planted == each.number] = _TUMOUR[sequence] * random.normal(1, 0.08)
    image = _blurred(image, int(random.integers(0, 3))) * _bias(random, patient)
    # The magnitude of a complex signal with noise: Rician, as in MR.
    level = random.uniform(0.01, 0.05)
    real, imaginary = random.normal(0, level, (2, *image.shape)).astype(np.float32)
    scale = random.uniform(300, 1500)
    return np.asarray(np.hypot(image + real, imaginary) * scale, np.float32)


def _value(random: Random, kind: Kind, means: Image, finding: Finding) -> float:
    """Draw what a finding looks like in HU."""
    # By its plain name: both kidneys look alike.
    host = ORGANS.get(finding.organ) or ORGANS[f"{finding.side} {finding.organ}"]
    around = float(means[host.number])
    value = float(random.normal(*kind.values["CT"]))
    if kind.relative:
        return around + value
    return min(value, around - kind.darker) if kind.darker else value


def _medians(image: Image, patient: Patient) -> Image:
    """Tell what each organ looks like where nothing is planted."""
    means = np.zeros(256, np.float32)
    for number in {ORGANS[name].number for each in patient.findings for name in _hosts(each.kind)}:
        inside = image[(patient.labels == number) & (patient.planted == 0)]
        means[number] = np.median(inside) if inside.size else 0
    return means


def _hosts(kind: str) -> tuple[str, ...]:
    return KINDS[kind].organs if kind in KINDS else ()


def _same(means: Image, one: str, other: str) -> None:
    means[ORGANS[other].number] = means[ORGANS[one].number]


def _bias(random: Random, patient: Patient) -> Image:
    """Give a smooth field around 1: the coil hears better on one side."""
    z, y, x = random.normal(0, 0.0012, 3)
    return np.asarray(
        np.exp(z * patient.space.at[0] + y * patient.space.at[1] + x * patient.space.at[2])
    )


def _blurred(image: Image, times: int) -> Image:
    """Blur by a binomial of three voxels along each axis, so many times."""
    for axis in [0, 1, 2] * times:
        padded = np.pad(
            image, [(1, 1) if each == axis else (0, 0) for each in range(3)], mode="edge"
        )
        low, middle, high = (
            padded[
                tuple(
                    slice(start, start + image.shape[axis]) if each == axis else slice(None)
                    for each in range(3)
                )
            ]
            for start in range(3)
        )
        image = 0.25 * low + 0.5 * middle + 0.25 * high
    return image
