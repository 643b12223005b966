"""Contrast-aware loss (Eq. 2 of the paper).

It is an L1 loss whose weight grows with the relative error, so that faint structures count.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from mpunet.losses.region import checked_floats, mean_over_crop

__all__ = ["ContrastAware", "contrast_aware_loss", "contrast_aware_weight"]


def contrast_aware_weight(
    prediction: Tensor,
    target: Tensor,
    region: Tensor | None = None,
    *,
    alpha: float = 0.5,
    gamma: float = 0.5,
    beta: float = 5.0,
    sigma: float = 0.0,
) -> Tensor:
    """Compute the weight w of Eq. 2 for each voxel, optionally smoothed.

    w = (abs(prediction - target) / (target + alpha)) ** gamma * beta. The authors chose alpha and
    gamma by viewing w. For gamma < 1 the derivative is infinite at an error of exactly 0; the
    gradient is defined as 0 there.

    Args:
        prediction: (B, 1, N, H, W), intensity in [0, 1].
        target: (B, 1, N, H, W), intensity in [0, 1].
        region: (B, 1, N, H, W), {0, 1}, float or bool. Outside of it w is 0 and values do not enter
            the smoothing, because a stream of the network may return anything there. Default: all
            voxels.
        alpha: offset added to the target's intensity, above 0; a small value favours dark voxels.
        gamma: exponent, at least 0; 0 makes w the constant beta.
        beta: scale, above 0.
        sigma: standard deviation in voxels, along all three axes, of the Gaussian that smooths w;
            0: no smoothing. The Gaussian is normalised over the voxels of the crop and of the
            region, so that a constant w stays constant up to the borders.

    Returns:
        w (B, 1, N, H, W), at least 0, without unit; float32 (float64 for float64 input), also under
        autocast.

    Raises:
        ValueError: if shapes differ or a parameter is out of range.

    The weight below is (0.04 / (0.5 + 0.5)) ** 0.5 * 5:

    >>> contrast_aware_weight(torch.tensor([0.54]), torch.tensor([0.5]))
    tensor([1.0000])
    """
    _check_parameters(alpha, gamma, beta, sigma)
    prediction, target = checked_floats(prediction, target)
    weight = _power((prediction - target).abs() / (target + alpha), gamma) * beta
    if region is None and sigma == 0:
        return weight
    weight, inside = checked_floats(
        weight, torch.ones_like(weight) if region is None else region, names=("w", "region")
    )
    weight = weight * inside
    if sigma == 0:
        return weight
    covered = _gaussian_blur(inside, sigma).clamp_min(torch.finfo(inside.dtype).tiny)
    return _gaussian_blur(weight, sigma) / covered * inside


def contrast_aware_loss(
    prediction: Tensor,
    target: Tensor,
    region: Tensor | None = None,
    *,
    alpha: float = 0.5,
    gamma: float = 0.5,
    beta: float = 5.0,
    sigma: float = 0.0,
    detach_weight: bool = False,
) -> Tensor:
    """Compute the contrast-aware loss, Eq. 2: the mean of region * abs(prediction - target) * w.

    With ``region = lung`` this is the paper's loss of the inner-lung stream. The mean is over all
    voxels of the crop, not only over those of the region, so that every voxel has the same weight
    in every crop. A crop without lung gives 0.

    Args:
        prediction: (B, 1, N, H, W), intensity in [0, 1].
        target: (B, 1, N, H, W), intensity in [0, 1].
        region: (B, 1, N, H, W), {0, 1}, float or bool; default: all voxels.
        alpha: offset added to the target's intensity in w, above 0.
        gamma: exponent of w, at least 0.
        beta: scale of w, above 0.
        sigma: standard deviation in voxels of the Gaussian that smooths w; 0: no smoothing. See
            :func:`contrast_aware_weight` for all four.
        detach_weight: treat w as a constant in the gradient. By default w is differentiated as part
            of Eq. 2. Without smoothing, the two gradients differ only by the factor 1 + gamma.

    Returns:
        Scalar, float32 (float64 for float64 input), also under autocast.

    Raises:
        ValueError: if shapes differ or a parameter is out of range.

    >>> contrast_aware_loss(torch.tensor([0.54, 0.5]), torch.tensor([0.5, 0.5]))  # 0.04 * 1 / 2
    tensor(0.0200)
    """
    weight = contrast_aware_weight(
        prediction, target, region, alpha=alpha, gamma=gamma, beta=beta, sigma=sigma
    )
    prediction, target = checked_floats(prediction, target)
    return mean_over_crop(
        (prediction - target).abs() * (weight.detach() if detach_weight else weight), region
    )


class ContrastAware(nn.Module):
    """:func:`contrast_aware_loss` as a module that holds its parameters.

    :meth:`weight` returns w.
    """

    def __init__(
        self,
        *,
        alpha: float = 0.5,
        gamma: float = 0.5,
        beta: float = 5.0,
        sigma: float = 0.0,
        detach_weight: bool = False,
    ) -> None:
        super().__init__()
        _check_parameters(alpha, gamma, beta, sigma)
        self.alpha, self.gamma, self.beta, self.sigma, self.detach_weight = (
            alpha,
            gamma,
            beta,
            sigma,
            detach_weight,
        )

    def weight(self, prediction: Tensor, target: Tensor, region: Tensor | None = None) -> Tensor:
        """Compute the weight w (B, 1, N, H, W); see :func:`contrast_aware_weight`."""
        return contrast_aware_weight(
            prediction,
            target,
            region,
            alpha=self.alpha,
            gamma=self.gamma,
            beta=self.beta,
            sigma=self.sigma,
        )

    def forward(self, prediction: Tensor, target: Tensor, region: Tensor | None = None) -> Tensor:
        """Compute the loss, a scalar; see :func:`contrast_aware_loss`."""
        return contrast_aware_loss(
            prediction,
            target,
            region,
            alpha=self.alpha,
            gamma=self.gamma,
            beta=self.beta,
            sigma=self.sigma,
            detach_weight=self.detach_weight,
        )


def _power(base: Tensor, exponent: float) -> Tensor:
    """Compute base ** exponent for base >= 0, with gradient 0 at base = 0.

    The inner ``where`` keeps the infinite derivative out of the graph: multiplied by the 0 of the
    outer ``where`` it would give NaN.
    """
    zero = base == 0
    return torch.where(zero, 0.0**exponent, torch.where(zero, 1.0, base) ** exponent)


def _gaussian_blur(volume: Tensor, sigma: float) -> Tensor:
    """Convolve (B, 1, N, H, W) with a Gaussian of ``sigma`` voxels, truncated at 4 sigma.

    Values beyond the borders count as 0.
    """
    if volume.ndim != 5:
        raise ValueError(
            "Expected volumes of shape (B, 1, N, H, W) to smooth w with sigma > 0, got shape "
            f"{tuple(volume.shape)}."
        )
    radius = math.ceil(4 * sigma)
    offsets = torch.arange(-radius, radius + 1, dtype=volume.dtype, device=volume.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    # Under autocast the convolutions would run in half precision.
    with torch.autocast(volume.device.type, enabled=False):
        for axis in range(3):
            shape, padding = [1] * 5, [0] * 3
            shape[2 + axis], padding[axis] = kernel.numel(), radius
            volume = functional.conv3d(volume, kernel.view(shape), padding=padding)
    return volume


def _check_parameters(alpha: float, gamma: float, beta: float, sigma: float) -> None:
    if not (alpha > 0 and gamma >= 0 and beta > 0 and sigma >= 0):
        raise ValueError(
            "Expected alpha > 0, gamma >= 0, beta > 0 and sigma >= 0 (the paper: "
            f"0.5, 0.5, 5 and 0), got alpha = {alpha}, gamma = {gamma}, beta = {beta}, "
            f"sigma = {sigma}."
        )
