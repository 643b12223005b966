"""Requirements of every baseline of Table 1, and that it can learn to beat cubic interpolation.

They are geometry, gradients, precision, configuration and use in the engine.
"""

import pytest
import torch
from scipy.interpolate import CubicHermiteSpline
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mpunet.config import from_config, to_config
from mpunet.inference import reconstruct_slab
from mpunet.models import SRCNN, Bicubic, MPUNet, SubpixelNet, ThickToThin, VNet

SIZES = [(2, 2), (4, 5), (6, 3), (8, 5)]
BUILD = {
    "cubic": lambda n, r: Bicubic(n, r),
    "linear": lambda n, r: Bicubic(n, r, kind="linear"),
    "srcnn": lambda n, r: SRCNN(n, r, kernels=(7, 3, 5), widths=(16, 8)),
    "srcnn-both": lambda n, r: SRCNN(
        n, r, planes="both", kernels=(7, 3, 5), widths=(16, 8), residual=True
    ),
    "vnet": lambda n, r: VNet(n, r, widths=(4, 8, 8)),
    "vnet-none": lambda n, r: VNet(n, r, widths=(4, 6, 8), residual="none"),
    "subpixel": lambda n, r: SubpixelNet(n, r, widths=(4, 8, 8)),
}
INTERPOLATIONS = ("cubic", "linear")
TRAINABLE = [name for name in BUILD if name not in INTERPOLATIONS]
NEAR_CUBIC = ["srcnn-both", "vnet", "subpixel"]


def build(name, n_thick=4, ratio=5):
    torch.manual_seed(0)
    return BUILD[name](n_thick, ratio)


def ball_pair(side):
    """Balls with sharp edges, (1, 1, 16, side, side), and thick slices, means of 5 thin slices."""
    z, y, x = torch.meshgrid(
        torch.arange(20.0), torch.arange(float(side)), torch.arange(float(side)), indexing="ij"
    )
    volume = torch.full_like(z, 0.2)
    for cz, cy, cx in torch.rand(
        side, 3, generator=torch.Generator().manual_seed(0)
    ) * torch.tensor([20, side, side]):
        volume[(z - cz) ** 2 + (y - cy) ** 2 + (x - cx) ** 2 < 9] = 0.7
    return F.avg_pool3d(volume[None, None], (5, 1, 1)), volume[None, None, 2:18]


def overfit(net, side, lr):
    """Squared error after 200 steps on one crop, as a share of cubic interpolation's."""
    thick, thin = ball_pair(side)
    optimizer = torch.optim.Adam(net.parameters(), lr)
    for _ in range(200):
        loss = (net(thick).image - thin).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (loss / (Bicubic(4, 5)(thick).image - thin).square().mean()).item()


@pytest.mark.parametrize("name", BUILD)
@pytest.mark.parametrize(("n_thick", "ratio"), SIZES)
def test_shapes_and_gradients(name, n_thick, ratio):
    net = build(name, n_thick, ratio)
    assert isinstance(net, ThickToThin)
    assert (net.n_thick, net.ratio, net.n_thin) == (n_thick, ratio, (n_thick - 1) * ratio + 1)
    height, width = (7, 13) if net.multiple == 1 else (3 * net.multiple, 5 * net.multiple)
    thick = torch.rand(2, 1, n_thick, height, width)
    out = net(thick)
    assert out.image.shape == (2, 1, net.n_thin, height, width)
    assert out[1:] == (None, None, None)
    if name in TRAINABLE:
        (out.image - 0.3).square().mean().backward()
        assert [
            name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()
        ] == []
    with torch.no_grad():
        torch.testing.assert_close(net(thick[1:]).image, out.image[1:].detach())


def test_multiples_are_those_of_the_halvings():
    assert [build(name).multiple for name in BUILD] == [1, 1, 1, 1, 4, 4, 4]
    assert (VNet().multiple, SubpixelNet().multiple) == (16, 32)
    for name in ("vnet", "subpixel"):
        with pytest.raises(
            ValueError,
            match=r"\(B, 1, 4, H, W\) with H and W multiples of 4, got \(1, 1, 4, 8, 10\)",
        ):
            build(name)(torch.rand(1, 1, 4, 8, 10))
    for name in BUILD:
        with pytest.raises(ValueError, match=r"got \(1, 1, 5, 8, 8\).*mpunet.Reconstructor"):
            build(name)(torch.rand(1, 1, 5, 8, 8))


@pytest.mark.parametrize("name", NEAR_CUBIC)
def test_new_networks_with_a_residual_are_nearly_cubic(name):
    thick = torch.rand(1, 1, 4, 12, 8)
    with torch.no_grad():
        change = (build(name)(thick).image - build("cubic")(thick).image).abs().max()
    assert 0 < change < 0.02


@pytest.mark.parametrize("name", BUILD)
def test_precision(name):
    net, thick = build(name), torch.rand(1, 1, 4, 12, 8)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(thick).image
    assert out.dtype == torch.float32
    # bfloat16 alone would move an image by up to 2e-3.
    torch.testing.assert_close(out, net(thick).image, atol=1e-3, rtol=0)
    torch.testing.assert_close(net.double()(thick.double()).image.float(), net.float()(thick).image)


