"""Interpolation of thin slices to a given slice spacing.

A network divides the slice spacing of every scan by its ratio; users may need a fixed spacing, such
as 1 mm.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from mpunet.models.interpolation import interpolation_weights

__all__ = ["output_ratio", "regridded"]

Plane = npt.NDArray[Any]


def output_ratio(spacing: float, thin_spacing: float) -> float:
    """Return thick spacing / thin spacing for a scan and a requested slice spacing of the result.

    Args:
        spacing: slice spacing of the scan in mm.
        thin_spacing: slice spacing of the result in mm.

    Raises:
        ValueError: if ``thin_spacing`` is not positive, or not smaller than ``spacing``.

    >>> output_ratio(3.0, 1.25)
    2.4
    """
    if not (math.isfinite(thin_spacing) and thin_spacing > 0):
        raise ValueError(f"Expected a thin_spacing above 0 mm, got {thin_spacing}.")
    ratio = spacing / thin_spacing
    if ratio < 1.001:
        raise ValueError(
            f"the slice spacing of {spacing:.3g} mm is not larger than the thin_spacing of "
            f"{thin_spacing:g} mm; there is nothing to reconstruct. Leave the scan out, or use a "
            "smaller thin_spacing."
        )
    return ratio


def regridded(
    planes: Iterable[Plane], depth: int, step: float, count: int
) -> Iterator[npt.NDArray[np.float32]]:
    """Interpolate consecutive slices (H, W) at the positions 0, ``step``, 2 * ``step``, ...

    Uses cubic convolution (Keys 1981) with linear extrapolation at the ends. Each new slice is
    yielded as soon as the slices around it are read; four slices are held in memory.

    Args:
        planes: the input slices.
        depth: number of input slices.
        step: distance between new slices, in input slices.
        count: number of new slices. The last one, at (count - 1) * step, must not be after the last
            input slice (except for rounding).

    Yields:
        (H, W), float32.

    >>> [float(plane[0, 0]) for plane in regridded(np.arange(4.0)[:, None, None], 4, 1.5, 3)]
    [0.0, 1.5, 3.0]
    """
    window = min(4, depth)
    source = iter(planes)
    held = list(itertools.islice(source, window))
    first = 0
    for k in range(count):
        position = min(k * step, depth - 1.0)
        # First of the four slices around the position.
        needed = min(max(0, math.floor(position) - 1), depth - window)
        while first < needed:
            held = [*held[1:], next(source)]
            first += 1
        weights = interpolation_weights(window, np.array([position - first]), "cubic")[0]
        out = np.zeros(held[0].shape, np.float32)
        for weight, plane in zip(weights, held, strict=True):
            if weight:
                out += np.float32(weight) * plane
        yield out
    for _ in source:  # read to the end: the source may check or measure all slices
        pass
