"""How sure a number is: percentile bootstrap over patients, and the difference of two systems.

Knows rows of numbers that can be added up: a score is a statistic of such sums, so a resample
costs a product of matrices. Questions about one patient are no independent draws; whole patients
are drawn (Davison and Hinkley 1997, 3.8).
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from model.errors import ModelError

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]
AXES = 2  # samples, counts
REMEMBERED = 1_000_000  # patients x resamples: 8 MB; a table of scores draws the same ones
BLOCK = 250  # resamples at once: 250 x 20,000 patients are 40 MB


@dataclass(frozen=True)
class Interval:
    """A number, and where it lies in `level` of the resamples."""

    estimate: float
    low: float
    high: float
    level: float = 0.95


def ratio(sums: Array) -> Array:
    """Give sums[..., 0] / sums[..., 1]: a mean, if each row is (value, 1)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums[..., 0] / sums[..., 1])


def f1(sums: Array) -> Array:
    """F1 of (true positives, false positives, false negatives)."""
    doubled = 2 * sums[..., 0]
    return ratio(np.stack([doubled, doubled + sums[..., 1] + sums[..., 2]], -1))


def rows(values: Sequence[float | bool | None]) -> Array:
    """Make rows for `ratio` of values to be averaged; None is a value that is not counted."""
    return np.array([(0.0, 0.0) if each is None else (float(each), 1.0) for each in values])


def interval(
    counts: ArrayLike,
    patients: Sequence[Hashable],
    statistic: Statistic = ratio,
    *,
    seed: int = 0,
    resamples: int = 2000,
) -> Interval:
    """Give a statistic of the summed rows, and its 95 % interval.

    Parameters
    ----------
    counts
        (samples, k); what is added up.
    patients
        Whose sample each row is.
    statistic
        Sums (..., k) to scores (...); nan where nothing was counted, and such resamples are left
        out.
    """
    summed = _by_patient(counts, patients)
    return _interval([summed], statistic, seed, resamples)


def difference(
    ours: ArrayLike,
    theirs: ArrayLike,
    patients: Sequence[Hashable],
    statistic: Statistic = ratio,
    *,
    seed: int = 0,
    resamples: int = 2000,
) -> Interval:
    """Give `ours` less `theirs`, both about the same samples, with the same patients drawn."""
    both = [_by_patient(each, patients) for each in (ours, theirs)]
    return _interval(both, statistic, seed, resamples)


def _by_patient(counts: ArrayLike, patients: Sequence[Hashable]) -> Array:
    """Add up the rows of each patient: (patients, k)."""
    table = np.asarray(counts, np.float64)
    if table.ndim != AXES or len(table) != len(patients) or not table.size:
        raise ModelError(
            f"an interval needs a row of counts for each of {len(patients)} samples, "
            f"not an array {table.shape}"
        )
    number = {patient: index for index, patient in enumerate(dict.fromkeys(patients))}
    summed = np.zeros((len(number), table.shape[1]))
    np.add.at(summed, [number[each] for each in patients], table)
    return summed


def _draws(count: int, seed: int, resamples: int) -> Iterator[Array]:
    """Give how often each patient is in each resample, (resamples, patients), in blocks."""
    random = np.random.default_rng(seed)
    for start in range(0, resamples, BLOCK):
        size = min(BLOCK, resamples - start)
        yield random.multinomial(count, np.full(count, 1 / count), size).astype(np.float64)


@lru_cache(maxsize=16)
def _remembered(count: int, seed: int, resamples: int) -> tuple[Array, ...]:
    return tuple(_draws(count, seed, resamples))


def _interval(summed: Sequence[Array], statistic: Statistic, seed: int, resamples: int) -> Interval:
    def score(parts: Sequence[Array]) -> Array:
        first, *others = (statistic(each) for each in parts)
        return np.asarray(first - others[0] if others else first)

    count = len(summed[0])
    draws: Callable[[int, int, int], Iterable[Array]]
    draws = _remembered if count * resamples <= REMEMBERED else _draws
    scores = np.concatenate(
        [score([times @ each for each in summed]) for times in draws(count, seed, resamples)]
    )
    scores = scores[~np.isnan(scores)]
    estimate = float(score([each.sum(0) for each in summed]))
    if np.isnan(estimate) or not len(scores):
        raise ModelError("an interval needs something that was counted, and nothing was")
    low, high = np.percentile(scores, [2.5, 97.5])
    return Interval(estimate, float(low), float(high))
