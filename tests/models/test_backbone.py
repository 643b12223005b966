"""Backbones: where a slice at each level of the encoder ends up among the thin slices."""

import pytest
import torch
from torch import nn

from mpunet.models import Encoder, ProgressiveBackbone, SubpixelBackbone
from mpunet.models.schedule import plan_depths

SIZES = [(8, 5), (4, 5), (8, 4), (6, 3), (5, 2)]


def interpolating(conv, channel):
    """Make a transposed convolution interpolate input channel ``channel`` linearly along depth."""
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    taps = torch.arange(kernel) - kernel // 2
    conv.weight.data[channel, 0] = (1 - taps.abs() / stride).clamp(min=0)[:, None, None]


def route(net, level):
    """Pass one-channel features only through the shortcut of one level.

    If ``level`` is the number of stages, they pass only through the bottleneck.
    """
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    net.encoder.stem[0].weight.data[0, 0, 1, 1, 1] = 1
    for stage in net.encoder.stages:
        stage[0][0].weight.data[0, 0, 1] = 1 / 4
    interpolating(net.lift.deconv, 0)
    stages = len(net.ups)
    for i, up in enumerate(net.ups):
        here = stages - 1 - i == level
        if here:
            interpolating(up.shortcut.deconv, 0)
        interpolating(
            up.up.deconv, 0 if here else 1
        )  # the shortcut's channels come first, then those from below


@pytest.mark.parametrize(("n_thick", "ratio"), SIZES)
@pytest.mark.parametrize("halvings", [0, 1, 2])
def test_slices_keep_their_positions_through_every_level(n_thick, ratio, halvings):
    net = ProgressiveBackbone(
        n_thick, ratio, widths=(1, 1, 1, 1), layers=1, depth_halvings=halvings
    )
    # Positions in thin slices plus 1, because the activation is the identity only if positive.
    thick = (torch.arange(n_thick) * ratio + 1.0)[None, None, :, None, None].expand(
        -1, -1, -1, 8, 16
    )
    thin = torch.arange((n_thick - 1) * ratio + 1) + 1.0
    for level in range(4):
        route(net, level)
        with torch.no_grad():
            out = net(thick)
        assert out.shape == (1, 1, len(thin), 8, 16)
        # A halved grid may end before the window; beyond its last slice nothing is interpolated.
        last = (
            (net.schedule.encoder_depths[level] - 1) * ratio * 2 ** sum(net.schedule.halved[:level])
        )
        assert last == len(thin) - 1 or level > 3 - halvings
        torch.testing.assert_close(
            out[0, 0, : last + 1], thin[: last + 1, None, None].expand(-1, 8, 16)
        )


@pytest.mark.parametrize(("n_thick", "ratio"), SIZES)
def test_phases_of_the_subpixel_decoder_stand_around_their_slice(n_thick, ratio):
    net = SubpixelBackbone(n_thick, ratio, widths=(2, 2), layers=1, depth_halvings=0)
    expand = net.expand[0]
    nn.init.zeros_(expand.weight)
    for channel in range(2):
        for phase in range(ratio):
            row = channel * ratio + phase
            expand.weight.data[row, channel, 1, 1, 1] = 1
            expand.bias.data[row] = phase - (ratio - 1) // 2
    for parameter in net.encoder.stem.parameters():
        nn.init.zeros_(parameter)
    net.encoder.stem[0].weight.data[:, 0, 1, 1, 1] = torch.tensor([1.0, 2.0])
    thick = (torch.arange(n_thick) * ratio + 100.0)[None, None, :, None, None].expand(
        -1, -1, -1, 4, 4
    )
    with torch.no_grad():
        out = net(thick)[0, :, :, 0, 0]
    thin = torch.arange((n_thick - 1) * ratio + 1)
    torch.testing.assert_close(out[0], thin + 100.0)
    # The second channel has twice the value of its slice; it changes half-way between two slices.
    nearest = torch.div(thin + (ratio - 1) // 2, ratio, rounding_mode="floor") * ratio
    torch.testing.assert_close(out[1], 2 * (nearest + 100.0) + (thin - nearest))


def test_features_of_the_encoder():
    schedule = plan_depths(7, 3, stages=3, halvings=2)
    encoder = Encoder(schedule, (2, 3, 4, 5), layers=1, norm="none", activation="relu")
    shapes = [tuple(f.shape) for f in encoder(torch.rand(1, 1, 7, 16, 24))]
    assert shapes == [(1, 2, 7, 16, 24), (1, 3, 7, 8, 12), (1, 4, 4, 4, 6), (1, 5, 2, 2, 3)]
    with pytest.raises(ValueError, match=r"Expected 4 widths \(levels 0 to 3\), got \[2, 3\]"):
        Encoder(schedule, (2, 3), layers=1, norm="none", activation="relu")


@pytest.mark.parametrize("backbone", [ProgressiveBackbone, SubpixelBackbone])
def test_what_a_head_needs_to_know(backbone):
    net = backbone(4, 3, widths=(3, 2, 2, 2))
    assert (net.out_channels, net.multiple) == (3, 8)
    assert net(torch.rand(2, 1, 4, 8, 24)).shape == (2, 3, 10, 8, 24)


def test_a_wider_stem_with_a_block():
    torch.manual_seed(0)
    net = ProgressiveBackbone(4, 3, widths=(3, 2, 2, 2), stem_width=5, layers=1)
    assert [f.shape[1] for f in net.encoder(torch.rand(1, 1, 4, 8, 24))] == [5, 2, 2, 2]
    out = net(torch.rand(2, 1, 4, 8, 24))
    assert out.shape == (2, 3, 10, 8, 24)
    out.square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []
    plain = ProgressiveBackbone(4, 3, widths=(5, 2, 2, 2), layers=1)
    block = sum(p.numel() for p in net.encoder.parameters()) - sum(
        p.numel() for p in plain.encoder.parameters()
    )
    assert block == 5 * 5 * 27 + 5


def test_depth_spacings_are_the_schedules():
    net = ProgressiveBackbone(8, 5, widths=(1, 1, 1, 1), depth_spacings=(5, 5, 1))
    assert [step.out_depth for step in net.schedule.up] == [8, 8, 36]
    assert net(torch.rand(1, 1, 8, 8, 8)).shape == (1, 1, 36, 8, 8)
