"""Reader study: compare readers' findings in each condition with a consensus standard.

The analysis follows Section 4.3 and Fig. 5 of the paper. :mod:`mpunet.reader_study.matching`
defines which findings are true and which are false.

*Intervals* are from a bootstrap over cases that keeps all readings of a case together. They are
valid for other cases read by the same readers; other readers would differ more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mpunet.metrics.statistics import (
    Difference,
    Interval,
    bootstrap_ratio,
    bootstrap_ratio_difference,
)
from mpunet.reader_study.findings import ALL_READERS, Finding, Reading
from mpunet.reader_study.matching import MEASURES, RADIUS_MM, Tally, match_findings, tally

__all__ = ["Contrast", "Rates", "ReaderStudy", "reader_study"]


class Rates(NamedTuple):
    """Results of one reader or all readers in one condition, for nodules >= ``threshold`` mm."""

    reader: str
    condition: str
    threshold: float
    cases: int
    counts: Tally
    sensitivity: Interval
    precision: Interval
    f1: Interval
    false_positives: Interval


class Contrast(NamedTuple):
    """Difference ``condition`` - ``reference`` over the cases that a reader read in both."""

    reader: str
    condition: str
    reference: str
    threshold: float
    cases: int
    sensitivity: Difference
    precision: Difference
    f1: Difference
    false_positives: Difference


class ReaderStudy(NamedTuple):
    """Results and settings of a reader study.

    Attributes:
        rates: results for each threshold, condition and reader, and for all readers together.
        contrasts: differences from ``reference`` for each threshold, other condition and reader.
        cases: number of cases in the standard.
        nodules: number of nodules of any size in the standard.
        unread: (reader, condition, number of cases without a reading), if there are such cases.
        thresholds: smallest diameters of the counted nodules in mm.
        radius: minimum matching radius in mm.
        reference: condition with which the others are compared.
        level: confidence level of the intervals.
    """

    rates: list[Rates]
    contrasts: list[Contrast]
    cases: int
    nodules: int
    unread: list[tuple[str, str, int]]
    thresholds: tuple[float, ...]
    radius: float
    reference: str
    level: float


def reader_study(
    readings: Mapping[Reading, Sequence[Finding]],
    standard: Mapping[str, Sequence[Finding]],
    *,
    thresholds: Sequence[float] = (4.0, 6.0),
    radius: float = RADIUS_MM,
    reference: str | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> ReaderStudy:
    """Compute sensitivity, precision, F1 and false positives per reading, and their differences.

    Args:
        readings: findings of each reading; an empty list for a reading without findings.
        standard: nodules of each case.
        thresholds: smallest diameters of the counted nodules in mm.
        radius: minimum matching radius in mm, see :func:`match_findings`.
        reference: condition with which the others are compared; by default the first one.
        level: confidence level of the intervals.
        resamples: number of bootstrap resamples.
        seed: random seed of the bootstrap.

    Raises:
        ValueError: if there is no reading, a case is not in the standard, or a setting is invalid.
    """
    conditions = list(dict.fromkeys(r.condition for r in readings))
    if not conditions:
        raise ValueError("Expected at least one reading, got none.")
    if unknown := [r.case for r in readings if r.case not in standard]:
        raise ValueError(
            f"Expected cases of the standard, got {unknown[0]!r}; list it there, "
            "without nodules if it has none."
        )
    if not thresholds or not all(t >= 0 for t in thresholds):
        raise ValueError(f"Expected thresholds of 0 mm or more, got {list(thresholds)}.")
    if not 0 <= radius < np.inf:
        raise ValueError(f"Expected a finite radius of 0 mm or more, got {radius}.")
    reference = conditions[0] if reference is None else reference
    if reference not in conditions:
        raise ValueError(
            f"Expected a reference among the conditions {', '.join(conditions)}, got {reference!r}."
        )

    bootstrap = _Bootstrap(level, resamples, seed)
    readers = list(dict.fromkeys(r.reader for r in readings))
    everybody = [*readers, ALL_READERS] if len(readers) > 1 else readers
    matched = {
        r: match_findings(found, standard[r.case], radius=radius) for r, found in readings.items()
    }
    rates, contrasts = [], []
    for threshold in dict.fromkeys(thresholds):
        tallies = {
            r: tally(readings[r], standard[r.case], pairs, threshold)
            for r, pairs in matched.items()
        }
        for condition in conditions:
            for reader in everybody:
                chosen, base = (_chosen(tallies, reader, name) for name in (condition, reference))
                if not chosen:
                    continue
                by_case = _by_case(chosen)
                intervals = (bootstrap.interval(by_case, m) for m in MEASURES)
                rates.append(
                    Rates(reader, condition, threshold, len(by_case), _total(by_case), *intervals)
                )
                both = chosen.keys() & base.keys()
                if condition != reference and both:
                    a, b = (
                        _by_case({key: t for key, t in part.items() if key in both})
                        for part in (chosen, base)
                    )
                    differences = (bootstrap.difference(a, b, m) for m in MEASURES)
                    contrasts.append(
                        Contrast(reader, condition, reference, threshold, len(a), *differences)
                    )
    unread = [
        (reader, condition, left)
        for reader in readers
        for condition in conditions
        if (
            left := len(standard)
            - sum(r.reader == reader and r.condition == condition for r in readings)
        )
    ]
    nodules = sum(map(len, standard.values()))
    return ReaderStudy(
        rates,
        contrasts,
        len(standard),
        nodules,
        unread,
        tuple(dict.fromkeys(thresholds)),
        radius,
        reference,
        level,
    )


def _chosen(
    tallies: Mapping[Reading, Tally], reader: str, condition: str
) -> dict[tuple[str, str], Tally]:
    """Counts in a condition by (reader, case), of one reader or of all readers."""
    return {
        (r.reader, r.case): t
        for r, t in tallies.items()
        if r.condition == condition and reader in (r.reader, ALL_READERS)
    }


class _Bootstrap(NamedTuple):
    level: float
    resamples: int
    seed: int

    def interval(self, by_case: Sequence[Tally], measure: str) -> Interval:
        return bootstrap_ratio(*_parts(by_case, measure), **self._asdict())

    def difference(self, a: Sequence[Tally], b: Sequence[Tally], measure: str) -> Difference:
        return bootstrap_ratio_difference(
            *_parts(a, measure), *_parts(b, measure), **self._asdict()
        )


def _parts(
    by_case: Sequence[Tally], measure: str
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    numerators, denominators = np.array([t.parts(measure) for t in by_case], dtype=np.float64).T
    return numerators, denominators


def _by_case(tallies: Mapping[tuple[str, str], Tally]) -> list[Tally]:
    """Counts of each case over all its readings, sorted by name: the clusters of the bootstrap."""
    groups: dict[str, list[Tally]] = {}
    for (_, case), counts in tallies.items():
        groups.setdefault(case, []).append(counts)
    return [_total(groups[case]) for case in sorted(groups)]


def _total(tallies: Iterable[Tally]) -> Tally:
    return Tally(*map(sum, zip(*tallies, strict=True)))
