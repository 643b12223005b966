"""Intervals and tests over cases: means, ratios of counts, and paired differences of both.

*Intervals* are expanded percentile intervals (Hesterberg, The American Statistician 2015): the bootstrap's percentiles, taken further
out as far as Student's t with n - 1 degrees of freedom is wider than the normal distribution. Evaluations here have 4 to 200 cases,
and this held best when simulated (2000 data sets each, nominal 95 %). Means of normal values: 87, 93, 94, 95 % at n = 4, 6, 10, 20,
where plain percentiles and BCa cover 79, 84, 90, 93 %; ratios of counts clustered in 10 cases: 94 % beside 90 % and 91 %. Bounds stay
within the values, which those of t intervals do not: no sensitivity above 1.

*Clusters* (readings of one case, say) are resampled whole. *NaN* are left out, as in cases without the region that is measured.
Everything is deterministic by ``seed``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Iterator, Sequence
from itertools import compress
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "Difference",
    "Interval",
    "bootstrap_mean",
    "bootstrap_ratio",
    "bootstrap_ratio_difference",
    "paired_difference",
]

Values = Sequence[float] | npt.NDArray[Any]
_Floats = npt.NDArray[np.float64]

_DRAWS_AT_ONCE = 1_000_000  # indices, 8 MB: resamples are drawn in parts of this size


class Interval(NamedTuple):
    """A mean or ratio and the bounds of its confidence interval, in the unit of the values.

    All NaN if there are no values; bounds NaN for a single case, or where a value is infinite.
    """

    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """A mean difference or a difference of ratios, its interval, the two-sided p-value, and the number of pairs that it is of.

    Bounds and p are NaN for fewer than two pairs.
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
    """Mean over values with its bootstrap interval.

    Args:
        values: one per case, any unit; NaN do not count.
        groups: the cluster that each value belongs to; by default each is its own. Each value weighs the same, whatever the size
            of its cluster.
        level: what the interval should cover, in (0, 1).
        resamples: how often to resample.
        seed: of the resamples.

    Raises:
        ValueError: if ``groups`` is not as long as ``values``, or an option is out of its range.

    >>> interval = bootstrap_mean([38.0, 40.5, 39.0, 41.5, 39.5])
    >>> [round(value, 1) for value in interval]
    [39.7, 38.2, 41.3]
    """
    (numbers,) = _complete(values)
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
    """Mean of ``a`` - ``b`` over cases, its bootstrap interval, and the p-value of Wilcoxon's signed-rank test.

    The test is exact for up to 50 differences without ties; zeros are dropped, as Wilcoxon did, and p is 1 if all are zero.

    Args:
        a: one value per case; the options are those of :func:`bootstrap_mean`.
        b: likewise, in the same order. Pairs with a NaN, and infinite pairs without a difference, do not count.

    Raises:
        ValueError: if ``a`` and ``b`` differ in length, or an option is out of its range.

    >>> paired_difference([38.0, 40.5, 39.0], [38.0, 40.5, 39.0])
    Difference(mean=0.0, low=0.0, high=0.0, p=1.0, n=3)
    """
    first, second = _complete(a, b)
    with np.errstate(invalid="ignore"):
        differences = first - second
    (differences,) = _complete(differences)
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
    """Sum of numerators over sum of denominators, with its interval: a proportion whose counts come in clusters.

    Sensitivity, say, from the nodules that were found and those that there are in each case.

    Args:
        numerators: one per cluster; the options are those of :func:`bootstrap_mean`.
        denominators: one per cluster, at least 0. Resamples in which they sum to 0 are left out.

    Raises:
        ValueError: if both differ in length, or an option is out of its range.

    >>> bootstrap_ratio([2, 3, 1], [2, 3, 1])
    Interval(mean=1.0, low=1.0, high=1.0)
    """
    _check(level, resamples)
    above, below = _complete(numerators, denominators)
    draws = [
        _ratio(above[index].sum(1), below[index].sum(1))
        for index in _resamples(above.size, resamples, seed)
    ]
    return Interval(float(_ratio(above.sum(), below.sum())), *_bounds(draws, above.size, level))


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
    """Ratio a - ratio b over the same clusters: its interval, and the p-value of a permutation test.

    The test exchanges a and b in clusters at random: were they alike, how often would they differ at least as much? All ways are
    gone through where that takes no more than ``resamples``.

    Args:
        num_a: as in :func:`bootstrap_ratio`, like the next three; clusters are paired by position.
        den_a: denominators of a.
        num_b: numerators of b.
        den_b: denominators of b.
        level, resamples, seed: as in :func:`bootstrap_mean`.

    Raises:
        ValueError: if lengths differ, or an option is out of its range.

    >>> bootstrap_ratio_difference([2, 3, 1], [2, 3, 1], [1, 1, 0], [2, 3, 1]).p  # 2 of 8 exchanges differ as much
    0.25
    """
    _check(level, resamples)
    parts = _complete(num_a, den_a, num_b, den_b)
    n = parts[0].size
    draws = [
        _contrast(*(part[index].sum(1) for part in parts))
        for index in _resamples(n, resamples, seed)
    ]
    mean = float(_contrast(*(part.sum() for part in parts)))
    p = math.nan if n < 2 or math.isnan(mean) else _permutation_p(parts, mean, resamples, seed)
    return Difference(mean, *_bounds(draws, n, level), p, n)