@pytest.mark.parametrize("name", BUILD)
def test_config_round_trip(name):
    net, thick = build(name), torch.rand(1, 1, 4, 8, 8)
    config = to_config(net)
    again = from_config(config)
    assert type(again) is type(net)
    assert to_config(again) == config
    again.load_state_dict(net.state_dict())
    torch.testing.assert_close(again(thick).image, net(thick).image, rtol=0, atol=0)


@pytest.mark.parametrize("name", BUILD)
def test_flops_are_counted(name):
    with FlopCounterMode(display=False) as counter:
        build(name)(torch.rand(1, 1, 4, 8, 8))
    # Two operations per weight of the interpolation (16 x 4) and pixel are the least.
    assert counter.get_total_flops() >= 2 * 16 * 4 * 64


@pytest.mark.parametrize("name", BUILD)
def test_whole_volumes_of_odd_size(name):
    """The engine's volume is the mean of windows, each padded to the multiple and cropped again."""
    net, slab = build(name), torch.rand(6, 9, 13)
    bottom, right = -9 % net.multiple, -13 % net.multiple
    total, count = torch.zeros(26, 9, 13), torch.zeros(26, 1, 1)
    with torch.no_grad():
        for start in range(3):
            window = F.pad(
                slab[None, None, start : start + 4], (0, right, 0, bottom, 0, 0), mode="replicate"
            )
            total[start * 5 :][:16] += net(window).image[0, 0, :, :9, :13]
            count[start * 5 :][:16] += 1
    found = reconstruct_slab(net, slab, n_thick=4, ratio=5, multiple=net.multiple)
    torch.testing.assert_close(found, total / count)


@pytest.mark.parametrize("name", TRAINABLE)
def test_beats_cubic_on_a_crop(name):
    assert overfit(build(name), 8, 5e-3) < 0.85


@pytest.mark.slow
@pytest.mark.parametrize(("network", "share"), [(SRCNN, 0.8), (VNet, 0.2), (SubpixelNet, 0.05)])
def test_default_networks_beat_cubic_on_a_crop(network, share):
    torch.manual_seed(0)
    assert overfit(network(4, 5), 32, 1e-3) < share


class TestBicubic:
    @pytest.mark.parametrize(("n_thick", "ratio"), SIZES)
    def test_linear_is_that_of_pytorch(self, n_thick, ratio):
        thick = torch.rand(2, 1, n_thick, 5, 7)
        expected = F.interpolate(
            thick, ((n_thick - 1) * ratio + 1, 5, 7), mode="trilinear", align_corners=True
        )
        torch.testing.assert_close(build("linear", n_thick, ratio)(thick).image, expected)

    @pytest.mark.parametrize(("n_thick", "ratio"), SIZES)
    def test_cubic_is_the_spline_of_central_differences(self, n_thick, ratio):
        """That is what cubic convolution with a = -0.5 is (Keys 1981)."""
        thick = torch.rand(2, 1, n_thick, 5, 7)
        slope = torch.gradient(thick, dim=2)[0]
        spline = CubicHermiteSpline(range(n_thick), thick.numpy(), slope.numpy(), axis=2)
        expected = spline(torch.arange((n_thick - 1) * ratio + 1).numpy() / ratio)
        torch.testing.assert_close(
            build("cubic", n_thick, ratio)(thick).image.numpy(), expected, check_dtype=False
        )

    def test_linear_of_a_volume_does_not_see_the_windows(self):
        slab = torch.rand(11, 5, 7)
        expected = F.interpolate(
            slab[None, None], (51, 5, 7), mode="trilinear", align_corners=True
        )[0, 0]
        found = reconstruct_slab(build("linear"), slab, n_thick=4, ratio=5, multiple=1, stride=2)
        torch.testing.assert_close(found, expected)

    def test_nothing_to_train_or_to_store(self):
        for name in INTERPOLATIONS:
            assert not list(build(name).parameters())
            assert not build(name).state_dict()

    def test_refused(self):
        with pytest.raises(ValueError, match="'linear' or 'cubic', got 'nearest'"):
            Bicubic(kind="nearest")


class TestSubpixelNet:
    @pytest.fixture
    def options(self):
        return {
            "n_thick": 4,
            "ratio": 3,
            "widths": [4, 6, 8],
            "layers": 1,
            "norm": "group",
            "activation": "silu",
            "depth_halvings": 0,
        }

    def test_is_the_ablation_under_another_name(self, options):
        ablation = MPUNet(decoder="subpixel", streams=["inner"], residual="linear", **options)
        net, thick = SubpixelNet(residual="linear", **options), torch.rand(1, 1, 4, 8, 12)
        net.load_state_dict(ablation.state_dict())
        torch.testing.assert_close(net(thick).image, ablation(thick).image, rtol=0, atol=0)

    def test_remembers_its_own_arguments(self, options):
        config = to_config(SubpixelNet(**options))
        assert config["class_path"] == "mpunet.models.SubpixelNet"
        assert config["init_args"] == {**options, "residual": "cubic"}
