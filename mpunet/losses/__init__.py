"""Losses, as functions and as modules that hold their parameters.

:class:`Objective` computes their weighted sum.
"""

from __future__ import annotations

from mpunet.losses.adversarial import critic_loss, generator_loss, gradient_penalty
from mpunet.losses.contrast_aware import ContrastAware, contrast_aware_loss, contrast_aware_weight
from mpunet.losses.feature_matching import (
    FeatureMatching,
    VGG16Features,
    VGGLayer,
    feature_matching_loss,
)
from mpunet.losses.mask import MaskCrossEntropy, mask_cross_entropy
from mpunet.losses.objective import Objective, StreamOutput
from mpunet.losses.region import RegionL1, region_l1

__all__ = [
    "ContrastAware",
    "FeatureMatching",
    "MaskCrossEntropy",
    "Objective",
    "RegionL1",
    "StreamOutput",
    "VGG16Features",
    "VGGLayer",
    "contrast_aware_loss",
    "contrast_aware_weight",
    "critic_loss",
    "feature_matching_loss",
    "generator_loss",
    "gradient_penalty",
    "mask_cross_entropy",
    "region_l1",
]