def _check(level: float, resamples: int) -> None:
    if not 0 < level < 1:
        raise ValueError(f"Expected a level between 0 and 1, such as 0.95, got {level}.")
    if resamples < 1:
        raise ValueError(f"Expected at least 1 resample, got {resamples}; 10000 is usual.")


def _complete(*columns: Values) -> list[_Floats]:
    """The columns at positions where none has a NaN."""
    arrays = [np.asarray(column, np.float64) for column in columns]
    if any(array.ndim != 1 or array.shape != arrays[0].shape for array in arrays):
        raise ValueError(
            f"Expected lists of numbers of one length, got shapes {', '.join(str(array.shape) for array in arrays)}."
        )
    table = np.stack(arrays)
    return list(table[:, ~np.isnan(table).any(axis=0)])


def _resamples(n: int, resamples: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """Indices (R, n), a part of the resamples at a time; none for fewer than two clusters."""
    rng = np.random.default_rng(seed)
    at_once = max(1, _DRAWS_AT_ONCE // max(n, 1))
    for start in range(0, resamples if n > 1 else 0, at_once):
        yield rng.integers(0, n, (min(at_once, resamples - start), n))


def _ratio(above: Any, below: Any) -> Any:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.equal(below, 0), np.nan, np.true_divide(above, below))


def _contrast(num_a: Any, den_a: Any, num_b: Any, den_b: Any) -> Any:
    return _ratio(num_a, den_a) - _ratio(num_b, den_b)


def _bounds(draws: list[_Floats], n: int, level: float) -> tuple[float, float]:
    """Expanded percentiles of the draws that are defined."""
    from scipy.special import ndtr, stdtrit

    defined = np.concatenate([*draws, np.empty(0)])
    defined = defined[~np.isnan(defined)]
    if n < 2 or defined.size == 0 or not np.isfinite(defined).all():
        return math.nan, math.nan
    tail = ndtr(math.sqrt(n / (n - 1)) * stdtrit(n - 1, (1 - level) / 2))
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)


def _wilcoxon(differences: _Floats) -> float:
    from scipy.stats import wilcoxon

    if differences.size < 2:
        return math.nan
    nonzero = differences[differences != 0]
    if nonzero.size == 0:
        return 1.0
    with warnings.catch_warnings():  # older SciPy warns of small samples with ties
        warnings.simplefilter("ignore")
        return float(wilcoxon(nonzero).pvalue)


def _permutation_p(parts: list[_Floats], observed: float, resamples: int, seed: int) -> float:
    """Share of exchanges that differ at least as much as was observed, which counts as one of them (Phipson and Smyth 2010)."""
    num_a, den_a, num_b, den_b = parts
    n = num_a.size
    every = n < 63 and 2**n <= resamples
    count, extreme = (0, 0) if every else (1, 1)
    for swap in _exchanges(n, 2**n if every else resamples, every, seed):
        up, down = swap @ (num_b - num_a), swap @ (den_b - den_a)
        differences = _contrast(
            num_a.sum() + up, den_a.sum() + down, num_b.sum() - up, den_b.sum() - down
        )
        defined = differences[~np.isnan(differences)]
        count += defined.size
        extreme += int((np.abs(defined) >= abs(observed) - 1e-12).sum())  # equal, but for rounding
    return extreme / count


def _exchanges(n: int, count: int, every: bool, seed: int) -> Iterator[_Floats]:
    """Which clusters are exchanged, 0 or 1, (R, n): every way once, or at random."""
    rng = np.random.default_rng(seed)
    at_once = max(1, _DRAWS_AT_ONCE // n)
    for start in range(0, count, at_once):
        size = min(at_once, count - start)
        bits = (
            np.arange(start, start + size)[:, None] >> np.arange(n) & 1
            if every
            else rng.integers(0, 2, (size, n))
        )
        yield bits.astype(np.float64)
