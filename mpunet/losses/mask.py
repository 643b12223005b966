"""Cross entropy loss of the predicted lung mask."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from mpunet.losses.region import checked_floats

__all__ = ["MaskCrossEntropy", "mask_cross_entropy"]


def mask_cross_entropy(logits: Tensor, lung: Tensor) -> Tensor:
    """Compute the binary cross entropy of the mask stream, averaged over all voxels.

    Args:
        logits: (B, 1, N, H, W), log odds that a voxel is lung.
        lung: (B, 1, N, H, W), {0, 1}, float or bool.

    Returns:
        Scalar in nats, float32 (float64 for float64 input), also under autocast.

    Raises:
        ValueError: if shapes differ.

    >>> import torch
    >>> mask_cross_entropy(torch.zeros(1, 1, 2, 4, 4), torch.ones(1, 1, 2, 4, 4))  # p = 0.5: ln 2
    tensor(0.6931)
    """
    logits, lung = checked_floats(logits, lung, names=("logits", "lung"))
    return functional.binary_cross_entropy_with_logits(logits, lung)


class MaskCrossEntropy(nn.Module):
    """:func:`mask_cross_entropy` as a module."""

    def forward(self, logits: Tensor, lung: Tensor) -> Tensor:
        """Compute the loss, a scalar; see :func:`mask_cross_entropy`."""
        return mask_cross_entropy(logits, lung)
