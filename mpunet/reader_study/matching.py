"""Match findings with nodules, and count nodules that were found and false findings.

*Matching* is done once for all sizes and separately for each reading: one finding to one nodule,
within the nodule's radius (as in LUNA16, Setio et al. 2017) or a minimum radius in mm, whichever is
larger. The number of pairs is maximal and, among such matchings, the total distance is minimal. The
minimum radius of 5 mm is our choice: it is one thick slice, so that coarse positions in thick
slices are not counted as errors.

*At a threshold t*, nodules of at least t mm count. A finding matched to one of them is true. A
finding matched to a smaller nodule is correct but outside the question: it is neither true nor
false. An unmatched finding is false if its own diameter is at least t. A second finding on one
nodule is unmatched.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from mpunet.reader_study.findings import Finding

__all__ = ["MEASURES", "RADIUS_MM", "Tally", "match_findings", "tally"]

RADIUS_MM = 5.0
MEASURES = ("sensitivity", "precision", "f1", "false_positives")


class Tally(NamedTuple):
    """Counts of one reading or of several readings together.

    Attributes:
        nodules: nodules that count at the threshold.
        hits: nodules that were found.
        false_positives: false findings.
        readings: number of readings.
    """

    nodules: int = 0
    hits: int = 0
    false_positives: int = 0
    readings: int = 0

    def parts(self, measure: str) -> tuple[int, int]:
        """Return numerator and denominator of one of :data:`MEASURES`.

        False positives are counted per reading.

        >>> Tally(nodules=4, hits=3, false_positives=2, readings=1).parts("precision")
        (3, 5)
        """
        return {
            "sensitivity": (self.hits, self.nodules),
            "precision": (self.hits, self.hits + self.false_positives),
            "f1": (2 * self.hits, self.nodules + self.hits + self.false_positives),
            "false_positives": (self.false_positives, self.readings),
        }[measure]


def match_findings(
    findings: Sequence[Finding], nodules: Sequence[Finding], *, radius: float = RADIUS_MM
) -> list[tuple[int, int]]:
    """Match findings with nodules: as many pairs as possible, then the smallest total distance.

    Args:
        findings: findings of one reading.
        nodules: nodules of the same case.
        radius: largest distance of a pair in mm, 0 or more; or the nodule's radius if it is larger.

    Returns:
        Pairs of indices (finding, nodule), sorted by finding.

    >>> nodule = Finding((0, 0, 0), 6)
    >>> match_findings([Finding((4, 0, 0), 5), Finding((0, 3, 0), 5)], [nodule])
    [(1, 0)]
    """
    if not (findings and nodules):
        return []
    distance = cdist([f.position for f in findings], [n.position for n in nodules])
    reach = np.array([max(radius, n.diameter / 2) for n in nodules])
    allowed = distance <= reach
    # This cost exceeds the largest possible saving in distance, so that the number of pairs is
    # maximal.
    forbidden = 1 + min(distance.shape) * reach.max()
    rows, columns = linear_sum_assignment(np.where(allowed, distance, forbidden))
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if allowed[i, j]]


def tally(
    findings: Sequence[Finding],
    nodules: Sequence[Finding],
    pairs: Iterable[tuple[int, int]],
    threshold: float,
) -> Tally:
    """Count one reading at a threshold in mm; ``pairs`` is the result of :func:`match_findings`."""
    nodule_of = dict(pairs)
    wanted = [n.diameter >= threshold for n in nodules]
    hits = sum(wanted[j] for j in nodule_of.values())
    false = sum(f.diameter >= threshold for i, f in enumerate(findings) if i not in nodule_of)
    return Tally(sum(wanted), hits, false, 1)
