"""Write a reader study to CSV and JSON files, and format it as Markdown."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mpunet.evaluation.tables import write_whole
from mpunet.metrics.statistics import Difference, Interval
from mpunet.reader_study.matching import MEASURES
from mpunet.reader_study.study import Contrast, Rates, ReaderStudy

__all__ = ["markdown", "write_study"]

_NAMES = {
    "sensitivity": "sensitivity, %",
    "precision": "precision, %",
    "f1": "F1, %",
    "false_positives": "false positives per reading",
}


def write_study(study: ReaderStudy, folder: Path) -> list[Path]:
    """Write ``rates.csv``, ``differences.csv``, ``study.json`` and ``study.md`` to a folder.

    NaN is an empty field in CSV files and null in the JSON file.

    Returns:
        Paths of the files.
    """
    rates, contrasts = ([_flat(row) for row in rows] for rows in (study.rates, study.contrasts))
    plain = study._asdict() | {"rates": rates, "contrasts": contrasts}
    return [
        write_whole(folder / "rates.csv", _csv(_columns(Rates, Interval), rates)),
        write_whole(folder / "differences.csv", _csv(_columns(Contrast, Difference), contrasts)),
        write_whole(folder / "study.json", json.dumps(plain, indent=1, allow_nan=False) + "\n"),
        write_whole(folder / "study.md", markdown(study)),
    ]


def markdown(study: ReaderStudy) -> str:
    """Format rates and differences for each threshold as tables, with notes on how to read them."""
    parts = [
        f"{study.cases} cases, {study.nodules} nodules in the standard. "
        f"A finding matches a nodule within {study.radius:g} mm of its centre, or within the "
        f"nodule's radius if that is larger. [{study.level:.0%} intervals: bootstrap over cases]"
    ]
    for threshold in study.thresholds:
        lines = [
            [
                r.condition,
                r.reader,
                r.cases,
                r.counts.nodules,
                r.counts.hits,
                r.counts.false_positives,
                *map(_cell, _values(r)),
            ]
            for r in study.rates
            if r.threshold == threshold
        ]
        head = [
            f"nodules ≥ {threshold:g} mm",
            "reader",
            "cases",
            "nodules",
            "found",
            "false",
            *_NAMES.values(),
        ]
        parts.append(_table(head, lines))
        lines = [
            [f"{c.condition} − {c.reference}", c.reader, c.cases, *map(_cell, _values(c))]
            for c in study.contrasts
            if c.threshold == threshold
        ]
        if lines:
            parts.append(
                _table(
                    [f"differences, ≥ {threshold:g} mm", "reader", "cases", *_NAMES.values()], lines
                )
            )
    parts += [
        f"{reader}, {condition}: {count} of {study.cases} cases have no row and are left out. "
        "If they were read and nothing was found, add a row with empty x, y, z and diameter."
        for reader, condition, count in study.unread
    ]
    return "\n\n".join(parts) + "\n"


def _values(row: Rates | Contrast) -> Iterator[tuple[str, Interval | Difference]]:
    return ((measure, getattr(row, measure)) for measure in MEASURES)


def _cell(named: tuple[str, Interval | Difference]) -> str:
    measure, value = named
    scale, digits = (1, 2) if measure == "false_positives" else (100, 1)
    sign = "+" if isinstance(value, Difference) else ""
    if math.isnan(value.mean):
        return "–"
    text = f"{scale * value.mean:{sign}.{digits}f}"
    if not math.isnan(value.low):
        text += f" [{scale * value.low:{sign}.{digits}f}, {scale * value.high:{sign}.{digits}f}]"
    if isinstance(value, Difference) and not math.isnan(value.p):
        text += ", p < 0.001" if value.p < 0.001 else f", p = {value.p:.3f}"
    return text


def _table(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    texts = [list(head), ["---"] * len(head), *([str(cell) for cell in line] for line in lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in texts)


def _columns(
    row: type[Rates] | type[Contrast], value: type[Interval] | type[Difference]
) -> list[str]:
    columns = []
    for field in row._fields:
        if field in MEASURES:
            columns += [
                field,
                *(f"{field}_{part}" for part in value._fields if part in ("low", "high", "p")),
            ]
        else:
            columns += (
                ["nodules", "hits", "false_positive_count", "readings"]
                if field == "counts"
                else [field]
            )
    return columns


def _flat(row: Rates | Contrast) -> dict[str, Any]:
    """Return a row as one flat mapping with None for NaN."""
    out: dict[str, Any] = {}
    for field, value in row._asdict().items():
        if field == "counts":
            out |= zip(("nodules", "hits", "false_positive_count", "readings"), value, strict=True)
        elif field in MEASURES:
            parts = {
                field: value.mean,
                **{f"{field}_{part}": getattr(value, part, math.nan) for part in ("low", "high")},
            }
            if isinstance(value, Difference):
                parts[f"{field}_p"] = value.p
            out |= {
                key: float(number) if math.isfinite(number) else None
                for key, number in parts.items()
            }
        else:
            out[field] = value
    return out


def _csv(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
