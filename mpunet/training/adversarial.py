"""Training of the WGAN-GP critic, beside a network that somebody else's loop trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mpunet.losses import critic_loss, generator_loss, gradient_penalty

__all__ = ["CriticTraining"]


class CriticTraining:
    """Steps a critic by hand and hands the network its adversarial loss.

    The critic's parameters need gradients only within :meth:`step`. So the network's backward pass does not fill them, and
    DistributedDataParallel, which must see every parameter that needs one in each backward pass, never waits for them: the
    critic's gradients are averaged over ranks here. All is done in float32 outside of autocast, so that no step needs a scaled loss.

    From WGAN-GP: the losses, Adam with betas (0, 0.9), the penalty's weight of 10 and the rate of 1e-4. Ours: one step for each of
    the network's, not 5, and several on the same batch, not on one each, as the network's forward pass is what costs.

    Args:
        critic: (B, 1, N, h, w) to scores (B,); its parameters are frozen but within :meth:`step`.
        weight: of the adversarial loss in the network's objective, at least 0.
        penalty: weight of the gradient penalty in the critic's, at least 0.
        steps: the critic's updates for each batch, at least 1.
        lr: Adam's learning rate, above 0; it stays as it is.

    Attributes:
        optimizer: the critic's Adam.

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
                "Expected adversarial and gradient_penalty of at least 0, critic_steps of at least 1 and critic_lr above 0, "
                f"got {weight}, {penalty}, {steps} and {lr}."
            )
        self.critic = critic.requires_grad_(False)
        self.weight = weight
        self.penalty = penalty
        self.steps = steps
        self.lr = lr
        self.start()

    def start(self, state: dict[str, Any] | None = None) -> None:
        """Begin with a new optimiser, or with one of this state; the critic is on its device by now."""
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
            real: true slices, (B, 1, N, h, w), intensity in [0, 1].
            fake: the network's slices, likewise; no gradient reaches them.
            generator: draws the penalty's interpolation; see :func:`~mpunet.losses.gradient_penalty`.
            mean_over_ranks: averages a vector over processes.

        Returns:
            The last update's "critic" loss and gradient "penalty" before its weight, scalars.
        """
        self.critic.requires_grad_(True)
        parameters = list(self.critic.parameters())
        fake = fake.detach()
        for _ in range(self.steps):
            loss = critic_loss(self._score(real), self._score(fake))
            penalty = gradient_penalty(self._score, real, fake, generator=generator)
            gradients = torch.autograd.grad(loss + self.penalty * penalty, parameters)
            flat = mean_over_ranks(torch.cat([gradient.flatten() for gradient in gradients]))
            # One image that float16 overflowed in would spoil the critic for good; the network skips such a step too.
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
        """What the network minimises: minus the mean score of its slices (B, 1, N, h, w)."""
        return generator_loss(self._score(fake))

    def _score(self, image: Tensor) -> Tensor:
        with torch.autocast(image.device.type, enabled=False):
            scores: Tensor = self.critic(image.to(next(self.critic.parameters()).dtype))
        return scores
