"""V-Net on the linearly up-sampled volume: the "V-Net after trilinear up-sampling" of Table 1.

Sources: Kudo, Kitamura, Li, Iizuka and Simo-Serra, "Virtual thin slice: 3D conditional GAN-based
super-resolution for CT slice interval", MICCAI workshop MLMIR 2019, to whom the table attributes
the row; and Milletari, Navab and Ahmadi, "V-Net: fully convolutional neural networks for volumetric
medical image segmentation", 3DV 2016.

The table and the sources specify up-sampling before the network; a fully convolutional 3D
generator; 2 x 2 x 2 convolutions of stride 2 to go down and transposed ones to go up; widths that
double from 16 to 256; residual blocks of 1, 2, 3, 3 and 3 convolutions; and skip connections by
concatenation.

Our choices: kernels of 3 (V-Net uses 5, at 4.6 times the cost), normalisation and activation as in
MPU-Net, the number of stages that halve depth, the residual, and the last layers. Kudo's
adversarial training is not part of the network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from mpunet.models.base import ThickToThin, ThickToThinOutput
from mpunet.models.blocks import Activation, ConvBlock, ConvLayer, Norm, make_activation, make_norm
from mpunet.models.heads import MultiStreamHead
from mpunet.models.interpolation import DepthInterpolation

__all__ = ["VNet"]

Size = tuple[int, int, int]


class VNet(ThickToThin):
    """V-Net baseline: linear interpolation to N slices, then a V-Net at thin depth.

    It shows the cost and benefit of up-sampling before the network. Each stage halves height and
    width, and also depth if at least 2 slices remain. An odd number of slices is made even by
    repeating the last one; the extra slice is removed on the way up, so any N works.

    Args:
        n_thick: number of thick input slices, n.
        ratio: thick spacing / thin spacing, r.
        widths: channels per level, full resolution first; one more than the number of halvings.
        layers: maximum number of convolutions in a residual block; the block of level i has i + 1
            convolutions, up to this maximum.
        norm: normalisation of every layer.
        activation: activation of every layer.
        residual: image to which the network's output is added: the input interpolated along depth
            ("cubic" or "linear"); "none": the network predicts the image directly. The default is
            that of MPU-Net, so that the two are compared by architecture alone.

    Raises:
        ValueError: if there are fewer than 2 widths or ``residual`` is unknown.

    >>> import torch
    >>> VNet(widths=(2, 2, 2))(torch.rand(1, 1, 8, 12, 20)).image.shape
    torch.Size([1, 1, 36, 12, 20])
    """

    def __init__(
        self,
        n_thick: int = 8,
        ratio: int = 5,
        *,
        widths: Sequence[int] = (16, 32, 64, 128, 256),
        layers: int = 3,
        norm: Norm = "none",
        activation: Activation = "leaky_relu",
        residual: Literal["none", "linear", "cubic"] = "cubic",
    ) -> None:
        super().__init__()
        if len(widths) < 2:
            raise ValueError(f"Expected at least 2 widths (1 halving), got {list(widths)}.")
        self.n_thick = n_thick
        self.ratio = ratio
        self.multiple = 2 ** (len(widths) - 1)
        self.upsample = DepthInterpolation(n_thick, ratio, "linear")
        self.interpolate = (
            None if residual == "none" else DepthInterpolation(n_thick, ratio, residual)
        )
        self.strides = _strides(self.n_thin, len(widths) - 1)
        steps = list(zip(pairwise(widths), self.strides, strict=True))

        def block(level: int) -> ConvBlock:
            return ConvBlock(
                widths[level], layers=min(level + 1, layers), norm=norm, activation=activation
            )

        self.stem = nn.Sequential(
            ConvLayer(1, widths[0], norm=norm, activation=activation), block(0)
        )
        self.downs = nn.ModuleList(
            nn.Sequential(
                ConvLayer(
                    c_fine, c_coarse, kernel=stride, stride=stride, norm=norm, activation=activation
                ),
                block(level),
            )
            for level, ((c_fine, c_coarse), stride) in enumerate(steps, start=1)
        )
        self.ups = nn.ModuleList(
            _deconv(c_coarse, c_fine, stride, norm, activation)
            for (c_fine, c_coarse), stride in reversed(steps)
        )
        self.merges = nn.ModuleList(
            nn.Sequential(
                ConvLayer(2 * widths[level], widths[level], norm=norm, activation=activation),
                block(level),
            )
            for level in reversed(range(len(steps)))
        )
        self.head = MultiStreamHead(widths[0], streams=("inner",), norm=norm, activation=activation)

    def forward(self, thick: Tensor) -> ThickToThinOutput:
        """Reconstruct thin slices.

        Args:
            thick: (B, 1, n, H, W), intensity in [0, 1]; H and W must be multiples of
                2 ** (len(widths) - 1), which is 16 by default.
        """
        self.check_input(thick)
        features = [self.stem(self.upsample(thick).to(thick.dtype))]
        for down, stride in zip(self.downs, self.strides, strict=True):
            fine = features[-1]
            if fine.shape[2] % stride[0]:
                fine = torch.cat([fine, fine[:, :, -1:]], dim=2)
            features.append(down(fine))
        out = features.pop()
        for up, merge in zip(self.ups, self.merges, strict=True):
            shortcut = features.pop()
            out = merge(torch.cat([shortcut, up(out)[:, :, : shortcut.shape[2]]], dim=1))
        base = None if self.interpolate is None else self.interpolate(thick)
        return ThickToThinOutput(self.head(out, base).image)


def _strides(depth: int, stages: int) -> list[Size]:
    """Compute the stride of each stage along depth, height and width."""
    strides: list[Size] = []
    for _ in range(stages):
        strides.append((2 if depth > 2 else 1, 2, 2))
        depth = -(-depth // strides[-1][0])
    return strides


def _deconv(
    in_channels: int, out_channels: int, stride: Size, norm: Norm, activation: Activation
) -> nn.Sequential:
    """Create a transposed convolution that undoes a down-sampling of the same stride.

    The kernel size equals the stride, so each output voxel depends on one input voxel.
    """
    deconv = nn.ConvTranspose3d(
        in_channels, out_channels, stride, stride, bias=norm in ("none", "group")
    )
    # He initialisation for a fan-in of one voxel.
    nn.init.normal_(deconv.weight, std=math.sqrt(2 / 1.01 / in_channels))
    if deconv.bias is not None:
        nn.init.zeros_(deconv.bias)
    return nn.Sequential(deconv, make_norm(norm, out_channels), make_activation(activation))
