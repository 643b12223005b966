"""V-Net: stages that halve depth, slice positions through every level, and the state dict."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mpunet.models import Bicubic, VNet

SIZES = [(2, 2), (2, 3), (4, 5), (6, 3), (8, 5), (5, 2)]


def route(net, level):
    """Pass a one-channel image only through one level; the last layers leave it unchanged."""
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    net.stem[0][0].weight.data[0, 0, 1, 1, 1] = 1
    for down in net.downs:
        down[0][0].weight.data[:] = 1 / down[0][0].weight.numel()
    for i, (up, merge) in enumerate(zip(net.ups, net.merges, strict=True)):
        up[0].weight.data[:] = 1
        from_below = len(net.ups) - 1 - i != level
        merge[0][0].weight.data[0, int(from_below), 1, 1, 1] = (
            1  # the shortcut's channels come first, then those from below
        )
    branch = net.head.branches["inner"]
    branch[0][0].weight.data[0, 0, 1, 1, 1] = 1
    branch[1].weight.data[0, 0, 1, 1, 1] = 1


@pytest.mark.parametrize(("n_thick", "ratio"), SIZES)
@pytest.mark.parametrize("level", range(4))
def test_slices_keep_their_positions_through_every_level(n_thick, ratio, level):
    """A level with half the depth returns the mean of two slices, a single last slice repeated."""
    net = VNet(n_thick, ratio, widths=(1, 1, 1, 1), residual="none")
    route(net, level)
    thick = (torch.rand(n_thick, generator=torch.Generator().manual_seed(0)) + 0.5)[
        None, None, :, None, None
    ].expand(-1, -1, -1, 8, 16)
    expected = Bicubic(n_thick, ratio, kind="linear")(thick).image[0, 0, :, 0, 0]
    depths = []
    for depth_stride, *_ in net.strides[:level]:
        depths.append(len(expected))
        padded = (
            expected if len(expected) % depth_stride == 0 else torch.cat([expected, expected[-1:]])
        )
        expected = padded.view(-1, depth_stride).mean(dim=1)
    for depth, (depth_stride, *_) in reversed(list(zip(depths, net.strides, strict=False))):
        expected = expected.repeat_interleave(depth_stride)[:depth]
    with torch.no_grad():
        out = net(thick).image
    torch.testing.assert_close(out[0, 0], expected[:, None, None].expand(-1, 8, 16))


@pytest.mark.parametrize(
    ("n_thick", "ratio", "depth"),
    [(8, 5, [2, 2, 2, 2]), (4, 5, [2, 2, 2, 1]), (2, 5, [2, 2, 1, 1]), (2, 2, [2, 1, 1, 1])],
)
def test_depth_is_halved_while_2_slices_are_left(n_thick, ratio, depth):
    """36 > 18 > 9 > 5 > 3, 16 > 8 > 4 > 2, 6 > 3 > 2 and 3 > 2."""
    assert VNet(n_thick, ratio, widths=(1,) * 5).strides == [(d, 2, 2) for d in depth]


def test_blocks_are_v_nets():
    """1, 2, 3, 3 and 3 convolutions at its five levels, on the way down and up."""
    net = VNet(widths=(1,) * 5)
    assert [len(part[1].body) for part in (net.stem, *net.downs, *net.merges)] == [
        1,
        2,
        3,
        3,
        3,
        3,
        3,
        2,
        1,
    ]
    assert [len(part[1].body) for part in (net.stem, *VNet(layers=1).downs)] == [1] * 5


@pytest.mark.parametrize("kind", ["linear", "cubic"])
def test_residual_is_exact_where_the_last_layer_is_zero(kind):
    net, thick = VNet(4, 2, widths=(3, 4), residual=kind), torch.rand(1, 1, 4, 6, 4)
    nn.init.zeros_(net.head.branches["inner"][1].weight)
    torch.testing.assert_close(net(thick).image, Bicubic(4, 2, kind=kind)(thick).image)


@pytest.mark.parametrize("residual", ["none", "cubic"])
def test_sees_the_trilinear_up_sampling(residual):
    net, thick, seen = VNet(4, 2, widths=(3, 4), residual=residual), torch.rand(1, 1, 4, 6, 4), []
    net.stem.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    net(thick)
    torch.testing.assert_close(
        seen[0], F.interpolate(thick, (7, 6, 4), mode="trilinear", align_corners=True)
    )


@pytest.mark.parametrize("norm", ["none", "group", "instance", "batch"])
def test_norms(norm):
    net = VNet(4, 2, widths=(4, 6, 8), norm=norm, activation="gelu")
    net(torch.rand(2, 1, 4, 8, 12)).image.square().mean().backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in net.parameters()
    )


def test_activations_keep_their_size():
    """He's rule: no level of a new network blows its features up or lets them vanish."""
    torch.manual_seed(0)
    net, sizes = VNet(), []
    for part in (*net.downs, *net.ups, *net.merges):
        part.register_forward_hook(
            lambda module, inputs, output: sizes.append(output.square().mean().sqrt().item())
        )
    with torch.no_grad():
        net(torch.rand(1, 1, 8, 32, 32))
    assert len(sizes) == 12
    assert 0.5 < min(sizes) <= max(sizes) < 4


def test_state_dict_is_a_contract():
    def conv(name, out_channels, in_channels, *kernel):
        return {
            f"{name}.weight": (out_channels, in_channels, *kernel),
            f"{name}.bias": (out_channels,),
        }

    expected = (
        conv("stem.0.0", 2, 1, 3, 3, 3)
        | conv("stem.1.body.0.0", 2, 2, 3, 3, 3)
        | conv("downs.0.0.0", 3, 2, 2, 2, 2)
        | conv("downs.0.1.body.0.0", 3, 3, 3, 3, 3)
        | conv("downs.1.0.0", 4, 3, 1, 2, 2)
        | conv("downs.1.1.body.0.0", 4, 4, 3, 3, 3)
        | {"ups.0.0.weight": (4, 3, 1, 2, 2), "ups.0.0.bias": (3,)}
        | {"ups.1.0.weight": (3, 2, 2, 2, 2), "ups.1.0.bias": (2,)}
        | conv("merges.0.0.0", 3, 6, 3, 3, 3)
        | conv("merges.0.1.body.0.0", 3, 3, 3, 3, 3)
        | conv("merges.1.0.0", 2, 4, 3, 3, 3)
        | conv("merges.1.1.body.0.0", 2, 2, 3, 3, 3)
        | conv("head.branches.inner.0.0", 2, 2, 3, 3, 3)
        | conv("head.branches.inner.1", 1, 2, 3, 3, 3)
    )
    net = VNet(2, 2, widths=(2, 3, 4), layers=1)
    assert {name: tuple(value.shape) for name, value in net.state_dict().items()} == expected


def test_refused():
    with pytest.raises(ValueError, match=r"at least 2 widths \(1 halving\), got \[4\]"):
        VNet(widths=(4,))
    with pytest.raises(ValueError, match="'linear' or 'cubic', got 'spline'"):
        VNet(residual="spline")
