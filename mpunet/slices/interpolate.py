"""Thin slices by interpolation along depth: the baseline that every method must beat."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.interpolate import make_interp_spline

from mpunet.geometry import thin_depth

__all__ = ["Interpolation", "interpolated"]

Interpolation = Literal["linear", "cubic"]


def interpolated(
    thick: npt.NDArray[Any], ratio: int, *, kind: Interpolation = "cubic", chunk: int = 8
) -> Iterator[npt.NDArray[np.float32]]:
    """Interpolate thin slices between thick ones, from the first thick slice to the last.

    Args:
        thick: thick slices (D, H, W).
        ratio: thick spacing / thin spacing.
        kind: "linear", or "cubic" for the interpolating spline through the whole column of slices
            with not-a-knot ends (SciPy). For fewer than four slices, "cubic" is the polynomial
            through all of them.
        chunk: number of thin slices per chunk.

    Yields:
        The (D - 1) * ratio + 1 thin slices in chunks (k, H, W).

    >>> thick = np.array([[[0.0]], [[10.0]]])
    >>> np.concatenate(list(interpolated(thick, 2, kind="linear"))).ravel().tolist()
    [0.0, 5.0, 10.0]
    """
    depth = len(thick)
    positions = np.arange(thin_depth(depth, ratio)) / ratio
    degree = min({"linear": 1, "cubic": 3}[kind], depth - 1)
    matrix = make_interp_spline(np.arange(depth), np.eye(depth), k=degree)(positions).astype(
        np.float32
    )
    for start in range(0, len(matrix), chunk):
        rows = matrix[start : start + chunk]
        out = np.zeros((len(rows), *thick.shape[1:]), np.float32)
        # Spline weights are negligible beyond a dozen slices.
        for slice_index in np.flatnonzero((np.abs(rows) > 1e-6).any(axis=0)):
            out += rows[:, slice_index, None, None] * thick[slice_index].astype(np.float32)
        yield out
