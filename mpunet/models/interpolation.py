"""Interpolation along depth as a fixed linear map: the network's starting point, and a baseline of its own."""

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
    """Weights (N, n) of the end-aligned interpolation of n slices at N = (n - 1) * r + 1 positions, see :func:`interpolation_weights`.

    >>> interpolation_matrix(2, 2, "linear").tolist()
    [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    """
    return interpolation_weights(n_thick, np.arange(thin_depth(n_thick, ratio)) / ratio, kind)


def interpolation_weights(
    depth: int, position: npt.NDArray[np.float64], kind: Kind
) -> npt.NDArray[np.float64]:
    """Weights (positions, depth) of slices 0, 1, ... depth - 1 at any positions between the first and the last.

    ``cubic`` is cubic convolution (Keys 1981, a = -0.5), the "bicubic" of image libraries along one axis; beyond its ends the
    sequence is continued linearly.
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
    # The slice before the first stands in as 2 * first - second, and likewise after the last.
    inner[:, 0] += 2 * weights[:, 0]
    inner[:, 1] -= weights[:, 0]
    inner[:, -1] += 2 * weights[:, -1]
    inner[:, -2] -= weights[:, -1]
    return inner


class DepthInterpolation(nn.Module):
    """(B, C, n, H, W) to (B, C, N, H, W) by :func:`interpolation_matrix`, in float32 whatever the autocast or the network's own type."""

    weights: Tensor

    def __init__(self, n_thick: int, ratio: int, kind: Kind) -> None:
        super().__init__()
        matrix = torch.from_numpy(interpolation_matrix(n_thick, ratio, kind)).float()
        self.register_buffer("weights", matrix, persistent=False)

    def forward(self, thick: Tensor) -> Tensor:
        """Thick slices (B, C, n, H, W) to interpolated thin ones (B, C, N, H, W)."""
        with torch.autocast(thick.device.type, enabled=False):
            return torch.einsum("Nn,bcnhw->bcNhw", self.weights.float(), thick.float())
