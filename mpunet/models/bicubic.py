"""Interpolation along depth as a baseline network: the first row of Table 1.

The method specifies the ratio and the end alignment. Because in-plane size does not change,
"bicubic" interpolation of a volume is cubic interpolation along depth only. The paper does not name
the kernel or the boundary rule; our choices are cubic convolution (Keys, "Cubic convolution
interpolation for digital image processing", IEEE Trans. ASSP 1981, a = -0.5) and linear
extrapolation beyond the ends.
"""

from __future__ import annotations

from torch import Tensor

from mpunet.models.base import ThickToThin, ThickToThinOutput
from mpunet.models.interpolation import DepthInterpolation, Kind

__all__ = ["Bicubic"]


class Bicubic(ThickToThin):
    """Interpolate n thick slices along depth to (n - 1) * r + 1 thin ones; has no parameters.

    Like every network, it processes one window at a time. The outermost interval of a window has no
    slice beyond it, so cubic interpolation extrapolates one. Linear interpolation gives the same
    result with and without windows.

    Args:
        n_thick: number of thick slices in a window, n.
        ratio: thick spacing / thin spacing, r.
        kind: "cubic" or "linear"; see :func:`mpunet.models.interpolation_matrix`.

    >>> import torch
    >>> Bicubic(2, 4)(torch.tensor([0.25, 0.75])[None, None, :, None, None]).image.flatten()
    tensor([0.2500, 0.3750, 0.5000, 0.6250, 0.7500])
    """

    def __init__(self, n_thick: int = 8, ratio: int = 5, *, kind: Kind = "cubic") -> None:
        super().__init__()
        self.n_thick = n_thick
        self.ratio = ratio
        self.interpolate = DepthInterpolation(n_thick, ratio, kind)

    def forward(self, thick: Tensor) -> ThickToThinOutput:
        """Interpolate thick slices (B, 1, n, H, W) of any height and width, intensity in [0, 1]."""
        self.check_input(thick)
        return ThickToThinOutput(self.interpolate(thick))
