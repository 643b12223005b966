"""Compare the findings of readers with an error map: does it doubt what is wrong?

Each true finding, false finding and missed nodule gets the mean of the map in its ball, and the
percentile of this mean among the lung voxels of its case. A map that helps a reader has higher
values at false findings and missed nodules than at true findings.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from mpunet.metrics.error_estimate import auc
from mpunet.reader_study.findings import Coordinates, Finding, Reading, turned
from mpunet.reader_study.matching import RADIUS_MM, match_findings

__all__ = ["Kind", "Place", "places", "places_csv", "places_table"]

Kind = Literal["true finding", "false finding", "missed nodule"]


class Place(NamedTuple):
    """A place that a reader judged, and what the error map says there.

    Attributes:
        reading: the reading that it belongs to.
        kind: "true finding", "false finding" or "missed nodule".
        finding: the finding, or the missed nodule.
        error: mean of the error map in its ball in HU; NaN if that is outside the map.
        percentile: percentage of the lung voxels with a lower value, equal ones counting half; NaN
            as ``error``.
    """

    reading: Reading
    kind: Kind
    finding: Finding
    error: float
    percentile: float


def places(
    reading: Reading,
    findings: Sequence[Finding],
    nodules: Sequence[Finding],
    error_map: npt.NDArray[Any],
    affine: npt.NDArray[np.floating],
    lung: npt.NDArray[np.bool_],
    *,
    radius: float = RADIUS_MM,
) -> list[Place]:
    """Look up the findings and missed nodules of a reading in its error map.

    Args:
        reading: reader, condition and case.
        findings: findings of the reading.
        nodules: nodules of the case.
        error_map: expected absolute errors (D, H, W) in HU.
        affine: (4, 4), slab indices to RAS+ in mm.
        lung: (D, H, W), lung mask on the same grid.
        radius: smallest matching radius in mm, see :func:`match_findings`.
    """
    matched = dict(match_findings(findings, nodules, radius=radius))
    judged: list[tuple[Kind, Finding]] = [
        ("true finding" if i in matched else "false finding", found)
        for i, found in enumerate(findings)
    ]
    missed = set(range(len(nodules))) - set(matched.values())
    judged += [("missed nodule", nodules[j]) for j in sorted(missed)]
    in_lungs = np.sort(error_map[lung])
    return [
        Place(reading, kind, found, error, _percentile(error, in_lungs))
        for kind, found in judged
        for error in [_ball_mean(error_map, affine, found)]
    ]


def places_table(found: Iterable[Place]) -> str:
    """Return a table of the places by condition and kind, in Markdown.

    AUC is the probability that the map's percentile is higher at such a place than at a true
    finding.
    """
    found = [place for place in found if not math.isnan(place.percentile)]
    lines = [
        "| condition | place | number | error map, HU | percentile in the lungs | AUC |",
        "|---|---|---|---|---|---|",
    ]
    for condition in dict.fromkeys(place.reading.condition for place in found):
        of_kind = {
            kind: [p for p in found if (p.reading.condition, p.kind) == (condition, kind)]
            for kind in get_args(Kind)
        }
        true = of_kind["true finding"]
        for kind, some in of_kind.items():
            if some:
                both = np.array([p.percentile for p in (*true, *some)])
                wrong = np.array([0] * len(true) + [1] * len(some))
                area = math.nan if kind == "true finding" else auc(both, wrong, 0.5)
                lines.append(
                    f"| {condition} | {kind} | {len(some)} | {np.mean([p.error for p in some]):.0f} "
                    f"| {np.mean([p.percentile for p in some]):.0f} "
                    f"| {'–' if math.isnan(area) else f'{area:.2f}'} |"
                )
    return "\n".join(lines)


def places_csv(found: Iterable[Place], coordinates: Coordinates = "RAS") -> str:
    """Return the places as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    heads = ("kind", "x", "y", "z", "diameter", "error", "percentile")
    writer.writerow([*Reading._fields, *heads])
    writer.writerows(_fields(place, coordinates) for place in found)
    return text.getvalue()


def _fields(place: Place, coordinates: Coordinates) -> Iterator[str]:
    yield from place.reading
    yield place.kind
    position = turned(place.finding.position, coordinates)
    numbers = (*position, place.finding.diameter, place.error, place.percentile)
    yield from ("" if math.isnan(number) else f"{number:.2f}" for number in numbers)


def _ball_mean(
    error_map: npt.NDArray[Any], affine: npt.NDArray[np.floating], ball: Finding
) -> float:
    """Mean of the voxels whose centre is in the ball, and of the voxel at its centre."""
    centre = np.linalg.solve(affine, [*ball.position, 1])[:3]
    nearest = np.rint(centre).astype(int)
    if not all(0 <= k < n for k, n in zip(nearest, error_map.shape, strict=True)):
        return math.nan
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    reach = np.ceil(ball.diameter / 2 / spacing).astype(int)
    low = np.maximum(nearest - reach, 0)
    part = error_map[
        tuple(slice(a, k + r + 1) for a, k, r in zip(low, nearest, reach, strict=True))
    ]
    offsets = np.moveaxis(np.indices(part.shape), 0, -1) + low - centre
    distance = np.linalg.norm(offsets @ affine[:3, :3].T, axis=-1)
    inside = distance <= max(ball.diameter / 2, float(distance.min()))
    return float(part[inside].mean())


def _percentile(value: float, ordered: npt.NDArray[Any]) -> float:
    if math.isnan(value) or not ordered.size:
        return math.nan
    below, not_above = (np.searchsorted(ordered, value, side) for side in ("left", "right"))
    return float(50 * (below + not_above) / ordered.size)
