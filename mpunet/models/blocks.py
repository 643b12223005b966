"""Building blocks of the networks.

Convolutions with normalisation and activation, residual blocks, and deconvolutions along depth.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from mpunet.models.schedule import DepthStep

__all__ = [
    "Activation",
    "ConvBlock",
    "ConvLayer",
    "DepthDeconv",
    "Norm",
    "make_activation",
    "make_norm",
]

Norm = Literal["none", "group", "instance", "batch"]
Activation = Literal["leaky_relu", "relu", "silu", "gelu"]


def make_norm(norm: Norm, channels: int) -> nn.Module:
    """Create a normalisation layer for (B, C, D, H, W).

    The number of groups of ``group`` is the largest divisor of ``channels`` up to 8.
    """
    if norm == "none":
        return nn.Identity()
    if norm == "group":
        return nn.GroupNorm(max(g for g in range(1, 9) if channels % g == 0), channels)
    if norm == "instance":
        return nn.InstanceNorm3d(channels, affine=True)
    if norm == "batch":
        return nn.BatchNorm3d(channels)
    raise ValueError(f"Expected a norm among {get_args(Norm)}, got {norm!r}.")


def make_activation(activation: Activation) -> nn.Module:
    """Create an activation layer by name."""
    if activation == "leaky_relu":
        return nn.LeakyReLU(0.1)
    if activation == "relu":
        return nn.ReLU()
    if activation == "silu":
        return nn.SiLU()
    if activation == "gelu":
        return nn.GELU()
    raise ValueError(f"Expected an activation among {get_args(Activation)}, got {activation!r}.")


class ConvLayer(nn.Sequential):
    """Convolution, normalisation and activation.

    An odd kernel is padded by half its size, so it keeps the size at stride 1. An even kernel is
    not padded; use it with a stride equal to its size.

    Args:
        in_channels: input channels.
        out_channels: output channels.
        kernel: kernel size along depth, height and width.
        stride: stride along depth, height and width.
        norm: normalisation of the layer.
        activation: activation of the layer.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: tuple[int, int, int] = (3, 3, 3),
        stride: tuple[int, int, int] = (1, 1, 1),
        norm: Norm = "none",
        activation: Activation = "leaky_relu",
    ) -> None:
        depth, height, width = (k // 2 if k % 2 else 0 for k in kernel)
        conv = nn.Conv3d(
            in_channels,
            out_channels,
            kernel,
            stride,
            (depth, height, width),
            bias=norm in ("none", "group"),
        )
        nn.init.kaiming_normal_(conv.weight, a=0.1)
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
        super().__init__(conv, make_norm(norm, out_channels), make_activation(activation))


class ConvBlock(nn.Module):
    """Residual block: ``layers`` convolutions of 3 x 3 x 3 with a shortcut around them."""

    def __init__(
        self,
        channels: int,
        *,
        layers: int = 2,
        norm: Norm = "none",
        activation: Activation = "leaky_relu",
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(
                ConvLayer(channels, channels, norm=norm, activation=activation)
                for _ in range(layers)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, D, H, W) to the same shape."""
        out: Tensor = x + self.body(x)
        return out


class DepthDeconv(nn.Module):
    """Transposed convolution along depth (and in-plane), then normalisation and activation.

    Slices keep their positions in mm from input to output; see :mod:`mpunet.models.schedule`.

    Args:
        in_channels: input channels.
        out_channels: output channels.
        step: depths, stride and kernel along depth.
        in_plane: in-plane up-sampling factor, 1 or 2.
        norm: normalisation of the layer.
        activation: activation of the layer.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        step: DepthStep,
        *,
        in_plane: Literal[1, 2] = 1,
        norm: Norm = "none",
        activation: Activation = "leaky_relu",
    ) -> None:
        super().__init__()
        self.step = step
        self.deconv = nn.ConvTranspose3d(
            in_channels,
            out_channels,
            (step.kernel, in_plane, in_plane),
            (step.stride, in_plane, in_plane),
            (step.padding, 0, 0),
            (step.output_padding, 0, 0),
            bias=norm in ("none", "group"),
        )
        # He initialisation: kernel / stride inputs along depth and one in-plane contribute to an
        # output voxel.
        nn.init.normal_(
            self.deconv.weight, std=math.sqrt(2 / 1.01 / (in_channels * step.kernel / step.stride))
        )
        if self.deconv.bias is not None:
            nn.init.zeros_(self.deconv.bias)
        self.norm = make_norm(norm, out_channels)
        self.activation = make_activation(activation)
        self.first, taps = step.polyphase()
        self.taps: Tensor
        self.register_buffer("taps", torch.tensor(taps), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, in_depth, H, W) to (B, C_out, out_depth, in_plane * H, in_plane * W)."""
        out: Tensor = self.activation(self.norm(self._deconvolve(x)))
        return out

    def _deconvolve(self, x: Tensor) -> Tensor:
        """Compute the kept slices of ``self.deconv(x)`` by a convolution.

        The output channels of the convolution are rearranged into depth, height and width. The sums
        are those of ``self.deconv`` in another order. This is faster: slices that are not kept are
        not computed, and convolutions are several times as fast as strided transposed convolutions.
        """
        step, factor = self.step, self.deconv.kernel_size[1]
        # Each group of ``stride`` output slices advances the input by ``keep`` slices.
        groups = -(-step.out_depth // step.stride)
        right = (groups - 1) * step.keep - self.first + self.taps.shape[1] - step.in_depth
        x = functional.pad(x, (0, 0, 0, 0, -self.first, max(0, right)))
        # Axes after indexing: C_in, C_out, phase, tap, row, column.
        weight = functional.pad(self.deconv.weight, (0, 0, 0, 0, 0, 1))[:, :, self.taps]
        weight = weight.permute(2, 4, 5, 1, 0, 3).flatten(0, 3)[..., None]
        phases = step.stride * factor**2
        bias = None if self.deconv.bias is None else self.deconv.bias.repeat(phases)
        # The kernel extends along depth alone: in two dimensions, height x width being one of them,
        # PyTorch's CPU kernels take half the time or less.
        y = functional.conv2d(x.flatten(3), weight, bias, stride=(step.keep, 1))[:, :, :groups]
        y = torch.unflatten(y, 3, x.shape[3:])
        y = torch.unflatten(y, 1, (step.stride, factor, factor, -1)).permute(0, 5, 1, 6, 2, 7, 3, 4)
        return y.flatten(5, 6).flatten(3, 4).flatten(1, 2).movedim(-1, 1)[:, :, : step.out_depth]
