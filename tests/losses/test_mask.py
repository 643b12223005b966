"""Cross entropy of the lung mask."""

from __future__ import annotations

import math

import pytest
import torch

from mpunet.losses import MaskCrossEntropy, mask_cross_entropy

SHAPE = (1, 1, 2, 3, 4)


def test_literal() -> None:
    # Odds 3 : 1 for lung, once right and once wrong: -(ln 3/4 + ln 1/4) / 2.
    logits = torch.full((1, 1, 1, 1, 2), math.log(3.0))
    lung = torch.tensor([1.0, 0.0]).view(1, 1, 1, 1, 2)
    expected = -(math.log(0.75) + math.log(0.25)) / 2
    assert mask_cross_entropy(logits, lung).item() == pytest.approx(expected)
    assert MaskCrossEntropy()(logits, lung.bool()).item() == pytest.approx(expected)


def test_closed_form() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(SHAPE, dtype=torch.float64, generator=generator)
    lung = (torch.rand(SHAPE, generator=generator) > 0.5).double()
    p = torch.sigmoid(logits)
    expected = -(lung * p.log() + (1 - lung) * (1 - p).log()).mean()
    assert mask_cross_entropy(logits, lung).item() == pytest.approx(expected.item(), rel=1e-12)


def test_limits_certain_and_right_or_wrong() -> None:
    lung = torch.zeros(SHAPE)  # an empty mask is a mask like another
    assert mask_cross_entropy(torch.full(SHAPE, -200.0), lung).item() == 0
    assert (
        mask_cross_entropy(torch.full(SHAPE, 200.0), lung).item() == 200
    )  # finite, where log(1 - sigmoid) would be -inf


def test_gradcheck() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(SHAPE, dtype=torch.float64, generator=generator, requires_grad=True)
    lung = torch.rand(SHAPE, generator=generator) > 0.5
    assert torch.autograd.gradcheck(mask_cross_entropy, (logits, lung))


def test_half_precision_logits_are_taken_in_float32() -> None:
    logits = torch.full(SHAPE, 1.5, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = mask_cross_entropy(logits, torch.ones(SHAPE))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1.5)), rel=1e-6)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"logits and lung of one shape"):
        mask_cross_entropy(torch.zeros(SHAPE), torch.zeros(1, 1, 2, 3, 1))
