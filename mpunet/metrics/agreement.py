"""Agreement of a measurement with its reference over cases.

A mean error near 0 does not say that a single case can be measured: errors of both signs cancel.
The limits of agreement say how far single cases are off. Lin's concordance says whether the method
gives each case its own value: it is 0 for a method that gives all cases the same one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from mpunet.metrics.resampling import Values, complete

__all__ = ["LEAST_CASES", "Limits", "concordance", "limits_of_agreement"]

LEAST_CASES = 3
"""Fewest cases for limits and concordance; our choice. Any two cases lie on a line, and a standard
deviation of two differences has one degree of freedom."""

NORMAL_95 = 1.96  # Bland and Altman 1999; 2 in the paper of 1986


class Limits(NamedTuple):
    """Mean of value - reference, and the range that holds 95 % of the differences if normal.

    All are in the unit of the values. The range is NaN for fewer than :data:`LEAST_CASES` cases.
    """

    mean: float
    low: float
    high: float


def limits_of_agreement(values: Values, references: Values) -> Limits:
    """Compute the mean difference and the 95 % limits of agreement of Bland and Altman.

    The limits are the mean difference ± 1.96 standard deviations (n - 1) of the differences (Bland
    and Altman 1999, doi 10.1177/096228029900800204). They are themselves estimates: the standard
    error of each is about the standard deviation times sqrt(3 / n), as large as the deviation
    itself for three cases.

    Args:
        values: one value per case, in any unit.
        references: true values, in the order of ``values``. Pairs with a NaN are left out.

    Raises:
        ValueError: if both differ in length.

    >>> limits = limits_of_agreement([1.0, 3.0, 5.0], [1.0, 2.0, 3.0])
    >>> [round(value, 2) for value in limits]
    [1.0, -0.96, 2.96]
    """
    first, second = complete(values, references)
    differences = first - second
    mean = float(differences.mean()) if differences.size else math.nan
    if differences.size < LEAST_CASES:
        return Limits(mean, math.nan, math.nan)
    reach = NORMAL_95 * float(differences.std(ddof=1))
    return Limits(mean, mean - reach, mean + reach)


def concordance(values: Values, references: Values) -> float:
    """Compute Lin's concordance correlation coefficient, from -1 to 1.

    It is 2 s_xy / (s_x² + s_y² + (m_x - m_y)²), with variances divided by n (Lin 1989,
    doi 10.2307/2532051). It is 1 only if all values equal their references. Unlike Pearson's
    correlation, it is lowered by a wrong scale or offset.

    Args:
        values: one value per case, in any unit.
        references: true values, in the order of ``values``. Pairs with a NaN are left out.

    Returns:
        The coefficient; NaN for fewer than :data:`LEAST_CASES` cases, or if all numbers are equal.

    Raises:
        ValueError: if both differ in length.

    >>> round(concordance([1.0, 3.0, 5.0], [1.0, 2.0, 3.0]), 3)
    0.615
    """
    first, second = complete(values, references)
    if first.size < LEAST_CASES:
        return math.nan
    apart = float(first.var() + second.var() + (first.mean() - second.mean()) ** 2)
    together = float(((first - first.mean()) * (second - second.mean())).mean())
    return 2 * together / apart if apart else math.nan
