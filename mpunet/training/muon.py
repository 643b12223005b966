"""The optimiser Muon for convolutional networks.

Muon updates a kernel by the orthogonal matrix that is nearest to its momentum, so that all
directions of a layer change at the same rate. Source: Jordan et al., "Muon: an optimizer for hidden
layers in neural networks", 2024. The step size, 0.2 * sqrt(larger side), is from Liu et al., "Muon
is scalable for LLM training", arXiv 2502.16982; it makes a step as large as one of AdamW.

``torch.optim.Muon`` supports only matrices. Here a convolution kernel is reshaped to a matrix:
output channels by (input channels x kernel size).

Muon needs a strong weight decay (1.0, not 0.01). Its steps do not shrink with the gradient, so
noise accumulates in directions that the training data hardly use, and the network becomes wrong on
other kinds of input (docs/choices.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor

__all__ = ["Muon", "orthogonalised"]


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """Return approximately U Vᵀ for a matrix U S Vᵀ, by the quintic Newton-Schulz iteration.

    The singular values of the result are 0.7 to 1.2, except those that are near 0 in the input.

    Args:
        matrix: (rows, columns), floating point.
        steps: number of iterations.

    >>> orthogonalised(torch.diag(torch.tensor([3.0, 1.0]))).diagonal().gt(0.6)
    tensor([True, True])
    """
    x: Tensor = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp_min(1e-30)
    # Each iteration multiplies x by a polynomial in x xᵀ. Collecting these factors first keeps all
    # products except the first and the last at the size of the smaller side.
    gram = x @ x.T
    product = identity = torch.eye(len(x), dtype=x.dtype, device=x.device)
    for _ in range(steps):
        factor = 3.4445 * identity - 4.7750 * gram + 2.0315 * gram @ gram
        product = factor @ product
        gram = factor @ gram @ factor
    x = product @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Muon(torch.optim.Optimizer):
    """Update kernels with Muon and all other parameters with AdamW.

    Muon is used for kernels with several input and output channels. AdamW is used for biases,
    normalisation parameters and kernels with a single input or output channel.

    Args:
        params: parameters of a network.
        lr: learning rate of AdamW.
        muon_lr: learning rate of Muon. At the same learning rate, its steps are as large as those
            of AdamW.
        momentum: Nesterov momentum of Muon.
        betas: betas of AdamW.
        eps: epsilon of AdamW.
        weight_decay: weight decay of both; it is multiplied by the learning rate.

    Raises:
        ValueError: if a learning rate, the momentum or a beta is out of its range.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        lr: float = 1e-3,
        muon_lr: float = 2e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 1.0,
    ) -> None:
        if not (lr >= 0 and muon_lr >= 0 and weight_decay >= 0):
            raise ValueError(
                f"Expected lr, muon_lr and weight_decay of at least 0, got {lr}, {muon_lr} and "
                f"{weight_decay}."
            )
        if not all(0 <= value < 1 for value in (momentum, *betas)):
            raise ValueError(
                f"Expected momentum and betas from 0 to below 1, got {momentum} and {tuple(betas)}."
            )
        kernels: list[Tensor] = []
        others: list[Tensor] = []
        for parameter in params:
            (kernels if parameter.ndim >= 2 and min(parameter.shape[:2]) > 1 else others).append(
                parameter
            )
        groups = [
            {"params": kernels, "lr": muon_lr, "momentum": momentum},
            {"params": others, "lr": lr, "betas": tuple(betas), "eps": eps},
        ]
        super().__init__(
            [group for group in groups if group["params"]], {"weight_decay": weight_decay}
        )

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update the parameters once; return the loss of the closure, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    (_muon if "momentum" in group else _adam)(
                        parameter, parameter.grad, self.state[parameter], group
                    )
        return loss


def _muon(
    parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]
) -> None:
    if not state:
        state["momentum"] = torch.zeros_like(parameter)
    momentum = state["momentum"].mul_(group["momentum"]).add_(gradient)
    update = momentum.mul(group["momentum"]).add_(gradient).flatten(1)
    scale = 0.2 * math.sqrt(max(update.shape))
    parameter.add_(orthogonalised(update).view(parameter.shape), alpha=-group["lr"] * scale)


def _adam(
    parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]
) -> None:
    if not state:
        state.update(step=0, mean=torch.zeros_like(parameter), square=torch.zeros_like(parameter))
    beta1, beta2 = group["betas"]
    state["step"] += 1
    mean = state["mean"].lerp_(gradient, 1 - beta1)
    square = state["square"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    root = (square / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
    parameter.addcdiv_(mean, root, value=-group["lr"] / (1 - beta1 ** state["step"]))
