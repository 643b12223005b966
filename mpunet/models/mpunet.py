"""MPU-Net: multi-stream progressive up-sampling network (Liu et al., MICCAI 2020), Sections 3.1 and 3.2."""

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
    """n thick slices to (n - 1) * r + 1 thin ones: shared progressive backbone, three streams, composed image.

    From the paper: the geometry, five in-plane halvings and one of depth, Eq. 1, the streams and their composition. Ours, as the
    paper does not say: all widths, blocks, ``norm``, ``activation``, the depth schedule, and the ``residual``.

    Args:
        n_thick: thick slices that go in, n.
        ratio: thick spacing / thin spacing, r.
        widths: channels per level, full resolution first.
        layers: convolutions per residual block.
        norm: normalisation; "none" returned HU best (docs/choices.md): normalising by instance forgets absolute intensity.
        activation: activation of every layer.
        residual: what the image streams add to: the interpolated input ("cubic" or "linear"), or nothing ("none").
        consistency: FWHM in thick spacings of the slice profile by which the image, thickened, is made to give the input again, see
            :class:`DepthConsistency`; none by default.
        decoder: "progressive" (the paper's) or "subpixel" (its ablation).
        streams: streams of the head, see :class:`MultiStreamHead`.
        head_width: channels inside each stream's branch; ``widths[0]`` by default.
        depth_halvings: how many of the deepest stages halve depth.
        depth_spacings: the progressive decoder's depth schedule, see :func:`mpunet.models.schedule.plan_depths`.
        stem_width: channels of the progressive backbone's encoder at full resolution and thick depth, which then has a residual
            block there: cheap, as thick slices are few; by default ``widths[0]`` and no block.

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
        consistency: float | None = None,
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
                    "depth_spacings and stem_width belong to the progressive decoder; the sub-pixel decoder has neither."
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
        """Thick slices (B, 1, n, H, W), intensity in [0, 1]; H and W multiples of 2 ** (len(widths) - 1), by default 32."""
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
