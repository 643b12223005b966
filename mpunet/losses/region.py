"""L1 over a region, the loss of the outer-lung stream, and helpers of all voxel-wise losses.

Every mean is over *all* voxels of the crop, not only over those of the region. A voxel then has the
same weight in every crop, whether the crop contains much lung or little, and an empty region gives
0 instead of 0 / 0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["RegionL1", "checked_floats", "mean_over_crop", "region_l1"]


def region_l1(prediction: Tensor, target: Tensor, region: Tensor | None = None) -> Tensor:
    """Compute the mean over all voxels of region * abs(prediction - target).

    With ``region = 1 - lung`` this is the paper's loss of the outer-lung stream.

    Args:
        prediction: (B, 1, N, H, W), intensity in [0, 1].
        target: (B, 1, N, H, W), intensity in [0, 1].
        region: (B, 1, N, H, W), 1 for voxels that count and 0 for others, float or bool; default:
            all voxels.

    Returns:
        Scalar in units of intensity, float32 (float64 for float64 input), also under autocast.

    Raises:
        ValueError: if shapes differ; tensors are not broadcast.

    >>> region_l1(torch.tensor([0.5, 0.9]), torch.tensor([0.3, 0.0]), torch.tensor([True, False]))
    tensor(0.1000)
    """
    prediction, target = checked_floats(prediction, target)
    return mean_over_crop((prediction - target).abs(), region)


class RegionL1(nn.Module):
    """:func:`region_l1` as a module."""

    def forward(self, prediction: Tensor, target: Tensor, region: Tensor | None = None) -> Tensor:
        """Compute the loss, a scalar; see :func:`region_l1`."""
        return region_l1(prediction, target, region)


def mean_over_crop(values: Tensor, region: Tensor | None = None) -> Tensor:
    """Compute the mean over all voxels of region * values.

    ``region`` is float or bool and has the shape of ``values``; default: all voxels.

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
    """Check that two tensors have the same shape and convert both to float32 or a wider dtype.

    Losses are computed in float32 also under autocast, because half precision has only 3 digits
    (bfloat16) or overflows (float16).

    Raises:
        ValueError: if shapes differ; the message uses ``names`` for the tensors.
    """
    if first.shape != second.shape:
        raise ValueError(
            f"Expected {names[0]} and {names[1]} of one shape (B, 1, N, H, W), got "
            f"{tuple(first.shape)} and {tuple(second.shape)}; crop or pad one of them (tensors are "
            "not broadcast)."
        )
    dtype = torch.promote_types(torch.promote_types(first.dtype, second.dtype), torch.float32)
    return first.to(dtype), second.to(dtype)
