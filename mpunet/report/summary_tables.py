"""Summary tables of a report as HTML: quality, lung density, fidelity, paired differences."""

from __future__ import annotations

import math
from collections import defaultdict
from html import escape

from mpunet.evaluation.densitometry import DENSITIES, DensityRow, density_rows
from mpunet.evaluation.error_maps import CURVES
from mpunet.evaluation.scores import Evaluation, Measure, PairedDifference, Summary
from mpunet.metrics.agreement import LEAST_CASES
from mpunet.report.measure_text import (
    QUALITY_NAMES,
    count_text,
    description,
    interval_html,
    number_text,
    region_name,
    row_name_html,
    title,
)

__all__ = ["density_table", "difference_table", "fidelity_table", "quality_table"]

HIGHER_IS_BETTER = {"mae": False, "rmse": False, "psnr": True, "ssim": True}


def quality_table(evaluation: Evaluation) -> str:
    """Return the table of quality by region, method and metric, with a legend of the metrics."""
    found = {
        (s.method, s.measure.metric, s.measure.region): s
        for s in evaluation.summaries
        if s.measure.metric in QUALITY_NAMES
    }
    measures = {s.measure.metric: s.measure for s in found.values()}
    regions = [
        region for region in ("lungs", "outside", "whole") if any(key[2] == region for key in found)
    ]
    counts = {s.cases for s in found.values()}
    if not counts:
        return ""
    heads = "".join(
        f'<th scope="col">{escape(title(measures[metric]))}</th>'
        for metric in QUALITY_NAMES
        if metric in measures
    )
    parts = []
    for region in regions:
        parts.append(
            f'<tbody><tr class="region"><th scope="col">{region_name(region)}</th>{heads}</tr>'
        )
        for method in evaluation.methods:
            row = [
                found.get((method, metric, region))
                for metric in QUALITY_NAMES
                if metric in measures
            ]
            cells = "".join(
                f"<td>{interval_html(s, s.measure, count=len(counts) > 1) if s else ''}</td>"
                for s in row
            )
            parts.append(f'<tr><th scope="row">{escape(method)}</th>{cells}</tr>')
        parts.append("</tbody>")
    legend = "".join(
        f"<li><b>{escape(title(m))}</b>: {escape(description(m))}</li>" for m in measures.values()
    )
    over = count_text(max(counts)) if len(counts) == 1 else "cases"
    means = "One case." if counts == {1} else f"Means over {over}, with 95 % bootstrap intervals."
    return (
        f'<section><h2>Summary</h2><p>{means}</p><div class="wide"><table>{"".join(parts)}</table>'
        f'</div><ul class="legend">{legend}</ul></section>'
    )


def density_table(evaluation: Evaluation) -> str:
    """Return the table of lung density and its agreement with the truth, or "" if there is none."""
    tables = density_rows(evaluation)
    if not tables:
        return ""
    heads = "".join(
        f'<th scope="col">{head}</th>'
        for head in ("mean", "− truth", "limits of agreement", "concordance", "cases")
    )
    parts = []
    for measure, rows in tables.items():
        name = f"{escape(title(measure))}<small>{escape(description(measure))}</small>"
        parts.append(f'<tbody><tr class="region"><th scope="col">{name}</th>{heads}</tr>')
        parts += map(_density_row, rows)
        parts.append("</tbody>")
    return (
        "<section><h2>Lung density</h2><p>The thick scan on its own slices, each method, and the "
        "truth. Mean difference to the truth; limits of agreement, which hold 95 % of the "
        "differences of single cases (Bland and Altman); Lin's concordance. Limits and concordance "
        f"need at least {LEAST_CASES} cases.</p>"
        f'<div class="wide"><table>{"".join(parts)}</table></div></section>'
    )


def _density_row(row: DensityRow) -> str:
    summary, found = row
    cells = [interval_html(summary, summary.measure, count=False), "", "", ""]
    if found is not None:
        low, high = (number_text(v, found.measure, sign=True) for v in (found.low, found.high))
        lin = "–" if math.isnan(found.concordance) else f"{found.concordance:.3f}"
        cells[1:] = [
            number_text(found.mean, found.measure, sign=True),
            "–" if math.isnan(found.low) else f"{low} to {high}",
            lin.replace("-", "−"),
        ]
    body = "".join(f"<td>{cell}</td>" for cell in (*cells, summary.cases))
    return f'<tr><th scope="row">{escape(summary.method)}</th>{body}</tr>'


def fidelity_table(evaluation: Evaluation) -> str:
    """Return the table of all other measures by method, or "" if there are none."""
    cells: dict[Measure, dict[str, Summary]] = defaultdict(dict)
    for summary in evaluation.summaries:
        if summary.measure.metric not in {*QUALITY_NAMES, *DENSITIES, *CURVES}:
            cells[summary.measure][summary.method] = summary
    if not cells:
        return ""
    columns = list(
        dict.fromkeys([*evaluation.methods, *(m for row in cells.values() for m in row)])
    )
    counts = {s.cases for row in cells.values() for s in row.values()}
    rows = []
    for measure, row in cells.items():
        found = "".join(
            f"<td>{interval_html(row[m], measure, count=len(counts) > 1) if m in row else ''}</td>"
            for m in columns
        )
        rows.append(
            f'<tr><th scope="row">{row_name_html(measure)}'
            f"<small>{escape(description(measure))}</small></th>{found}</tr>"
        )
    head = "".join(f'<th scope="col">{escape(method)}</th>' for method in ["", *columns])
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<section><h2>Fidelity</h2><div class="wide">{table}</div></section>'


def difference_table(evaluation: Evaluation) -> str:
    """Return the table of paired differences, or "" if no method has more than one common case."""
    if not any(difference.cases > 1 for difference in evaluation.differences):
        return ""
    rows = []
    for d in evaluation.differences:
        p = "" if math.isnan(d.p) else "&lt; 0.001" if d.p < 0.001 else f"{d.p:.3f}"
        rows.append(
            f'<tr><th scope="row">{row_name_html(d.measure)}</th>'
            f"<td>{escape(d.method)} − {escape(d.other)}</td>"
            f"<td>{interval_html(d, d.measure, sign=True)}</td><td>{p}</td>"
            f"<td>{_verdict(d)}</td></tr>"
        )
    heads = ("metric", "difference", "mean over cases", "Wilcoxon p", f"{evaluation.methods[0]} is")
    head = "".join(f'<th scope="col">{escape(word)}</th>' for word in heads)
    return (
        "<section><h2>Paired differences</h2><p>Over the cases that both methods have, with 95 % "
        "bootstrap interval and Wilcoxon signed-rank test; p is not corrected for the number of "
        "tests. Better and worse are stated if the interval excludes 0; fewer than four cases have "
        "no interval.</p>"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _verdict(difference: PairedDifference) -> str:
    higher = HIGHER_IS_BETTER.get(difference.measure.metric)
    if higher is None or not (difference.low > 0 or difference.high < 0):
        return ""
    better = (difference.low > 0) == higher
    return (
        f'<span class="{"better" if better else "worse"}">{"better" if better else "worse"}</span>'
    )
