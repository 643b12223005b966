"""Plots as inline SVG: the distribution of a metric over cases, and curves."""

from __future__ import annotations

import html
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

__all__ = ["Line", "line_plot", "strip_plot"]

MOST_DOTS = 300  # in a row; more dots overlap and make the page large
WIDTH, LABEL, ROW, DOT = 640, 130, 34, 4.0  # widths of figure and labels, row height, dot radius
HEIGHT, LEFT, BELOW = 380, 70, 52  # of a plot of curves, and beside and below its axes


class Line(NamedTuple):
    """A curve: the main one, that of a case, or the ideal; its points are (x, y)."""

    name: str
    kind: Literal["main", "case", "ideal"]
    points: Sequence[tuple[float, float]]


def strip_plot(
    title: str, rows: Mapping[str, Mapping[str, float]], shown: Collection[str], digits: int
) -> str:
    """Draw a row for each method and a dot for each case, as SVG of 640 units width.

    Rows with at least 5 cases also show the median and the quartiles. With more than 300 cases, a
    row shows only the dots of the 10 lowest and the 10 highest cases and of those in ``shown``.

    Args:
        title: title as plain text.
        rows: method to case to value; values that are not finite are left out.
        shown: cases in the page's viewer; a click on their dots opens them there.
        digits: number of decimals in the tooltips of the dots.

    Returns:
        HTML, or "" if there are no finite values.
    """
    finite = {
        method: {c: v for c, v in cases.items() if math.isfinite(v)}
        for method, cases in rows.items()
    }
    finite = {method: cases for method, cases in finite.items() if cases}
    if not finite:
        return ""
    values = np.array([value for cases in finite.values() for value in cases.values()])
    low, high = float(values.min()), float(values.max())
    margin = 0.05 * (high - low) or max(abs(low) * 0.05, 10.0**-digits)
    low, high = low - margin, high + margin
    height = ROW * len(finite) + 30

    def x(value: float) -> str:
        return f"{LABEL + (WIDTH - LABEL - 20) * (value - low) / (high - low):.1f}"

    parts = []
    for tick in _ticks(low, high):
        parts.append(f'<path class="grid" d="M{x(tick)} 4V{height - 22}"/>')
        parts.append(f'<text class="tick" x="{x(tick)}" y="{height - 8}">{tick:g}</text>')
    for number, (method, cases) in enumerate(finite.items()):
        y = 4 + ROW * (number + 0.5)
        parts.append(
            f'<text class="method" x="{LABEL - 12}" y="{y + 4}">'
            f"{html.escape(_short(method))}</text>"
        )
        if len(cases) > 4:
            quarter, half, three = np.percentile(list(cases.values()), [25, 50, 75])
            parts.append(
                f'<path class="box" d="M{x(quarter)} {y - 10}H{x(three)}V{y + 10}H{x(quarter)}Z"/>'
            )
            parts.append(f'<path class="median" d="M{x(half)} {y - 10}V{y + 10}"/>')
        for case in _cases_with_dot(cases, shown):
            name = html.escape(case)
            tip = f"<title>{html.escape(method)}, {name}: {cases[case]:.{digits}f}</title>"
            place = f'cx="{x(cases[case])}" cy="{y + _jitter(case):.1f}"'
            if case in shown:
                parts.append(
                    f'<a href="#viewer" data-case="{name}" aria-label="Show {name}">'
                    f'<circle r="5.5" {place}>{tip}</circle></a>'
                )
            else:
                parts.append(f'<circle r="{DOT}" {place}>{tip}</circle>')
    label = html.escape(title)
    return (
        f'<figure class="strip"><figcaption>{label}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {height}" role="group" '
        f'aria-label="{label} by case and method">{"".join(parts)}</svg></figure>'
    )


def line_plot(title: str, lines: Sequence[Line], x_label: str, y_label: str) -> str:
    """Draw curves as SVG of 640 units width, with y from 0.

    Args:
        title: title as plain text.
        lines: curves, the last on top; their names are tooltips, those of the main and the ideal
            curve also stand beside the plot's title.
        x_label: what is along x, with its unit.
        y_label: what is along y, with its unit.

    Returns:
        HTML, or "" if no curve has points.
    """
    points = np.array([point for line in lines for point in line.points])
    if not points.size:
        return ""
    low, right = float(points[:, 0].min()), float(points[:, 0].max())
    top = 1.05 * float(points[:, 1].max()) or 1.0
    right += right == low

    def x(value: float) -> str:
        return f"{LEFT + (WIDTH - LEFT - 20) * (value - low) / (right - low):.1f}"

    def y(value: float) -> str:
        return f"{HEIGHT - BELOW - (HEIGHT - BELOW - 10) * value / top:.1f}"

    parts = []
    for tick in _ticks(low, right):
        parts.append(f'<path class="grid" d="M{x(tick)} 10V{y(0)}"/>')
        parts.append(f'<text class="tick" x="{x(tick)}" y="{HEIGHT - 32}">{tick:g}</text>')
    for tick in _ticks(0, top):
        parts.append(f'<path class="grid" d="M{LEFT} {y(tick)}H{WIDTH - 20}"/>')
        parts.append(
            f'<text class="method" x="{LEFT - 10}" y="{float(y(tick)) + 4:.1f}">{tick:g}</text>'
        )
    for line in lines:
        if line.points:
            path = "L".join(f"{x(a)} {y(b)}" for a, b in line.points)
            tip = f"<title>{html.escape(line.name)}</title>"
            parts.append(f'<path class="line {line.kind}" d="M{path}">{tip}</path>')
    middle = (HEIGHT - BELOW) / 2
    parts.append(
        f'<text class="tick" x="{(LEFT + WIDTH - 20) / 2}" y="{HEIGHT - 8}">'
        f"{html.escape(x_label)}</text>"
        f'<text class="tick" transform="translate(16 {middle}) rotate(-90)">'
        f"{html.escape(y_label)}</text>"
    )
    legend = "".join(
        f' <small class="{line.kind}">{html.escape(line.name)}</small>'
        for line in lines
        if line.kind != "case"
    )
    label = html.escape(title)
    return (
        f'<figure class="strip"><figcaption>{label}{legend}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="group" aria-label="{label}">'
        f"{''.join(parts)}</svg></figure>"
    )


def _cases_with_dot(cases: Mapping[str, float], shown: Collection[str]) -> Sequence[str]:
    if len(cases) <= MOST_DOTS:
        return list(cases)
    ordered = sorted(cases, key=cases.__getitem__)
    return list(
        dict.fromkeys([*ordered[:10], *ordered[-10:], *(case for case in shown if case in cases)])
    )


def _ticks(low: float, high: float) -> list[float]:
    """Return three to seven round numbers between the ends.

    >>> _ticks(17.0, 62.0)
    [20.0, 30.0, 40.0, 50.0, 60.0]
    """
    power = 10.0 ** math.floor(math.log10((high - low) / 3))
    step = next(power * factor for factor in (1, 2, 5, 10) if (high - low) / (power * factor) < 7)
    return [round(step * k, 10) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _jitter(case: str) -> float:
    """Vertical offset of a dot, -8 to 8 units; the same for a case in every row and report."""
    return (sum(case.encode()) * 7919 % 1000) / 1000 * 16 - 8


def _short(name: str, most: int = 16) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
