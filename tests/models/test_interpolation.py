"""Interpolation weights against PyTorch, SciPy and numbers worked out by hand."""

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicHermiteSpline
from torch.nn import functional as F

from mpunet.models import DepthInterpolation, interpolation_matrix

SIZES = [(2, 2), (2, 5), (3, 4), (4, 5), (8, 5), (6, 3), (5, 2), (16, 8)]


def test_literals():
    np.testing.assert_allclose(
        interpolation_matrix(3, 4, "linear")[:5],
        [[1, 0, 0], [0.75, 0.25, 0], [0.5, 0.5, 0], [0.25, 0.75, 0], [0, 1, 0]],
    )
    # Cubic convolution at 1/2 and at 1/4 between two samples (Keys 1981, a = -0.5).
    cubic = interpolation_matrix(4, 4, "cubic")
    np.testing.assert_allclose(cubic[6], np.array([-1, 9, 9, -1]) / 16)
    np.testing.assert_allclose(cubic[5], np.array([-9, 111, 29, -3]) / 128)
    # The sample before the first one is 2 * first - second: [-1, 9, 9, -1] / 16 becomes
    # [7, 10, -1] / 16.
    np.testing.assert_allclose(cubic[2], np.array([7, 10, -1, 0]) / 16)


@pytest.mark.parametrize(("n_thick", "ratio"), SIZES)
@pytest.mark.parametrize("kind", ["linear", "cubic"])
def test_samples_stay_constants_stay_and_ramps_stay(n_thick, ratio, kind):
    matrix = interpolation_matrix(n_thick, ratio, kind)
    assert matrix.shape == ((n_thick - 1) * ratio + 1, n_thick)
    np.testing.assert_allclose(matrix[::ratio], np.eye(n_thick), atol=1e-12)
    np.testing.assert_allclose(matrix.sum(axis=1), 1)
    np.testing.assert_allclose(
        matrix @ np.arange(n_thick), np.arange(len(matrix)) / ratio, atol=1e-12
    )
    # The same from either end.
    np.testing.assert_allclose(matrix[::-1, ::-1], matrix, atol=1e-12)


@pytest.mark.parametrize(("n_thick", "ratio"), SIZES)
def test_cubic_is_exact_on_quadratics_away_from_the_ends(n_thick, ratio):
    position = np.arange((n_thick - 1) * ratio + 1) / ratio
    inside = (position >= 1) & (position <= n_thick - 2)
    out = interpolation_matrix(n_thick, ratio, "cubic") @ np.arange(n_thick) ** 2.0
    np.testing.assert_allclose(out[inside], position[inside] ** 2, atol=1e-10)


@pytest.mark.parametrize(("n_thick", "ratio"), SIZES)
def test_cubic_is_the_hermite_spline_of_central_differences(n_thick, ratio):
    samples = np.random.default_rng(0).normal(size=(n_thick, 3))
    # np.gradient uses one-sided differences at the ends, as a linear continuation does.
    spline = CubicHermiteSpline(np.arange(n_thick), samples, np.gradient(samples, axis=0))
    expected = spline(np.arange((n_thick - 1) * ratio + 1) / ratio)
    np.testing.assert_allclose(
        interpolation_matrix(n_thick, ratio, "cubic") @ samples, expected, atol=1e-12
    )


@pytest.mark.parametrize(("n_thick", "ratio"), SIZES)
def test_linear_is_that_of_pytorch(n_thick, ratio):
    thick = torch.rand(2, 3, n_thick, 4, 5)
    module = DepthInterpolation(n_thick, ratio, "linear")
    expected = F.interpolate(
        thick, ((n_thick - 1) * ratio + 1, 4, 5), mode="trilinear", align_corners=True
    )
    torch.testing.assert_close(module(thick), expected, atol=1e-6, rtol=0)


def test_float32_whatever_the_autocast_and_nothing_to_store():
    module = DepthInterpolation(4, 5, "cubic")
    thick = torch.rand(1, 1, 4, 2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(thick)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, module(thick), rtol=0, atol=0)
    assert module.double()(thick.double()).dtype == torch.float32
    assert not module.state_dict()


def test_refused():
    with pytest.raises(ValueError, match="'linear' or 'cubic', got 'nearest'"):
        interpolation_matrix(8, 5, "nearest")
    with pytest.raises(ValueError, match="at least 2 slices"):
        interpolation_matrix(1, 5, "linear")
