"""A chest phantom, created from a seed: for the demo, tests, and reader studies with known nodules.

Start with :mod:`mpunet.phantom.chest`.
"""

from mpunet.phantom.chest import ChestPhantom, chest_phantom, phantom_image

__all__ = ["ChestPhantom", "chest_phantom", "phantom_image"]
