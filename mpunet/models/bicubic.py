"""Interpolation along depth as a network of its own: the first row of Table 1.

Fixed by the method: the ratio and the ends; "bicubic" of a volume whose planes keep their size is cubic along depth alone. Ours,
as the paper names neither: the kernel (Keys, "Cubic convolution interpolation for digital image processing", IEEE Trans. ASSP
1981, a = -0.5) and the linear continuation beyond the ends.
"""

from __future__ import annotations

from torch import Tensor

from mpunet.models.base import ThickToThin, ThickToThinOutput
from mpunet.models.interpolation import DepthInterpolation, Kind

__all__ = ["Bicubic"]


class Bicubic(ThickToThin):
    """n thick slices to (n - 1) * r + 1 thin ones by interpolation along depth; nothing to train.

    As any network it sees one window at a time: the outermost interval of a window lacks a neighbour, which is extrapolated.
    Linear interpolation of a volume is the same with windows and without.

    Args:
        n_thick: thick slices that go in, n.
        ratio: thick spacing / thin spacing, r.
        kind: "cubic" or "linear", see :func:`mpunet.models.interpolation_matrix`.

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
        """Thick slices (B, 1, n, H, W) of any height and width, intensity in [0, 1]."""
        self.check_input(thick)
        return ThickToThinOutput(self.interpolate(thick))
