"""Training with Lightning: the module, its callbacks, the optimisers and the critic's updates.

Start reading at :mod:`mpunet.training.module`. The networks (:mod:`mpunet.models`) and the losses
(:mod:`mpunet.losses`) do not depend on Lightning.
"""

from mpunet.training.callbacks import Checkpoints, CoronalSamples
from mpunet.training.module import MPUNetModule

__all__ = ["Checkpoints", "CoronalSamples", "MPUNetModule"]
