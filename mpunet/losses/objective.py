"""Training objective: the weighted sum of the losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from mpunet.config import Configurable
from mpunet.losses.contrast_aware import ContrastAware
from mpunet.losses.feature_matching import FeatureMatching, VGGLayer
from mpunet.losses.mask import mask_cross_entropy
from mpunet.losses.region import checked_floats, mean_over_crop, region_l1

__all__ = ["Objective", "StreamOutput"]


class StreamOutput(Protocol):
    """Network output that the objective requires.

    Each value is (B, 1, N, H, W), or None for a stream that the network does not have.
    """

    @property
    def image(self) -> Tensor:
        """Composed image, intensity in [0, 1]."""

    @property
    def mask_logits(self) -> Tensor | None:
        """Log odds that a voxel is lung."""

    @property
    def inner(self) -> Tensor | None:
        """Inner-lung stream, intensity in [0, 1]."""

    @property
    def outer(self) -> Tensor | None:
        """Outer-lung stream, intensity in [0, 1]."""


class Objective(Configurable, nn.Module):
    """Weighted sum of the losses on a multi-stream output.

    The paper names the parts except ``image``; the weights are our choice.

    ======= ===================================== ===================================
    part    loss                                  on
    ======= ===================================== ===================================
    mask    cross entropy                         mask logits
    inner   contrast-aware (Eq. 2), or L1         inner-lung stream, inside the lung
    outer   L1                                    outer-lung stream, outside the lung
    feature feature matching (Eq. 3)              composed image
    image   L1 (ours)                             composed image
    squared mean squared error (ours)             composed image
    ======= ===================================== ===================================

    A part is computed if its weight is above 0 and the output has its stream. If a network has only
    one of the inner and outer streams (the paper's ablation), that stream is the image, and its
    loss is computed on all voxels instead of one region.

    L1 learns the median of the thin slices that fit the thick ones; the mean squared error learns
    their mean, which has the lowest RMSE. An error of 60 HU has the same gradient in both if
    ``squared`` is 34 times ``image``.

    All arguments are plain values, so that they can be stored in YAML files and checkpoints.

    Args:
        mask: weight of the cross entropy of the mask, at least 0.
        inner: weight of the loss of the inner-lung stream, at least 0.
        outer: weight of L1 on the outer-lung stream, at least 0.
        feature: weight of feature matching, at least 0; VGG-16 is loaded only if this is above 0.
        image: weight of L1 on the composed image, at least 0; required for networks without streams
            unless ``feature`` or ``squared`` is above 0.
        squared: weight of the mean squared error of the composed image, at least 0.
        inner_loss: loss of the inner-lung stream: "contrast_aware" (Eq. 2), or "l1" for the paper's
            ablation of Eq. 2.
        alpha: offset added to the target's intensity in Eq. 2; above 0.
        gamma: exponent of Eq. 2; at least 0.
        beta: scale of Eq. 2; above 0.
        sigma: standard deviation in voxels of the Gaussian that smooths the weight of Eq. 2; 0: no
            smoothing.
        detach_weight: treat the weight of Eq. 2 as a constant in the gradient.
        feature_layers: VGG-16 layers of feature matching, relu1_1 to relu5_3; see
            :class:`~mpunet.losses.VGG16Features`.
        feature_weights: path of a file with the weights of VGG-16; None: torchvision's ImageNet
            weights.
        feature_chunk: number of slices that feature matching processes at a time, at least 1.
        feature_slices: number of thin slices of a batch that feature matching compares, drawn at
            random in each step; None: all.

    Raises:
        ValueError: if a weight is negative or not finite, if all weights are 0, or if another
            argument is out of range.

    >>> from types import SimpleNamespace
    >>> zeros = torch.zeros(1, 1, 2, 4, 4)
    >>> output = SimpleNamespace(image=zeros, mask_logits=None, inner=None, outer=None)
    >>> Objective(image=2.0)(output, thin=zeros + 0.25, lung=zeros)
    {'loss': tensor(0.5000), 'image': tensor(0.2500)}
    """

    def __init__(
        self,
        *,
        mask: float = 1.0,
        inner: float = 1.0,
        outer: float = 1.0,
        feature: float = 0.0,
        image: float = 0.0,
        squared: float = 0.0,
        inner_loss: Literal["contrast_aware", "l1"] = "contrast_aware",
        alpha: float = 0.5,
        gamma: float = 0.5,
        beta: float = 5.0,
        sigma: float = 0.0,
        detach_weight: bool = False,
        feature_layers: Sequence[VGGLayer] = ("relu2_2", "relu3_3"),
        feature_weights: str | None = None,
        feature_chunk: int = 4,
        feature_slices: int | None = None,
    ) -> None:
        super().__init__()
        self.weights = {
            "mask": mask,
            "inner": inner,
            "outer": outer,
            "feature": feature,
            "image": image,
            "squared": squared,
        }
        if not all(
            math.isfinite(weight) and weight >= 0 for weight in self.weights.values()
        ) or not any(self.weights.values()):
            raise ValueError(
                f"Expected weights of losses of at least 0, and one above 0, got {self.weights}."
            )
        if inner_loss not in ("contrast_aware", "l1"):
            raise ValueError(
                f"Expected inner_loss to be 'contrast_aware' or 'l1', got {inner_loss!r}."
            )
        self.inner_loss = inner_loss
        self.contrast_aware = ContrastAware(
            alpha=alpha, gamma=gamma, beta=beta, sigma=sigma, detach_weight=detach_weight
        )
        self._load_features = partial(
            FeatureMatching,
            tuple(feature_layers),
            feature_weights,
            chunk=feature_chunk,
            slices=feature_slices,
        )
        self.feature_matching: FeatureMatching | None = None

    def prepare(self) -> None:
        """Load VGG-16 if the weight of feature matching is above 0.

        The first call of the objective loads it too; call this method to fail early. VGG-16 is not
        loaded at construction, because the objective of a checkpoint is also built for prediction,
        which does not need VGG-16.
        """
        if self.weights["feature"] and self.feature_matching is None:
            self.feature_matching = self._load_features()

    def forward(self, output: StreamOutput, thin: Tensor, lung: Tensor) -> dict[str, Tensor]:
        """Compute the objective and its parts.

        Args:
            output: output of the network, intensity in [0, 1]; see :class:`StreamOutput`.
            thin: true thin slices (B, 1, N, H, W), intensity in [0, 1].
            lung: lung mask (B, 1, N, H, W), {0, 1}, float or bool.

        Returns:
            Scalars by name: "loss", the weighted sum to minimise, and each computed part without
            its weight. Values that are not finite are returned unchanged.

        Raises:
            ValueError: if the output has no stream for any part with a weight above 0, or if shapes
                differ.
        """
        parts = self._parts(output, thin, lung.to(thin.dtype))
        if not parts:
            wanted = [name for name, weight in self.weights.items() if weight > 0]
            raise ValueError(
                f"No loss to compute: only {', '.join(wanted)} have a weight above 0, and the "
                "network's output has no such stream; set the weight of image, squared or feature above 0."
            )
        total = torch.stack([self.weights[name] * part for name, part in parts.items()]).sum()
        return {"loss": total, **parts}

    def _parts(self, output: StreamOutput, thin: Tensor, lung: Tensor) -> dict[str, Tensor]:
        streams = output.inner is not None and output.outer is not None
        inner_region, outer_region = (lung, 1 - lung) if streams else (None, None)
        parts = {}
        if self.weights["mask"] and output.mask_logits is not None:
            parts["mask"] = mask_cross_entropy(output.mask_logits, lung)
        if self.weights["inner"] and output.inner is not None:
            inner_loss = self.contrast_aware if self.inner_loss == "contrast_aware" else region_l1
            parts["inner"] = inner_loss(output.inner, thin, inner_region)
        if self.weights["outer"] and output.outer is not None:
            parts["outer"] = region_l1(output.outer, thin, outer_region)
        self.prepare()
        if self.feature_matching is not None:
            parts["feature"] = self.feature_matching.to(thin.device)(output.image, thin)
        if self.weights["image"]:
            parts["image"] = region_l1(output.image, thin)
        if self.weights["squared"]:
            prediction, target = checked_floats(output.image, thin)
            parts["squared"] = mean_over_crop((prediction - target) ** 2)
        return parts
