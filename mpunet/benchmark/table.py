"""Output of a benchmark: tables (Markdown, CSV), learning curves and coronal pictures."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpunet.benchmark.measure import FIDELITY, TEXTURE
from mpunet.benchmark.run import Outcome
from mpunet.report.pictures import draw_with_details, pyplot
from mpunet.training.case_metrics import LUNG_METRICS, WHOLE_METRICS

__all__ = ["draw_coronals", "draw_curves", "learning_curve", "markdown", "write_csv"]

_HEADS = ("MAE", "RMSE", "PSNR", "SSIM")


def markdown(outcomes: Sequence[Outcome]) -> str:
    """Return four Markdown tables: lungs, whole volumes, fidelity in the lungs, costs.

    Below them, a line for each row without a result gives the reason.
    """
    parts = []
    for region, keys in (("lungs", LUNG_METRICS), ("whole volume", WHOLE_METRICS)):
        lines = [f"| {region} | {' | '.join(_HEADS)} |", "|---|---|---|---|---|"]
        for outcome in outcomes:
            if outcome.result is None:
                lines.append(f"| {outcome.row.name} | {outcome.status} | | | |")
            else:
                cells = (
                    _cell(outcome.result["metrics"], key, form)
                    for key, form in zip(keys, (".2f", ".2f", ".2f", ".4f"), strict=True)
                )
                lines.append(f"| {outcome.row.name} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    parts += ["\n".join(_fidelity(outcomes)), "\n".join(_costs(outcomes))]
    parts.append(
        "MAE and RMSE in HU, PSNR in dB for a range of 4095 HU. Bias: mean of output - truth. "
        "LAA-950: share of lung voxels below -950 HU. Sharpness: power along depth / in plane. "
        "Noise: in homogeneous lung. Perceptual distance: of coronal planes; needs --vgg_weights. "
        "Seconds of a program include its start, reading and writing."
    )
    parts += [f"{o.row.name}: {o.status}, {o.reason}." for o in outcomes if o.result is None]
    return "\n\n".join(parts) + "\n"


def _fidelity(outcomes: Sequence[Outcome]) -> list[str]:
    lines = [
        "| fidelity | bias, HU | LAA-950, % | sharpness | noise, HU | perceptual distance |",
        "|---|---|---|---|---|---|",
    ]
    done = [(o.row.name, o.result["metrics"]) for o in outcomes if o.result is not None]
    for name, metrics in done:
        bias, distance = _cell(metrics, "lung_bias", "+.2f"), _cell(metrics, "perceptual", ".3f")
        lines.append(f"| {name} | {bias} | {_texture(metrics, 'lung')} | {distance} |")
    lines += [f"| truth | | {_texture(metrics, 'truth')} | |" for _, metrics in done[:1]]
    return lines


def _texture(metrics: Mapping[str, float], of: str) -> str:
    forms = zip(TEXTURE, (".2f", ".3f", ".1f"), strict=True)
    return " | ".join(_cell(metrics, f"{of}_{name}", form) for name, form in forms)


def _cell(metrics: Mapping[str, float], key: str, form: str) -> str:
    """Format a metric; "-" if it is missing or NaN, as those in the lungs are without lungs."""
    value = metrics.get(key, math.nan)
    return "-" if math.isnan(value) else format(value, form)


def _costs(outcomes: Sequence[Outcome]) -> list[str]:
    lines = [
        "| cost | parameters | GFLOPs per thin slice of 512 × 512 | seconds per volume "
        "| peak memory, MB |",
        "|---|---|---|---|---|",
    ]
    for outcome in outcomes:
        if (r := outcome.result) is not None:
            parameters = "" if r["parameters"] is None else f"{r['parameters']:,}"
            gflops = "" if r["gflops"] is None else f"{r['gflops']:.1f}"
            lines.append(
                f"| {outcome.row.name} | {parameters} | {gflops} "
                f"| {r['seconds']:.1f} | {r['peak_mb']:.0f} |"
            )
    return lines


def write_csv(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write a CSV file with one line per row: status, reason, all metrics and costs."""
    keys = [*WHOLE_METRICS, *LUNG_METRICS, *FIDELITY]
    costs = ["parameters", "gflops", "seconds", "peak_mb"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["row", "status", "reason", *keys, *costs])
        writer.writeheader()
        for outcome in outcomes:
            result: Any = outcome.result or {"metrics": {}}
            values = {key: result["metrics"].get(key) for key in keys} | {
                key: result.get(key) for key in costs
            }
            writer.writerow(
                {
                    "row": outcome.row.name,
                    "status": outcome.status,
                    "reason": outcome.reason,
                    **values,
                }
            )


def learning_curve(folder: Path, metric: str) -> list[tuple[int, float]]:
    """Read a logged metric of a row as pairs (step, value), sorted by step.

    All runs of the row are merged; a later run overwrites the values of an earlier one.
    """
    points: dict[int, float] = {}
    for path in sorted(
        folder.glob("version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1])
    ):
        with path.open(encoding="utf-8") as file:
            for line in csv.DictReader(file):
                if line.get(metric):
                    points[int(line["step"]) + 1] = float(line[metric])
    return sorted(points.items())


def draw_curves(
    outcomes: Sequence[Outcome], folder: Path, path: Path, metric: str = "val/lung_rmse"
) -> None:
    """Plot ``metric`` over training steps, one curve per row.

    A row without training is a horizontal line at its RMSE in the lungs.

    Args:
        outcomes: outcomes of the rows.
        folder: output folder of the benchmark.
        path: picture to write.
        metric: logged metric, by default the RMSE in the lungs in HU.
    """
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for outcome in outcomes:
        curve = learning_curve(folder / outcome.row.name, metric)
        if curve:
            axis.plot(*zip(*curve, strict=True), marker="o", markersize=3, label=outcome.row.name)
        elif outcome.result is not None:
            axis.axhline(
                outcome.result["metrics"].get("lung_rmse", math.nan),
                color="grey",
                linestyle="--",
                label=outcome.row.name,
            )
    axis.set(
        xlabel="training steps",
        ylabel="RMSE in the lungs, HU",
        title="test cases, windows at stride n − 2",
    )
    axis.legend(fontsize="small")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_coronals(outcomes: Sequence[Outcome], folder: Path, path: Path) -> None:
    """Draw a coronal slice of the first test case by every method, and the true slice."""
    pictures = {
        o.row.name: np.load(folder / o.row.name / "coronal.npy")
        for o in outcomes
        if o.result is not None
    }
    if not pictures:
        return
    pictures["truth"] = np.load(folder / next(iter(pictures)) / "truth.npy")
    draw_with_details(pictures, path)
