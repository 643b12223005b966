"""Slice profiles, and simulation of thick slices from thin ones.

Start with :mod:`mpunet.slices.simulate`. :mod:`mpunet.slices.profile_fit` measures the slice
profile of a genuine pair of thick and thin slices.
"""

from mpunet.slices.simulate import profile_weights, thicken

__all__ = ["profile_weights", "thicken"]
