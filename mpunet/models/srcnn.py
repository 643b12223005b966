"""SRCNN on coronal or sagittal planes: the 2D row of Table 1.

Source: Dong, Loy, He and Tang, "Learning a deep convolutional network for image super-resolution",
ECCV 2014 (extended in TPAMI 2016). It specifies the input (the image interpolated to its final
size), three convolutions of 9, 1 and 5 pixels with 64 and 32 channels and ReLU between them, and
the output (the image itself). We use kernels of 9, 5 and 5, the slower and more accurate choice of
the extended version.

The paper's Table 1 uses it for thick CT slices. The table attributes this use to Bae et al. and
says that planes are coronal or sagittal; we have not seen the details of that work.

Our choices: coronal planes by default; one network per kind of plane if both are averaged;
replicate padding in each layer; He initialisation of all layers but the last. The source draws all
weights from a Gaussian with a standard deviation of 0.001 and trains for about 10^8 steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mpunet.models.base import ThickToThin, ThickToThinOutput
from mpunet.models.interpolation import DepthInterpolation, Kind

__all__ = ["SRCNN", "Planes"]

Planes = Literal["coronal", "sagittal", "both"]


class SRCNN(ThickToThin):
    """SRCNN baseline: interpolation along depth, then a 2D network on each plane.

    Planes are coronal (depth x width) or sagittal (depth x height). All planes of a window are
    processed in one call: the 2D kernels are 3D kernels of size 1 across the planes.

    Args:
        n_thick: number of thick input slices, n.
        ratio: thick spacing / thin spacing, r.
        planes: "coronal", "sagittal", or "both" for the mean of two networks with separate weights.
        kernels: kernel size of each layer in voxels; odd.
        widths: channels between the layers; one fewer than the number of kernels.
        interpolation: interpolation of the input along depth, "cubic" or "linear".
        residual: predict the difference from the interpolated input instead of the image itself.

    Raises:
        ValueError: if an argument is out of range or ``kernels`` and ``widths`` do not match.

    >>> import torch
    >>> SRCNN(4, 3, kernels=(5, 1, 3), widths=(8, 4))(torch.rand(1, 1, 4, 7, 9)).image.shape
    torch.Size([1, 1, 10, 7, 9])
    """

    def __init__(
        self,
        n_thick: int = 8,
        ratio: int = 5,
        *,
        planes: Planes = "coronal",
        kernels: Sequence[int] = (9, 5, 5),
        widths: Sequence[int] = (64, 32),
        interpolation: Kind = "cubic",
        residual: bool = False,
    ) -> None:
        super().__init__()
        if planes not in get_args(Planes):
            raise ValueError(f"Expected planes among {get_args(Planes)}, got {planes!r}.")
        if not widths or len(kernels) != len(widths) + 1:
            raise ValueError(
                "Expected at least 1 width and one kernel more than widths, "
                f"got kernels {list(kernels)} and widths {list(widths)}."
            )
        if any(kernel < 1 or kernel % 2 == 0 for kernel in kernels):
            raise ValueError(
                f"Expected odd kernels, which keep the image's size, got {list(kernels)}."
            )
        self.n_thick = n_thick
        self.ratio = ratio
        self.residual = residual
        self.interpolate = DepthInterpolation(n_thick, ratio, interpolation)
        self.planes = nn.ModuleDict(
            {
                name: _PlaneNetwork(name, kernels, widths)
                for name in ("coronal", "sagittal")
                if planes in (name, "both")
            }
        )

    def forward(self, thick: Tensor) -> ThickToThinOutput:
        """Reconstruct thin slices.

        Args:
            thick: (B, 1, n, H, W) of any height and width, intensity in [0, 1].
        """
        self.check_input(thick)
        base = self.interpolate(thick)
        image = torch.stack(
            [network(base.to(thick.dtype)) for network in self.planes.values()]
        ).mean(dim=0)
        return ThickToThinOutput(base + image if self.residual else image)


class _PlaneNetwork(nn.Module):
    """2D network over depth and width (coronal) or depth and height (sagittal), with ReLU."""

    def __init__(self, plane: str, kernels: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        *hidden, last = [
            _plane_conv(plane, kernel, *channels)
            for kernel, channels in zip(kernels, pairwise([1, *widths, 1]), strict=True)
        ]
        self.hidden = nn.Sequential(*(layer for conv in hidden for layer in (conv, nn.ReLU())))
        self.last = last
        # As in the source. A network with a residual then starts close to the interpolation.
        nn.init.normal_(last.weight, std=1e-3)

    def forward(self, volume: Tensor) -> Tensor:
        """Map (B, 1, N, H, W) to the same shape.

        The last layer runs in float32: bfloat16 has steps of 8 to 16 HU around soft tissue.
        """
        features = self.hidden(volume)
        with torch.autocast(volume.device.type, enabled=False):
            image: Tensor = self.last(features.to(self.last.weight.dtype))
        return image.float()


def _plane_conv(plane: str, kernel: int, in_channels: int, out_channels: int) -> nn.Conv3d:
    half = kernel // 2
    size, padding = (
        ((kernel, 1, kernel), (half, 0, half))
        if plane == "coronal"
        else ((kernel, kernel, 1), (half, half, 0))
    )
    conv = nn.Conv3d(in_channels, out_channels, size, padding=padding, padding_mode="replicate")
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv
