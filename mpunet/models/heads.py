"""Multi-stream head (Section 3.2).

Predicts the lung mask, inner-lung voxels and outer-lung voxels from shared features and combines
them into one image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mpunet.models.base import ThickToThinOutput
from mpunet.models.blocks import Activation, ConvLayer, Norm

__all__ = ["MultiStreamHead", "Stream", "compose"]

Stream = Literal["mask", "inner", "outer"]


def compose(mask_logits: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
    """Compose the image X = M ⊙ X_i + (1 - M) ⊙ X_o with the soft mask M = sigmoid(logits).

    All tensors have shape (B, 1, N, H, W).
    """
    return torch.lerp(outer, inner, mask_logits.sigmoid())


class MultiStreamHead(nn.Module):
    """Head with one branch of 3D convolutions per stream.

    With all three streams, the image is composed of X_i and X_o. For ablations, streams can be left
    out: a single ``inner`` or ``outer`` stream is the image itself, and ``mask`` with one of them
    is an auxiliary task. ``inner`` together with ``outer`` requires ``mask``.

    Args:
        channels: channels of the shared features.
        streams: streams to build.
        hidden: channels inside each branch; default: ``channels``.
        norm: normalisation of the hidden layers.
        activation: activation of the hidden layers.

    Raises:
        ValueError: if the combination of streams is not supported.
    """

    def __init__(
        self,
        channels: int,
        *,
        streams: Sequence[Stream] = ("mask", "inner", "outer"),
        hidden: int | None = None,
        norm: Norm = "none",
        activation: Activation = "leaky_relu",
    ) -> None:
        super().__init__()
        chosen = set(streams)
        if chosen not in (
            {"mask", "inner", "outer"},
            {"inner"},
            {"outer"},
            {"mask", "inner"},
            {"mask", "outer"},
        ):
            raise ValueError(
                "Expected streams mask + inner + outer, or inner or outer alone or with mask, got "
                f"{list(streams)}: two image streams cannot be composed without a mask, and a mask "
                "alone is not an image."
            )
        width = hidden or channels
        self.branches = nn.ModuleDict(
            {
                stream: nn.Sequential(
                    ConvLayer(channels, width, norm=norm, activation=activation), _last_layer(width)
                )
                for stream in ("mask", "inner", "outer")
                if stream in chosen
            }
        )

    def forward(self, features: Tensor, base: Tensor | None = None) -> ThickToThinOutput:
        """Predict the streams and the image.

        Args:
            features: (B, C, N, H, W).
            base: interpolated input (B, 1, N, H, W), to which the image streams are added as
                residuals; None: the streams predict the image directly.
        """
        # Leave the half precision of autocast: bfloat16 has steps of 8 to 16 HU around soft tissue.
        out = {name: stream.float() for name, stream in self._run_branches(features).items()}
        if base is not None:
            out.update({name: base + out[name] for name in ("inner", "outer") if name in out})
        mask, inner, outer = out.get("mask"), out.get("inner"), out.get("outer")
        if mask is not None and inner is not None and outer is not None:
            return ThickToThinOutput(compose(mask, inner, outer), mask, inner, outer)
        image = inner if inner is not None else out["outer"]
        return ThickToThinOutput(image, mask, inner, outer)

    def _run_branches(self, features: Tensor) -> dict[str, Tensor]:
        """Run the branches on (B, C, N, H, W), their first convolutions as one.

        These read the same features. Few output channels fill a CPU's vectors badly, so that three
        convolutions would take three times as long as one.
        """
        branches = {
            name: [*cast(nn.Sequential, branch[0]), branch[1]]
            for name, branch in cast(dict[str, nn.Sequential], self.branches).items()
        }
        convs = [cast(nn.Conv3d, conv) for conv, *_ in branches.values()]
        weight = torch.cat([conv.weight for conv in convs])
        biases = [conv.bias for conv in convs if conv.bias is not None]
        bias = torch.cat(biases) if biases else None
        first = functional.conv3d(features, weight, bias, padding=convs[0].padding)
        parts = first.chunk(len(convs), dim=1)
        return {
            name: last(activation(norm(part)))
            for (name, (_, norm, activation, last)), part in zip(
                branches.items(), parts, strict=True
            )
        }


def _last_layer(channels: int) -> nn.Conv3d:
    """Create the output layer of a branch, with weights near zero.

    A network with a residual then starts close to the interpolation that it refines.
    """
    last = nn.Conv3d(channels, 1, kernel_size=3, padding=1)
    nn.init.normal_(last.weight, std=1e-3)
    if last.bias is not None:
        nn.init.zeros_(last.bias)
    return last
