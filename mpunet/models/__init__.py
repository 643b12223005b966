"""Networks as plain ``nn.Module``s: no Lightning, no data."""

from mpunet.models.backbone import Encoder, ProgressiveBackbone, ProgressiveUp, SubpixelBackbone
from mpunet.models.base import ThickToThin, ThickToThinOutput
from mpunet.models.blocks import ConvBlock, ConvLayer, DepthDeconv
from mpunet.models.heads import MultiStreamHead, compose
from mpunet.models.interpolation import DepthInterpolation, interpolation_matrix
from mpunet.models.mpunet import MPUNet

__all__ = [
    "ConvBlock",
    "ConvLayer",
    "DepthDeconv",
    "DepthInterpolation",
    "Encoder",
    "MPUNet",
    "MultiStreamHead",
    "ProgressiveBackbone",
    "ProgressiveUp",
    "SubpixelBackbone",
    "ThickToThin",
    "ThickToThinOutput",
    "compose",
    "interpolation_matrix",
]
