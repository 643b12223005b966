"""Aggregate the scores of single cases: means, agreement with the truth, and paired differences."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence

from mpunet.evaluation.scores import Agreement, Measure, PairedDifference, Score, Summary
from mpunet.metrics.agreement import concordance, limits_of_agreement
from mpunet.metrics.statistics import bootstrap_mean, paired_difference

__all__ = ["ScoresByCase", "agreements", "paired_differences", "scores_by_case", "summaries"]

ScoresByCase = Mapping[tuple[str, Measure], Mapping[str, float]]


def scores_by_case(scores: Iterable[Score]) -> ScoresByCase:
    """Group scores: (method, measure) to case to value.

    >>> mae = Measure("mae", "whole", "HU", None, None, "mean absolute error")
    >>> scores_by_case([Score("ours", "p1", mae, 9.5)])["ours", mae]
    {'p1': 9.5}
    """
    values: dict[tuple[str, Measure], dict[str, float]] = defaultdict(dict)
    for score in scores:
        values[score.method, score.measure][score.case] = score.value
    return dict(values)


def summaries(values: ScoresByCase) -> list[Summary]:
    """Return the mean over cases of each method and measure; cases with NaN are left out."""
    found = []
    for (method, measure), cases in values.items():
        numbers = [value for value in cases.values() if not math.isnan(value)]
        found.append(Summary(method, measure, len(numbers), *bootstrap_mean(numbers)))
    return found


def agreements(values: ScoresByCase, metrics: Container[str], truth: str) -> list[Agreement]:
    """Return the agreement of each method with the method ``truth``, for the given metrics.

    Only cases that both have are compared; cases with NaN are left out.
    """
    found = []
    for (method, measure), cases in values.items():
        if measure.metric in metrics and method != truth:
            mine, theirs = _paired(cases, values.get((truth, measure), {}))
            limits = limits_of_agreement(mine, theirs)
            found.append(Agreement(method, measure, len(mine), *limits, concordance(mine, theirs)))
    return found


def paired_differences(values: ScoresByCase, methods: Sequence[str]) -> list[PairedDifference]:
    """Return the differences between the first method and each other one, for each measure.

    Only cases that both methods have are compared; cases with NaN are left out.
    """
    first, *others = methods
    return [
        _paired_difference(first, other, measure, cases, values[other, measure])
        for other in others
        for (method, measure), cases in values.items()
        if method == first and (other, measure) in values
    ]


def _paired_difference(
    method: str, other: str, measure: Measure, a: Mapping[str, float], b: Mapping[str, float]
) -> PairedDifference:
    mine, theirs = _paired(a, b)
    found = paired_difference(mine, theirs)
    return PairedDifference(
        method, other, measure, len(mine), found.mean, found.low, found.high, found.p
    )


def _paired(a: Mapping[str, float], b: Mapping[str, float]) -> tuple[list[float], list[float]]:
    """Return the values of the cases that both have, without those with NaN."""
    both = [case for case in a if case in b and not math.isnan(a[case] + b[case])]
    return [a[case] for case in both], [b[case] for case in both]
