"""Accuracy of HU: signed errors against a reference, and lung density as a measure of emphysema."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mpunet.intensity import HU_MAX, HU_MIN

__all__ = ["HU_EDGES", "BinBias", "HuBias", "LungDensity", "hu_bias", "lung_density"]

Slab = npt.NDArray[Any]

# HU. Our choice: emphysema, lung, dense lung and ground glass, partial volumes, fat, soft tissue,
# bone.
HU_EDGES = (-1024.0, -950.0, -850.0, -700.0, -500.0, -100.0, 100.0, 300.0, 3071.0)


class BinBias(NamedTuple):
    """Mean error in HU over the voxels whose reference is in one bin of HU.

    Attributes:
        low: lower edge of the bin in HU, included.
        high: upper edge in HU, included only in the last bin.
        bias: mean error in HU; NaN if there are no voxels.
        voxels: number of voxels.
    """

    low: float
    high: float
    bias: float
    voxels: int


class HuBias(NamedTuple):
    """Mean of prediction - reference in HU; NaN if a part has no voxels.

    Attributes:
        whole: over all voxels.
        lungs: inside the lungs.
        outside: outside the lungs.
        bins: by HU of the reference.
    """

    whole: float
    lungs: float
    outside: float
    bins: tuple[BinBias, ...]


class LungDensity(NamedTuple):
    """Density of the lungs.

    Attributes:
        laa950: low attenuation area, % of lung voxels below -950 HU; NaN without voxels.
        laa910: % of lung voxels below -910 HU; NaN without voxels.
        perc15: 15th percentile of lung voxels in HU; NaN without voxels.
        voxels: number of lung voxels.
    """

    laa950: float
    laa910: float
    perc15: float
    voxels: int


def hu_bias(
    prediction: Slab,
    reference: Slab,
    lung: Slab | None = None,
    *,
    edges: Sequence[float] = HU_EDGES,
) -> HuBias:
    """Measure the signed error of a prediction, slice by slice.

    Both volumes are first clipped to [-1024, 3071] HU, as in the paper's metrics.

    Args:
        prediction: (D, H, W) in HU.
        reference: (D, H, W) in HU.
        lung: lung mask (D, H, W), lung where not 0.
        edges: increasing edges of the bins in HU; the last bin includes its upper edge.

    >>> reference = np.array([[[-900, 0, 40]]])
    >>> bias = hu_bias(reference + [-3, 0, 9], reference, reference < -500)
    >>> bias.whole, bias.lungs, bias.outside, [part.bias for part in bias.bins if part.voxels]
    (2.0, -3.0, 4.5, [-3.0, 4.5])
    """
    _check(prediction, reference, *(() if lung is None else (lung,)))
    if len(edges) < 2 or any(not a < b for a, b in pairwise(edges)):
        raise ValueError(f"Expected at least two rising edges of HU bins, got {list(edges)}.")
    limits = [*edges[:-1], np.nextafter(np.float32(edges[-1]), np.float32(np.inf))]
    whole, lungs, outside, *bins = (_Mean() for _ in range(3 + len(edges) - 1))
    for index in range(len(reference)):
        wanted = reference[index].astype(np.float32).clip(HU_MIN, HU_MAX)
        error = prediction[index].astype(np.float32).clip(HU_MIN, HU_MAX) - wanted
        whole.add(error, np.True_)
        for part, (low, high) in zip(bins, pairwise(limits), strict=True):
            part.add(error, (wanted >= low) & (wanted < high))
        if lung is not None:
            lungs.add(error, lung[index] != 0)
            outside.add(error, lung[index] == 0)
    by_hu = (
        BinBias(low, high, part.value(), part.count)
        for part, (low, high) in zip(bins, pairwise(edges), strict=True)
    )
    return HuBias(whole.value(), lungs.value(), outside.value(), tuple(by_hu))


def lung_density(volume: Slab, lung: Slab) -> LungDensity:
    """Measure LAA-950, LAA-910 and Perc15, the CT measures of emphysema.

    Reviewed by Mascalchi et al. 2017, doi 10.21037/jtd.2017.08.17. They are computed from a
    histogram of HU from -1024 to 3071, slice by slice. The histogram is exact for whole HU, of any
    data type, for which ``perc15`` equals :func:`numpy.percentile`; other values are assumed to be
    spread evenly over their bin of 1 HU. Some trials report Perc15 + 1000 as a density in g/L (Parr et al. 2009,
    doi 10.1186/1465-9921-10-75); here it is in HU. All three depend on noise, and therefore on
    slice thickness: the tail of a noisy histogram reaches below the threshold without emphysema.

    Args:
        volume: (D, H, W) in HU.
        lung: lung mask (D, H, W), lung where not 0.

    >>> lung_density(np.arange(-1000, -899).reshape(1, 1, -1), np.ones((1, 1, 101)))
    LungDensity(laa950=49.504950495049506, laa910=89.10891089108911, perc15=-985.0, voxels=101)
    """
    _check(volume, lung)
    counts, whole = np.zeros(int(HU_MAX - HU_MIN) + 1, np.int64), True
    for plane, mask in zip(volume, lung, strict=True):
        hu = plane[mask != 0].clip(HU_MIN, HU_MAX) - HU_MIN
        bins = np.floor(hu)
        whole = whole and np.array_equal(bins, hu)
        counts += np.bincount(bins.astype(np.intp), minlength=len(counts))
    voxels = int(counts.sum())
    if voxels == 0:
        return LungDensity(math.nan, math.nan, math.nan, 0)
    laa950, laa910 = (
        100 * int(counts[: int(limit - HU_MIN)].sum()) / voxels for limit in (-950, -910)
    )
    at = _order_statistics if whole else _spread
    perc15 = HU_MIN + at(np.cumsum(counts), 0.15 * (voxels - 1))
    return LungDensity(laa950, laa910, perc15, voxels)


def _order_statistics(cumulative: npt.NDArray[np.int64], rank: float) -> float:
    """Return the bin number at a rank counted from 0.

    Ranks between two voxels are interpolated linearly between the bins of both.
    """
    low, high = (
        int(np.searchsorted(cumulative, place, side="right"))
        for place in (math.floor(rank), math.ceil(rank))
    )
    return low + (rank - math.floor(rank)) * (high - low)


def _spread(cumulative: npt.NDArray[np.int64], rank: float) -> float:
    """Return the value at a rank if voxels are spread evenly over their bins."""
    place = int(np.searchsorted(cumulative, rank, side="right"))
    before = int(cumulative[place - 1]) if place else 0
    return place + (rank + 0.5 - before) / (int(cumulative[place]) - before)


class _Mean:
    """Running mean over the voxels of masks, in float64."""

    def __init__(self) -> None:
        self.count, self._total = 0, 0.0

    def add(self, values: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_] | np.bool_) -> None:
        self._total += float(values.sum(where=mask, dtype=np.float64))
        self.count += int(np.count_nonzero(np.broadcast_to(mask, values.shape)))

    def value(self) -> float:
        return self._total / self.count if self.count else math.nan


def _check(volume: Slab, *others: Slab) -> None:
    if volume.ndim != 3 or any(other.shape != volume.shape for other in others):
        shapes = ", ".join(str(array.shape) for array in (volume, *others))
        raise ValueError(
            f"Expected volumes and masks of one shape (depth, height, width), got {shapes}."
        )
