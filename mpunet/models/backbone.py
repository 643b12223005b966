"""3D U-Net backbones from thick slices to features at thin-slice depth.

The decoder up-samples depth progressively (Section 3.1, Eq. 1) or by sub-pixel shuffling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mpunet.models.blocks import Activation, ConvBlock, ConvLayer, DepthDeconv, Norm
from mpunet.models.schedule import DepthSchedule, DepthStep, plan_depths

__all__ = ["Encoder", "ProgressiveBackbone", "ProgressiveUp", "SubpixelBackbone"]


class Encoder(nn.Module):
    """U-Net encoder: features at full resolution and after each in-plane halving.

    Args:
        schedule: depth schedule; determines which stages halve depth too.
        widths: channels at each level, full resolution first; one more than the number of stages.
        layers: convolutions in the residual block of each level.
        norm: normalisation of every layer.
        activation: activation of every layer.
        stem_block: add a residual block at full resolution.

    Raises:
        ValueError: if the number of widths does not match the schedule.
    """

    def __init__(
        self,
        schedule: DepthSchedule,
        widths: Sequence[int],
        *,
        layers: int,
        norm: Norm,
        activation: Activation,
        stem_block: bool = False,
    ) -> None:
        super().__init__()
        if len(widths) != len(schedule.halved) + 1:
            raise ValueError(
                f"Expected {len(schedule.halved) + 1} widths (levels 0 to {len(schedule.halved)}), "
                f"got {list(widths)}."
            )
        self.stem: nn.Module = ConvLayer(1, widths[0], norm=norm, activation=activation)
        if stem_block:
            self.stem = nn.Sequential(
                self.stem, ConvBlock(widths[0], layers=layers, norm=norm, activation=activation)
            )
        self.stages = nn.ModuleList(
            nn.Sequential(
                ConvLayer(
                    c_in,
                    c_out,
                    kernel=(3, 2, 2),
                    stride=(2 if halve else 1, 2, 2),
                    norm=norm,
                    activation=activation,
                ),
                ConvBlock(c_out, layers=layers, norm=norm, activation=activation),
            )
            for c_in, c_out, halve in zip(widths, widths[1:], schedule.halved, strict=False)
        )

    def forward(self, thick: Tensor) -> list[Tensor]:
        """Encode thick slices (B, 1, n, H, W).

        Returns:
            Features (B, C_i, d_i, H / 2^i, W / 2^i) of each level i = 0 ... stages.
        """
        features = [self.stem(thick)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features


class ProgressiveUp(nn.Module):
    """Decoder stage of Eq. 1: g(f_s, f_up) = Deconv(Deconv(f_s) ⊕ f_up), then a residual block.

    The residual block is our choice.

    Args:
        shortcut_channels: channels of the shortcut f_s.
        up_channels: channels of the features f_up of the deeper stage.
        out_channels: channels of the result.
        shortcut_step: depth step of the first deconvolution, from the depth of f_s to that of f_up.
        up_step: depth step of the second deconvolution, from the depth of f_up to that of the
            result.
        in_plane: in-plane up-sampling factor of the second deconvolution.
        layers: convolutions in the residual block.
        norm: normalisation of every layer.
        activation: activation of every layer.
    """

    def __init__(
        self,
        shortcut_channels: int,
        up_channels: int,
        out_channels: int,
        shortcut_step: DepthStep,
        up_step: DepthStep,
        *,
        in_plane: Literal[1, 2],
        layers: int,
        norm: Norm,
        activation: Activation,
    ) -> None:
        super().__init__()
        self.shortcut = DepthDeconv(
            shortcut_channels, shortcut_channels, shortcut_step, norm=norm, activation=activation
        )
        self.up = DepthDeconv(
            shortcut_channels + up_channels,
            out_channels,
            up_step,
            in_plane=in_plane,
            norm=norm,
            activation=activation,
        )
        self.block = ConvBlock(out_channels, layers=layers, norm=norm, activation=activation)

    def forward(self, f_s: Tensor, f_up: Tensor) -> Tensor:
        """Combine f_s (B, C_s, d_s, h, w) and f_up (B, C_u, d_u, h, w).

        Returns:
            Features (B, C, d, in_plane * h, in_plane * w).
        """
        out: Tensor = self.block(self.up(torch.cat([self.shortcut(f_s), f_up], dim=1)))
        return out


class ProgressiveBackbone(nn.Module):
    """3D U-Net from n thick slices to features at the depth of N = (n - 1) * r + 1 thin slices.

    The paper specifies Eq. 1 and five stages, which reduce the in-plane size by 32 and depth by 2.
    Widths, blocks, normalisation, activation and the depth schedule are our choices and can be set.

    Args:
        n_thick: number of thick slices in a window, n.
        ratio: thick spacing / thin spacing, r.
        widths: channels per level, full resolution first; one more than the number of in-plane
            halvings.
        layers: convolutions in the residual block of each level.
        norm: normalisation of every layer.
        activation: activation of every layer.
        depth_halvings: number of stages that halve depth; these are the deepest ones.
        depth_spacings: depth schedule of the decoder; see
            :func:`mpunet.models.schedule.plan_depths`.
        stem_width: channels of the encoder at full resolution; adds a residual block there.
            Default: ``widths[0]`` channels and no block.
    """

    def __init__(
        self,
        n_thick: int = 8,
        ratio: int = 5,
        *,
        widths: Sequence[int] = (16, 32, 64, 128, 256, 256),
        layers: int = 2,
        norm: Norm = "none",
        activation: Activation = "leaky_relu",
        depth_halvings: int = 1,
        depth_spacings: Sequence[float] | None = None,
        stem_width: int | None = None,
    ) -> None:
        super().__init__()
        stages = len(widths) - 1
        self.schedule = plan = plan_depths(
            n_thick, ratio, stages=stages, halvings=depth_halvings, spacings=depth_spacings
        )
        self.out_channels = widths[0]
        self.multiple = 2**stages
        shortcuts = [stem_width or widths[0], *widths[1:]]
        self.encoder = Encoder(
            plan,
            shortcuts,
            layers=layers,
            norm=norm,
            activation=activation,
            stem_block=stem_width is not None,
        )
        self.lift = DepthDeconv(
            widths[-1], widths[-2], plan.up[0], in_plane=2, norm=norm, activation=activation
        )
        final = DepthStep(plan.up[-1].out_depth, plan.up[-1].out_depth, 1)
        self.ups = nn.ModuleList(
            ProgressiveUp(
                shortcuts[level],
                widths[level],
                widths[max(level - 1, 0)],
                shortcut,
                up,
                in_plane=2 if level else 1,
                layers=layers if level else 1,
                norm=norm,
                activation=activation,
            )
            for level, shortcut, up in zip(
                range(stages - 1, -1, -1), plan.shortcuts, [*plan.up[1:], final], strict=True
            )
        )

    def forward(self, thick: Tensor) -> Tensor:
        """Map thick slices (B, 1, n, H, W) to features (B, widths[0], N, H, W)."""
        *shortcuts, deepest = self.encoder(thick)
        up: Tensor = self.lift(deepest)
        for stage, shortcut in zip(self.ups, reversed(shortcuts), strict=True):
            up = stage(shortcut, up)
        return up


class SubpixelBackbone(nn.Module):
    """U-Net at thick depth with sub-pixel up-sampling along depth; the baseline of the ablation.

    The U-Net is that of :class:`ProgressiveBackbone`, but its decoder stays at thick depth. The
    last layer computes r feature vectors per thick slice, which are rearranged along depth: vector
    p of thick slice k becomes thin slice r * k + p - (r - 1) // 2. Slices outside the window are
    cut off.

    Args:
        n_thick: number of thick slices in a window, n.
        ratio: thick spacing / thin spacing, r.
        widths: channels per level, full resolution first; one more than the number of in-plane
            halvings.
        layers: convolutions in the residual block of each level.
        norm: normalisation of every layer.
        activation: activation of every layer.
        depth_halvings: number of stages that halve depth; these are the deepest ones.
    """

    def __init__(
        self,
        n_thick: int = 8,
        ratio: int = 5,
        *,
        widths: Sequence[int] = (16, 32, 64, 128, 256, 256),
        layers: int = 2,
        norm: Norm = "none",
        activation: Activation = "leaky_relu",
        depth_halvings: int = 1,
    ) -> None:
        super().__init__()
        stages = len(widths) - 1
        # Use only the encoder part of the plan: the decoder undoes the halvings and stays at thick
        # depth.
        self.schedule = plan = plan_depths(n_thick, ratio, stages=stages, halvings=depth_halvings)
        self.ratio = ratio
        self.out_channels = widths[0]
        self.multiple = 2**stages
        self.encoder = Encoder(plan, widths, layers=layers, norm=norm, activation=activation)
        depths = plan.encoder_depths
        self.ups = nn.ModuleList(
            DepthDeconv(
                widths[level] * (1 if level == stages else 2),
                widths[level - 1],
                DepthStep(depths[level], depths[level - 1], 2 if plan.halved[level - 1] else 1),
                in_plane=2,
                norm=norm,
                activation=activation,
            )
            for level in range(stages, 0, -1)
        )
        self.blocks = nn.ModuleList(
            ConvBlock(widths[level], layers=layers, norm=norm, activation=activation)
            for level in range(stages - 1, -1, -1)
        )
        self.expand = ConvLayer(2 * widths[0], ratio * widths[0], norm=norm, activation=activation)

    def forward(self, thick: Tensor) -> Tensor:
        """Map thick slices (B, 1, n, H, W) to features (B, widths[0], N, H, W)."""
        *shortcuts, up = self.encoder(thick)
        for deconv, block, shortcut in zip(self.ups, self.blocks, reversed(shortcuts), strict=True):
            up = torch.cat([shortcut, block(deconv(up))], dim=1)
        phases: Tensor = torch.unflatten(self.expand(up), 1, (self.out_channels, self.ratio))
        thin = phases.movedim(2, 3).flatten(2, 3)
        left = (self.ratio - 1) // 2
        return thin[:, :, left : thin.shape[2] - (self.ratio - 1 - left)]
