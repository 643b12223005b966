"""Quality of error estimates, by hand, by SciPy and at the limits."""

import math

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, spearmanr

from mpunet.metrics.error_estimate import (
    auc,
    calibration_error,
    error_quality,
    rank_correlation,
    reliability,
    sparsification,
)

RNG = np.random.default_rng(0)
ESTIMATE = RNG.integers(1, 60, (8, 9, 10)).astype(float)  # with ties
ERROR = RNG.exponential(ESTIMATE)


def test_ranks_equal_scipys():
    assert rank_correlation(ESTIMATE, ERROR) == pytest.approx(
        spearmanr(ESTIMATE.ravel(), ERROR.ravel()).statistic
    )
    above = ERROR > 50
    expected = mannwhitneyu(ESTIMATE[above], ESTIMATE[~above]).statistic
    assert auc(ESTIMATE, ERROR, 50) == pytest.approx(expected / above.sum() / (~above).sum())


def test_signed_errors_count_by_their_size():
    signs = RNG.choice([-1, 1], ERROR.shape)
    assert error_quality(ESTIMATE, signs * ERROR) == error_quality(ESTIMATE, ERROR)


def test_reliability_by_hand():
    found = reliability(
        np.array([1.0, 12, 14, 26, 300]), np.array([9.0, 10, 20, 30, 7]), (10, 20, 30)
    )
    assert found.estimate.tolist() == [13, 26]
    assert found.error.tolist() == [15, 30]
    assert found.voxels.tolist() == [2, 1]
    assert calibration_error(found) == pytest.approx((2 * 2 + 4) / 3)


def test_a_calibrated_estimate_has_a_small_calibration_error():
    estimate = RNG.uniform(5, 100, 200_000)
    error = RNG.exponential(estimate)
    assert calibration_error(reliability(estimate, error)) < 1
    assert calibration_error(reliability(1.5 * estimate, error)) > 15


def test_sparsification_by_hand():
    found = sparsification(np.array([1.0, 2, 4, 3]), np.array([0.0, 2, 4, 6]))
    mean = 3.0
    # Without the voxel of the largest estimate (error 4): 0, 2 and 6 remain; the oracle leaves 0,
    # 2 and 4.
    quarter = int(np.flatnonzero(found.removed == 0.25)[0])
    assert found.estimate[[0, quarter]].tolist() == pytest.approx([1, 8 / 3 / mean])
    assert found.oracle[[0, quarter]].tolist() == pytest.approx([1, 6 / 3 / mean])


def test_areas_of_the_oracle_and_of_chance():
    error = RNG.exponential(20, 50_000)
    assert sparsification(error, error).area == 0
    chance = sparsification(RNG.random(50_000), error)
    np.testing.assert_allclose(chance.estimate, 1, atol=0.1)
    # A constant leaves the order of the voxels, which is shuffled: no information either.
    ordered = sparsification(np.ones(50_000), np.sort(error))
    np.testing.assert_allclose(ordered.estimate, 1, atol=0.1)


def test_limits():
    nothing = error_quality(np.array([]), np.array([]))
    assert all(math.isnan(value) for value in nothing)
    perfect = error_quality(np.array([1.0, 2, 3]), np.zeros(3))
    assert math.isnan(perfect.auc_100)
    assert math.isnan(perfect.sparsification)
    assert perfect.bias == 2
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(3,\)"):
        error_quality(np.zeros(2), np.zeros(3))
