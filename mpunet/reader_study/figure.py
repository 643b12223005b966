"""Draw the figure of a reader study: sensitivity and precision by condition and reader.

The figure follows Fig. 5 of the paper.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from mpunet.io.partial_file import whole_file
from mpunet.reader_study.findings import ALL_READERS
from mpunet.reader_study.study import Rates, ReaderStudy
from mpunet.report.pictures import pyplot

__all__ = ["draw_study"]

# Colours of Okabe and Ito, which can be distinguished with colour blindness. Marker shapes encode
# the reader too.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def draw_study(study: ReaderStudy, path: Path) -> Path:
    """Write the figure of a study to a file.

    There is a panel for each threshold and measure, a bar with an interval for each condition, and
    a marker for each reader.

    Args:
        study: results with at least one row of rates.
        path: output file, ``.png``, ``.pdf`` or ``.svg``; an existing file is replaced when the
            figure is complete.

    Raises:
        ValueError: if matplotlib is missing.
    """
    plt = pyplot("pass --figure false")
    conditions = list(dict.fromkeys(r.condition for r in study.rates))
    readers = [name for name in dict.fromkeys(r.reader for r in study.rates) if name != ALL_READERS]
    columns = len(study.thresholds)
    width = 1.2 + columns * max(2.6, len(conditions))
    figure, axes = plt.subplots(
        2,
        columns,
        figsize=(width, 5.8),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    handles: dict[str, Any] = {}
    for column, threshold in enumerate(study.thresholds):
        rows = [r for r in study.rates if r.threshold == threshold]
        for line, measure in enumerate(("sensitivity", "precision")):
            axis = axes[line, column]
            _panel(axis, rows, measure, conditions, readers, f"{study.level:.0%} interval", handles)
            axis.set_title(
                f"{measure.capitalize()}, nodules ≥ {threshold:g} mm", fontsize="medium", loc="left"
            )
    for axis in axes[:, 0]:
        axis.set(ylim=(0, 104), ylabel="%", yticks=range(0, 101, 20))
    for axis in axes[-1]:
        turn = {"rotation": 20, "ha": "right"} if max(map(len, conditions)) > 13 else {}
        axis.set_xticks(range(len(conditions)), conditions, **turn)
    if handles:  # there are none without findings and nodules
        # A row of the legend has about ten characters per inch.
        beside = max(1, int(10 * width / (max(map(len, handles)) + 6)))
        figure.legend(
            handles.values(),
            handles.keys(),
            loc="outside lower center",
            ncols=min(beside, len(handles)),
            frameon=False,
        )
    try:
        with whole_file(path) as unfinished:
            figure.savefig(unfinished, dpi=160, facecolor="white")
    finally:
        plt.close(figure)
    return path


def _panel(
    axis: Any,
    rows: list[Rates],
    measure: str,
    conditions: list[str],
    readers: list[str],
    interval: str,
    handles: dict[str, Any],
) -> None:
    together = ALL_READERS if len(readers) > 1 else readers[0]
    for place, condition in enumerate(conditions):
        for row in (r for r in rows if r.condition == condition):
            value = getattr(row, measure)
            if math.isnan(value.mean):  # no nodules, or no findings
                continue
            if row.reader == together:
                handles[f"{together}, {interval}"] = axis.bar(
                    place,
                    100 * value.mean,
                    width=0.62,
                    color="#D9DEE4",
                    edgecolor="#8A949E",
                    linewidth=0.8,
                    zorder=1,
                )
                below, above = max(0, value.mean - value.low), max(0, value.high - value.mean)
                # Shifted sideways, as the markers would hide it.
                axis.errorbar(
                    place + 0.22 * (len(readers) > 1),
                    100 * value.mean,
                    [[100 * below], [100 * above]],
                    color="#4A535C",
                    capsize=4,
                    lw=1.3,
                    zorder=2,
                )
            if row.reader in readers and len(readers) > 1:
                index = readers.index(row.reader)
                shift = 0.4 * ((index + 0.5) / len(readers)) - 0.28
                handles[row.reader] = axis.scatter(
                    place + shift,
                    100 * value.mean,
                    s=34,
                    color=_COLOURS[index % len(_COLOURS)],
                    marker=_MARKERS[index % len(_MARKERS)],
                    edgecolor="black",
                    linewidth=0.5,
                    zorder=3,
                )
    axis.grid(axis="y", color="#E8EBEE", zorder=0)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
