"""The synthetic patient: a chest for CT and a head for MR, made of ellipsoids.

Knows what is where in the patient and how bright it is. Left and right differ on purpose (liver
and nodule on the right, heart on the left), so that a mirrored series can be seen. It is not
anatomy, and nothing diagnostic can be learnt from it.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# (centre x y z, radii x y z, value): patient axes (left, posterior, head), in halves of the
# volume's extent, painted in this order. Values are HU for CT and arbitrary units for MR.
Ellipsoid = tuple[tuple[float, float, float], tuple[float, float, float], float]
ANATOMY: Final[dict[str, tuple[float, tuple[Ellipsoid, ...]]]] = {
    "CT": (
        -1000.0,
        (
            ((0.0, 0.0, 0.0), (0.92, 0.72, 9.0), -100.0),  # fat under the skin
            ((0.0, 0.0, 0.0), (0.86, 0.66, 9.0), 45.0),  # muscle
            ((-0.42, -0.05, 0.1), (0.32, 0.50, 0.85), -850.0),  # right lung
            ((0.44, -0.03, 0.1), (0.30, 0.48, 0.85), -850.0),  # left lung
            ((0.14, -0.22, -0.1), (0.27, 0.26, 0.35), 40.0),  # heart, left of the middle
            ((-0.38, -0.05, -0.9), (0.38, 0.45, 0.45), 60.0),  # liver, on the right
            ((0.0, 0.46, 0.0), (0.13, 0.14, 9.0), 350.0),  # spine
            ((-0.44, 0.02, 0.35), (0.11, 0.11, 0.09), 30.0),  # nodule in the right lung
        ),
    ),
    "MR": (
        5.0,
        (
            ((0.0, 0.0, 0.0), (0.80, 0.92, 0.95), 900.0),  # scalp
            ((0.0, 0.0, 0.0), (0.74, 0.86, 0.89), 60.0),  # skull
            ((0.0, 0.0, 0.05), (0.68, 0.80, 0.80), 420.0),  # brain
            ((0.0, 0.50, -0.55), (0.40, 0.28, 0.25), 480.0),  # cerebellum, at the back
            ((-0.15, 0.0, 0.1), (0.08, 0.30, 0.20), 120.0),  # right ventricle
            ((0.15, 0.0, 0.1), (0.08, 0.30, 0.20), 120.0),  # left ventricle
            ((0.38, -0.25, 0.3), (0.13, 0.13, 0.12), 800.0),  # lesion on the left
        ),
    ),
}


def draw(modality: str, place: Sequence[Array]) -> Array:
    """Return the values of one slice: HU for CT, arbitrary units for MR.

    Parameters
    ----------
    place
        Of every pixel of the slice the three patient coordinates (left, posterior, head), -1 to 1
        across the volume.
    """
    background, ellipsoids = ANATOMY[modality]
    values = np.full(np.broadcast_shapes(*(each.shape for each in place)), background)
    for middle, radii, value in ellipsoids:
        offsets = zip(place, middle, radii, strict=True)
        values[sum(((at - m) / r) ** 2 for at, m, r in offsets) < 1] = value
    return values
