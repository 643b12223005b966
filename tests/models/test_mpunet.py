"""MPU-Net as a whole: geometry of every output, gradients, state dict, and learning."""

import copy

import pytest
import torch

from mpunet.models import DepthInterpolation, MPUNet, ThickToThin

SIZES = [(8, 5), (4, 5), (8, 4), (6, 3), (5, 2)]
STREAMS = [("mask", "inner", "outer"), ("inner",), ("outer",), ("mask", "inner"), ("mask", "outer")]
NARROW = (4, 4, 4, 4, 4, 4)


def small(**options):
    """Two stages: H and W are multiples of 4."""
    torch.manual_seed(0)
    return MPUNet(**{"n_thick": 4, "ratio": 2, "widths": (4, 6, 8)} | options)


def check(net, thick):
    """Every output there is has the thin grid's shape, and a gradient reaches every parameter."""
    out = net(thick)
    streams = [t for t in out[1:] if t is not None]
    for tensor in (out.image, *streams):
        assert tensor.shape == (len(thick), 1, (net.n_thick - 1) * net.ratio + 1, *thick.shape[3:])
        assert tensor.isfinite().all()
    sum((t - 0.3).square().mean() for t in (out.image, *streams)).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []
    return out


@pytest.mark.parametrize(("n_thick", "ratio"), SIZES)
@pytest.mark.parametrize("decoder", ["progressive", "subpixel"])
def test_five_stages_for_every_geometry(n_thick, ratio, decoder):
    torch.manual_seed(0)
    net = MPUNet(n_thick, ratio, widths=NARROW, decoder=decoder)
    assert isinstance(net, ThickToThin)
    assert (net.multiple, net.n_thin) == (32, (n_thick - 1) * ratio + 1)
    check(net, torch.rand(1, 1, n_thick, 32, 96))  # multiples of 32 that differ


@pytest.mark.slow
@pytest.mark.parametrize(("n_thick", "ratio"), SIZES)
def test_default_network_at_the_papers_size(n_thick, ratio):
    torch.manual_seed(0)
    out = check(MPUNet(n_thick, ratio), torch.rand(1, 1, n_thick, 256, 256))
    assert all(tensor is not None for tensor in out)


@pytest.mark.parametrize("streams", STREAMS)
@pytest.mark.parametrize("decoder", ["progressive", "subpixel"])
def test_ablations(streams, decoder):
    out = check(small(streams=streams, decoder=decoder), torch.rand(2, 1, 4, 8, 4))
    assert [t is not None for t in out[1:]] == [
        name in streams for name in ("mask", "inner", "outer")
    ]


@pytest.mark.parametrize("norm", ["none", "group", "instance", "batch"])
def test_norms(norm):
    check(small(norm=norm), torch.rand(2, 1, 4, 16, 8))


@pytest.mark.parametrize(("halvings", "n_thick"), [(0, 2), (0, 5), (1, 2), (1, 5), (2, 5)])
def test_depth_halvings(halvings, n_thick):
    check(
        small(n_thick=n_thick, widths=(4, 4, 4, 4), depth_halvings=halvings),
        torch.rand(1, 1, n_thick, 8, 16),
    )


