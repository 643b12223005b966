"""Resampling of cases: bootstrap indices, expanded percentiles, and the permutation test."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "LEAST_CLUSTERS",
    "Floats",
    "Values",
    "complete",
    "expanded_percentiles",
    "permutation_p",
    "ratio",
    "ratio_difference",
    "resample_indices",
]

Values = Sequence[float] | npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

LEAST_CLUSTERS = 4
"""Fewer give no interval: it would cover 75 % at 3 clusters, not 95 % (our choice)."""

_DRAWS_AT_ONCE = 1_000_000  # indices drawn at a time, 8 MB


def complete(*columns: Values) -> list[Floats]:
    """Return the columns without the positions at which any of them is NaN.

    Raises:
        ValueError: if the columns are not lists of numbers of one length.
    """
    arrays = [np.asarray(column, np.float64) for column in columns]
    if any(array.ndim != 1 or array.shape != arrays[0].shape for array in arrays):
        raise ValueError(
            "Expected lists of numbers of one length, "
            f"got shapes {', '.join(str(array.shape) for array in arrays)}."
        )
    table = np.stack(arrays)
    return list(table[:, ~np.isnan(table).any(axis=0)])


def resample_indices(n: int, resamples: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the bootstrap resamples of n clusters in parts, as indices (R, n).

    Fewer than :data:`LEAST_CLUSTERS` give no resamples.
    """
    rng = np.random.default_rng(seed)
    at_once = max(1, _DRAWS_AT_ONCE // max(n, 1))
    for start in range(0, resamples if n >= LEAST_CLUSTERS else 0, at_once):
        yield rng.integers(0, n, (min(at_once, resamples - start), n))


def ratio(above: Any, below: Any) -> Any:
    """Return ``above / below``; NaN if ``below`` is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.equal(below, 0), np.nan, np.true_divide(above, below))


def ratio_difference(num_a: Any, den_a: Any, num_b: Any, den_b: Any) -> Any:
    """Return the ratio of a minus the ratio of b; NaN if a denominator is 0."""
    return ratio(num_a, den_a) - ratio(num_b, den_b)


def expanded_percentiles(draws: list[Floats], n: int, level: float) -> tuple[float, float]:
    """Return the bounds of the expanded percentile interval from the draws that are not NaN.

    Bounds are NaN without draws, or if a draw is infinite. See :mod:`mpunet.metrics.statistics` for
    the method.
    """
    from scipy.special import ndtr, stdtrit

    defined = np.concatenate([*draws, np.empty(0)])
    defined = defined[~np.isnan(defined)]
    if defined.size == 0 or not np.isfinite(defined).all():
        return math.nan, math.nan
    tail = ndtr(math.sqrt(n / (n - 1)) * stdtrit(n - 1, (1 - level) / 2))
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)


def permutation_p(parts: list[Floats], observed: float, resamples: int, seed: int) -> float:
    """Return the share of exchanges that differ at least as much as observed.

    The observed order counts as one of them (Phipson and Smyth 2010).
    """
    num_a, den_a, num_b, den_b = parts
    n = num_a.size
    every = n < 63 and 2**n <= resamples
    count, extreme = (0, 0) if every else (1, 1)
    for swap in _exchanges(n, 2**n if every else resamples, every, seed):
        up, down = swap @ (num_b - num_a), swap @ (den_b - den_a)
        differences = ratio_difference(
            num_a.sum() + up, den_a.sum() + down, num_b.sum() - up, den_b.sum() - down
        )
        defined = differences[~np.isnan(differences)]
        count += defined.size
        extreme += int((np.abs(defined) >= abs(observed) - 1e-12).sum())  # allow for rounding
    return extreme / count


def _exchanges(n: int, count: int, every: bool, seed: int) -> Iterator[Floats]:
    """Yield the exchanges in parts, as (R, n) with 1 for exchanged clusters and 0 for others.

    With ``every``, each of the 2^n exchanges comes once; otherwise they are random.
    """
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
