"""The composition formula by literals, and which streams make which output."""

import pytest
import torch

from mpunet.models import MultiStreamHead, compose

SUBSETS = [("mask", "inner", "outer"), ("inner",), ("outer",), ("mask", "inner"), ("mask", "outer")]


def test_composition_literal():
    # sigmoid: 0 -> 1/2, log 3 -> 3/4, -log 3 -> 1/4, +-100 -> 1 and 0.
    logits = torch.tensor([0.0, 1.0986122887, -1.0986122887, 100.0, -100.0])
    inner, outer = torch.full((5,), 0.2), torch.full((5,), 0.6)
    torch.testing.assert_close(
        compose(logits, inner, outer), torch.tensor([0.4, 0.3, 0.5, 0.2, 0.6])
    )


def test_composition_has_a_gradient_for_each_stream():
    streams = [
        torch.randn(2, 1, 3, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(3)
    ]
    assert torch.autograd.gradcheck(compose, streams)


@pytest.mark.parametrize("streams", SUBSETS)
@pytest.mark.parametrize("residual", [False, True])
def test_outputs_of_the_streams(streams, residual):
    torch.manual_seed(0)
    head = MultiStreamHead(3, streams=streams, hidden=4)
    features, base = torch.rand(2, 3, 5, 6, 7), torch.rand(2, 1, 5, 6, 7)
    out = head(features, base if residual else None)
    found = {"mask": out.mask_logits, "inner": out.inner, "outer": out.outer}
    assert (
        {name for name, stream in found.items() if stream is not None}
        == set(streams)
        == set(head.branches)
    )
    for name in streams:
        expected = head.branches[name](features) + (base if residual and name != "mask" else 0)
        torch.testing.assert_close(found[name], expected)
    if len(streams) == 3:
        mask = out.mask_logits.sigmoid()
        torch.testing.assert_close(out.image, mask * out.inner + (1 - mask) * out.outer)
    else:
        assert out.image is found[streams[-1]]


def test_order_of_streams_does_not_matter():
    names = [
        list(MultiStreamHead(2, streams=s).state_dict())
        for s in (("mask", "inner", "outer"), ("outer", "inner", "mask"))
    ]
    assert names[0] == names[1]


def test_last_layers_begin_near_zero():
    torch.manual_seed(0)
    for branch in MultiStreamHead(32).branches.values():
        assert 0 < branch[-1].weight.abs().max() < 6e-3
        assert branch[-1].bias.abs().max() == 0


@pytest.mark.parametrize("streams", [("mask",), ("inner", "outer"), (), ("lung", "inner", "outer")])
def test_refused(streams):
    with pytest.raises(
        ValueError,
        match=r"Expected streams mask [+] inner [+] outer, "
        r"or inner or outer alone or with mask, got",
    ):
        MultiStreamHead(2, streams=streams)
