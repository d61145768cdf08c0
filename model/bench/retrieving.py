"""Image-text retrieval from the vectors of M3D-CLIP: R@k in pools of equal size.

Knows the journal's vectors. All pairs are dealt into pools of 100 (500, ...), each pair into one,
so that every pair counts and the size of the pool is the published one. Equal reports are equally
right. Without the image every image is the same, and what is found is chance: k of the pool.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from . import retrieval as ranking
from .asking import vector
from .intervals import interval
from .retrieval import KS

Entry = Mapping[str, Any]
SIZES: Final = (100, 500, 1000, 2000)
WAYS: Final = ("image_to_text", "text_to_image")
REFERENCE_WAYS: Final = ("IR", "TR")


def retrieval(entries: Sequence[Entry], *, reference: bool = False) -> dict[str, Any]:
    """Score retrieval as another task is scored; metrics are such as "image_to_text R@1 of 100"."""
    pairs = [each for each in entries if "image" in each]
    if not pairs:
        return {"measured": False, "why": "no M3D-CLIP was given, or no image has a report"}
    images, texts = (np.stack([vector(each[way]) for each in pairs]) for way in ("image", "text"))
    reports, patients = [each["report"] for each in pairs], [each["patient"] for each in pairs]
    sizes = [each for each in SIZES if each <= len(pairs)] or [len(pairs)]
    scores: dict[str, Any] = {}
    for size in sizes:
        scores |= _pools(images @ texts.T, reports, patients, size, reference=reference)
    first = (REFERENCE_WAYS if reference else WAYS)[0]
    return {
        "measured": True,
        "primary": f"{first} R@1 of {sizes[0]}",
        "items": len(pairs),
        "patients": len(set(patients)),
        "reports": len(set(reports)),
        "scores": scores,
        "slices": {},
    }


def _pools(
    similar: NDArray[np.float32],
    reports: Sequence[str],
    patients: Sequence[str],
    size: int,
    *,
    reference: bool,
) -> dict[str, Any]:
    """Give R@k of both ways, over all pools of a size; pairs that fill none are left out."""
    order = np.random.default_rng(0).permutation(len(reports))
    pools = [order[start : start + size] for start in range(0, len(order) - size + 1, size)]
    ways = REFERENCE_WAYS if reference else WAYS
    placed: dict[str, list[int]] = {way: [] for way in ways}
    for pool in pools:
        part = similar[np.ix_(pool, pool)]
        # The published script knows no equal texts: each pair has a name of its own.
        names = list(pool) if reference else [reports[int(index)] for index in pool]
        ranks = ranking.ranks(part, names)
        for way, own in zip(ways, WAYS, strict=True):
            placed[way] += ranks[own].tolist()
    drawn = [patients[int(index)] for pool in pools for index in pool]
    return {
        f"{way} R@{k} of {size}": _score(placed[way], drawn, k, size)
        for way in ways
        for k in KS
        if k <= size
    }


def _score(ranks: Sequence[int], patients: Sequence[str], k: int, size: int) -> dict[str, Any]:
    found = interval([(each <= k, 1) for each in ranks], patients)
    chance = k / size
    return {
        "value": found.estimate,
        "low": found.low,
        "high": found.high,
        "items": len(ranks),
        "blind": chance,
        "blind_low": chance,
        "blind_high": chance,
        "difference": found.estimate - chance,
        "difference_low": found.low - chance,
        "difference_high": found.high - chance,
    }
