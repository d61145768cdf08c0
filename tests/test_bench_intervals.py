"""Bootstrap intervals: what they cover, whom they draw, and the difference of two systems."""

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.bench.findings import Comparison
from model.bench.intervals import Interval, difference, f1, interval, ratio, rows
from model.errors import ModelError

unhurried = settings(deadline=None)  # a busy machine is no slow function

VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def test_the_estimate_is_the_mean_of_all_samples_not_of_the_patients() -> None:
    found = interval(rows([1, 1, 1, 0]), ["a", "a", "a", "b"])
    assert found.estimate == pytest.approx(3 / 4)
    assert (found.low, found.high) == (0, 1), "either patient may be drawn twice"


def test_the_same_seed_draws_the_same_and_another_nearly() -> None:
    values = rows(np.random.default_rng(0).random(200).tolist())
    first = interval(values, range(200), seed=1)
    assert first == interval(values, range(200), seed=1)
    other = interval(values, range(200), seed=2)
    assert other != first
    assert other.low == pytest.approx(first.low, abs=0.01)


def test_the_width_is_that_of_the_standard_error() -> None:
    values = np.random.default_rng(0).normal(5, 2, 1000)
    found = interval(rows(values.tolist()), range(1000), resamples=4000)
    error = values.std() / np.sqrt(1000)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.05)
    assert (found.high + found.low) / 2 == pytest.approx(values.mean(), abs=0.1 * error)


def test_questions_about_one_patient_are_drawn_together() -> None:
    # Ten patients with fifty equal answers each hold ten answers, not five hundred.
    right = [patient % 2 for patient in range(10) for _ in range(50)]
    patients = [patient for patient in range(10) for _ in range(50)]
    clustered = interval(rows(right), patients, resamples=4000)
    apart = interval(rows(right), range(500), resamples=4000)
    assert clustered.estimate == apart.estimate == 0.5
    error = np.sqrt(0.25 / 10)
    assert clustered.high - clustered.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert apart.high - apart.low == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 500), rel=0.15)


def test_an_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(7)
    held = 0
    for seed in range(200):
        found = interval(
            rows(random.normal(1, 1, 80).tolist()), range(80), seed=seed, resamples=400
        )
        held += found.low <= 1 <= found.high
    # 95 % of 200, less what a percentile bootstrap of 80 loses; the spread is 3 of 200.
    assert 178 <= held <= 199


def test_what_is_not_counted_is_not_in_the_mean() -> None:
    found = interval(rows([0.5, None, 0.7, None]), range(4))
    assert found.estimate == pytest.approx(0.6)
    assert 0.5 <= found.low <= found.high <= 0.7 + 1e-12


def test_f1_is_that_of_the_summed_counts() -> None:
    compared = [Comparison(3, 1, 0), Comparison(1, 0, 2), Comparison(0, 0, 0)]
    counts = [(each.found, each.extra, each.missed) for each in compared]
    found = interval(counts, range(3), f1)
    assert found.estimate == pytest.approx(8 / (8 + 1 + 2))
    assert found.estimate == pytest.approx(sum(compared, Comparison()).f1)
    # Three times the first gives the most, 6/7; three times the second the least, 2/4.
    assert (found.low, found.high) == pytest.approx((0.5, 6 / 7))


def test_the_difference_of_a_system_to_itself_is_nothing() -> None:
    values = rows(np.random.default_rng(0).random(50).tolist())
    assert difference(values, values, range(50)) == Interval(0, 0, 0)


def test_a_small_gain_on_every_sample_is_sure_though_the_scores_spread() -> None:
    random = np.random.default_rng(3)
    theirs = random.random(60)
    ours = theirs + 0.02 + 0.005 * random.normal(size=60)
    both = [interval(rows(each.tolist()), range(60)) for each in (ours, theirs)]
    assert both[0].low < both[1].high, "alone, the intervals overlap"
    found = difference(rows(ours.tolist()), rows(theirs.tolist()), range(60))
    assert found.low > 0
    assert found.estimate == pytest.approx(float((ours - theirs).mean()))
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.005 / np.sqrt(60), rel=0.3)


def test_a_difference_turned_is_the_same_with_the_other_sign() -> None:
    random = np.random.default_rng(4)
    ours, theirs = (rows(random.random(40).tolist()) for _ in range(2))
    there, back = difference(ours, theirs, range(40)), difference(theirs, ours, range(40))
    assert (back.estimate, back.low, back.high) == pytest.approx(
        (-there.estimate, -there.high, -there.low)
    )


@unhurried
@given(VALUES)
def test_an_interval_of_a_mean_lies_within_the_values(values: list[float]) -> None:
    found = interval(rows(values), range(len(values)), resamples=100)
    least, most = min(values) - 1e-9, max(values) + 1e-9
    assert least <= found.low <= found.high <= most
    assert least <= found.estimate <= most


@unhurried
@given(VALUES, st.randoms())
def test_one_patient_gives_no_spread_and_order_no_other_estimate(
    values: list[float], random: Random
) -> None:
    found = interval(rows(values), ["same"] * len(values), resamples=50)
    assert found.low == pytest.approx(found.estimate) == found.high
    shuffled = list(values)
    random.shuffle(shuffled)
    assert interval(rows(shuffled), ["same"] * len(values), resamples=50).estimate == pytest.approx(
        found.estimate
    )


def test_more_resamples_than_are_drawn_at_once_are_all_drawn() -> None:
    seen: list[int] = []

    def counted(sums: np.ndarray) -> np.ndarray:
        seen.append(len(sums) if sums.ndim > 1 else 0)
        return ratio(sums)

    interval(rows([0, 1, 1]), range(3), counted, resamples=601)
    assert sum(seen) == 601


def test_nothing_counted_is_said_and_so_is_a_missing_patient() -> None:
    with pytest.raises(ModelError, match="nothing was"):
        interval(rows([None, None]), range(2))
    with pytest.raises(ModelError, match="each of 3 samples"):
        interval(rows([1, 0]), range(3))
    with pytest.raises(ModelError, match="each of 0 samples"):
        interval([], [])
    with pytest.raises(ModelError, match="each of 2 samples"):
        interval([1, 0], range(2))
