"""Thin slices by interpolation along depth: what every method has to beat."""

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
    """Thin slices of thick ones (D, H, W), end-aligned, (D - 1) * ratio + 1 in all, in chunks (k, H, W).

    "linear", or "cubic": the interpolating spline of the whole column of slices with not-a-knot ends (SciPy), which for fewer than
    four slices is the polynomial through all of them.

    >>> np.concatenate(list(interpolated(np.array([[[0.0]], [[10.0]]]), 2, kind="linear"))).ravel().tolist()
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
        for slice_index in np.flatnonzero(
            (np.abs(rows) > 1e-6).any(axis=0)
        ):  # a spline's weights fade within a dozen slices
            out += rows[:, slice_index, None, None] * thick[slice_index].astype(np.float32)
        yield out
