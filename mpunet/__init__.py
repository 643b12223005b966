"""mpunet: thin-slice CT from thick-slice CT.

MPU-Net (Liu et al., MICCAI 2020) as building blocks, a LightningModule and a command line.
Research software, not a medical device.

Names are imported on first use; ``import mpunet`` alone imports neither torch nor Lightning.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpunet.data.datamodule import ThickThinDataModule
    from mpunet.inference.reconstruct import Reconstructor
    from mpunet.models import MPUNet, MultiStreamHead, ProgressiveBackbone
    from mpunet.training.module import MPUNetModule

__version__ = "0.1.0"

__all__ = [
    "MPUNet",
    "MPUNetModule",
    "MultiStreamHead",
    "ProgressiveBackbone",
    "Reconstructor",
    "ThickThinDataModule",
    "__version__",
]

_HOMES = {
    "MPUNet": "mpunet.models",
    "MPUNetModule": "mpunet.training.module",
    "MultiStreamHead": "mpunet.models",
    "ProgressiveBackbone": "mpunet.models",
    "Reconstructor": "mpunet.inference.reconstruct",
    "ThickThinDataModule": "mpunet.data.datamodule",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
