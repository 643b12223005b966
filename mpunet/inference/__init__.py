"""Reconstruction of thin slices from whole thick-slice volumes.

This package does not import Lightning. The Lightning callback that writes predictions is in
:mod:`mpunet.inference.writer`.
"""

from mpunet.inference.engine import StreamingEngine, reconstruct_slab
from mpunet.inference.options import InferenceOptions
from mpunet.inference.reconstruct import Reconstructor, ThinSlices

__all__ = ["InferenceOptions", "Reconstructor", "StreamingEngine", "ThinSlices", "reconstruct_slab"]
