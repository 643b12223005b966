"""Reconstruction of whole volumes. The Lightning callback stays in :mod:`mpunet.inference.writer`: this needs no Lightning."""

from mpunet.inference.engine import StreamingEngine, reconstruct_slab
from mpunet.inference.options import InferenceOptions
from mpunet.inference.reconstruct import Reconstructor, ThinSlices

__all__ = ["InferenceOptions", "Reconstructor", "StreamingEngine", "ThinSlices", "reconstruct_slab"]
