"""Format measures, values and intervals for the tables of a report, in HTML or plain text."""

from __future__ import annotations

import math
from html import escape

import numpy as np

from mpunet.evaluation.scores import Measure, PairedDifference, Summary

__all__ = [
    "QUALITY_NAMES",
    "count_text",
    "decimals",
    "description",
    "interval_html",
    "json_number",
    "number_text",
    "region_name",
    "row_name_html",
    "title",
]

QUALITY_NAMES = {"mae": "MAE", "rmse": "RMSE", "psnr": "PSNR", "ssim": "SSIM"}
_NAMES = {**QUALITY_NAMES, "laa950": "LAA-950", "laa910": "LAA-910", "perc15": "Perc15"}


def count_text(cases: int) -> str:
    """Return a number of cases in words.

    >>> count_text(1)
    '1 case'
    """
    return f"{cases} case{'s' * (cases != 1)}"


def decimals(measure: Measure) -> int:
    """Return the number of decimals: 2 for values with a unit, else 4."""
    return 2 if measure.unit else 4


def title(measure: Measure) -> str:
    """Return the name of the metric with its unit.

    >>> title(Measure("perc15", "lungs", "HU", None, None, "15th percentile"))
    'Perc15, HU'
    """
    words = _NAMES.get(measure.metric, measure.metric.replace("_", " "))
    return f"{words}, {measure.unit}" if measure.unit else words


def region_name(region: str) -> str:
    """Return the name of a region; a range of HU is its own name.

    >>> region_name("lungs")
    'In the lungs'
    """
    return {"whole": "Whole volume", "lungs": "In the lungs", "outside": "Outside the lungs"}.get(
        region, region
    ).replace("-", "−")


def row_name_html(measure: Measure) -> str:
    """Return title and region as HTML."""
    region = region_name(measure.region)
    return f"{escape(title(measure))}, {escape(region[0].lower() + region[1:])}"


def description(measure: Measure) -> str:
    """Return the window, the data range and the method of computation, in words."""
    window = (
        "HU not clipped"
        if measure.window is None
        else f"HU in [{measure.window[0]:g}, {measure.window[1]:g}]"
    )
    data_range = "" if measure.range is None else f"; range {measure.range:g} HU"
    return f"{window}{data_range}; {measure.kind}".replace("-", "−")


def interval_html(
    found: Summary | PairedDifference, measure: Measure, *, sign: bool = False, count: bool = True
) -> str:
    """Return the mean, its interval and optionally the number of cases as HTML."""
    text = f"<b>{number_text(found.mean, measure, sign=sign)}</b>"
    if not math.isnan(found.low):
        low, high = (number_text(value, measure, sign=sign) for value in (found.low, found.high))
        text += f" <small>[{low}, {high}]</small>"
    return f"{text} <small>n = {found.cases}</small>" if count else text


def json_number(value: float) -> float | str | None:
    """Return a value that JSON can represent: None for NaN, a string for infinity.

    >>> json_number(math.inf)
    '∞'
    """
    return (
        None
        if math.isnan(value)
        else ("∞" if value > 0 else "−∞")
        if math.isinf(value)
        else float(f"{value:.6g}")
    )


def number_text(value: float, measure: Measure, *, sign: bool = False) -> str:
    """Return a value with the decimals of its measure, "–" for NaN, and optionally a plus sign.

    >>> number_text(-0.5, Measure("laa950", "lungs", "%", None, None, ""))
    '−0.50'
    """
    if not np.isfinite(value):
        return "–" if math.isnan(value) else "∞" if value > 0 else "−∞"
    return f"{value:{'+' if sign else ''}.{decimals(measure)}f}".replace("-", "−")
