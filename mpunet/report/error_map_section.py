"""Section of a report about error maps: reliability and sparsification curves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from html import escape

from mpunet.evaluation.error_maps import BINS, CURVES, ORDERS, bin_region, removed_region
from mpunet.evaluation.scores import Evaluation
from mpunet.metrics.error_estimate import FRACTIONS
from mpunet.report.report_plot import Line, line_plot

__all__ = ["error_map_section"]

MOST_CASES = 20  # drawn one by one; more lines hide each other


def error_map_section(evaluation: Evaluation) -> str:
    """Return the curves of the error maps as HTML, or "" if none were measured."""
    means = {
        (s.measure.metric, s.measure.region): s.mean
        for s in evaluation.summaries
        if s.measure.metric in CURVES
    }
    if not means:
        return ""
    cases: dict[str, dict[tuple[str, str], float]] = {}
    for score in evaluation.scores:
        if score.measure.metric in CURVES:
            key = (score.measure.metric, score.measure.region)
            cases.setdefault(score.case, {})[key] = score.value
    each = cases if 1 < len(cases) <= MOST_CASES else {}
    ends = [(edge, edge) for edge in (float(BINS[0][0]), float(BINS[-1][1]))]
    reliability = [Line("as large as estimated", "ideal", ends)]
    reliability += [Line(name, "case", _reliability(values)) for name, values in each.items()]
    reliability += [Line(_mean(len(cases)), "main", _reliability(means))]
    removed = [Line("largest errors first", "ideal", _sparsification(means, ORDERS[1]))]
    removed += [
        Line(name, "case", _sparsification(values, ORDERS[0])) for name, values in each.items()
    ]
    removed += [Line(_mean(len(cases)), "main", _sparsification(means, ORDERS[0]))]
    where = next(s.measure.kind for s in evaluation.summaries if s.measure.metric == CURVES[0])
    region = where.split(", ")[1]
    plots = [
        line_plot("Reliability", reliability, "error map, HU", "mean error, HU"),
        line_plot(
            "Sparsification", removed, "voxels taken away, %", "mean error of the rest / of all"
        ),
    ]
    return (
        f"<section><h2>Error maps of {escape(evaluation.methods[0])}</h2><p>Voxels: {escape(region)}."
        " Reliability: the mean error of the voxels that have a value in the map; on the dashed line "
        "it is what the map says. Sparsification: the mean error that remains if the voxels with "
        "the largest values are taken away; dashed, those with the largest errors, which is the "
        "best order. In the viewer, the map is painted over its images: Expected error."
        f'</p><div class="strips">{"".join(plots)}</div></section>'
    )


def _mean(cases: int) -> str:
    return "error map" if cases == 1 else f"error map, mean of {cases} cases"


def _reliability(values: Mapping[tuple[str, str], float]) -> list[tuple[float, float]]:
    points = (
        ((low + high) / 2, values.get((CURVES[0], bin_region(low, high)), math.nan))
        for low, high in BINS
    )
    return _finite(points)


def _sparsification(
    values: Mapping[tuple[str, str], float], order: str
) -> list[tuple[float, float]]:
    shares = [step / FRACTIONS for step in range(FRACTIONS)]
    return _finite(
        (100 * share, values.get((CURVES[1], removed_region(share, order)), math.nan))
        for share in shares
    )


def _finite(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    return [point for point in points if math.isfinite(point[1])]
