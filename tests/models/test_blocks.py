"""Layers: preserved shapes, slice positions of a deconvolution, and size of initial activations."""

import itertools

import pytest
import torch
from torch import nn

from mpunet.models import ConvBlock, ConvLayer, DepthDeconv
from mpunet.models.blocks import make_activation, make_norm
from mpunet.models.schedule import DepthStep, plan_depths


@pytest.mark.parametrize(
    ("kernel", "stride"), [((3, 3, 3), (1, 1, 1)), ((1, 5, 3), (1, 1, 1)), ((3, 2, 2), (2, 2, 2))]
)
def test_conv_layer_divides_by_its_stride(kernel, stride):
    out = ConvLayer(2, 3, kernel=kernel, stride=stride)(torch.rand(1, 2, 6, 8, 10))
    assert out.shape == (1, 3, *(size // s for size, s in zip((6, 8, 10), stride, strict=True)))


def test_groups_are_the_largest_divisor_up_to_8():
    assert [make_norm("group", channels).num_groups for channels in (16, 12, 10, 7, 11, 1)] == [
        8,
        6,
        5,
        7,
        1,
        1,
    ]


def test_biases_stand_where_no_norm_removes_them():
    for norm, bias in (("none", True), ("group", True), ("instance", False), ("batch", False)):
        assert (ConvLayer(1, 2, norm=norm)[0].bias is not None) == bias
        assert (DepthDeconv(1, 2, DepthStep(2, 3, 2), norm=norm).deconv.bias is not None) == bias


def test_a_block_without_weights_is_the_identity():
    block = ConvBlock(2, layers=3)
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    x = torch.rand(1, 2, 3, 4, 5)
    torch.testing.assert_close(block(x), x, rtol=0, atol=0)
    assert sum(isinstance(m, nn.Conv3d) for m in block.modules()) == 3


@pytest.mark.parametrize(
    ("n_thick", "ratio"), [(8, 5), (4, 5), (8, 4), (6, 3), (5, 2), (2, 8), (16, 7)]
)
@pytest.mark.parametrize("in_plane", [1, 2])
def test_deconvolution_keeps_positions(n_thick, ratio, in_plane):
    """With weights of linear interpolation, every step of a plan maps a ramp to the exact ramp."""
    plan = plan_depths(n_thick, ratio)
    for step in {*plan.up, *plan.shortcuts}:
        layer = DepthDeconv(1, 1, step, in_plane=in_plane, activation="relu")
        taps = torch.arange(step.kernel) - step.kernel // 2
        layer.deconv.weight.data[:] = (1 - taps.abs() / step.stride).clamp(min=0)[:, None, None]
        ramp = torch.arange(step.in_depth, dtype=torch.float32)[:, None, None].expand(-1, 2, 3)
        out = layer(ramp[None, None])
        assert out.shape == (1, 1, step.out_depth, 2 * in_plane, 3 * in_plane)
        position = torch.arange(step.out_depth) * (step.keep / step.stride)
        inside = (
            position <= step.in_depth - 1
        )  # beyond the last slice there is nothing to interpolate to
        torch.testing.assert_close(
            out[0, 0, inside], position[inside, None, None].expand(-1, 2 * in_plane, 3 * in_plane)
        )


@pytest.mark.parametrize(
    ("n_thick", "ratio"), [(8, 5), (4, 5), (8, 4), (6, 3), (5, 2), (2, 8), (16, 7), (3, 11)]
)
@pytest.mark.parametrize("in_plane", [1, 2])
def test_deconvolution_is_the_transposed_convolution(n_thick, ratio, in_plane):
    """Values and weights equal PyTorch's transposed convolution with every keep-th slice taken."""
    torch.manual_seed(0)
    for step in {*(plan := plan_depths(n_thick, ratio)).up, *plan.shortcuts}:
        layer = DepthDeconv(3, 4, step, in_plane=in_plane).double()
        nn.init.normal_(layer.deconv.bias)
        x = torch.randn(2, 3, step.in_depth, 2, 3, dtype=torch.float64)
        expected = layer.activation(layer.deconv(x)[:, :, :: step.keep][:, :, : step.out_depth])
        out = layer(x)
        torch.testing.assert_close(out, expected)
        cotangent = torch.randn_like(out)
        weights = tuple(layer.deconv.parameters())
        torch.testing.assert_close(
            torch.autograd.grad(out, weights, cotangent),
            torch.autograd.grad(expected, weights, cotangent),
        )


@pytest.mark.parametrize("activation", ["leaky_relu", "relu", "silu", "gelu"])
@pytest.mark.parametrize("norm", ["none", "group", "instance", "batch"])
def test_every_norm_and_activation_runs(norm, activation):
    layer = DepthDeconv(2, 4, DepthStep(3, 5, 2), norm=norm, activation=activation)
    out = layer(torch.rand(1, 2, 3, 4, 4))
    assert out.shape == (1, 4, 5, 4, 4)
    assert out.isfinite().all()


def test_initial_weights_keep_the_scale():
    torch.manual_seed(0)
    x = torch.randn(1, 16, 9, 12, 12)
    steps = [DepthStep(9, 9, 1), DepthStep(9, 17, 2), DepthStep(9, 21, 5, 2), DepthStep(9, 41, 5)]
    for step, in_plane in itertools.product(steps, (1, 2)):
        layer = DepthDeconv(16, 16, step, in_plane=in_plane)
        ratio = (layer.deconv(x).var() / x.var()).item()
        # He's rule: leaky ReLU halves the mean square, so the convolution before it doubles it.
        assert 1.2 < ratio < 2.8, (step, in_plane, ratio)


def test_refused():
    with pytest.raises(ValueError, match=r"a norm among .*'batch'.*, got 'layer'"):
        make_norm("layer", 4)
    with pytest.raises(ValueError, match=r"an activation among .*'gelu'.*, got 'tanh'"):
        make_activation("tanh")
