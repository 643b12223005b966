"""Training with Lightning: the module, its callbacks, the optimiser Muon and the critic's steps.

Begin with :mod:`mpunet.training.module`. The network and the losses know nothing of Lightning and live in :mod:`mpunet.models` and
:mod:`mpunet.losses`.
"""

from mpunet.training.callbacks import Checkpoints, CoronalSamples
from mpunet.training.module import MPUNetModule

__all__ = ["Checkpoints", "CoronalSamples", "MPUNetModule"]
