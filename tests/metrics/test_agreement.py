"""Limits of agreement and concordance: a published example, hand-computed values, another form."""

import math

import numpy as np
import pytest
from scipy import stats

from mpunet.metrics.agreement import LEAST_CASES, Limits, concordance, limits_of_agreement

# Peak expiratory flow in L/min by two meters, first readings: Bland and Altman, Lancet 1986;
# 327:307, table 1. They report a mean difference of -2.1 and a standard deviation of 38.8 L/min.
LARGE = [494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427]
MINI = [512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451]


def by_pairs(values, references):
    """1 - mean squared difference of the pairs / that of all values with all references."""
    x, y = np.asarray(values, float), np.asarray(references, float)
    return 1 - np.square(x - y).mean() / np.square(x[:, None] - y).mean()


class TestLimits:
    def test_the_paper_of_1986(self):
        found = limits_of_agreement(LARGE, MINI)
        assert found.mean == pytest.approx(-2.1, abs=0.05)
        assert (found.high - found.low) / (2 * 1.96) == pytest.approx(38.8, abs=0.05)

    def test_by_hand(self):
        # Differences 1, 2, 3, 6: mean 3, squared deviations 4 + 1 + 0 + 9 = 14.
        reach = 1.96 * math.sqrt(14 / 3)
        found = limits_of_agreement([1, 2, 3, 6], [0, 0, 0, 0])
        assert found == pytest.approx((3, 3 - reach, 3 + reach))

    def test_they_hold_95_percent_of_normal_differences(self):
        differences = np.random.default_rng(0).normal(-2, 5, 100_000)
        found = limits_of_agreement(differences, np.zeros(differences.size))
        inside = (differences > found.low) & (differences < found.high)
        assert inside.mean() == pytest.approx(0.95, abs=0.003)

    def test_few_cases_have_a_mean_only(self):
        assert math.isnan(limits_of_agreement([], []).mean)
        for n in range(1, LEAST_CASES):
            mean, *limits = limits_of_agreement([3.0] * n, [1.0] * n)
            assert mean == 2
            assert np.isnan(limits).all()
        assert limits_of_agreement([3.0] * 3, [1.0] * 3) == Limits(2, 2, 2)

    def test_nan_pairs_are_left_out(self):
        nan = math.nan
        found = limits_of_agreement([1, nan, 3, 6, 2], [0, 0, 0, nan, 0])
        assert found == limits_of_agreement([1, 3, 2], [0, 0, 0])


class TestConcordance:
    def test_by_hand(self):
        # Means 3 and 2, variances 8/3 and 2/3, covariance 4/3: 2 * 4/3 / (10/3 + 1) = 8/13.
        assert concordance([1, 3, 5], [1, 2, 3]) == pytest.approx(8 / 13)

    def test_against_another_form(self):
        assert concordance(LARGE, MINI) == pytest.approx(by_pairs(LARGE, MINI), rel=1e-12)
        rng = np.random.default_rng(0)
        for n in range(3, 30):
            x = rng.normal(-850, 30, n)
            y = 0.8 * x + rng.normal(-100, 20, n)
            assert concordance(x, y) == pytest.approx(by_pairs(x, y), rel=1e-9)

    def test_is_pearson_lowered_by_scale_and_offset(self):
        """Lin 1989, eq. 2: Pearson's r times the bias correction factor."""
        r = stats.pearsonr(LARGE, MINI).statistic
        scale = np.std(LARGE) / np.std(MINI)
        shift = (np.mean(LARGE) - np.mean(MINI)) / math.sqrt(np.std(LARGE) * np.std(MINI))
        factor = 2 / (scale + 1 / scale + shift**2)
        assert concordance(LARGE, MINI) == pytest.approx(r * factor, rel=1e-12)

    def test_limits(self):
        values = [-870.0, -850.0, -820.0]
        assert concordance(values, values) == pytest.approx(1)
        assert concordance([-1.0, 0.0, 1.0], [1.0, 0.0, -1.0]) == pytest.approx(-1)
        # All cases get the same value, right on average.
        assert concordance([2.0, 2.0, 2.0], [1.0, 2.0, 3.0]) == 0
        # Pearson's correlation is 1, but all values are wrong.
        assert concordance([11.0, 12.0, 13.0], [1.0, 2.0, 3.0]) == pytest.approx(4 / 304)

    def test_undefined(self):
        assert math.isnan(concordance([1, 2], [1, 2]))
        assert math.isnan(concordance([1, 2, math.nan], [1, 2, 3]))
        assert math.isnan(concordance([0, 0, 0], [0, 0, 0]))


@pytest.mark.parametrize("measure", [limits_of_agreement, concordance])
def test_lengths_must_agree(measure):
    with pytest.raises(ValueError, match=r"of one length, got shapes \(3,\), \(2,\)"):
        measure([1, 2, 3], [1, 2])
