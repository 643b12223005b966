"""What a thick slice is made of: the slice profile, and thick slices simulated from thin ones.

Begin with :mod:`mpunet.slices.simulate`. :mod:`mpunet.slices.profile_fit` measures the profile of a genuine pair.
"""

from mpunet.slices.simulate import profile_weights, thicken

__all__ = ["profile_weights", "thicken"]
