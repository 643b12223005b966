"""The layers that the networks here are made of: convolutions with normalisation and activation, and planned deconvolutions."""

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
    """Normalisation over (B, C, D, H, W). ``group`` uses the largest divisor of ``channels`` up to 8 as number of groups."""
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
    """Activation by name."""
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
    """Convolution, normalisation, activation. Odd kernels keep (D, H, W) at stride 1; even ones do at their own stride.

    Args:
        kernel: kernel size along depth, height and width.
        stride: stride along depth, height and width.
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
    """``layers`` convolutions of 3 x 3 x 3, with a shortcut around them (a residual block)."""

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
        """(B, C, D, H, W) to the same."""
        out: Tensor = x + self.body(x)
        return out


class DepthDeconv(nn.Module):
    """Transposed convolution onto a planned depth grid, with an in-plane factor of 1 or 2; then normalisation and activation.

    Slice j of the input stands at the same position in the output (see :mod:`mpunet.models.schedule`).
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
        # Each output voxel sums over kernel / stride inputs along depth and one in-plane: He's rule for that fan-in.
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
        """(B, C_in, in_depth, H, W) to (B, C_out, out_depth, in_plane * H, in_plane * W)."""
        out: Tensor = self.activation(self.norm(self._deconvolve(x)))
        return out

    def _deconvolve(self, x: Tensor) -> Tensor:
        """The kept slices of ``self.deconv(x)``, as a convolution whose channels are shuffled into depth, height and width.

        The same sums in another order: slices that are not kept are not computed, and convolutions are several times as fast as
        transposed ones with strides.
        """
        step, factor = self.step, self.deconv.kernel_size[1]
        groups = -(-step.out_depth // step.stride)  # keep input slices lead to stride output slices
        right = (groups - 1) * step.keep - self.first + self.taps.shape[1] - step.in_depth
        x = functional.pad(x, (0, 0, 0, 0, -self.first, max(0, right)))
        weight = functional.pad(self.deconv.weight, (0, 0, 0, 0, 0, 1))[
            :, :, self.taps
        ]  # C_in, C_out, phase, tap, row, column
        weight = weight.permute(2, 4, 5, 1, 0, 3).flatten(0, 3)[..., None, None]
        phases = step.stride * factor**2
        bias = None if self.deconv.bias is None else self.deconv.bias.repeat(phases)
        y: Tensor = functional.conv3d(x, weight, bias, stride=(step.keep, 1, 1))[:, :, :groups]
        y = torch.unflatten(y, 1, (step.stride, factor, factor, -1)).permute(0, 5, 1, 6, 2, 7, 3, 4)
        return y.flatten(5, 6).flatten(3, 4).flatten(1, 2).movedim(-1, 1)[:, :, : step.out_depth]
