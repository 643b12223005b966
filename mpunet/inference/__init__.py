"""Reconstruction of whole volumes. The Lightning callback stays in :mod:`mpunet.inference.writer`: this needs no Lightning."""

from mpunet.inference.engine import reconstruct_slab, stream_thin
from mpunet.inference.reconstruct import Reconstructor

__all__ = ["Reconstructor", "reconstruct_slab", "stream_thin"]
