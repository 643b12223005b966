"""HTML report of an evaluation.

The sections are: problems, summary, lung density, viewer with selected cases, distribution over
cases, paired differences, fidelity, error maps, and a table of all cases.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from html import escape
from pathlib import Path

from mpunet.evaluation.aggregate import ScoresByCase, scores_by_case
from mpunet.evaluation.error_maps import CURVES
from mpunet.evaluation.scores import Evaluation
from mpunet.report.error_map_section import error_map_section
from mpunet.report.measure_text import (
    QUALITY_NAMES,
    count_text,
    decimals,
    description,
    json_number,
    region_name,
    title,
)
from mpunet.report.page import PageCase, viewer_html, write_page
from mpunet.report.report_plot import strip_plot
from mpunet.report.summary_tables import (
    density_table,
    difference_table,
    fidelity_table,
    quality_table,
)
from mpunet.report.viewer import PAGE_BYTES, encode_case

__all__ = ["choose_cases", "write_report"]

TRUTH = "truth"


def write_report(
    path: Path, evaluation: Evaluation, *, slices: int | None = None, size: float = PAGE_BYTES
) -> None:
    """Write the report of an evaluation as a single HTML file that works offline.

    Args:
        path: output file; an existing file is replaced.
        evaluation: results, and the files that were measured.
        slices: number of slices of each case in each plane; by default as many as ``size`` allows,
            see :func:`mpunet.report.viewer.encode_case`.
        size: size of all cases in the viewer together, in bytes.
    """
    values = scores_by_case(evaluation.scores)
    # Files are read before the page is written: a file that was removed since the evaluation
    # becomes a line of the report, and the report is still written.
    lines, pages = [], []
    chosen = choose_cases(evaluation, values)
    for label, name in chosen.items():
        try:
            reference = TRUTH if TRUTH in evaluation.files[name] else None
            case = encode_case(
                name,
                evaluation.files[name],
                reference=reference,
                error_maps=_error_map(evaluation, name),
                slices=slices,
                size=size / len(chosen),
            )
            pages.append(PageCase(label, case))
        except (ValueError, OSError) as error:
            lines.append(f"{name} cannot be shown: {error}")
    shown = {page.case["name"]: page.label for page in pages}
    protocol = evaluation.protocol
    about = (
        f"Protocol {protocol.name}: HU clipped to [{protocol.low:g}, {protocol.high:g}], "
        f"range of PSNR and SSIM {protocol.high - protocol.low:g} HU, "
        f"{protocol.trim or 'no'} thin slices left out at each end. {protocol.note}."
    ).replace("-", "−")
    body = [
        f'<section class="about"><p>{escape(", ".join(evaluation.methods))}; '
        f"{count_text(len(evaluation.files))}. {escape(about)}</p></section>",
        _problems(evaluation, lines),
        quality_table(evaluation),
        density_table(evaluation),
        f'<section id="viewer"><h2>Cases to look at</h2></section>{viewer_html()}' if shown else "",
        _distribution(evaluation, values, shown),
        difference_table(evaluation),
        fidelity_table(evaluation),
        error_map_section(evaluation),
        _cases(evaluation, values),
    ]
    note = f"Made {escape(evaluation.created)} by mpunet {escape(evaluation.version)}. "
    write_page(
        path, evaluation.title, "\n".join(filter(None, body)), pages, kind="report", note=note
    )


def choose_cases(evaluation: Evaluation, values: ScoresByCase) -> dict[str, str]:
    """Select the best, the median and the worst case of the first method by RMSE.

    The RMSE in the lungs is used if it was measured, else that of the whole volume.

    Returns:
        For each label, the name of the case.
    """
    method = evaluation.methods[0]
    for region in ("lungs", "whole"):
        found = [
            cases
            for (m, measure), cases in values.items()
            if m == method and measure[:2] == ("rmse", region)
        ]
        ranked = sorted(
            (value, case)
            for case, value in (found[0] if found else {}).items()
            if math.isfinite(value)
        )
        ranked = [(value, case) for value, case in ranked if case in evaluation.files]
        if ranked:
            break
    else:
        return {case: case for case in list(evaluation.files)[:1]}
    last = len(ranked) - 1
    places = (
        {0: "Best", last // 2: "Median", last: "Worst"}
        if last > 1
        else {0: "Best", 1: "Worst"}
        if last
        else {0: "The case"}
    )
    where = " in the lungs" if region == "lungs" else ""
    return {
        f"{word}: {ranked[i][1]} (RMSE{where} {ranked[i][0]:.1f} HU)": ranked[i][1]
        for i, word in places.items()
    }


def _error_map(evaluation: Evaluation, case: str) -> dict[str, Path]:
    """Error map of a case by the method that it belongs to, if there is one."""
    path = evaluation.error_maps.get(case)
    return {} if path is None else {evaluation.methods[0]: path}


def _problems(evaluation: Evaluation, lines: list[str]) -> str:
    if not evaluation.problems and not lines:
        return ""
    items = [
        f"<li><b>{escape(p.case)}</b>, {escape(p.method)}: {escape(p.reason)} "
        f"<small>({'measured nevertheless' if p.measured else 'not measured'})</small></li>"
        for p in evaluation.problems
    ]
    items += [f"<li>{escape(line)}</li>" for line in lines]
    left_out = sum(not p.measured for p in evaluation.problems)
    head = f"{len(items)} problem{'s' * (len(items) != 1)}" + (
        f", {left_out} not in the means" if left_out else ""
    )
    return (
        f'<section class="problems" role="alert"><h2>{head}</h2><ul>{"".join(items)}</ul></section>'
    )


def _distribution(evaluation: Evaluation, values: ScoresByCase, shown: Mapping[str, str]) -> str:
    regions = {measure.region for _, measure in values if measure.metric in QUALITY_NAMES}
    region = "lungs" if "lungs" in regions else "whole"
    plots = []
    for metric in QUALITY_NAMES:
        measures = dict.fromkeys(m for _, m in values if m.metric == metric and m.region == region)
        for measure in measures:
            rows = {method: values.get((method, measure), {}) for method in evaluation.methods}
            heading = f"{title(measure)}, {region_name(region).lower()}"
            plots.append(strip_plot(heading, rows, shown, decimals(measure)))
    if not any(plots) or len(evaluation.files) < 2:
        return ""
    return (
        "<section><h2>Distribution over cases</h2><p>A dot for each case, with quartiles and "
        "median if there are at least five cases. A click on a yellow dot opens its case in the "
        "viewer.</p>"
        f'<div class="strips">{"".join(plots)}</div></section>'
    )


def _cases(evaluation: Evaluation, values: ScoresByCase) -> str:
    """Table of all cases as compact JSON, of which the page's script shows a part as rows."""
    measures = list(dict.fromkeys(m for _, m in values if m.metric not in CURVES))
    methods = list(dict.fromkeys([*evaluation.methods, *(method for method, _ in values)]))
    cases = list(dict.fromkeys(case for found in values.values() for case in found))
    rows = []
    for case in cases:
        for number, method in enumerate(methods):
            row = [values.get((method, measure), {}).get(case, math.nan) for measure in measures]
            if not all(map(math.isnan, row)):
                rows.append([case, number, *(json_number(value) for value in row)])
    columns = [
        {
            "name": f"{title(m)}, {region_name(m.region).lower()}",
            "about": description(m),
            "digits": decimals(m),
            "main": m.metric in QUALITY_NAMES,
        }
        for m in measures
    ]
    data = json.dumps(
        {"methods": methods, "columns": columns, "rows": rows}, separators=(",", ":")
    ).replace("<", "\\u003c")
    return (
        '<section><h2>Every case</h2><div class="bar"><label>Case '
        '<input type="search" name="find" placeholder="part of its name"></label>'
        '<label>Method <select name="method"><option value="">all</option></select></label>'
        '<label><input type="checkbox" name="all"> with fidelity</label></div>'
        '<div class="wide"><table class="every"><thead></thead><tbody></tbody></table></div>'
        '<button name="more">More rows</button></section>'
        f'<script type="application/json" id="rows">{data}</script>'
    )
