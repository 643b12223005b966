"""Confidence intervals and tests over cases, for means, ratios of counts and paired differences.

*Intervals* are expanded percentile intervals (Hesterberg, The American Statistician 2015). These
are percentiles of the bootstrap, moved outwards by as much as Student's t with n - 1 degrees of
freedom is wider than the normal distribution. Evaluations of this project have 4 to 200 cases, for
which this method had the best coverage in simulations (2000 data sets each, nominal 95 %). For
means of normal values it covers 87, 93, 94 and 95 % at n = 4, 6, 10 and 20; plain percentiles and
BCa cover 79, 84, 90 and 93 %. At n = 2 and 3 it covers 50 and 75 %, so there is no interval below
four cases (our choice). For ratios of counts clustered in 10 cases it covers 94 %, the others
90 % and 91 %. Unlike bounds of t intervals, its bounds stay within the range of the values: no
sensitivity is above 1.

*Clusters*, for example the readings of one case, are resampled as a whole. *NaN* values are left
out, for example cases without the measured region. All results are deterministic for a given
``seed``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Sequence
from itertools import compress
from typing import NamedTuple

import numpy as np

from mpunet.metrics.resampling import (
    Floats,
    Values,
    complete,
    expanded_percentiles,
    permutation_p,
    ratio,
    ratio_difference,
    resample_indices,
)

__all__ = [
    "Difference",
    "Interval",
    "bootstrap_mean",
    "bootstrap_ratio",
    "bootstrap_ratio_difference",
    "paired_difference",
]


class Interval(NamedTuple):
    """A mean or ratio with the bounds of its confidence interval, in the unit of the values.

    All are NaN if there are no values. The bounds are NaN for fewer than four cases or if a value
    is infinite.
    """

    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """A mean difference or a difference of ratios, its interval and its p-value.

    Attributes:
        mean: the difference, in the unit of the values.
        low: lower bound of the interval; NaN for fewer than four pairs.
        high: upper bound of the interval; NaN for fewer than four pairs.
        p: two-sided p-value; NaN for fewer than two pairs.
        n: number of pairs.
    """

    mean: float
    low: float
    high: float
    p: float
    n: int


def bootstrap_mean(
    values: Values,
    *,
    groups: Sequence[Hashable] | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Compute the mean of values and its bootstrap interval.

    Args:
        values: one value per case, in any unit; NaN values are left out.
        groups: cluster of each value; by default each value is a cluster of its own. All values
            have the same weight, whatever the size of their cluster.
        level: nominal coverage of the interval, in (0, 1).
        resamples: number of resamples.
        seed: seed of the resamples.

    Raises:
        ValueError: if ``groups`` is not as long as ``values``, or an option is out of range.

    >>> interval = bootstrap_mean([38.0, 40.5, 39.0, 41.5, 39.5])
    >>> [round(value, 1) for value in interval]
    [39.7, 38.2, 41.3]
    """
    (numbers,) = complete(values)
    counts = np.ones_like(numbers)
    if groups is not None:
        kept = ~np.isnan(np.asarray(values, np.float64))
        if len(groups) != kept.size:
            raise ValueError(
                f"Expected one group per value, got {len(groups)} groups and {kept.size} values."
            )
        names = list(compress(groups, kept))
        clusters = {name: index for index, name in enumerate(dict.fromkeys(names))}
        members = np.array([clusters[name] for name in names], np.intp)
        numbers, counts = (
            np.bincount(members, weights).astype(np.float64) for weights in (numbers, counts)
        )
    return bootstrap_ratio(numbers, counts, level=level, resamples=resamples, seed=seed)


