"""A chest phantom, drawn from a seed: for the demo, for tests, and for reader studies with a known answer.

Begin with :mod:`mpunet.phantom.chest`.
"""

from mpunet.phantom.chest import ChestPhantom, chest_phantom, phantom_image

__all__ = ["ChestPhantom", "chest_phantom", "phantom_image"]
