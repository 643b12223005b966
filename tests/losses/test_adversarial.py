"""WGAN-GP: closed forms for linear and quadratic critics, derivative, half precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mpunet.losses import critic_loss, generator_loss, gradient_penalty

SHAPE = (3, 1, 2, 3, 4)


def images(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    real, fake = torch.rand(2, *SHAPE, dtype=dtype, generator=torch.Generator().manual_seed(0))
    return real, fake


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_losses_by_hand() -> None:
    real, fake = torch.tensor([1.0, 4.0]), torch.tensor([2.0, 0.0, 1.0])
    assert critic_loss(real, fake).item() == 1.0 - 2.5
    assert generator_loss(fake).item() == -1.0


@pytest.mark.parametrize("scale", [0.1, 1.0, 7.0])
def test_linear_critic_has_the_closed_form(scale: float) -> None:
    """f(x) = <a, x>: the gradient is a everywhere.

    So the penalty is (|a| - 1)^2 and its derivative 2 (|a| - 1) a / |a|.
    """
    real, fake = images()
    a = torch.randn(SHAPE[1:], dtype=torch.float64, generator=seeded())
    a = (scale * a / a.norm()).requires_grad_()
    penalty = gradient_penalty(lambda x: (a * x).flatten(1).sum(1), real, fake)
    assert penalty.item() == pytest.approx((scale - 1) ** 2, abs=1e-12)
    (gradient,) = torch.autograd.grad(penalty, a)
    torch.testing.assert_close(
        gradient, 2 * (scale - 1) * a.detach() / scale, rtol=1e-10, atol=1e-12
    )


def test_interpolation_is_uniform_and_one_for_each_sample() -> None:
    """f(x) = |x|^2 / 2 has the gradient x: the penalty shows where it was taken."""
    real, fake = torch.ones(4000, 1, 1, 1, 2), torch.zeros(4000, 1, 1, 1, 2)
    taken: list[Tensor] = []

    def critic(x: Tensor) -> Tensor:
        taken.append(x.detach())
        return x.square().flatten(1).sum(1) / 2

    penalty = gradient_penalty(critic, real, fake, generator=seeded())
    e = taken[0].flatten(1)
    torch.testing.assert_close(e[:, 0], e[:, 1])
    assert penalty.item() == pytest.approx((e.norm(dim=1) - 1).square().mean().item(), rel=1e-5)
    quantiles = torch.quantile(e[:, 0], torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
    torch.testing.assert_close(
        quantiles, torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]), rtol=0, atol=0.03
    )
    gradient_penalty(critic, real, fake, generator=seeded())
    torch.testing.assert_close(taken[1], taken[0], rtol=0, atol=0)
    gradient_penalty(
        critic, real + 1, fake + 1, generator=seeded()
    )  # between both, not only a share of the real one
    torch.testing.assert_close(taken[2], taken[0] + 1)


def test_mean_over_samples_each_with_its_own_norm() -> None:
    slope = torch.tensor([1.0, 3.0, 0.0])
    real, fake = torch.rand(2, 3, 1, 1, 1, 1)
    penalty = gradient_penalty(lambda x: slope * x.flatten(), real, fake)
    assert penalty.item() == pytest.approx((0 + 4 + 1) / 3, rel=1e-6)


def test_a_flat_critic_has_a_finite_gradient() -> None:
    a = torch.zeros(SHAPE[1:], requires_grad=True)
    penalty = gradient_penalty(lambda x: (a * x).flatten(1).sum(1), *images(torch.float32))
    assert penalty.item() == 1
    assert torch.autograd.grad(penalty, a)[0].isfinite().all()


def test_gradcheck_of_the_second_derivative() -> None:
    torch.manual_seed(0)
    critic = nn.Sequential(
        nn.Conv3d(1, 2, 2), nn.Softplus(), nn.Flatten(), nn.Linear(12, 1)
    ).double()
    real, fake = images()
    weight = critic[0].weight.detach().clone().requires_grad_()

    def penalty(weight: Tensor) -> Tensor:
        def scores(x: Tensor) -> Tensor:
            return torch.func.functional_call(critic, {"0.weight": weight}, (x,))

        return gradient_penalty(scores, real, fake, generator=seeded())

    assert torch.autograd.gradcheck(penalty, (weight,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Conv3d(1, 4, 2), nn.LeakyReLU(), nn.Flatten(), nn.Linear(24, 1))
    real, fake = images(torch.float32)
    plain = gradient_penalty(critic, real, fake.to(dtype), generator=seeded())
    with torch.autocast("cpu", dtype=dtype):
        cast = gradient_penalty(critic, real, fake.to(dtype), generator=seeded())
    assert cast.dtype == torch.float32
    torch.testing.assert_close(cast, plain, rtol=0, atol=0)


def test_no_gradient_reaches_the_images() -> None:
    real, fake = (image.requires_grad_() for image in images())
    a = torch.ones(SHAPE[1:], dtype=torch.float64, requires_grad=True)
    penalty = gradient_penalty(lambda x: (a * x.square()).flatten(1).sum(1), real, fake)
    assert torch.autograd.grad(penalty, (real, fake), allow_unused=True, retain_graph=True) == (
        None,
        None,
    )
    assert torch.autograd.grad(penalty, a)[0].abs().sum() > 0


def test_refused() -> None:
    with pytest.raises(
        ValueError, match=r"real and fake of one shape.*\(3, 1, 2, 3, 4\) and \(1, 1, 2, 3, 4\)"
    ):
        gradient_penalty(lambda x: x.flatten(1).sum(1), images()[0], images()[1][:1])
