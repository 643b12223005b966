"""MPU-Net, the multi-stream progressive up-sampling network.

Source: Liu et al., MICCAI 2020, Sections 3.1 and 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from mpunet.models.backbone import ProgressiveBackbone, SubpixelBackbone
from mpunet.models.base import ThickToThin, ThickToThinOutput
from mpunet.models.blocks import Activation, Norm
from mpunet.models.consistency import DepthConsistency
from mpunet.models.heads import MultiStreamHead, Stream
from mpunet.models.interpolation import DepthInterpolation

__all__ = ["MPUNet"]


class MPUNet(ThickToThin):
    """MPU-Net: reconstructs (n - 1) * r + 1 thin slices from n thick slices.

    A shared progressive backbone feeds three streams, from which the image is composed.

    The paper specifies the geometry, five in-plane halvings and one depth halving, Eq. 1, the
    streams and their composition. It does not specify widths, blocks, ``norm``, ``activation``, the
    depth schedule and the ``residual``; these are our choices.

    Args:
        n_thick: number of thick input slices, n.
        ratio: thick spacing / thin spacing, r.
        widths: channels per level, full resolution first; one more than the number of in-plane
            halvings.
        layers: convolutions per residual block.
        norm: normalisation of every layer. "none" gave the most accurate HU (docs/choices.md);
            instance normalisation discards absolute intensity.
        activation: activation of every layer.
        residual: image to which the image streams are added: the input interpolated along depth
            ("cubic" or "linear"); "none": the streams predict the image directly.
        consistency: slice profile for data consistency, which corrects the image so that it
            reproduces the input slices: the FWHM of a Gaussian in thick spacings, or weights of
            thin slices (see :class:`DepthConsistency`). Default: no correction.
        decoder: "progressive" (the paper's network) or "subpixel" (the paper's ablation).
        streams: streams of the head; see :class:`MultiStreamHead`.
        head_width: channels inside each stream's branch; default: ``widths[0]``.
        depth_halvings: number of stages that halve depth; these are the deepest ones.
        depth_spacings: depth schedule of the progressive decoder; see
            :func:`mpunet.models.schedule.plan_depths`.
        stem_width: channels of the progressive backbone's encoder at full resolution; adds a
            residual block there, which is cheap because depth is still n. Default: ``widths[0]``
            channels and no block.

    Raises:
        ValueError: if an argument or a combination of arguments is not supported.

    >>> import torch
    >>> net = MPUNet(widths=(2, 2, 2, 2, 2, 2))
    >>> net(torch.rand(1, 1, 8, 32, 64)).image.shape
    torch.Size([1, 1, 36, 32, 64])
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
        consistency: float | Sequence[float] | None = None,
        decoder: Literal["progressive", "subpixel"] = "progressive",
        streams: Sequence[Stream] = ("mask", "inner", "outer"),
        head_width: int | None = None,
        depth_halvings: int = 1,
        depth_spacings: Sequence[float] | None = None,
        stem_width: int | None = None,
    ) -> None:
        super().__init__()
        self.n_thick = n_thick
        self.ratio = ratio
        self.backbone: nn.Module
        if decoder == "progressive":
            self.backbone = ProgressiveBackbone(
                n_thick,
                ratio,
                widths=widths,
                layers=layers,
                norm=norm,
                activation=activation,
                depth_halvings=depth_halvings,
                depth_spacings=depth_spacings,
                stem_width=stem_width,
            )
        elif decoder == "subpixel":
            if depth_spacings is not None or stem_width is not None:
                raise ValueError(
                    "depth_spacings and stem_width belong to the progressive decoder; leave them "
                    "out for the sub-pixel decoder."
                )
            self.backbone = SubpixelBackbone(
                n_thick,
                ratio,
                widths=widths,
                layers=layers,
                norm=norm,
                activation=activation,
                depth_halvings=depth_halvings,
            )
        else:
            raise ValueError(f"Expected decoder 'progressive' or 'subpixel', got {decoder!r}.")
        self.multiple = 2 ** (len(widths) - 1)
        self.interpolate = (
            None if residual == "none" else DepthInterpolation(n_thick, ratio, residual)
        )
        self.consistency = (
            None if consistency is None else DepthConsistency(n_thick, ratio, consistency)
        )
        self.head = MultiStreamHead(
            widths[0], streams=streams, hidden=head_width, norm=norm, activation=activation
        )

    def forward(self, thick: Tensor) -> ThickToThinOutput:
        """Reconstruct thin slices.

        Args:
            thick: (B, 1, n, H, W), intensity in [0, 1]; H and W must be multiples of
                2 ** (len(widths) - 1), which is 32 by default.
        """
        self.check_input(thick)
        base = None if self.interpolate is None else self.interpolate(thick)
        if base is not None and self.consistency is not None:
            base = self.consistency(base, thick)
        out: ThickToThinOutput = self.head(self.backbone(thick), base)
        if self.consistency is None:
            return out
        image = self.consistency(out.image, thick)
        return out._replace(
            image=image,
            **{name: image for name in ("inner", "outer") if getattr(out, name) is out.image},
        )
