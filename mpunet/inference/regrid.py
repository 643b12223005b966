"""Thin slices at positions of one's choice: a network cuts every scan's slices into ``ratio``, and a user wants 1 mm."""

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
    """Thick spacing / thin spacing, both in mm, of a result whose slices stand ``thin_spacing`` apart.

    Raises:
        ValueError: if the result would have no more slices than the scan.

    >>> output_ratio(3.0, 1.25)
    2.4
    """
    if not (math.isfinite(thin_spacing) and thin_spacing > 0):
        raise ValueError(f"Expected a thin_spacing above 0 mm, got {thin_spacing}.")
    ratio = spacing / thin_spacing
    if ratio < 1.001:
        raise ValueError(
            f"slices stand {spacing:.3g} mm apart, which is no more than the thin_spacing of {thin_spacing:g} mm that was asked for; "
            "there is nothing to reconstruct. Leave the scan out, or ask for less."
        )
    return ratio


def regridded(
    planes: Iterable[Plane], depth: int, step: float, count: int
) -> Iterator[npt.NDArray[np.float32]]:
    """Slices at 0, ``step``, 2 * ``step``, ... of consecutive slices (H, W), each as soon as the slices around it have come.

    By cubic convolution (Keys 1981), the sequence continued linearly beyond its ends; holds four slices.

    Args:
        planes: the slices, ``depth`` of them.
        step: distance of the new slices in old ones.
        count: new slices, the last at (count - 1) * step, which is at most depth - 1 (but for rounding).

    >>> [float(plane[0, 0]) for plane in regridded(np.arange(4.0)[:, None, None], 4, 1.5, 3)]
    [0.0, 1.5, 3.0]
    """
    window = min(4, depth)
    source = iter(planes)
    held = list(itertools.islice(source, window))
    first = 0
    for k in range(count):
        position = min(k * step, depth - 1.0)
        needed = min(
            max(0, math.floor(position) - 1), depth - window
        )  # first of the four slices around the position
        while first < needed:
            held = [*held[1:], next(source)]
            first += 1
        weights = interpolation_weights(window, np.array([position - first]), "cubic")[0]
        out = np.zeros(held[0].shape, np.float32)
        for weight, plane in zip(weights, held, strict=True):
            if weight:
                out += np.float32(weight) * plane
        yield out
    for _ in source:  # to the end, for those who watch it
        pass
