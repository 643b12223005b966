"""Contrast-aware loss, Eq. 2."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from mpunet.losses import ContrastAware, contrast_aware_loss, contrast_aware_weight, region_l1

SHAPE = (1, 1, 4, 5, 6)


def random_pair(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Prediction, target and a {0, 1} region in float64.

    Errors are at least 0.01, so that finite differences are accurate.
    """
    generator = torch.Generator().manual_seed(seed)
    target, size, sign, region = torch.rand(4, *SHAPE, dtype=torch.float64, generator=generator)
    return target + (0.01 + 0.3 * size) * (sign - 0.5).sign(), target, (region > 0.4).double()


def test_literals() -> None:
    # 0.04 / (0.5 + 0.5) = 0.04, root 0.2, times 5 = 1.
    # 0.16 / (0.14 + 0.5) = 0.25, root 0.5, times 5 = 2.5.
    prediction = torch.tensor([0.54, 0.30, 0.7]).view(1, 1, 1, 1, 3)
    target = torch.tensor([0.50, 0.14, 0.7]).view(1, 1, 1, 1, 3)
    torch.testing.assert_close(
        contrast_aware_weight(prediction, target).flatten(), torch.tensor([1.0, 2.5, 0.0])
    )
    assert contrast_aware_loss(prediction, target).item() == pytest.approx(
        (0.04 * 1 + 0.16 * 2.5) / 3, rel=1e-5
    )
    second_only = torch.tensor([False, True, False]).view(1, 1, 1, 1, 3)
    assert contrast_aware_loss(prediction, target, second_only).item() == pytest.approx(
        0.16 * 2.5 / 3, rel=1e-5
    )


def test_closed_form_with_other_parameters() -> None:
    prediction, target, region = random_pair()
    parameters: dict[str, Any] = {"alpha": 0.2, "gamma": 0.8, "beta": 3.0}
    error = np.abs(prediction.numpy() - target.numpy())
    weight = (error / (target.numpy() + 0.2)) ** 0.8 * 3.0
    np.testing.assert_allclose(
        contrast_aware_weight(prediction, target, **parameters).numpy(), weight, rtol=1e-12
    )
    expected = (region.numpy() * error * weight).sum() / error.size
    assert contrast_aware_loss(prediction, target, region, **parameters).item() == pytest.approx(
        expected, rel=1e-12
    )
    module = ContrastAware(alpha=0.2, gamma=0.8, beta=3.0)
    assert module(prediction, target, region).item() == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(module.weight(prediction, target).numpy(), weight, rtol=1e-12)


def test_gamma_zero_is_beta_times_l1_even_where_the_error_is_zero() -> None:
    prediction, target, region = random_pair()
    prediction[..., 0] = target[..., 0]
    assert torch.equal(
        contrast_aware_weight(prediction, target, gamma=0.0),
        torch.full(SHAPE, 5.0, dtype=torch.float64),
    )
    loss = contrast_aware_loss(prediction, target, region, gamma=0.0)
    assert loss.item() == pytest.approx(5 * region_l1(prediction, target, region).item(), rel=1e-12)


@pytest.mark.parametrize("sigma", [0.0, 0.8])
def test_gradcheck_in_prediction_and_target(sigma: float) -> None:
    prediction, target, region = random_pair()

    def loss(p: Tensor, t: Tensor) -> Tensor:
        return contrast_aware_loss(p, t, region, sigma=sigma)

    def weight(p: Tensor, t: Tensor) -> Tensor:
        return contrast_aware_weight(p, t, region, sigma=sigma)

    inputs = (prediction.requires_grad_(), target.requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradcheck(weight, inputs)


def test_gradient_is_zero_at_zero_error_and_right_beside_it() -> None:
    target = torch.full((1, 1, 1, 1, 3), 0.5)
    prediction = (target + torch.tensor([0.0, 0.04, 0.0])).requires_grad_()
    (gradient,) = torch.autograd.grad(contrast_aware_loss(prediction, target), prediction)
    # d/de of 5 e**1.5 / 3 = 7.5 e**0.5 / 3
    torch.testing.assert_close(
        gradient.flatten(), torch.tensor([0.0, 7.5 * 0.2 / 3, 0.0]), rtol=1e-5, atol=0
    )
    (gradient,) = torch.autograd.grad(contrast_aware_weight(prediction, target).sum(), prediction)
    # d/de of 5 e**0.5 = 2.5 / e**0.5, infinite at 0
    torch.testing.assert_close(
        gradient.flatten(), torch.tensor([0.0, 12.5, 0.0]), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("sigma", [0.0, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 1.0, 2.0])
def test_perfect_prediction_costs_nothing_and_pulls_nowhere(gamma: float, sigma: float) -> None:
    target = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))
    prediction = target.clone().requires_grad_()
    loss = contrast_aware_loss(prediction, target, gamma=gamma, sigma=sigma)
    assert loss.item() == 0
    assert torch.equal(torch.autograd.grad(loss, prediction)[0], torch.zeros(SHAPE))


