"""A reader study: what readers found in each condition against a consensus standard, as in Section 4.3 and Fig. 5 of the paper.

*Matching* is done once for all sizes, for each reading on its own: one finding to one nodule, within the nodule's radius (as in
LUNA16, Setio et al. 2017) or a floor in mm, whichever is larger; as many pairs as possible, and among those the least total
distance. The floor, 5 mm, is our choice: one thick slice, so that reading thick slices is not blamed for their coarseness.

*At a threshold t*, nodules of at least t mm count. A finding matched to one of them is true, one matched to a smaller nodule is
neither true nor false, for it is right and nobody asked; an unmatched one is false if its own diameter is at least t. A second finding
on one nodule is unmatched.

*Intervals* are bootstraps over cases, all readings of a case together. They speak of other cases read by these readers;
other readers would differ by more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from mpunet.metrics.statistics import (
    Difference,
    Interval,
    bootstrap_ratio,
    bootstrap_ratio_difference,
)
from mpunet.reader_study.findings import ALL_READERS, Finding, Reading

__all__ = [
    "MEASURES",
    "RADIUS_MM",
    "Contrast",
    "Rates",
    "ReaderStudy",
    "Tally",
    "match_findings",
    "reader_study",
    "tally",
]

RADIUS_MM = 5.0
MEASURES = ("sensitivity", "precision", "f1", "false_positives")


class Tally(NamedTuple):
    """Counts of one reading, or of several together."""

    nodules: int = 0
    hits: int = 0
    false_positives: int = 0
    readings: int = 0

    def parts(self, measure: str) -> tuple[int, int]:
        """Numerator and denominator of one of :data:`MEASURES`; false positives are for each reading of a case.

        >>> Tally(nodules=4, hits=3, false_positives=2, readings=1).parts("precision")
        (3, 5)
        """
        return {
            "sensitivity": (self.hits, self.nodules),
            "precision": (self.hits, self.hits + self.false_positives),
            "f1": (2 * self.hits, self.nodules + self.hits + self.false_positives),
            "false_positives": (self.false_positives, self.readings),
        }[measure]


class Rates(NamedTuple):
    """How one reader, or all together, did in one condition; for nodules of at least ``threshold`` mm."""

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
    """``condition`` - ``reference``, over the ``cases`` that the same reader read in both."""

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
    """Results and how they were obtained.

    Attributes:
        rates: for each threshold and condition, each reader and then all together.
        contrasts: likewise, for the conditions other than ``reference``.
        cases: in the standard.
        nodules: in the standard, of any size.
        unread: (reader, condition, number of cases in the standard without a reading), where there are any.
        thresholds, radius, reference, level: the settings; ``level`` is that of the intervals.
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


def match_findings(
    findings: Sequence[Finding], nodules: Sequence[Finding], *, radius: float = RADIUS_MM
) -> list[tuple[int, int]]:
    """Pairs (finding, nodule) of indices, by finding: the most pairs within reach, and of those the least total distance.

    Args:
        findings: of one reading.
        nodules: of that case.
        radius: in mm, 0 or more; a nodule reaches as far as this, or its own radius if that is larger.

    >>> nodule = Finding((0, 0, 0), 6)
    >>> match_findings([Finding((4, 0, 0), 5), Finding((0, 3, 0), 5)], [nodule])
    [(1, 0)]
    """
    if not (findings and nodules):
        return []
    distance = cdist([f.position for f in findings], [n.position for n in nodules])
    reach = np.array([max(radius, n.diameter / 2) for n in nodules])
    allowed = distance <= reach
    # More than all distances together could save, so that no pair is given up for shorter ones.
    forbidden = 1 + min(distance.shape) * reach.max()
    rows, columns = linear_sum_assignment(np.where(allowed, distance, forbidden))
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if allowed[i, j]]


def tally(
    findings: Sequence[Finding],
    nodules: Sequence[Finding],
    pairs: Iterable[tuple[int, int]],
    threshold: float,
) -> Tally:
    """Counts of one reading for nodules of at least ``threshold`` mm; ``pairs`` as :func:`match_findings` gives them."""
    nodule_of = dict(pairs)
    wanted = [n.diameter >= threshold for n in nodules]
    hits = sum(wanted[j] for j in nodule_of.values())
    false = sum(f.diameter >= threshold for i, f in enumerate(findings) if i not in nodule_of)
    return Tally(sum(wanted), hits, false, 1)


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
    """Sensitivity, precision, F1 and false positives per reading of each reader and condition, and their differences.

    Args:
        readings: findings of each reading; a reading without findings is an empty list.
        standard: nodules of each case.
        thresholds: least diameters in mm.
        radius: see :func:`match_findings`.
        reference: the condition that others are compared with; by default the first one.
        level: of the intervals.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: if there is no reading, a case is not in the standard, or a setting makes no sense.
    """
    conditions = list(dict.fromkeys(r.condition for r in readings))
    if not conditions:
        raise ValueError("Expected at least one reading, got none.")
    if unknown := [r.case for r in readings if r.case not in standard]:
        raise ValueError(
            f"Expected cases of the standard, got {unknown[0]!r}; list it there, without nodules if it has none."
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
    """By reader and case, the counts of one reader or all of them in a condition."""
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
    """The counts of each case, of all its readings together, by the case's name: the clusters."""
    groups: dict[str, list[Tally]] = {}
    for (_, case), counts in tallies.items():
        groups.setdefault(case, []).append(counts)
    return [_total(groups[case]) for case in sorted(groups)]


def _total(tallies: Iterable[Tally]) -> Tally:
    return Tally(*map(sum, zip(*tallies, strict=True)))
