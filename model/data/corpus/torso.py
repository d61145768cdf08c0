"""The organs of chest and abdomen as solids, in the order in which they are painted.

Template coordinates in mm: zero is the carina in height, the middle of the body in depth and
width; (head, posterior, left) ascend. Every patient differs a little in every organ.
"""

from collections.abc import Iterator

import numpy as np

from .shapes import Point, Solid, column, ellipsoid, lumpy, slab, tube

Part = tuple[str, Solid]
DIAPHRAGM = -105.0
ON_A_TABLE = 0.75  # how often what a patient lies on is in the image


def parts(random: np.random.Generator) -> Iterator[Part]:
    """Give the organs; later ones are painted over earlier ones."""
    fat = random.uniform(8, 30)
    if random.random() < ON_A_TABLE:
        top, wide = 112 + fat + random.uniform(-4, 12), random.uniform(180, 260)
        yield "table", slab(1, top, top + random.uniform(12, 40)) & slab(2, -wide, wide)
    yield "body", column((0, 0), (112 + fat, 162 + fat), power=2.5)
    yield "muscle", column((0, 0), (112, 162), power=2.5)
    yield "inside of the abdomen", column((-12, 0), (84, 136), power=2.4) & slab(0, -1e6, -60)
    yield from _skeleton(random)
    yield from _chest(random)
    yield from _abdomen(random)


def _skeleton(random: np.random.Generator) -> Iterator[Part]:
    cage, inner = column((0, 0), (100, 150), power=2.3), column((0, 0), (93, 143), power=2.3)
    start = random.uniform(0, 26)
    bars = Solid(
        (-1e6, -1e6, -1e6),
        (1e6, 1e6, 1e6),
        lambda z, y, _: np.asarray(np.mod(z + 0.45 * y + start, 26) < 11),  # noqa: PLR2004 - a rib's width
    )
    yield "ribs", ((cage - inner) & bars) & slab(0, -190, 190)
    yield "sternum", ellipsoid((5, -98, 0), (85, 7, 18), power=4)
    body = column((66, 0), (19, 21)) | (column((98, 0), (26, 6)) - column((86, 0), (9, 8)))
    yield "spine", body - column((88, 0), (8, 9))


def _chest(random: np.random.Generator) -> Iterator[Part]:
    dome = _jitter(random, (DIAPHRAGM - 55, -5, -68), 4)
    liver_top = ellipsoid(dome, (78, 95, 80))
    left_top = ellipsoid(_jitter(random, (DIAPHRAGM - 60, 5, 75), 4), (66, 90, 72))
    mediastinum = ellipsoid((20, -6, 4), (170, 80, 24), power=2.5)
    heart = ellipsoid(_jitter(random, (-68, -32, 24), 4), _scaled(random, (54, 44, 56)), power=2.2)
    for side, x, top in (("right", -74.0, liver_top), ("left", 76.0, left_top)):
        whole = ellipsoid(
            _jitter(random, (-15, 2, x), 2), _scaled(random, (152, 84, 60), 0.03), power=2.6
        )
        yield f"{side} lung", ((whole - top) - mediastinum) - heart & slab(0, -150, 1e6)
    yield "heart", heart
    yield "aorta", _aorta(random)
    width = random.uniform(8, 11)
    yield "trachea", tube([(170, 12, 0), (90, 14, 0), (0, 18, 0)], width)
    for x in (-1, 1):
        yield "trachea", tube([(0, 18, 0), (-22, 22, 32 * x)], width * 0.75)


def _aorta(random: np.random.Generator) -> Solid:
    radius = random.uniform(10.5, 14)
    arch = tube([(-45, -20, 6), (10, -26, -6), (28, -6, 12), (18, 30, 26), (-10, 44, 26)], radius)
    down = tube([(-10, 44, 26), (-120, 46, 22), (-330, 38, 8)], radius * 0.85)
    return arch | down


def _abdomen(random: np.random.Generator) -> Iterator[Part]:
    below = slab(0, -1e6, DIAPHRAGM + 45)
    yield from _bowel(random)
    yield "inferior vena cava", tube([(-110, 25, -22), (-330, 36, -20)], random.uniform(9, 12))
    lumps = _lumps(random, 3, 0.05)
    yield (
        "stomach",
        lumpy(_jitter(random, (-160, -22, 52), 6), _scaled(random, (44, 40, 38), 0.15), lumps)
        & below,
    )
    right = ellipsoid(_jitter(random, (-172, -2, -68), 4), _scaled(random, (78, 82, 72)))
    left = ellipsoid(_jitter(random, (-150, -32, -5), 4), _scaled(random, (36, 38, 62)))
    yield "liver", (right | left) & column((-8, 0), (86, 138), power=2.4) & below
    yield (
        "spleen",
        ellipsoid(_jitter(random, (-162, 42, 98), 4), _scaled(random, (48, 36, 27), 0.12))
        & column((-2, 0), (92, 140), power=2.4),
    )
    yield (
        "gallbladder",
        ellipsoid(_jitter(random, (-215, -38, -52), 4), _scaled(random, (26, 14, 14), 0.15)),
    )
    z = random.uniform(-224, -206)
    yield (
        "pancreas",
        tube(
            [(z - 14, -8, -34), (z, -16, -8), (z + 8, -2, 24), (z + 22, 18, 62)],
            random.uniform(10, 13),
        ),
    )
    for side, x, height in (("right", -62.0, -248.0), ("left", 62.0, -236.0)):
        yield f"{side} psoas muscle", tube([(-200, 58, x * 0.5), (-360, 48, x * 0.9)], 17)
        kidney = ellipsoid(_jitter(random, (height, 44, x), 4), _scaled(random, (52, 26, 28), 0.07))
        inward = 30 if x > 0 else -30
        yield f"{side} kidney", kidney - ellipsoid((height, 38, x - inward), (18, 12, 14))


def _bowel(random: np.random.Generator) -> Iterator[Part]:
    for _ in range(9):
        start = np.array(
            [random.uniform(-350, -215), random.uniform(-62, 8), random.uniform(-105, 105)]
        )
        points = [start]
        for _ in range(3):
            points.append(points[-1] + random.normal(0, (14, 10, 26)))
        line = [(float(z), float(y), float(x)) for z, y, x in points]
        yield "bowel", tube(line, random.uniform(9, 16)) & column((-16, 0), (76, 126))


def _lumps(
    random: np.random.Generator, count: int, height: float
) -> list[tuple[Point, float, float]]:
    made = []
    for _ in range(count):
        z, y, x = random.normal(size=3)
        length = float(np.sqrt(z * z + y * y + x * x))
        made.append(((z / length, y / length, x / length), float(random.uniform(2, 6)), height))
    return made


def _jitter(random: np.random.Generator, middle: Point, by_mm: float) -> Point:
    z, y, x = random.normal(middle, by_mm)
    return float(z), float(y), float(x)


def _scaled(random: np.random.Generator, radii: Point, spread: float = 0.06) -> Point:
    z, y, x = np.array(radii) * np.clip(random.normal(1, spread, 3), 1 - 2 * spread, 1 + 2 * spread)
    return float(z), float(y), float(x)
