"""The optimiser of the network and its learning rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from mpunet.training.muon import Muon

__all__ = ["lr_factor", "make_optimizer"]


def make_optimizer(
    parameters: Iterable[nn.Parameter],
    *,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    muon_lr: float | None,
) -> torch.optim.Optimizer:
    """Create AdamW, or :class:`~mpunet.training.muon.Muon` if ``muon_lr`` is given.

    Args:
        parameters: parameters to optimise.
        lr: learning rate of AdamW.
        betas: betas of AdamW.
        weight_decay: weight decay of the optimiser.
        muon_lr: learning rate of Muon for the kernels.
    """
    options: dict[str, Any] = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
    if muon_lr is None:
        return torch.optim.AdamW(parameters, **options)
    return Muon(parameters, muon_lr=muon_lr, **options)


def lr_factor(step: int, total: float, *, warmup_steps: int, floor: float) -> float:
    """Return the factor of the learning rate for linear warm-up and cosine decay.

    Args:
        step: number of finished training steps.
        total: number of training steps; without an end (infinity) there is no decay.
        warmup_steps: number of steps of the warm-up.
        floor: factor at the end of the decay.

    >>> [lr_factor(step, 6, warmup_steps=2, floor=0.0) for step in (0, 1, 2, 4, 6)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if math.isinf(total):
        return 1.0
    progress = min(1.0, (step - warmup_steps) / max(1, total - warmup_steps))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