def test_detached_weight_scales_the_gradient_by_one_over_one_plus_gamma() -> None:
    prediction, target, region = random_pair()
    prediction.requires_grad_()
    gradients = []
    for detach in (False, True):
        loss = contrast_aware_loss(prediction, target, region, gamma=0.25, detach_weight=detach)
        gradients.append(torch.autograd.grad(loss, prediction)[0])
    torch.testing.assert_close(gradients[0], 1.25 * gradients[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("sigma", [0.5, 1.7])
def test_smoothing_agrees_with_scipy_and_keeps_constants(sigma: float) -> None:
    prediction, target, region = random_pair()
    raw = contrast_aware_weight(prediction, target).numpy()[0, 0]

    def blur(volume: Any) -> Any:
        return gaussian_filter(volume, sigma, mode="constant", radius=int(np.ceil(4 * sigma)))

    smooth = contrast_aware_weight(prediction, target, sigma=sigma).numpy()[0, 0]
    np.testing.assert_allclose(smooth, blur(raw) / blur(np.ones_like(raw)), rtol=1e-10)
    inside = region.numpy()[0, 0]
    masked = contrast_aware_weight(prediction, target, region, sigma=sigma).numpy()[0, 0]
    np.testing.assert_allclose(masked, inside * blur(raw * inside) / blur(inside), rtol=1e-10)

    constant = contrast_aware_weight(target + 0.04 * (target + 0.5), target, region, sigma=sigma)
    torch.testing.assert_close(
        constant, region, rtol=1e-10, atol=1e-12
    )  # 0.04 ** 0.5 * 5 = 1 in the region, 0 outside


def test_what_a_stream_returns_outside_its_region_has_no_influence() -> None:
    prediction, target, region = random_pair()
    garbage = torch.where(region > 0, prediction, prediction + 1e6).requires_grad_()
    expected = contrast_aware_loss(prediction, target, region, sigma=1.0)
    loss = contrast_aware_loss(garbage, target, region, sigma=1.0)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(loss, garbage)
    assert (gradient[region == 0] == 0).all()
    assert (gradient[region > 0] != 0).all()


def test_empty_region_costs_nothing() -> None:
    prediction, target, _ = random_pair()
    assert contrast_aware_loss(prediction, target, torch.zeros(SHAPE), sigma=1.0).item() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_float32(dtype: torch.dtype) -> None:
    prediction, target, region = (tensor.to(dtype) for tensor in random_pair())
    with torch.autocast("cpu", dtype):
        loss = contrast_aware_loss(prediction, target, region, sigma=1.0)
    assert loss.dtype == torch.float32
    exact = contrast_aware_loss(prediction.double(), target.double(), region.double(), sigma=1.0)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)


@pytest.mark.parametrize(
    "bad",
    [{"alpha": 0.0}, {"gamma": -0.1}, {"beta": 0.0}, {"sigma": -1.0}, {"alpha": float("nan")}],
)
def test_parameters_out_of_range(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"alpha > 0, gamma >= 0.*{next(iter(bad))} = "):
        ContrastAware(**bad)
    with pytest.raises(ValueError, match="Expected alpha > 0"):
        contrast_aware_weight(torch.zeros(SHAPE), torch.zeros(SHAPE), **bad)


def test_smoothing_needs_volumes() -> None:
    with pytest.raises(ValueError, match=r"\(B, 1, N, H, W\) to smooth w"):
        contrast_aware_weight(torch.zeros(4, 4), torch.zeros(4, 4), sigma=1.0)