def test_items_of_a_batch_do_not_mix():
    net, thick = small(), torch.rand(3, 1, 4, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(net(thick).image[1:2], net(thick[1:2]).image)


class TestResidual:
    @pytest.mark.parametrize("kind", ["linear", "cubic"])
    def test_a_new_network_is_nearly_the_interpolation(self, kind):
        net, thick = small(residual=kind), torch.rand(1, 1, 4, 8, 8)
        with torch.no_grad():
            out, base = net(thick), DepthInterpolation(4, 2, kind)(thick)
        for stream in (out.image, out.inner, out.outer):
            assert (stream - base).abs().max() < 0.02
        assert (out.mask_logits.sigmoid() - 0.5).abs().max() < 0.01

    def test_is_exact_where_the_last_layers_are_zero(self):
        net, thick = small(), torch.rand(1, 1, 4, 8, 8)
        for branch in net.head.branches.values():
            torch.nn.init.zeros_(branch[-1].weight)
        with torch.no_grad():
            torch.testing.assert_close(net(thick).image, DepthInterpolation(4, 2, "cubic")(thick))

    def test_none_has_no_base(self):
        net, thick = small(residual="none"), torch.rand(1, 1, 4, 8, 8)
        with torch.no_grad():
            assert net(thick).image.abs().max() < 0.02


class TestPrecision:
    def test_autocast_gives_float32(self):
        net, thick = small(), torch.rand(1, 1, 4, 8, 8)
        with torch.autocast("cpu", torch.bfloat16):
            out = net(thick)
        assert {t.dtype for t in out} == {torch.float32}
        # A bfloat16 step near soft tissue is 1 / 512; with the residual, the error is far smaller.
        torch.testing.assert_close(out.image, net(thick).image, atol=1e-4, rtol=0)
        out.image.mean().backward()

    def test_double_runs(self):
        assert small().double()(torch.rand(1, 1, 4, 8, 8).double()).image.isfinite().all()


class TestInput:
    @pytest.mark.parametrize(
        "shape",
        [
            (1, 4, 8, 8),
            (1, 2, 4, 8, 8),
            (1, 1, 3, 8, 8),
            (1, 1, 5, 8, 8),
            (1, 1, 4, 8, 10),
            (1, 1, 4, 6, 8),
        ],
    )
    def test_wrong_shapes(self, shape):
        with pytest.raises(
            ValueError,
            match=r"\(B, 1, 4, H, W\) with H and W multiples of 4, got .*mpunet.Reconstructor",
        ):
            small()(torch.zeros(shape))

    def test_wrong_options(self):
        with pytest.raises(ValueError, match="decoder 'progressive' or 'subpixel', got 'unet'"):
            small(decoder="unet")
        for option in ({"depth_spacings": (2, 1)}, {"stem_width": 6}):
            with pytest.raises(
                ValueError, match="depth_spacings and stem_width belong to the progressive decoder"
            ):
                small(decoder="subpixel", **option)
        with pytest.raises(ValueError, match="'linear' or 'cubic', got 'spline'"):
            small(residual="spline")
        with pytest.raises(ValueError, match="at least 1 stage"):
            small(widths=(4,))
        with pytest.raises(ValueError, match="at least 2, got n_thick=1"):
            small(n_thick=1)


def test_state_dict_is_a_contract():
    """Checkpoints in the world hold these names and shapes: a change needs a converter."""

    def conv(name, out_channels, in_channels, *kernel):
        return {
            f"{name}.weight": (out_channels, in_channels, *kernel),
            f"{name}.bias": (out_channels,),
        }

    def deconv(name, in_channels, out_channels, *kernel):
        return {
            f"{name}.deconv.weight": (in_channels, out_channels, *kernel),
            f"{name}.deconv.bias": (out_channels,),
        }

    expected = (
        conv("backbone.encoder.stem.0", 2, 1, 3, 3, 3)
        | conv("backbone.encoder.stages.0.0.0", 3, 2, 3, 2, 2)
        | conv("backbone.encoder.stages.0.1.body.0.0", 3, 3, 3, 3, 3)
        | conv("backbone.encoder.stages.1.0.0", 4, 3, 3, 2, 2)
        | conv("backbone.encoder.stages.1.1.body.0.0", 4, 4, 3, 3, 3)
        | deconv("backbone.lift", 4, 3, 3, 2, 2)
        | deconv("backbone.ups.0.shortcut", 3, 3, 3, 1, 1)
        | deconv("backbone.ups.0.up", 6, 2, 9, 2, 2)
        | conv("backbone.ups.0.block.body.0.0", 2, 2, 3, 3, 3)
        | deconv("backbone.ups.1.shortcut", 2, 2, 9, 1, 1)
        | deconv("backbone.ups.1.up", 4, 2, 3, 1, 1)
        | conv("backbone.ups.1.block.body.0.0", 2, 2, 3, 3, 3)
        | {
            k: v
            for s in ("mask", "inner", "outer")
            for k, v in conv(f"head.branches.{s}.0.0", 2, 2, 3, 3, 3).items()
        }
        | {
            k: v
            for s in ("mask", "inner", "outer")
            for k, v in conv(f"head.branches.{s}.1", 1, 2, 3, 3, 3).items()
        }
    )
    net = MPUNet(4, 5, widths=(2, 3, 4), layers=1)
    assert {name: tuple(value.shape) for name, value in net.state_dict().items()} == expected


def test_state_dict_of_the_subpixel_decoder():
    names = {
        name.rsplit(".", 1)[0]
        for name in small(decoder="subpixel", layers=1, streams=("inner",)).state_dict()
    }
    assert {name for name in names if not name.startswith(("backbone.encoder", "head"))} == {
        "backbone.ups.0.deconv",
        "backbone.ups.1.deconv",
        "backbone.blocks.0.body.0.0",
        "backbone.blocks.1.body.0.0",
        "backbone.expand.0",
    }


def test_copies_are_the_same_network():
    net, thick = small(), torch.rand(1, 1, 4, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(
            copy.deepcopy(net)(thick).image, net(thick).image, rtol=0, atol=0
        )


@pytest.mark.parametrize("residual", ["none", "cubic"])
def test_learns(residual):
    """40 steps on one pair reduce the squared error enough.

    It is below 0.1 times that of an empty image, or 0.5 times that of cubic interpolation.
    """
    net = small(residual=residual, widths=(4, 8, 8))
    thin = torch.nn.functional.avg_pool3d(torch.rand(1, 1, 7, 8, 8), 3, 1, 1)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    losses = []
    for _ in range(40):
        loss = (net(thin[:, :, ::2]).image - thin).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < (0.5 if residual == "cubic" else 0.1) * losses[0]
