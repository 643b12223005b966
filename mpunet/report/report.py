"""The page of an evaluation: problems, summary, differences, distribution, the cases to look at, every case's numbers."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from html import escape
from pathlib import Path

import numpy as np

from mpunet.evaluation.scores import Evaluation, Measure, PairedDifference, Summary
from mpunet.report.page import PageCase, viewer_html, write_page
from mpunet.report.report_plot import strip_plot
from mpunet.report.viewer import PAGE_BYTES, encode_case

__all__ = ["choose_cases", "write_report"]

Values = dict[tuple[str, Measure], dict[str, float]]

MAIN = {"mae": "MAE", "rmse": "RMSE", "psnr": "PSNR", "ssim": "SSIM"}
NAMES = {**MAIN, "laa950": "LAA-950", "perc15": "Perc15"}
HIGHER_IS_BETTER = {"mae": False, "rmse": False, "psnr": True, "ssim": True}
TRUTH = "truth"


def write_report(
    path: Path, evaluation: Evaluation, *, slices: int | None = None, size: float = PAGE_BYTES
) -> None:
    """Write the page of an evaluation, one HTML file that needs no network.

    Args:
        path: the file; one of this name is replaced.
        evaluation: what was measured, with the files it was measured on.
        slices: of each case in each plane, see :func:`mpunet.report.viewer.encode_case`.
        size: in bytes, of all cases in the viewer together.
    """
    values: Values = defaultdict(dict)
    for score in evaluation.scores:
        values[score.method, score.measure][score.case] = score.value
    # Read here, so that a file that has gone since it was measured becomes a line of the report instead of its end.
    lines, pages = [], []
    chosen = choose_cases(evaluation, values)
    for label, name in chosen.items():
        try:
            reference = TRUTH if TRUTH in evaluation.files[name] else None
            case = encode_case(
                name,
                evaluation.files[name],
                reference=reference,
                slices=slices,
                size=size / len(chosen),
            )
            pages.append(PageCase(label, case))
        except (ValueError, OSError) as error:
            lines.append(f"{name} cannot be shown: {error}")
    shown = {page.case["name"]: page.label for page in pages}
    protocol = evaluation.protocol
    about = (
        f"Protocol {protocol.name}: HU clipped to [{protocol.low:g}, {protocol.high:g}], range of PSNR and SSIM "
        f"{protocol.high - protocol.low:g} HU, {protocol.trim or 'no'} thin slices left out at each end. {protocol.note}."
    ).replace("-", "−")
    body = [
        f'<section class="about"><p>{escape(", ".join(evaluation.methods))}; {_count(len(evaluation.files))}. {escape(about)}</p></section>',
        _problems(evaluation, lines),
        _quality(evaluation),
        f'<section id="viewer"><h2>Cases to look at</h2></section>{viewer_html()}' if shown else "",
        _distribution(evaluation, values, shown),
        _differences(evaluation),
        _fidelity(evaluation),
        _cases(evaluation, values),
    ]
    note = f"Made {escape(evaluation.created)} by mpunet {escape(evaluation.version)}. "
    write_page(
        path, evaluation.title, "\n".join(filter(None, body)), pages, kind="report", note=note
    )


def choose_cases(evaluation: Evaluation, values: Values) -> dict[str, str]:
    """Label to case: best, median and worst of the first method by RMSE, in the lungs if it was measured there."""
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


def _quality(evaluation: Evaluation) -> str:
    """Methods by metric for each region, and below them once what each metric is."""
    found = {
        (s.method, s.measure.metric, s.measure.region): s
        for s in evaluation.summaries
        if s.measure.metric in MAIN
    }
    measures = {s.measure.metric: s.measure for s in found.values()}
    regions = [
        region for region in ("lungs", "outside", "whole") if any(key[2] == region for key in found)
    ]
    counts = {s.cases for s in found.values()}
    if not counts:
        return ""
    heads = "".join(
        f'<th scope="col">{escape(_title(measures[metric]))}</th>'
        for metric in MAIN
        if metric in measures
    )
    parts = []
    for region in regions:
        parts.append(
            f'<tbody><tr class="region"><th scope="col">{_region(region)}</th>{heads}</tr>'
        )
        for method in evaluation.methods:
            row = [found.get((method, metric, region)) for metric in MAIN if metric in measures]
            cells = "".join(
                f"<td>{_interval(s, s.measure, count=len(counts) > 1) if s else ''}</td>"
                for s in row
            )
            parts.append(f'<tr><th scope="row">{escape(method)}</th>{cells}</tr>')
        parts.append("</tbody>")
    legend = "".join(
        f"<li><b>{escape(_title(m))}</b>: {escape(_about(m))}</li>" for m in measures.values()
    )
    over = _count(max(counts)) if len(counts) == 1 else "cases"
    means = "One case." if counts == {1} else f"Means over {over}, with 95 % bootstrap intervals."
    return f'<section><h2>Summary</h2><p>{means}</p><div class="wide"><table>{"".join(parts)}</table></div><ul class="legend">{legend}</ul></section>'


def _fidelity(evaluation: Evaluation) -> str:
    cells: dict[Measure, dict[str, Summary]] = defaultdict(dict)
    for summary in evaluation.summaries:
        if summary.measure.metric not in MAIN:
            cells[summary.measure][summary.method] = summary
    if not cells:
        return ""
    columns = list(dict.fromkeys([*evaluation.methods, *(s.method for s in evaluation.summaries)]))
    counts = {s.cases for row in cells.values() for s in row.values()}
    rows = []
    for measure, row in cells.items():
        found = "".join(
            f"<td>{_interval(row[m], measure, count=len(counts) > 1) if m in row else ''}</td>"
            for m in columns
        )
        rows.append(
            f'<tr><th scope="row">{_name(measure)}<small>{escape(_about(measure))}</small></th>{found}</tr>'
        )
    head = "".join(f'<th scope="col">{escape(method)}</th>' for method in ["", *columns])
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<section><h2>Fidelity</h2><div class="wide">{table}</div></section>'


def _differences(evaluation: Evaluation) -> str:
    if not any(difference.cases > 1 for difference in evaluation.differences):
        return ""
    rows = []
    for d in evaluation.differences:
        p = "" if math.isnan(d.p) else "&lt; 0.001" if d.p < 0.001 else f"{d.p:.3f}"
        rows.append(
            f'<tr><th scope="row">{_name(d.measure)}</th><td>{escape(d.method)} − {escape(d.other)}</td>'
            f"<td>{_interval(d, d.measure, sign=True)}</td><td>{p}</td><td>{_verdict(d)}</td></tr>"
        )
    heads = ("metric", "difference", "mean over cases", "Wilcoxon p", f"{evaluation.methods[0]} is")
    head = "".join(f'<th scope="col">{escape(word)}</th>' for word in heads)
    return (
        "<section><h2>Paired differences</h2><p>Over the cases that both have, with 95 % bootstrap interval and Wilcoxon signed-rank "
        "test; p is not corrected for the number of tests. Better and worse where the interval leaves 0 out.</p>"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div></section>'
    )


def _verdict(difference: PairedDifference) -> str:
    higher = HIGHER_IS_BETTER.get(difference.measure.metric)
    if higher is None or not (difference.low > 0 or difference.high < 0):
        return ""
    better = (difference.low > 0) == higher
    return (
        f'<span class="{"better" if better else "worse"}">{"better" if better else "worse"}</span>'
    )


def _distribution(evaluation: Evaluation, values: Values, shown: Mapping[str, str]) -> str:
    regions = {measure.region for _, measure in values if measure.metric in MAIN}
    region = "lungs" if "lungs" in regions else "whole"
    plots = []
    for metric in MAIN:
        measures = dict.fromkeys(m for _, m in values if m.metric == metric and m.region == region)
        for measure in measures:
            rows = {method: values.get((method, measure), {}) for method in evaluation.methods}
            title = f"{MAIN[metric]}{', ' + measure.unit if measure.unit else ''}, {_region(region).lower()}"
            plots.append(strip_plot(title, rows, shown, _digits(measure)))
    if not any(plots) or len(evaluation.files) < 2:
        return ""
    return (
        "<section><h2>Distribution over cases</h2><p>A dot for each case, with quartiles and median from five cases on; "
        f'yellow dots lead to the case below.</p><div class="strips">{"".join(plots)}</div></section>'
    )


def _cases(evaluation: Evaluation, values: Values) -> str:
    """The table's data, compact: the page's script makes rows of it, as many as are looked at."""
    measures = list(dict.fromkeys(measure for _, measure in values))
    methods = list(dict.fromkeys([*evaluation.methods, *(method for method, _ in values)]))
    cases = list(dict.fromkeys(case for found in values.values() for case in found))
    rows = []
    for case in cases:
        for number, method in enumerate(methods):
            row = [values.get((method, measure), {}).get(case, math.nan) for measure in measures]
            if not all(map(math.isnan, row)):
                rows.append([case, number, *(_number(value) for value in row)])
    columns = [
        {
            "name": f"{_title(m)}, {_region(m.region).lower()}",
            "about": _about(m),
            "digits": _digits(m),
            "main": m.metric in MAIN,
        }
        for m in measures
    ]
    data = json.dumps(
        {"methods": methods, "columns": columns, "rows": rows}, separators=(",", ":")
    ).replace("<", "\\u003c")
    return (
        '<section><h2>Every case</h2><div class="bar"><label>Case <input type="search" name="find" placeholder="part of its name"></label>'
        '<label>Method <select name="method"><option value="">all</option></select></label>'
        '<label><input type="checkbox" name="all"> fidelity too</label></div>'
        '<div class="wide"><table class="every"><thead></thead><tbody></tbody></table></div>'
        f'<button name="more">More rows</button></section><script type="application/json" id="rows">{data}</script>'
    )


def _count(cases: int) -> str:
    return f"{cases} case{'s' * (cases != 1)}"


def _number(value: float) -> float | str | None:
    """What JSON can hold: no NaN, no infinity."""
    return (
        None
        if math.isnan(value)
        else ("∞" if value > 0 else "−∞")
        if math.isinf(value)
        else float(f"{value:.6g}")
    )


def _digits(measure: Measure) -> int:
    return 2 if measure.unit else 4


def _format(value: float, measure: Measure, *, sign: bool = False) -> str:
    if not np.isfinite(value):
        return "–" if math.isnan(value) else "∞" if value > 0 else "−∞"
    return f"{value:{'+' if sign else ''}.{_digits(measure)}f}".replace("-", "−")


def _interval(
    found: Summary | PairedDifference, measure: Measure, *, sign: bool = False, count: bool = True
) -> str:
    text = f"<b>{_format(found.mean, measure, sign=sign)}</b>"
    if not math.isnan(found.low):
        text += f" <small>[{_format(found.low, measure, sign=sign)}, {_format(found.high, measure, sign=sign)}]</small>"
    return f"{text} <small>n = {found.cases}</small>" if count else text


def _title(measure: Measure) -> str:
    words = NAMES.get(measure.metric, measure.metric.replace("_", " "))
    return f"{words}, {measure.unit}" if measure.unit else words


def _region(region: str) -> str:
    return {"whole": "Whole volume", "lungs": "In the lungs", "outside": "Outside the lungs"}.get(
        region, region
    ).replace("-", "−")


def _name(measure: Measure) -> str:
    region = _region(measure.region)
    return f"{escape(_title(measure))}, {escape(region[0].lower() + region[1:])}"


def _about(measure: Measure) -> str:
    window = (
        "HU not clipped"
        if measure.window is None
        else f"HU in [{measure.window[0]:g}, {measure.window[1]:g}]"
    )
    full = "" if measure.range is None else f"; range {measure.range:g} HU"
    return f"{window}{full}; {measure.kind}".replace("-", "−")
