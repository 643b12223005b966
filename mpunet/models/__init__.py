"""Networks as plain ``nn.Module`` classes, independent of Lightning and of data loading."""

from mpunet.models.backbone import Encoder, ProgressiveBackbone, ProgressiveUp, SubpixelBackbone
from mpunet.models.base import ThickToThin, ThickToThinOutput
from mpunet.models.bicubic import Bicubic
from mpunet.models.blocks import ConvBlock, ConvLayer, DepthDeconv
from mpunet.models.consistency import DepthConsistency
from mpunet.models.critic import Critic
from mpunet.models.heads import MultiStreamHead, compose
from mpunet.models.interpolation import DepthInterpolation, interpolation_matrix
from mpunet.models.mpunet import MPUNet
from mpunet.models.srcnn import SRCNN
from mpunet.models.subpixel import SubpixelNet
from mpunet.models.vnet import VNet

__all__ = [
    "SRCNN",
    "Bicubic",
    "ConvBlock",
    "ConvLayer",
    "Critic",
    "DepthConsistency",
    "DepthDeconv",
    "DepthInterpolation",
    "Encoder",
    "MPUNet",
    "MultiStreamHead",
    "ProgressiveBackbone",
    "ProgressiveUp",
    "SubpixelBackbone",
    "SubpixelNet",
    "ThickToThin",
    "ThickToThinOutput",
    "VNet",
    "compose",
    "interpolation_matrix",
]