def paired_difference(
    a: Values, b: Values, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Difference:
    """Compute the mean of ``a`` - ``b`` over cases, its bootstrap interval and its p-value.

    The p-value is that of Wilcoxon's signed-rank test, which is exact for up to 50 differences
    without ties; zeros are dropped, as by Wilcoxon, and p is 1 if all differences are zero.

    Args:
        a: one value per case.
        b: one value per case, in the order of ``a``. Pairs with a NaN, and infinite pairs without a
            difference, are left out.
        level, resamples, seed: as in :func:`bootstrap_mean`.

    Raises:
        ValueError: if ``a`` and ``b`` differ in length, or an option is out of range.

    >>> paired_difference([38.0, 40.5, 39.0, 42.0], [38.0, 40.5, 39.0, 42.0])
    Difference(mean=0.0, low=0.0, high=0.0, p=1.0, n=4)
    """
    first, second = complete(a, b)
    with np.errstate(invalid="ignore"):
        differences = first - second
    (differences,) = complete(differences)
    interval = bootstrap_mean(differences, level=level, resamples=resamples, seed=seed)
    return Difference(*interval, _wilcoxon(differences), differences.size)


def bootstrap_ratio(
    numerators: Values,
    denominators: Values,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Compute the sum of numerators over the sum of denominators, and its bootstrap interval.

    The ratio is a proportion whose counts are clustered, for example sensitivity from the numbers
    of found and of existing nodules in each case.

    Args:
        numerators: one per cluster.
        denominators: one per cluster, at least 0. Resamples whose denominators sum to 0 are left
            out.
        level, resamples, seed: as in :func:`bootstrap_mean`.

    Raises:
        ValueError: if both differ in length, or an option is out of range.

    >>> bootstrap_ratio([2, 3, 1, 4], [2, 3, 1, 4])
    Interval(mean=1.0, low=1.0, high=1.0)
    """
    _check(level, resamples)
    above, below = complete(numerators, denominators)
    draws = [
        ratio(above[index].sum(1), below[index].sum(1))
        for index in resample_indices(above.size, resamples, seed)
    ]
    return Interval(
        float(ratio(above.sum(), below.sum())), *expanded_percentiles(draws, above.size, level)
    )


def bootstrap_ratio_difference(
    num_a: Values,
    den_a: Values,
    num_b: Values,
    den_b: Values,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """Compute ratio a - ratio b over the same clusters, its interval, and a permutation p-value.

    The test exchanges a and b in random clusters and measures how often they differ at least as
    much as observed. If the number of possible exchanges is at most ``resamples``, each is used
    once.

    Args:
        num_a: numerators of a, as in :func:`bootstrap_ratio`; clusters are paired by position.
        den_a: denominators of a.
        num_b: numerators of b.
        den_b: denominators of b.
        level, resamples, seed: as in :func:`bootstrap_mean`.

    Raises:
        ValueError: if lengths differ, or an option is out of range.

    >>> # 2 of 8 exchanges differ as much
    >>> bootstrap_ratio_difference([2, 3, 1], [2, 3, 1], [1, 1, 0], [2, 3, 1]).p
    0.25
    """
    _check(level, resamples)
    parts = complete(num_a, den_a, num_b, den_b)
    n = parts[0].size
    draws = [
        ratio_difference(*(part[index].sum(1) for part in parts))
        for index in resample_indices(n, resamples, seed)
    ]
    mean = float(ratio_difference(*(part.sum() for part in parts)))
    p = math.nan if n < 2 or math.isnan(mean) else permutation_p(parts, mean, resamples, seed)
    return Difference(mean, *expanded_percentiles(draws, n, level), p, n)


def _check(level: float, resamples: int) -> None:
    if not 0 < level < 1:
        raise ValueError(f"Expected a level between 0 and 1, such as 0.95, got {level}.")
    if resamples < 1:
        raise ValueError(f"Expected at least 1 resample, got {resamples}; 10000 is usual.")


def _wilcoxon(differences: Floats) -> float:
    from scipy.stats import wilcoxon

    if differences.size < 2:
        return math.nan
    nonzero = differences[differences != 0]
    if nonzero.size == 0:
        return 1.0
    with warnings.catch_warnings():  # older SciPy warns about small samples with ties
        warnings.simplefilter("ignore")
        return float(wilcoxon(nonzero).pvalue)
