"""Training of the WGAN-GP critic; the training loop of the network is elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mpunet.losses import critic_loss, generator_loss, gradient_penalty

__all__ = ["CriticTraining"]


class CriticTraining:
    """Update a critic and compute the adversarial loss of the network.

    The critic's parameters require gradients only within :meth:`step`. Therefore the network's
    backward pass does not compute them, and DistributedDataParallel does not wait for them (it
    expects a gradient of every parameter that requires one). This class averages the critic's
    gradients over ranks itself. All computations are in float32 without autocast, so no loss
    scaling is needed.

    From WGAN-GP: the losses, Adam with betas (0, 0.9), the penalty weight of 10 and the learning
    rate of 1e-4. Our choice: one critic update per network update instead of 5, and several updates
    use the same batch instead of one each, because the network's forward pass dominates the cost.

    Args:
        critic: maps images (B, 1, N, h, w) to scores (B,). Its parameters are frozen except within
            :meth:`step`.
        weight: weight of the adversarial loss in the network's objective, at least 0.
        penalty: weight of the gradient penalty in the critic's loss, at least 0.
        steps: number of critic updates per batch, at least 1.
        lr: learning rate of Adam, above 0; it is constant.

    Attributes:
        optimizer: the Adam optimiser of the critic.

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(
        self,
        critic: nn.Module,
        *,
        weight: float = 1e-3,
        penalty: float = 10.0,
        steps: int = 1,
        lr: float = 1e-4,
    ) -> None:
        if not (weight >= 0 and penalty >= 0 and steps >= 1 and lr > 0):
            raise ValueError(
                "Expected adversarial and gradient_penalty of at least 0, critic_steps of at least "
                f"1 and critic_lr above 0, got {weight}, {penalty}, {steps} and {lr}."
            )
        self.critic = critic.requires_grad_(False)
        self.weight = weight
        self.penalty = penalty
        self.steps = steps
        self.lr = lr
        self.start()

    def start(self, state: dict[str, Any] | None = None) -> None:
        """Create the optimiser, with the given state if any; the critic must be on its device."""
        self.optimizer = torch.optim.Adam(self.critic.parameters(), lr=self.lr, betas=(0.0, 0.9))
        if state is not None:
            self.optimizer.load_state_dict(state)

    def step(
        self,
        real: Tensor,
        fake: Tensor,
        *,
        generator: torch.Generator | None = None,
        mean_over_ranks: Callable[[Tensor], Tensor] = lambda values: values,
    ) -> dict[str, Tensor]:
        """Update the critic on a batch.

        Args:
            real: true slices, (B, 1, N, h, w), intensities in [0, 1].
            fake: the network's slices, with the same shape and unit; they get no gradient.
            generator: random generator for the interpolation of the penalty; see
                :func:`~mpunet.losses.gradient_penalty`.
            mean_over_ranks: averages a vector over processes.

        Returns:
            Scalars of the last update: the loss "critic" and the gradient penalty "penalty" without
            its weight.
        """
        self.critic.requires_grad_(True)
        parameters = list(self.critic.parameters())
        fake = fake.detach()
        for _ in range(self.steps):
            loss = critic_loss(self._score(real), self._score(fake))
            penalty = gradient_penalty(self._score, real, fake, generator=generator)
            gradients = torch.autograd.grad(loss + self.penalty * penalty, parameters)
            flat = mean_over_ranks(torch.cat([gradient.flatten() for gradient in gradients]))
            # Skip the update if an image overflowed in float16, as the network's optimiser does:
            # it would destroy the critic's weights.
            if flat.isfinite().all():
                for parameter, gradient in zip(
                    parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True
                ):
                    parameter.grad = gradient.view_as(parameter)
                self.optimizer.step()
        self.optimizer.zero_grad()
        self.critic.requires_grad_(False)
        return {"critic": loss.detach(), "penalty": penalty.detach()}

    def generator_loss(self, fake: Tensor) -> Tensor:
        """Return the adversarial loss of the network: minus the mean score of (B, 1, N, h, w)."""
        return generator_loss(self._score(fake))

    def _score(self, image: Tensor) -> Tensor:
        with torch.autocast(image.device.type, enabled=False):
            scores: Tensor = self.critic(image.to(next(self.critic.parameters()).dtype))
        return scores
