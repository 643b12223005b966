"""Data consistency: restored input, smallest change, and its effect in MPU-Net."""

import numpy as np
import pytest
import torch

from mpunet import MPUNet
from mpunet.losses import Objective
from mpunet.models import DepthConsistency, DepthInterpolation
from mpunet.slices.simulate import profile_weights, thickening_matrix

WIDTHS = (4, 4, 6, 6, 8, 8)


def random_window(n_thick, ratio, seed=0):
    generator = torch.Generator().manual_seed(seed)
    thin = torch.rand(2, 1, (n_thick - 1) * ratio + 1, 3, 4, generator=generator)
    return thin, torch.rand(2, 1, n_thick, 3, 4, generator=generator)


@pytest.mark.parametrize(("n_thick", "ratio"), [(8, 5), (3, 5), (6, 3), (5, 2), (4, 7)])
@pytest.mark.parametrize("fwhm", [0.7, 0.9, 1.1])
def test_thickened_again_it_is_the_input(n_thick, ratio, fwhm):
    """Thicken with the simulation's profile, which is cut at 3 sigma, unlike the layer's."""
    thin, thick = random_window(n_thick, ratio)
    out = DepthConsistency(n_thick, ratio, fwhm, damping=0.0)(thin, thick)
    matrix = thickening_matrix(thin.shape[2], ratio, profile_weights(ratio, fwhm=fwhm))[1:-1]
    again = torch.einsum("kN,bcNhw->bckhw", torch.from_numpy(matrix), out)
    torch.testing.assert_close(again, thick[:, :, 1:-1], atol=0.02, rtol=0)
    assert (thin - out).abs().max() > 0.1


def test_the_smallest_change_that_does_it():
    """NumPy's minimum-norm least squares gives the same."""
    thin, thick = random_window(8, 5)
    layer = DepthConsistency(8, 5, damping=0.0)
    change = (layer(thin, thick) - thin)[1, 0, :, 2, 3].double().numpy()
    matrix = layer.thicken.double().numpy()
    missing = (
        thick[1, 0, 1:-1, 2, 3].double().numpy() - matrix @ thin[1, 0, :, 2, 3].double().numpy()
    )
    np.testing.assert_allclose(change, np.linalg.lstsq(matrix, missing, rcond=None)[0], atol=1e-5)


def test_what_agrees_stays():
    thin, thick = random_window(6, 4)
    layer = DepthConsistency(6, 4)
    thick[:, :, 1:-1] = torch.einsum("kN,bcNhw->bckhw", layer.thicken, thin)
    torch.testing.assert_close(layer(thin, thick), thin)


def test_damping_takes_back_less():
    thin, thick = random_window(8, 5)
    changes = [
        (DepthConsistency(8, 5, damping=d)(thin, thick) - thin).norm() for d in (0.0, 0.1, 1.0, 1e6)
    ]
    assert changes[0] > changes[1] > changes[2] > 1
    assert changes[3] < 1e-3


def test_half_precision_outside_stays_outside():
    thin, thick = random_window(8, 5)
    layer = DepthConsistency(8, 5)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = layer(thin, thick)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, layer(thin, thick))


@pytest.mark.parametrize("streams", [("mask", "inner", "outer"), ("inner",), ("mask", "outer")])
def test_in_the_network(streams):
    """It begins as the interpolation made to agree, and every parameter learns through it."""
    torch.manual_seed(0)
    net = MPUNet(widths=WIDTHS, streams=streams, consistency=0.9)
    thick = torch.rand(1, 1, 8, 32, 32)
    out = net(thick)
    start = DepthInterpolation(8, 5, "cubic")(thick)
    for _ in range(
        2
    ):  # streams add to an interpolation that agrees, and so does the image that they compose
        start = net.consistency(start, thick)
    torch.testing.assert_close(out.image, start, atol=0.02, rtol=0)
    again = torch.einsum("kN,bcNhw->bckhw", net.consistency.thicken, out.image)
    plain = torch.einsum(
        "kN,bcNhw->bckhw", net.consistency.thicken, DepthInterpolation(8, 5, "cubic")(thick)
    )
    assert (again - thick[:, :, 1:-1]).abs().mean() < 0.2 * (plain - thick[:, :, 1:-1]).abs().mean()
    if len(streams) < 3:
        assert (out.inner if "inner" in streams else out.outer) is out.image
    lung = (torch.rand_like(out.image) > 0.5).float()
    Objective()(out, torch.rand_like(out.image), lung)["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())


def test_the_same_weights_serve_with_and_without():
    with_it, without = MPUNet(widths=WIDTHS, consistency=0.9), MPUNet(widths=WIDTHS)
    assert set(with_it.state_dict()) == set(without.state_dict())


def test_refused():
    with pytest.raises(ValueError, match=r"at least 3 thick slices.*got 2"):
        DepthConsistency(2, 5)
    with pytest.raises(ValueError, match=r"fwhm > 0 .*got fwhm = 0"):
        DepthConsistency(8, 5, 0)
    with pytest.raises(ValueError, match=r"damping >= 0, got -1"):
        DepthConsistency(8, 5, damping=-1)
    for weights in ([0.5, 0.5], [1.0, 0.0, 1.0], [0.5, 1.0, -0.5], [0.0, float("nan"), 0.0], []):
        with pytest.raises(ValueError, match="Expected an odd number of weights >= 0"):
            DepthConsistency(8, 5, weights)
    assert DepthConsistency(8, 5, 2.0) is not None
    for wide in (2.2, profile_weights(5, fwhm=2.2), np.ones(15)):
        with pytest.raises(ValueError, match=r"at most 10% .* got 1\d.\d%: it is too wide"):
            DepthConsistency(8, 5, wide)


def test_weights_of_a_gaussian_are_as_its_width():
    named, weighted = (
        DepthConsistency(8, 5, 1.3),
        DepthConsistency(8, 5, profile_weights(5, fwhm=1.3)),
    )
    torch.testing.assert_close(weighted.thicken, named.thicken, atol=2e-3, rtol=0)


def test_weights_of_any_shape():
    """Thin slice k of a row has the weight at its distance from the centre, even if it is skewed."""
    thin, thick = random_window(5, 2)
    layer = DepthConsistency(5, 2, [1.0, 2.0, 3.0, 1.0, 0.0], damping=0.0)
    rows = [[1, 2, 3, 1, 0, 0, 0, 0, 0], [0, 0, 1, 2, 3, 1, 0, 0, 0], [0, 0, 0, 0, 1, 2, 3, 1, 0]]
    matrix = torch.tensor(rows) / 7
    torch.testing.assert_close(layer.thicken, matrix)
    again = torch.einsum("kN,bcNhw->bckhw", matrix, layer(thin, thick))
    torch.testing.assert_close(again, thick[:, :, 1:-1])
