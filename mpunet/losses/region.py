"""L1 over a region: the loss of the outer-lung stream, and what every voxel-wise loss here shares.

Every mean is over *all* voxels of the crop, not over those of the region, so that a voxel weighs the same in every crop,
whether the crop shows much lung or little. It also makes an empty region cost 0 rather than 0 / 0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["RegionL1", "checked_floats", "mean_over_crop", "region_l1"]


def region_l1(prediction: Tensor, target: Tensor, region: Tensor | None = None) -> Tensor:
    """Mean over all voxels of region * abs(prediction - target).

    The paper's loss of the outer-lung stream, with ``region = 1 - lung``.

    Args:
        prediction: (B, 1, N, H, W), intensity in [0, 1].
        target: (B, 1, N, H, W), intensity in [0, 1].
        region: (B, 1, N, H, W), 1 where the loss counts and 0 elsewhere, float or bool; everywhere if not given.

    Returns:
        Scalar in units of intensity, float32 (float64 for float64 input) whatever autocast does.

    Raises:
        ValueError: if shapes differ; nothing is broadcast.

    >>> region_l1(torch.tensor([0.5, 0.9]), torch.tensor([0.3, 0.0]), torch.tensor([True, False]))
    tensor(0.1000)
    """
    prediction, target = checked_floats(prediction, target)
    return mean_over_crop((prediction - target).abs(), region)


class RegionL1(nn.Module):
    """:func:`region_l1` as a module."""

    def forward(self, prediction: Tensor, target: Tensor, region: Tensor | None = None) -> Tensor:
        """Scalar; see :func:`region_l1`."""
        return region_l1(prediction, target, region)


def mean_over_crop(values: Tensor, region: Tensor | None = None) -> Tensor:
    """Mean over all voxels of region * values, for a float or bool region of the same shape.

    >>> mean_over_crop(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, 0.0, 1.0, 0.0]))
    tensor(1.)
    """
    if region is None:
        return values.mean()
    values, region = checked_floats(values, region, names=("values", "region"))
    return (values * region).mean()


def checked_floats(
    first: Tensor, second: Tensor, *, names: tuple[str, str] = ("prediction", "target")
) -> tuple[Tensor, Tensor]:
    """Both tensors in one dtype, float32 or wider, after a check that their shapes are equal.

    Half precision has 3 digits (bfloat16) or overflows (float16): losses are taken in float32 under autocast too.
    """
    if first.shape != second.shape:
        raise ValueError(
            f"Expected {names[0]} and {names[1]} of one shape (B, 1, N, H, W), got {tuple(first.shape)} and "
            f"{tuple(second.shape)}; crop or pad one of them, nothing is broadcast."
        )
    dtype = torch.promote_types(torch.promote_types(first.dtype, second.dtype), torch.float32)
    return first.to(dtype), second.to(dtype)
