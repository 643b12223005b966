"""Sub-pixel network of Table 1, the baseline of the paper's ablation.

It encodes thin slices in channels and rearranges them along depth at the end.

Source: Ge et al., "Stereo-correlation and noise-distribution aware ResVoxGAN for dense slices
reconstruction and noise reduction in thick low-dose CT", MICCAI 2019. It specifies that features
are computed at thick depth and that a sub-pixel convolution computes the dense slices from them.
Its generator is a chain of multi-scale residual blocks, trained with discriminators and further
losses. We use the U-Net of MPU-Net instead, so that the ablation changes one part at a time.

Our choices: the same as in MPU-Net, because this network is MPU-Net without some of its parts.
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
    """Sub-pixel baseline: the same as ``MPUNet(decoder="subpixel", streams=["inner"])``.

    Network and state dict are identical. Only the output differs: it has no streams, so that the
    objective uses the ``image`` loss, as for the other baselines.

    Args:
        n_thick: number of thick input slices, n.
        ratio: thick spacing / thin spacing, r.
        widths: channels per level, full resolution first; one more than the number of in-plane
            halvings.
        layers: convolutions per residual block.
        norm: normalisation of every layer.
        activation: activation of every layer.
        residual: image to which the network's output is added: the input interpolated along depth
            ("cubic" or "linear"); "none": the network predicts the image directly.
        depth_halvings: number of stages that halve depth; these are the deepest ones.

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
        """Reconstruct thin slices.

        Args:
            thick: (B, 1, n, H, W), intensity in [0, 1]; H and W must be multiples of
                2 ** (len(widths) - 1), which is 32 by default.
        """
        return ThickToThinOutput(super().forward(thick).image)
