"""L1 over a region."""

from __future__ import annotations

import pytest
import torch

from mpunet.losses import RegionL1, region_l1

SHAPE = (2, 1, 3, 4, 5)


def test_literal_over_all_voxels_of_the_crop() -> None:
    prediction = torch.tensor([0.5, 0.9, 0.1, 0.0]).view(1, 1, 1, 2, 2)
    target = torch.tensor([0.3, 0.0, 0.2, 0.0]).view(1, 1, 1, 2, 2)
    region = torch.tensor([1, 0, 1, 1]).view(1, 1, 1, 2, 2)
    expected = (0.2 + 0.1 + 0.0) / 4  # 4 voxels in the crop, not the 3 of the region
    assert region_l1(prediction, target, region).item() == pytest.approx(expected)
    assert RegionL1()(prediction, target, region.bool()).item() == pytest.approx(expected)
    assert region_l1(prediction, target).item() == pytest.approx((0.2 + 0.9 + 0.1) / 4)


def test_a_region_and_its_complement_add_up_to_the_whole() -> None:
    prediction, target = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    lung = (target > 0.5).float()
    parts = region_l1(prediction, target, lung) + region_l1(prediction, target, 1 - lung)
    assert parts.item() == pytest.approx(
        torch.nn.functional.l1_loss(prediction, target).item(), rel=1e-6
    )


def test_limits_perfect_input_and_empty_region() -> None:
    prediction = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert region_l1(prediction, prediction.detach()).item() == 0
    loss = region_l1(prediction, torch.zeros(SHAPE), torch.zeros(SHAPE))
    assert loss.item() == 0
    assert torch.equal(torch.autograd.grad(loss, prediction)[0], torch.zeros(SHAPE))


def test_gradcheck() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction = torch.rand(SHAPE, dtype=torch.float64, generator=generator, requires_grad=True)
    target, region = torch.rand(2, *SHAPE, dtype=torch.float64, generator=generator)
    assert torch.autograd.gradcheck(region_l1, (prediction, target, region > 0.5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_averaged_in_float32(dtype: torch.dtype) -> None:
    # 2**20 float16 ones overflow if summed in float16, and bfloat16 cannot count past 256.
    ones = torch.ones(1, 1, 4, 512, 512, dtype=dtype)
    loss = region_l1(ones, torch.zeros_like(ones), ones)
    assert loss.dtype == torch.float32
    assert loss.item() == 1


def test_nothing_is_broadcast() -> None:
    with pytest.raises(
        ValueError,
        match=r"prediction and target of one shape.*\(2, 1, 3, 4, 5\) and \(2, 1, 1, 4, 5\)",
    ):
        region_l1(torch.zeros(SHAPE), torch.zeros(2, 1, 1, 4, 5))
    with pytest.raises(ValueError, match=r"values and region of one shape"):
        region_l1(torch.zeros(SHAPE), torch.zeros(SHAPE), torch.ones(1, 1, 3, 4, 5))
