"""Lung density of thin volumes and of the thick scan."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mpunet.data.pairs import align_pair
from mpunet.evaluation.scores import THICK, TRUTH, Agreement, Evaluation, Measure, Summary
from mpunet.intensity import HU_MAX, HU_MIN
from mpunet.io.volume import Volume
from mpunet.metrics.fidelity import lung_density

__all__ = ["DENSITIES", "DensityRow", "densities", "density_rows", "thick_densities"]

CLIPPED = (HU_MIN, HU_MAX)
DENSITIES = {
    "laa950": Measure("laa950", "lungs", "%", CLIPPED, None, "share of voxels below -950 HU"),
    "laa910": Measure("laa910", "lungs", "%", CLIPPED, None, "share of voxels below -910 HU"),
    "perc15": Measure("perc15", "lungs", "HU", CLIPPED, None, "15th percentile of voxels, in HU"),
}
"""Measures of lung density by metric, in the order of the tables."""


class DensityRow(NamedTuple):
    """Row of a table of lung density: the mean, and its agreement with the truth's.

    ``agreement`` is None for the truth.
    """

    summary: Summary
    agreement: Agreement | None


def densities(volume: npt.NDArray[Any], lung: npt.NDArray[Any]) -> Iterator[tuple[Measure, float]]:
    """Yield the lung density of a volume (D, H, W) in HU, with a lung mask of its shape."""
    found = lung_density(volume, lung)
    for metric, measure in DENSITIES.items():
        yield measure, getattr(found, metric)


def thick_densities(
    thick: Volume, reference: Volume, lung: npt.NDArray[np.bool_]
) -> Iterator[tuple[Measure, float]]:
    """Yield the lung density of a thick scan on its own voxels.

    The mask of a thick slice is that of the thin slice at its position. Thick slices outside the
    reference are left out.

    Args:
        thick: thick scan.
        reference: thin volume.
        lung: lung mask (D, H, W) on the grid of ``reference``.

    Raises:
        ValueError: if thick slices are not at the positions of thin slices.
    """
    ratio = round(thick.spacing[0] / reference.spacing[0])
    thick_used, thin_used = align_pair(thick, reference, ratio)
    yield from densities(thick.slab[thick_used], lung[thin_used][::ratio])


def density_rows(evaluation: Evaluation) -> dict[Measure, list[DensityRow]]:
    """Return the rows of each measure of lung density: thick scan, methods, truth."""
    means = {(s.measure, s.method): s for s in evaluation.summaries}
    agreements = {(a.measure, a.method): a for a in evaluation.agreements}
    tables = {
        measure: [
            DensityRow(means[measure, method], agreements.get((measure, method)))
            for method in (THICK, *evaluation.methods, TRUTH)
            if (measure, method) in means
        ]
        for measure in DENSITIES.values()
    }
    return {measure: rows for measure, rows in tables.items() if rows}
