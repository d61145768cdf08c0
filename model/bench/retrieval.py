"""Image-text retrieval: R@k from similarities, both ways.

Knows a matrix of numbers and which texts are the same. Several series of one case share one report,
so every image with that text is a right answer. A wrong answer as similar as the best
right one is taken to come first: a model that says the same of all finds nothing.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.errors import ModelError

KS = (1, 5, 10)
Scores = NDArray[np.floating[Any]]


def ranks(scores: Scores, texts: Sequence[Hashable]) -> dict[str, NDArray[np.int_]]:
    """Give the place of the best right answer, 1 the first, of each query.

    Parameters
    ----------
    scores
        (images, texts): pair i is row i and column i.
    texts
        The text of each pair, or what stands for it; equal ones are equally right.
    """
    _check(scores, len(texts))
    names = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    number = np.array([names[each] for each in texts])
    right = number[:, None] == number[None, :]
    return {
        "image_to_text": _ranks(scores, right),
        "text_to_image": _ranks(scores.T, right.T),
    }


def recalls(
    scores: Scores, texts: Sequence[Hashable], ks: Sequence[int] = KS
) -> dict[str, dict[int, float]]:
    """Give R@k of each way: how often a right answer is among the first k."""
    _check(scores, len(texts), max(ks))
    return {
        way: {k: float((placed <= k).mean()) for k in ks}
        for way, placed in ranks(scores, texts).items()
    }


def reference(scores: Scores, ks: Sequence[int] = KS) -> dict[str, dict[int, float]]:
    """Give R@k as the published script does: the pair's own text or nothing, ties by chance.

    "IR" is its name for images that look for texts, "TR" for texts that look for images.
    """
    _check(scores, len(scores), max(ks))
    found = {}
    for way, matrix in (("IR", scores), ("TR", scores.T)):
        order = np.argsort(-matrix, axis=1, kind="stable")
        placed = np.argmax(order == np.arange(len(matrix))[:, None], axis=1)
        found[way] = {k: float((placed < k).mean()) for k in ks}
    return found


def subset(total: int, size: int, *, seed: int) -> NDArray[np.int_]:
    """Draw `size` of `total` pairs, in their order; the same seed draws the same ones."""
    if not 0 < size <= total:
        raise ModelError(f"a subset needs 1 to {total} pairs, not {size}")
    return np.sort(np.random.default_rng(seed).choice(total, size, replace=False))


def _ranks(scores: Scores, right: NDArray[np.bool_]) -> NDArray[np.int_]:
    best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
    return np.asarray(1 + ((scores >= best) & ~right).sum(axis=1))


def _check(scores: Scores, pairs: int, most: int = 1) -> None:
    if scores.shape != (pairs, pairs) or not pairs:
        raise ModelError(f"retrieval needs {pairs} x {pairs} similarities, not {scores.shape}")
    if not np.isfinite(scores).all():
        raise ModelError("retrieval needs similarities that are numbers; some are not")
    if most > pairs:
        raise ModelError(f"R@{most} needs at least {most} pairs, not {pairs}")
