"""Error maps beside predictions: where they are, and how well they tell the errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpunet.evaluation.cases import ERROR_SUFFIX, common_slices
from mpunet.evaluation.scores import Measure
from mpunet.intensity import HU_MAX, HU_MIN
from mpunet.io.scan_file import read_like
from mpunet.io.volume import Volume
from mpunet.metrics.error_estimate import EDGES, error_quality, reliability, sparsification

__all__ = [
    "BINS",
    "CURVES",
    "ORDERS",
    "against_error_map",
    "bin_region",
    "error_map_of",
    "read_error_map",
    "removed_region",
]

Slab = npt.NDArray[Any]

CLIPPED = (HU_MIN, HU_MAX)
CURVES = ("error_map_reliability", "error_map_sparsified")
"""Metrics of which each row is a point of a curve."""

BINS = tuple(pairwise(EDGES))
"""Lower and upper edges in HU of the points of the reliability curve."""

ORDERS = ("error map", "oracle")
"""Orders in which voxels are taken away, for sparsification."""

_KINDS = {
    "rank_correlation": ("", "Spearman's rank correlation of error map and |error|"),
    "auc_50": ("", "AUC of the error map for |error| > 50 HU"),
    "auc_100": ("", "AUC of the error map for |error| > 100 HU"),
    "calibration_error": (
        "HU", "mean of |estimate - mean |error|| over bins of 5 HU from 5 to 100 HU",
    ),
    "sparsification": (
        "", "area between the sparsification curves of the error map and of the true errors",
    ),
    "bias": ("HU", "mean of error map - |error|"),
}  # fmt: skip


def bin_region(low: float, high: float) -> str:
    """Return the region of a point of the reliability curve, a bin of the error map in HU."""
    return f"{low} to {high} HU"


def removed_region(share: float, order: str) -> str:
    """Return the region of a point of a sparsification curve.

    >>> removed_region(0.05, ORDERS[0])
    '5% removed, error map'
    """
    return f"{share:.0%} removed, {order}"


def error_map_of(case: str, files: Mapping[str, Path], prediction: Path) -> Path:
    """Return the error map of a case: NAME_error, as predict names it, or else NAME.

    Raises:
        ValueError: if there is none beside the prediction itself.
    """
    found = files.get(case + ERROR_SUFFIX, files.get(case))
    if found is None or found == prediction:
        raise ValueError(f"none of the name {case}{ERROR_SUFFIX} or {case}")
    return found


def read_error_map(path: Path, prediction: Volume) -> Slab:
    """Read the error map of a prediction, (D, H, W) in HU.

    Raises:
        ValueError: if its grid is not that of the prediction, or it has negative values.
    """
    found = read_like(path, prediction)
    common_slices(found, prediction)
    if found.shape != prediction.shape:
        raise ValueError(
            f"{path.name} has {found.shape[0]} slices, its prediction {prediction.shape[0]}; "
            "expected an error map on the same grid"
        )
    if found.slab.size and found.slab.min() < 0:
        raise ValueError(
            f"{path.name} has values down to {found.slab.min():g} HU; expected an error map, which "
            "has no negative values"
        )
    return found.slab


def against_error_map(
    estimate: Slab, prediction: Slab, reference: Slab, lung: Slab | None
) -> Iterator[tuple[Measure, float]]:
    """Yield how well an error map tells the errors, by region.

    Reliability and sparsification curves are those in the lungs, or without a mask those of the
    whole volume.

    Args:
        estimate: the error map, expected absolute errors in HU, (D, H, W).
        prediction: thin slices (D, H, W) in HU.
        reference: true thin slices (D, H, W) in HU.
        lung: lung mask (D, H, W), or None.
    """
    error = np.abs(
        prediction.clip(*CLIPPED).astype(np.float32) - reference.clip(*CLIPPED).astype(np.float32)
    )
    regions = {"whole": np.ones(error.shape, bool)}
    if lung is not None:
        regions["lungs"] = lung != 0
    for region, mask in regions.items():
        for name, value in error_quality(estimate[mask], error[mask])._asdict().items():
            unit, kind = _KINDS[name]
            yield Measure(f"error_map_{name}", region, unit, CLIPPED, None, kind), value
    where, mask = list(regions.items())[-1]
    curve = reliability(estimate[mask], error[mask])
    for edges, value in zip(BINS, curve.error, strict=True):
        region = bin_region(*edges)
        kind = f"mean |error|, {where}, where the error map has {region}"
        yield Measure(CURVES[0], region, "HU", CLIPPED, None, kind), value
    curves = sparsification(estimate[mask], error[mask])
    for order, ratios in zip(ORDERS, (curves.estimate, curves.oracle), strict=True):
        for share, value in zip(curves.removed, ratios, strict=True):
            kind = f"mean |error|, {where}, of the voxels left / of all; removed by the {order}"
            region = removed_region(share, order)
            yield Measure(CURVES[1], region, "", CLIPPED, None, kind), value
