"""SRCNN against a loop over 2D planes, its size, and the contract of its state dict."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mpunet.models import SRCNN, DepthInterpolation


def small(**options):
    """A network whose layers all matter: the last one of a new network is nearly zero."""
    torch.manual_seed(0)
    net = SRCNN(**{"n_thick": 4, "ratio": 3, "kernels": (5, 1, 3), "widths": (6, 4)} | options)
    for network in net.planes.values():
        torch.nn.init.normal_(network.last.weight, std=0.3)
        torch.nn.init.normal_(network.last.bias)
    return net


def on_plane(state, plane):
    """Dong et al.'s three layers on one plane (N, W), borders repeated."""
    out = plane[None, None]
    for i, layer in enumerate(("hidden.0", "hidden.2", "last")):
        weight = state[f"{layer}.weight"]
        weight = weight.squeeze(
            3 if weight.shape[3] == 1 and weight.shape[2] == weight.shape[4] else 4
        )
        half = weight.shape[-1] // 2
        out = F.conv2d(
            F.pad(out, (half, half, half, half), mode="replicate"), weight, state[f"{layer}.bias"]
        )
        out = out if i == 2 else out.relu()
    return out[0, 0]


@pytest.mark.parametrize("planes", ["coronal", "sagittal", "both"])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
def test_is_a_2d_network_on_each_plane(planes, residual, interpolation):
    net, thick = (
        small(planes=planes, residual=residual, interpolation=interpolation),
        torch.rand(1, 1, 4, 7, 9),
    )
    base = DepthInterpolation(4, 3, interpolation)(thick)[0, 0]
    results = []
    if planes in ("coronal", "both"):  # depth x width, one for each row
        state = net.planes["coronal"].state_dict()
        results.append(torch.stack([on_plane(state, base[:, row]) for row in range(7)], dim=1))
    if planes in ("sagittal", "both"):  # depth x height, one for each column
        state = net.planes["sagittal"].state_dict()
        results.append(
            torch.stack([on_plane(state, base[:, :, column]) for column in range(9)], dim=2)
        )
    expected = sum(results) / len(results) + (base if residual else 0)
    with torch.no_grad():
        torch.testing.assert_close(net(thick).image[0, 0], expected)


def test_both_is_the_mean_of_the_two():
    both, thick = small(planes="both"), torch.rand(1, 1, 4, 7, 9)
    images = []
    for planes in ("coronal", "sagittal"):
        one = small(planes=planes)
        one.planes[planes].load_state_dict(both.planes[planes].state_dict())
        images.append(one(thick).image)
    torch.testing.assert_close(both(thick).image, (images[0] + images[1]) / 2)


def test_planes_see_nothing_of_each_other():
    thick = torch.rand(1, 1, 4, 7, 9)
    changed = thick.clone()
    changed[:, :, :, 3] += 1
    rows = (small()(changed).image - small()(thick).image).abs().amax(dim=(0, 1, 2, 4))
    assert (rows > 0).tolist() == [row == 3 for row in range(7)]


def test_autocast_does_not_round_the_image():
    net = small()
    torch.nn.init.zeros_(net.planes["coronal"].last.weight)
    torch.nn.init.constant_(
        net.planes["coronal"].last.bias, 0.3
    )  # bfloat16 would make it 0.30078, 3 HU more
    with torch.autocast("cpu", torch.bfloat16):
        image = net(torch.rand(1, 1, 4, 7, 9)).image
    torch.testing.assert_close(image, torch.full_like(image, 0.3), rtol=0, atol=0)


@pytest.mark.parametrize(("kernels", "weights"), [((9, 5, 5), 57184), ((9, 1, 5), 8032)])
def test_weights_and_operations_are_the_sources(kernels, weights):
    """Dong et al.: 8,032 weights for 9-1-5 and 57,184 for 9-5-5; each is used once per pixel."""
    net = SRCNN(2, 2, kernels=kernels)
    assert sum(p.numel() for p in net.parameters()) == weights + 64 + 32 + 1
    with FlopCounterMode(display=False) as counter:
        net(torch.rand(1, 1, 2, 5, 6))
    assert counter.get_total_flops() == 2 * (3 * 5 * 6) * (
        weights + 2
    )  # 2 weights of the interpolation


def test_state_dict_is_a_contract():
    expected = {
        f"planes.{plane}.{layer}.{name}": (*shape, *size) if name == "weight" else shape[:1]
        for plane in ("coronal", "sagittal")
        for layer, shape, k in (
            ("hidden.0", (6, 1), 5),
            ("hidden.2", (4, 6), 1),
            ("last", (1, 4), 3),
        )
        for size in [(k, 1, k) if plane == "coronal" else (k, k, 1)]
        for name in ("weight", "bias")
    }
    assert {
        name: tuple(value.shape) for name, value in small(planes="both").state_dict().items()
    } == expected


def test_refused():
    with pytest.raises(
        ValueError, match=r"planes among \('coronal', 'sagittal', 'both'\), got 'axial'"
    ):
        SRCNN(planes="axial")
    with pytest.raises(
        ValueError, match=r"one kernel more than widths, got kernels \[9, 5\] and widths \[64, 32\]"
    ):
        SRCNN(kernels=(9, 5))
    with pytest.raises(ValueError, match=r"at least 1 width .* got kernels \[9\] and widths \[\]"):
        SRCNN(kernels=(9,), widths=())
    with pytest.raises(ValueError, match=r"odd kernels.*got \[9, 4, 5\]"):
        SRCNN(kernels=(9, 4, 5))
    with pytest.raises(ValueError, match="'linear' or 'cubic', got 'spline'"):
        SRCNN(interpolation="spline")
