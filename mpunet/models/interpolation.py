"""Interpolation along depth as a fixed linear map.

It is a baseline, and the image to which networks add a residual.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mpunet.geometry import thin_depth

__all__ = ["DepthInterpolation", "Kind", "interpolation_matrix", "interpolation_weights"]

Kind = Literal["linear", "cubic"]


def interpolation_matrix(n_thick: int, ratio: int, kind: Kind) -> npt.NDArray[np.float64]:
    """Compute the weights (N, n) of the interpolation from n thick to N thin slices.

    The grids are end-aligned, N = (n - 1) * r + 1. See :func:`interpolation_weights` for the kinds.

    >>> interpolation_matrix(2, 2, "linear").tolist()
    [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    """
    return interpolation_weights(n_thick, np.arange(thin_depth(n_thick, ratio)) / ratio, kind)


def interpolation_weights(
    depth: int, position: npt.NDArray[np.float64], kind: Kind
) -> npt.NDArray[np.float64]:
    """Compute the interpolation weights of slices 0, 1, ... depth - 1 at given positions.

    Args:
        depth: number of slices.
        position: positions (positions,) in units of slices, from 0 to ``depth - 1``.
        kind: "linear", or "cubic" for cubic convolution (Keys 1981, a = -0.5), which image
            libraries call "bicubic" in two dimensions. It extrapolates linearly beyond the ends.

    Returns:
        Weights (positions, depth).

    Raises:
        ValueError: if ``kind`` is unknown.
    """
    if kind == "linear":
        return np.maximum(0.0, 1.0 - np.abs(position[:, None] - np.arange(depth)))
    if kind != "cubic":
        raise ValueError(f"Expected 'linear' or 'cubic', got {kind!r}.")
    distance = np.abs(position[:, None] - np.arange(-1, depth + 1))
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1.0
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4.0 * distance + 2.0
    weights = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
    inner = weights[:, 1:-1].copy()
    # Linear extrapolation: the slice before the first is 2 * first - second; same after the last.
    inner[:, 0] += 2 * weights[:, 0]
    inner[:, 1] -= weights[:, 0]
    inner[:, -1] += 2 * weights[:, -1]
    inner[:, -2] -= weights[:, -1]
    return inner


class DepthInterpolation(nn.Module):
    """Interpolate (B, C, n, H, W) to (B, C, N, H, W) by :func:`interpolation_matrix`.

    Always computed in float32, also under autocast and if the network has another dtype.

    Args:
        n_thick: number of thick slices in a window, n.
        ratio: thick spacing / thin spacing, r.
        kind: "linear" or "cubic".
    """

    weights: Tensor

    def __init__(self, n_thick: int, ratio: int, kind: Kind) -> None:
        super().__init__()
        matrix = torch.from_numpy(interpolation_matrix(n_thick, ratio, kind)).float()
        self.register_buffer("weights", matrix, persistent=False)

    def forward(self, thick: Tensor) -> Tensor:
        """Interpolate thick slices (B, C, n, H, W) to thin slices (B, C, N, H, W)."""
        with torch.autocast(thick.device.type, enabled=False):
            return torch.einsum("Nn,bcnhw->bcNhw", self.weights.float(), thick.float())
