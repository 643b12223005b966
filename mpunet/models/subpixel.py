"""The sub-pixel network of Table 1, the basis of the paper's ablation: depth is encoded in channels and rearranged at the end.

Source: Ge et al., "Stereo-correlation and noise-distribution aware ResVoxGAN for dense slices reconstruction and noise reduction
in thick low-dose CT", MICCAI 2019. It fixes that features are computed at thick depth and that a sub-pixel convolution makes the
dense slices of them. Its generator is a chain of multi-scale residual blocks, trained with discriminators and further losses; we
take the U-Net that MPU-Net is made of in its place, so that the ablation that starts here changes one part at a time.

Ours: everything that is ours in MPU-Net, since this is MPU-Net less its parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from mpunet.models.base import ThickToThinOutput
from mpunet.models.blocks import Activation, Norm
from mpunet.models.mpunet import MPUNet

__all__ = ["SubpixelNet"]


class SubpixelNet(MPUNet):
    """``MPUNet(decoder="subpixel", streams=["inner"])`` by the name of the table's row: the same network and state dict.

    Only the output differs: it has no streams, so that the objective's part for it is ``image``, as for the other baselines.

    Args:
        n_thick: thick slices that go in, n.
        ratio: thick spacing / thin spacing, r.
        widths: channels per level, full resolution first.
        layers: convolutions per residual block.
        norm: normalisation of every layer.
        activation: activation of every layer.
        residual: what the network adds to: the interpolated input ("cubic" or "linear"), or nothing ("none").
        depth_halvings: how many of the deepest stages halve depth.

    >>> import torch
    >>> SubpixelNet(widths=(2, 2, 2))(torch.rand(1, 1, 8, 12, 20)).image.shape
    torch.Size([1, 1, 36, 12, 20])
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
        residual: Literal["none", "linear", "cubic"] = "cubic",
        depth_halvings: int = 1,
    ) -> None:
        super().__init__(
            n_thick,
            ratio,
            widths=widths,
            layers=layers,
            norm=norm,
            activation=activation,
            residual=residual,
            decoder="subpixel",
            streams=("inner",),
            depth_halvings=depth_halvings,
        )

    def forward(self, thick: Tensor) -> ThickToThinOutput:
        """Thick slices (B, 1, n, H, W), intensity in [0, 1]; H and W multiples of 2 ** (len(widths) - 1), by default 32."""
        return ThickToThinOutput(super().forward(thick).image)
