"""Perceptual distance: how different two volumes look in coronal planes, by features of a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize

__all__ = ["perceptual_distance"]

PLANES = 16  # our choice


@torch.inference_mode()
def perceptual_distance(
    volume: npt.NDArray[Any],
    truth: npt.NDArray[Any],
    features: Callable[[Tensor], Sequence[Tensor]],
    *,
    window: tuple[float, float] = (-600.0, 1500.0),
    planes: int = PLANES,
) -> float:
    """Measure the perceptual distance of coronal planes, where slice thickness shows.

    It is the uncalibrated distance of Zhang et al. (2018, "The Unreasonable Effectiveness of Deep
    Features", Eq. 1 with weights of one): feature vectors are scaled to unit length at every pixel,
    and their squared differences are averaged over pixels and summed over layers. Planes and window
    are our choice. Features that a network was trained with favour it: take others.

    Args:
        volume: (D, H, W) in HU.
        truth: (D, H, W) in HU.
        features: function from planes (S, 1, D, W) with intensity in [0, 1] to one map (S, C, h, w)
            per layer, such as :class:`mpunet.losses.VGG16Features`.
        window: centre and width in HU of the range that becomes [0, 1]; by default the lung window.
        planes: number of planes, evenly spaced along the height.

    Returns:
        Distance, 0 for equal planes. Smaller is more alike.

    Raises:
        ValueError: if shapes differ or ``planes`` is below 1.

    >>> truth = np.zeros((2, 3, 4))
    >>> perceptual_distance(truth, truth, lambda x: [torch.cat([x, 1 - x], 1)])
    0.0
    """
    if volume.shape != truth.shape or planes < 1:
        raise ValueError(
            f"Expected two volumes of one shape and at least 1 plane, got {volume.shape}, "
            f"{truth.shape} and {planes}."
        )
    height = truth.shape[1]
    count = min(planes, height)
    rows = (2 * np.arange(count) + 1) * height // (2 * count)
    centre, width = window
    distances = []
    for row in rows:
        pair = np.stack([volume[:, row], truth[:, row]]).astype(np.float32)
        maps = features(torch.from_numpy((pair - centre) / width + 0.5).clamp(0, 1)[:, None])
        distances.append(sum(float(_distance(layer)) for layer in maps))
    return float(np.mean(distances))


def _distance(maps: Tensor) -> Tensor:
    first, second = normalize(maps, dim=1).unbind()
    return (first - second).square().sum(dim=0).mean()
