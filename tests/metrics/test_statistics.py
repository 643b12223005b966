"""Intervals and p-values: closed forms, SciPy, brute force, and simulated coverage."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats

from mpunet.metrics.statistics import (
    Difference,
    Interval,
    bootstrap_mean,
    bootstrap_ratio,
    bootstrap_ratio_difference,
    paired_difference,
)

Values = list[float]


def test_four_values_have_a_closed_form() -> None:
    """Resamples of 0, 0, 0 and 4 have means 0 to 4 with probabilities 81, 108, 54, 12 and 1 / 256.

    The widened percentiles are 0 and 4 unless the level is low.
    """
    values = [0.0, 0.0, 0.0, 4.0]
    assert bootstrap_mean(values) == Interval(1, 0, 4)
    # t of 3 degrees is 0.76; tail ndtr(-0.88) = 0.19 < 81 / 256, and 1 - 0.19 < 243 / 256
    assert bootstrap_mean(values, level=0.5) == Interval(1, 0, 2)
    # t is 0.28; tail ndtr(-0.32) = 0.37 > 81 / 256
    assert bootstrap_mean(values, level=0.2) == Interval(1, 1, 1)


def test_a_mean_against_scipy() -> None:
    values = np.random.default_rng(0).lognormal(0, 0.8, 200)
    found = bootstrap_mean(values)
    expected = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=10_000, random_state=1
    ).confidence_interval
    error = values.std() / math.sqrt(200)
    assert found.mean == pytest.approx(values.mean())
    # With 200 values, the widening is 1 %; what is left is the resamples' own randomness.
    assert found[1:] == pytest.approx(expected, abs=0.1 * error)


def test_widening_is_that_of_student() -> None:
    """The bootstrap mean of symmetric values is nearly normal, so bounds are nearly those of t."""
    values = np.linspace(38, 42, 12)
    found = bootstrap_mean(values, resamples=200_000)
    expected = scipy.stats.t.interval(0.95, 11, values.mean(), scipy.stats.sem(values))
    assert found[1:] == pytest.approx(expected, abs=0.05 * scipy.stats.sem(values))


def test_levels_nest_and_seeds_repeat() -> None:
    values = np.random.default_rng(2).normal(0, 1, 30)
    wide, narrow = bootstrap_mean(values, level=0.99), bootstrap_mean(values, level=0.8)
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high
    assert (
        bootstrap_mean(values) == bootstrap_mean(values, seed=0) != bootstrap_mean(values, seed=1)
    )


def test_parts_of_resamples_are_all_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).normal(0, 1, 30)
    others = values + np.random.default_rng(4).normal(0.3, 1, 30)
    ones = np.ones(30)
    whole = bootstrap_mean(values), bootstrap_ratio_difference(values, ones, others, ones)
    monkeypatch.setattr("mpunet.metrics.resampling._DRAWS_AT_ONCE", 7 * 30)
    assert (bootstrap_mean(values), bootstrap_ratio_difference(values, ones, others, ones)) == whole


def test_nan_is_left_out_and_too_few_values_have_no_bounds() -> None:
    assert bootstrap_mean([1.0, math.nan, 3, 8, 9]) == bootstrap_mean([1.0, 3, 8, 9])
    assert bootstrap_mean(
        [1.0, math.nan, 3, 8, 9, 2], groups=["a", "b", "c", "c", "d", "e"]
    ) == bootstrap_mean([1, 3, 8, 9, 2], groups=[0, 1, 1, 2, 3])
    for nothing in ([], [math.nan]):
        assert all(map(math.isnan, bootstrap_mean(nothing)))
    single = bootstrap_mean([5.0])
    assert single.mean == 5
    assert math.isnan(single.low)
    assert math.isnan(single.high)
    assert math.isnan(bootstrap_mean([5.0, 7.0, 8.0]).low)
    assert math.isnan(bootstrap_mean([5.0, 7, 8, 9], groups=["a", "a", "b", "c"]).low)


def test_infinite_values_have_no_bounds() -> None:
    found = bootstrap_mean([40.0, math.inf, 41.0, 42.0])  # the PSNR of a perfect case
    assert found.mean == math.inf
    assert math.isnan(found.low)


def test_clusters_are_resampled_whole() -> None:
    """Copies of a case say nothing new: the interval is that of one value each."""
    values = list(np.random.default_rng(4).normal(0, 1, 10))
    assert bootstrap_mean(values * 3, groups=[*range(10)] * 3) == pytest.approx(
        bootstrap_mean(values)
    )
    assert bootstrap_mean(values * 3).high < bootstrap_mean(values).high


def test_a_value_weighs_the_same_in_every_cluster() -> None:
    assert bootstrap_mean([1, 1, 1, 5, 1, 1], groups=[*"aaabcd"]) == Interval(10 / 6, 1, 5)


def coverage(
    truth: float, one: Callable[[np.random.Generator], Interval], data_sets: int = 300
) -> float:
    """Share of simulated data sets whose interval holds the truth."""
    rng = np.random.default_rng(0)
    intervals = [one(rng) for _ in range(data_sets)]
    return sum(interval.low <= truth <= interval.high for interval in intervals) / data_sets


@pytest.mark.parametrize("n", [6, 10, 30])
def test_intervals_of_means_cover_what_they_promise(n: int) -> None:
    assert (
        0.90
        <= coverage(40, lambda rng: bootstrap_mean(rng.normal(40, 2, n), resamples=2000))
        <= 0.98
    )
    share = coverage(
        40, lambda rng: bootstrap_mean(rng.normal(40, 2, n), resamples=2000, level=0.8)
    )
    assert 0.73 <= share <= 0.87


def test_intervals_of_clustered_values_cover_what_they_promise() -> None:
    groups = np.repeat(np.arange(20), 4)

    def values(rng: np.random.Generator) -> np.ndarray:
        return rng.normal(0, 1, 20)[groups] + rng.normal(0, 0.5, 80)

    assert (
        0.90
        <= coverage(0, lambda rng: bootstrap_mean(values(rng), groups=list(groups), resamples=2000))
        <= 0.98
    )
    # As if the values of a case were independent:
    assert coverage(0, lambda rng: bootstrap_mean(values(rng), resamples=2000)) < 0.8


def found_nodules(
    rng: np.random.Generator, cases: int, rate: float
) -> tuple[np.ndarray, np.ndarray]:
    """Found and existing nodules by case, with varying difficulty and mean sensitivity ``rate``."""
    existing = rng.poisson(3, cases)
    return rng.binomial(existing, rng.beta(5 * rate, 5 * (1 - rate), cases)), existing


@pytest.mark.parametrize("cases", [10, 30])
def test_intervals_of_clustered_proportions_cover_what_they_promise(cases: int) -> None:
    assert (
        0.90
        <= coverage(
            0.6, lambda rng: bootstrap_ratio(*found_nodules(rng, cases, 0.6), resamples=2000)
        )
        <= 0.98
    )


def test_intervals_of_differences_cover_what_they_promise() -> None:
    def one(rng: np.random.Generator) -> Interval:
        found_a, existing = found_nodules(rng, 25, 0.7)
        found_b = rng.binomial(existing, 0.5)
        return Interval(
            *bootstrap_ratio_difference(found_a, existing, found_b, existing, resamples=2000)[:3]
        )

    assert 0.90 <= coverage(0.2, one) <= 0.98


@pytest.mark.parametrize(
    "differences", [[1.0, 2, 3, 4, 5], [3.0, -1, 4, 2, 7, -5, 6.5], [0.5, -0.25]]
)
def test_wilcoxon_against_all_signs(differences: Values) -> None:
    """Two-sided: twice the share of the 2 ** n signs with a rank sum at least as far out."""
    ranks = scipy.stats.rankdata(np.abs(differences))
    signed = [
        sum(r for r, sign in zip(ranks, signs, strict=True) if sign)
        for signs in itertools.product([0, 1], repeat=len(ranks))
    ]
    observed = sum(r for r, d in zip(ranks, differences, strict=True) if d > 0)
    expected = min(
        1, 2 * min(np.mean(np.array(signed) <= observed), np.mean(np.array(signed) >= observed))
    )
    found = paired_difference(differences, [0.0] * len(differences))
    assert found.p == pytest.approx(expected)
    assert found.p == pytest.approx(scipy.stats.wilcoxon(differences, method="exact").pvalue)
    assert found.n == len(differences)


def test_paired_differences() -> None:
    a, b = [40.0, 41.0, math.nan, 38.0, 39.0, 42.0], [39.0, math.nan, 37.0, 36.5, 38.8, 41.5]
    found = paired_difference(a, b)
    assert found.mean == pytest.approx((1 + 1.5 + 0.2 + 0.5) / 4)
    assert found[1:3] == pytest.approx(bootstrap_mean([1, 1.5, 0.2, 0.5])[1:])
    assert found.p == pytest.approx(0.125)  # 4 of one sign: 2 / 2 ** 4
    assert found.n == 4
    back = paired_difference(b, a)
    assert back.mean == pytest.approx(-found.mean)
    assert back.p == found.p


def test_zero_differences() -> None:
    same = [1.0, 2.0, 3.0, 4.0]
    assert paired_difference(same, same) == Difference(0, 0, 0, 1.0, 4)
    with_zeros = paired_difference([1.0, 2, 3, 4, 5, 5], [1.0, 2, 2, 2.5, 2, 1])
    assert with_zeros.p == pytest.approx(2 / 2**4)  # of four that are not zero
    assert with_zeros.n == 6


def test_differences_of_too_few_pairs() -> None:
    found = paired_difference([2.0, math.inf], [1.0, math.inf])  # inf - inf is no difference
    assert (found.mean, found.n) == (1, 1)
    assert all(math.isnan(value) for value in found[1:4])
    assert paired_difference([], []).n == 0


def test_ratios_are_of_sums() -> None:
    assert bootstrap_ratio([1, 9, 5, 5], [10, 10, 10, 10]) == Interval(0.5, 0.1, 0.9)
    assert bootstrap_ratio([1, 3, 3, 3], [1, 9, 9, 9]) == Interval(10 / 28, 1 / 3, 1.0)
    # Resamples without the first case have no ratio: the others give 1 / 2, 2 / 4 and so on.
    assert bootstrap_ratio([1, 0, 0, 0], [2, 0, 0, 0]) == Interval(0.5, 0.5, 0.5)
    assert all(map(math.isnan, bootstrap_ratio([0, 0], [0, 0])))


def test_difference_of_ratios_against_all_exchanges() -> None:
    num_a, den_a, num_b, den_b = [3, 2, 4, 1], [4, 2, 5, 3], [1, 2, 2, 0], [4, 3, 5, 3]
    differences = []
    for swap in itertools.product([False, True], repeat=4):
        a = [
            (nb, db) if s else (na, da)
            for s, na, da, nb, db in zip(swap, num_a, den_a, num_b, den_b, strict=True)
        ]
        b = [
            (na, da) if s else (nb, db)
            for s, na, da, nb, db in zip(swap, num_a, den_a, num_b, den_b, strict=True)
        ]
        differences.append(
            sum(n for n, _ in a) / sum(d for _, d in a)
            - sum(n for n, _ in b) / sum(d for _, d in b)
        )
    found = bootstrap_ratio_difference(num_a, den_a, num_b, den_b)
    assert found.mean == pytest.approx(10 / 14 - 5 / 15)
    assert found.p == pytest.approx(np.mean(np.abs(differences) >= abs(differences[0]) - 1e-9))
    assert found.n == 4
    drawn = bootstrap_ratio_difference(
        num_a, den_a, num_b, den_b, resamples=15
    )  # one too few to go through all 16
    assert drawn.p in {k / 16 for k in range(1, 17)}


def test_p_of_no_difference_is_uniform() -> None:
    rng = np.random.default_rng(5)
    p_values = []
    for _ in range(300):
        found_a, existing = found_nodules(rng, 20, 0.6)
        found_b = rng.binomial(existing, 0.6)
        found_a = rng.binomial(existing, 0.6)
        p_values.append(
            bootstrap_ratio_difference(found_a, existing, found_b, existing, resamples=500).p
        )
    assert 0.02 <= np.mean(np.array(p_values) <= 0.05) <= 0.09
    assert 0.15 <= np.mean(np.array(p_values) <= 0.20) <= 0.27


def test_a_paired_difference_is_sharper_than_its_parts() -> None:
    """Cases differ much and methods little: both ratios are uncertain, their difference is not."""
    found, existing = found_nodules(np.random.default_rng(6), 40, 0.6)
    better = np.minimum(found + 1, existing)
    difference = bootstrap_ratio_difference(better, existing, found, existing)
    alone = bootstrap_ratio(found, existing)
    assert difference.high - difference.low < 0.7 * (alone.high - alone.low)
    assert difference.low > 0
    assert difference.p < 0.001


def test_equal_ratios_have_no_difference() -> None:
    found, existing = [1, 2, 1, 2], [2, 3, 2, 3]
    same = bootstrap_ratio_difference(found, existing, found, existing)
    assert same == Difference(0, 0, 0, 1.0, 4)
    single = bootstrap_ratio_difference([1], [2], [2], [2])
    assert (single.mean, single.n) == (-0.5, 1)
    assert all(math.isnan(value) for value in single[1:4])


def test_wrong_input() -> None:
    with pytest.raises(ValueError, match=r"of one length, got shapes \(2,\), \(3,\)"):
        paired_difference([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match=r"of one length, got shapes \(1, 2\)"):
        bootstrap_mean(np.ones((1, 2)))
    with pytest.raises(ValueError, match=r"one group per value, got 1 groups and 2 values"):
        bootstrap_mean([1, 2], groups=["a"])
    with pytest.raises(ValueError, match=r"between 0 and 1, such as 0.95, got 95"):
        bootstrap_mean([1, 2], level=95)
    with pytest.raises(ValueError, match=r"at least 1 resample, got 0"):
        bootstrap_ratio_difference([1], [1], [1], [1], resamples=0)
