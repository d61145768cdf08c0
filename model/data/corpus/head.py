"""The organs of the head as solids, in the order in which they are painted.

Template coordinates in mm: zero is the middle of the brain; (head, posterior, left) ascend.
"""

from collections.abc import Iterator

import numpy as np

from .shapes import Solid, ellipsoid, slab, tube

Part = tuple[str, Solid]


def parts(random: np.random.Generator) -> Iterator[Part]:
    """Give the organs; later ones are painted over earlier ones."""
    skull, vault = random.uniform(6, 9), random.uniform(5, 8)
    neck = ellipsoid((-120, 10, 0), (90, 60, 55), power=3)
    yield "scalp", ellipsoid((0, 0, 0), (88 + vault, 98 + vault, 76 + vault), power=2.3) | neck
    yield "scalp", ellipsoid((-70, -55, 0), (62, 52, 56), power=2.5)
    yield "skull", ellipsoid((0, 0, 0), (86, 96, 74), power=2.3)
    inner = ellipsoid((0, 0, 0), (86 - skull, 96 - skull, 74 - skull), power=2.3)
    yield "cerebrospinal fluid", inner
    for name, solid in _brain(random, 86 - skull - random.uniform(2.5, 5)):
        yield name, solid if name == "brainstem" else solid & inner
    for side, x in (("right", -32.0), ("left", 32.0)):
        yield f"{side} eye", ellipsoid((-48, -82, x), (12.5, 12.5, 12.5))


def _brain(random: np.random.Generator, top: float) -> Iterator[Part]:
    whole = ellipsoid((0, 0, 0), (top, top + 10, top - 12), power=2.3)
    gap = random.uniform(0.8, 1.8)
    fissure = slab(2, -gap, gap) & slab(0, 18, 200)
    yield "brain", (whole - fissure) & slab(0, -58, 200)
    yield "brainstem", tube([(-20, 12, 0), (-60, 22, 0), (-125, 26, 0)], random.uniform(12, 15))
    yield (
        "cerebellum",
        ellipsoid(
            (-58, 46, 0), (random.uniform(24, 29), random.uniform(30, 35), random.uniform(46, 53))
        ),
    )
    wide = random.uniform(5.5, 9)
    for x in (-1, 1):
        horn = [(14, -36, 11 * x), (24, -8, 10 * x), (18, 24, 18 * x), (-4, 34, 28 * x)]
        yield "ventricles of the brain", tube([*horn, (-16, 6, 33 * x)], wide * 0.75)
        yield "ventricles of the brain", tube(horn[:2], wide)
    yield "ventricles of the brain", tube([(12, -4, 0), (-8, 10, 0)], 3.0)
