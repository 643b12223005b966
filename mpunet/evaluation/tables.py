"""Write an evaluation to CSV and JSON files, and format it as text for the screen."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mpunet.evaluation.densitometry import DENSITIES, density_rows
from mpunet.evaluation.error_maps import CURVES
from mpunet.evaluation.scores import (
    Agreement,
    Evaluation,
    Measure,
    PairedDifference,
    Score,
    Summary,
)
from mpunet.io.partial_file import whole_file
from mpunet.metrics.agreement import LEAST_CASES

__all__ = ["screen", "write_tables", "write_whole"]

MEASURE = ["metric", "region", "unit", "window_low", "window_high", "range", "kind"]
DENSITY = {"laa950": "LAA-950, %", "laa910": "LAA-910, %", "perc15": "Perc15, HU"}
QUALITY = {"mae": ("MAE", 2), "rmse": ("RMSE", 2), "psnr": ("PSNR", 2), "ssim": ("SSIM", 4)}
DIGITS = {"ssim": 4, "sharpness": 3}


def write_tables(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write the evaluation to CSV files and to ``evaluation.json``.

    The CSV files are ``scores.csv`` (one row for each number of each case), ``summary.csv``,
    ``agreement.csv``, ``differences.csv`` and ``problems.csv``. The row of a number also contains
    its unit, region, window, range and kind. NaN is written as an empty field in CSV files. NaN and
    infinity are written as null in the JSON file.

    Returns:
        Paths of the files.
    """
    tables: dict[str, tuple[list[str], Iterable[Sequence[Any]]]] = {
        "scores": (
            ["method", "case", *MEASURE, "value"],
            ((s.method, s.case, *_flat(s.measure), s.value) for s in evaluation.scores),
        ),
        "summary": (
            ["method", *MEASURE, "cases", "mean", "low", "high"],
            ((s.method, *_flat(s.measure), *s[2:]) for s in evaluation.summaries),
        ),
        "agreement": (
            ["method", *MEASURE, "cases", "mean", "low", "high", "concordance"],
            ((a.method, *_flat(a.measure), *a[2:]) for a in evaluation.agreements),
        ),
        "differences": (
            ["method", "minus", *MEASURE, "cases", "mean", "low", "high", "p"],
            ((d.method, d.other, *_flat(d.measure), *d[3:]) for d in evaluation.differences),
        ),
        "problems": (["method", "case", "reason", "measured"], evaluation.problems),
    }
    written = []
    for name, (head, lines) in tables.items():
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(head)
        writer.writerows([["" if _is_nan(v) else v for v in line] for line in lines])
        written.append(write_whole(folder / f"{name}.csv", text.getvalue()))
    content = {
        field: _plain(getattr(evaluation, field)) for field in Evaluation.__dataclass_fields__
    }
    written.append(
        write_whole(folder / "evaluation.json", json.dumps(content, indent=1, allow_nan=False))
    )
    return written


def write_whole(path: Path, text: str) -> Path:
    """Write a text file in UTF-8 atomically: an existing file is replaced when all is written."""
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    return path


