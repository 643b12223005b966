"""A disk cache of decompressed, memory-mapped volumes and their lung masks.

Start reading at :mod:`mpunet.data.cache.cache`.
"""

from mpunet.data.cache.cache import Cache
from mpunet.data.cache.entry import CachedCase
from mpunet.data.cache.preparation import Preparation

__all__ = ["Cache", "CachedCase", "Preparation"]
