"""Quality of an error estimate: does it tell which voxels are wrong, and by how much?

An estimate is an expected absolute error in HU for every voxel. It is compared with the absolute
error against a reference.

- Rank correlation and AUC judge the order alone: whether voxels with a larger estimate have larger
  errors.
- Reliability judges the values: the mean error of the voxels with an estimate of about 20 HU should
  be 20 HU.
- Sparsification (Ilg et al., ECCV 2018) judges both as they are used: the mean error of the voxels
  that remain after those with the largest estimates are taken away. The oracle takes away those
  with the largest errors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "EDGES",
    "ErrorQuality",
    "Reliability",
    "Sparsification",
    "auc",
    "calibration_error",
    "error_quality",
    "rank_correlation",
    "reliability",
    "sparsification",
]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

EDGES = tuple(range(5, 101, 5))
"""Bins of the estimate in HU, for reliability; our choice."""

FRACTIONS = 20  # steps of the sparsification curve


class Reliability(NamedTuple):
    """Mean estimate and mean absolute error of the voxels in each bin of the estimate.

    Attributes:
        estimate: (bins,) in HU; NaN in empty bins.
        error: (bins,) in HU; NaN in empty bins.
        voxels: (bins,), number of voxels.
    """

    estimate: Floats
    error: Floats
    voxels: npt.NDArray[np.int64]


class Sparsification(NamedTuple):
    """Mean absolute error of the remaining voxels, relative to that of all voxels.

    Attributes:
        removed: (steps,), share of the voxels that is taken away.
        estimate: (steps,), the largest estimates first.
        oracle: (steps,), the largest errors first.
        area: mean over the steps of ``estimate - oracle``: 0 for the best order; NaN without
            errors.
    """

    removed: Floats
    estimate: Floats
    oracle: Floats
    area: float


class ErrorQuality(NamedTuple):
    """Quality of an error estimate. Values that the voxels do not determine are NaN.

    Attributes:
        rank_correlation: Spearman's, between estimate and absolute error.
        auc_50: AUC of the estimate for absolute errors above 50 HU.
        auc_100: AUC of the estimate for absolute errors above 100 HU.
        calibration_error: see :func:`calibration_error`, in HU.
        sparsification: area between the sparsification curves of the estimate and of the oracle.
        bias: mean of estimate - absolute error, in HU.
    """

    rank_correlation: float
    auc_50: float
    auc_100: float
    calibration_error: float
    sparsification: float
    bias: float


def error_quality(estimate: Array, error: Array) -> ErrorQuality:
    """Measure all of :class:`ErrorQuality`.

    Args:
        estimate: expected absolute error in HU, any shape.
        error: error or absolute error in HU, of the same shape.

    >>> error = np.arange(200.0)
    >>> found = error_quality(error, error)
    >>> found.rank_correlation, found.auc_100, found.calibration_error, found.sparsification
    (1.0, 1.0, 0.0, 0.0)
    """
    estimate, error = _checked(estimate, error)
    ranks = _ranks(estimate)
    return ErrorQuality(
        rank_correlation=_correlation(ranks, _ranks(error)),
        auc_50=_auc(ranks, error > 50),
        auc_100=_auc(ranks, error > 100),
        calibration_error=calibration_error(reliability(estimate, error)),
        sparsification=sparsification(estimate, error).area,
        bias=float((estimate - error).mean()) if error.size else math.nan,
    )


def rank_correlation(estimate: Array, error: Array) -> float:
    """Return Spearman's rank correlation of an estimate with the absolute error; NaN if constant.

    >>> rank_correlation(np.array([1, 2, 3, 4]), np.array([-10, 30, 20, 40]))
    0.8
    """
    estimate, error = _checked(estimate, error)
    return _correlation(_ranks(estimate), _ranks(error))


def auc(estimate: Array, error: Array, limit: float) -> float:
    """Return the area under the ROC curve of an estimate for absolute errors above ``limit`` HU.

    It is the probability that a voxel above the limit has a larger estimate than one below; equal
    estimates count half. NaN if no or every voxel is above the limit.

    >>> auc(np.array([1, 2, 3, 4]), np.array([0, 200, 0, 200]), 100)
    0.75
    """
    estimate, error = _checked(estimate, error)
    return _auc(_ranks(estimate), error > limit)


def reliability(estimate: Array, error: Array, edges: Sequence[float] = EDGES) -> Reliability:
    """Compare estimate and absolute error in bins of the estimate.

    Args:
        estimate: expected absolute error in HU, any shape.
        error: error or absolute error in HU, of the same shape.
        edges: edges of the bins in HU, increasing; estimates outside are left out.
    """
    estimate, error = _checked(estimate, error)
    place = np.digitize(estimate, edges)
    voxels, predicted, observed = (
        np.bincount(place, weights, len(edges) + 1)[1:-1] for weights in (None, estimate, error)
    )
    with np.errstate(invalid="ignore"):
        return Reliability(predicted / voxels, observed / voxels, voxels.astype(np.int64))


def calibration_error(found: Reliability) -> float:
    """Return the mean of |mean estimate - mean error| over bins, weighted by voxels, in HU.

    It is the expected calibration error (Guo et al., ICML 2017) for a regression; NaN if all bins
    are empty.

    >>> calibration_error(Reliability(np.array([10.0, 20]), np.array([12.0, 20]), np.array([1, 3])))
    0.5
    """
    used = found.voxels > 0
    if not used.any():
        return math.nan
    gaps = np.abs(found.estimate - found.error)[used]
    return float(np.average(gaps, weights=found.voxels[used]))


def sparsification(estimate: Array, error: Array) -> Sparsification:
    """Take voxels away in the order of the estimate, and in that of the error.

    Args:
        estimate: expected absolute error in HU, any shape. Voxels with equal estimates are taken
            away in an order that does not depend on their error.
        error: error or absolute error in HU, of the same shape.
    """
    estimate, error = _checked(estimate, error)
    removed = np.arange(FRACTIONS) / FRACTIONS
    if not error.any():
        nothing = np.full(FRACTIONS, math.nan)
        return Sparsification(removed, nothing, nothing, math.nan)
    # Ties are in the order of the voxels, which is that of the anatomy: shuffled first.
    shuffled = np.random.default_rng(0).permutation(error.size)
    estimate, error = estimate[shuffled], error[shuffled]
    curves = []
    for key in (estimate, error):
        kept = np.cumsum(error[np.argsort(key, kind="stable")])
        left = np.maximum(1, np.round((1 - removed) * error.size).astype(np.intp))
        curves.append(kept[left - 1] / left / error.mean())
    area = float((curves[0] - curves[1]).mean())
    return Sparsification(removed, curves[0], curves[1], area)


def _checked(estimate: Array, error: Array) -> tuple[Floats, Floats]:
    if estimate.shape != error.shape:
        raise ValueError(
            f"Expected an estimate for every error, got shapes {estimate.shape} and {error.shape}."
        )
    return (
        np.asarray(estimate, np.float64).ravel(),
        np.abs(np.asarray(error, np.float64).ravel()),
    )


def _ranks(values: Floats) -> Floats:
    """Return the rank of each value, from 1; equal values have the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray(last - (counts - 1) / 2)[inverse]


def _correlation(a: Floats, b: Floats) -> float:
    a, b = a - a.mean() if a.size else a, b - b.mean() if b.size else b
    norm = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / norm if norm else math.nan


def _auc(ranks: Floats, positive: npt.NDArray[np.bool_]) -> float:
    """Mann-Whitney U from ranks, divided by the number of pairs."""
    found = int(positive.sum())
    pairs = found * (positive.size - found)
    if not pairs:
        return math.nan
    return float((ranks[positive].sum() - found * (found + 1) / 2) / pairs)
