"""Losses of a Wasserstein GAN with gradient penalty (WGAN-GP; Gulrajani et al., 2017)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mpunet.losses.region import checked_floats

__all__ = ["critic_loss", "generator_loss", "gradient_penalty"]


def critic_loss(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """Compute the loss of the critic, E[fake] - E[real].

    This is the negative of the critic's estimate of the Wasserstein distance, if its gradient has
    norm 1.

    Args:
        real_scores: the critic's scores of true slices, (B,).
        fake_scores: the critic's scores of the network's slices, (B,).

    >>> critic_loss(torch.tensor([3.0, 5.0]), torch.tensor([1.0, 2.0]))
    tensor(-2.5000)
    """
    return fake_scores.mean() - real_scores.mean()


def generator_loss(fake_scores: Tensor) -> Tensor:
    """Compute the adversarial loss of the network, -E[fake], from scores (B,).

    >>> generator_loss(torch.tensor([1.0, 2.0]))
    tensor(-1.5000)
    """
    return -fake_scores.mean()


def gradient_penalty(
    critic: Callable[[Tensor], Tensor],
    real: Tensor,
    fake: Tensor,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Compute the gradient penalty: the mean over samples of (||critic'(x)||_2 - 1)^2.

    x = e * real + (1 - e) * fake, with e uniform in [0, 1] for each sample. Computed in float32
    (float64 for float64 input) without autocast, because second derivatives in half precision are
    not reliable.

    Args:
        critic: function from (B, ...) to scores (B,); a score must depend on its own sample only.
        real: true slices, (B, 1, N, h, w), intensity in [0, 1].
        fake: the network's slices, of the same shape and unit; they receive no gradient.
        generator: random generator for e, on any device. Default: the global generator of the
            device of the images.

    Returns:
        Scalar, differentiable with respect to the critic's parameters.

    Raises:
        ValueError: if the shapes differ.

    >>> image = torch.rand(2, 1, 3, 4, 4)
    >>> gradient_penalty(lambda x: 3 * x[:, 0, 0, 0, 0], image, image)  # gradient 3 in one voxel
    tensor(4.)
    """
    real, fake = checked_floats(real, fake, names=("real", "fake"))
    device = real.device if generator is None else generator.device
    e = torch.rand(
        len(real), *[1] * (real.ndim - 1), dtype=real.dtype, device=device, generator=generator
    ).to(real.device)
    mixed = (e * real + (1 - e) * fake).detach().requires_grad_()
    with torch.autocast(real.device.type, enabled=False):
        (gradient,) = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
    norm: Tensor = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    return (norm - 1).square().mean()