def screen(evaluation: Evaluation) -> str:
    """Format an evaluation as text.

    Means and intervals by region, lung density, fidelity, paired differences, problems.
    """
    protocol = evaluation.protocol
    trim = f", {protocol.trim} slices left out at each end" if protocol.trim else ""
    planes = "axial" if protocol.planes == "axial" else "in three planes"
    parts = [
        f"Protocol {protocol.name}: HU clipped to [{protocol.low:g}, {protocol.high:g}], PSNR and "
        f"SSIM for a range of {protocol.high - protocol.low:g} HU, SSIM 2D {planes}{trim}."
    ]
    found = {(s.method, s.measure.metric, s.measure.region): s for s in evaluation.summaries}
    for region in ("lungs", "outside", "whole"):
        lines = [
            [m, *(_mean(found[m, q, region], d) for q, (_, d) in QUALITY.items())]
            for m in evaluation.methods
            if (m, "mae", region) in found
        ]
        if lines:
            parts.append(_table([region, "MAE, HU", "RMSE, HU", "PSNR, dB", "SSIM"], lines))
    parts += _density(evaluation)
    shown_elsewhere = {*QUALITY, *DENSITIES, *CURVES}  # curves: in the CSV files and the report
    rest = [s for s in evaluation.summaries if s.measure.metric not in shown_elsewhere]
    methods = list(dict.fromkeys(s.method for s in rest))
    others = dict.fromkeys((s.measure.metric, s.measure.region, s.measure.unit) for s in rest)
    lines = [
        [
            f"{metric}, {region}" + (f", {unit}" if unit else ""),
            *(_cell(found.get((m, metric, region))) for m in methods),
        ]
        for metric, region, unit in others
    ]
    if lines:
        parts.append(_table(["fidelity", *methods], lines))
    for other in evaluation.methods[1:]:
        lines = [
            [
                f"{d.measure.metric}, {d.measure.region}",
                _mean(d, DIGITS.get(d.measure.metric, 2)),
                str(d.cases),
                _p(d.p),
            ]
            for d in evaluation.differences
            if d.other == other and d.measure.metric in QUALITY
        ]
        if lines:
            parts.append(
                _table([f"{evaluation.methods[0]} - {other}", "mean", "cases", "Wilcoxon p"], lines)
            )
    if any(s.cases > 1 for s in evaluation.summaries):
        parts.append("Means over cases with 95 % bootstrap intervals.")
    if evaluation.problems:
        shown = [
            f"  {p.method}, {p.case}: {p.reason}" + ("" if p.measured else " (not measured)")
            for p in evaluation.problems[:20]
        ]
        more = len(evaluation.problems) - len(shown)
        parts.append(
            "\n".join(
                [
                    f"{len(evaluation.problems)} problems:",
                    *shown,
                    *([f"  ... and {more} more, see problems.csv"] if more else []),
                ]
            )
        )
    return "\n\n".join(parts)


def _density(evaluation: Evaluation) -> list[str]:
    """Format a table for each measure of lung density, and a note on its columns."""
    parts = [
        _table(
            [DENSITY[measure.metric], "mean", "- truth", "limits of agreement", "Lin", "cases"],
            [
                [s.method, _cell(s), *([""] * 3 if a is None else _agreement(a)), str(s.cases)]
                for s, a in rows
            ],
        )
        for measure, rows in density_rows(evaluation).items()
    ]
    note = (
        "Lung density: mean difference to the truth, 95 % limits of agreement of single cases "
        "(Bland-Altman), Lin's concordance."
    )
    if any(_is_nan(a.concordance) for a in evaluation.agreements):
        note += f' "-": undefined, for fewer than {LEAST_CASES} cases or if all values are equal.'
    return [*parts, note] if parts else []


def _agreement(found: Agreement) -> list[str]:
    limits = "-" if _is_nan(found.low) else f"{found.low:.2f} to {found.high:.2f}"
    return [
        "-" if _is_nan(found.mean) else f"{found.mean:+.2f}",
        limits,
        "-" if _is_nan(found.concordance) else f"{found.concordance:.3f}",
    ]


def _flat(measure: Measure) -> tuple[Any, ...]:
    low, high = measure.window or (None, None)
    return measure.metric, measure.region, measure.unit, low, high, measure.range, measure.kind


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in [head, *lines]
    )


def _cell(summary: Summary | None) -> str:
    return "" if summary is None else _mean(summary, DIGITS.get(summary.measure.metric, 2))


def _mean(found: Summary | PairedDifference, digits: int) -> str:
    interval = "" if _is_nan(found.low) else f" [{found.low:.{digits}f}, {found.high:.{digits}f}]"
    return f"{found.mean:.{digits}f}{interval}"


def _p(p: float) -> str:
    return "" if _is_nan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (Measure, Score, Summary, PairedDifference)) or hasattr(value, "_asdict"):
        named: NamedTuple = value
        return {key: _plain(item) for key, item in named._asdict().items()}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
