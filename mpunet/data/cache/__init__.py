"""Decompressed volumes on disk, mapped into memory, with their lung masks. Begin with :mod:`mpunet.data.cache.cache`."""

from mpunet.data.cache.cache import Cache, CachedCase, Preparation

__all__ = ["Cache", "CachedCase", "Preparation"]
