"""Interpolation along depth against SciPy on whole columns."""

import numpy as np
import pytest
from scipy.interpolate import CubicSpline, interp1d

from mpunet.slices.interpolate import interpolated


@pytest.mark.parametrize("depth", [2, 3, 4, 5, 23])
@pytest.mark.parametrize("ratio", [2, 5])
def test_equals_scipy(depth, ratio):
    thick = np.random.default_rng(depth).uniform(-1000, 1000, (depth, 3, 4)).astype(np.float32)
    positions = np.arange((depth - 1) * ratio + 1) / ratio
    for kind in ("linear", "cubic"):
        found = np.concatenate(list(interpolated(thick, ratio, kind=kind)))
        if kind == "cubic" and depth > 2:
            expected = CubicSpline(np.arange(depth), thick, axis=0)(
                positions
            )  # not-a-knot; a parabola for three
        else:
            expected = interp1d(np.arange(depth), thick, axis=0)(positions)
        np.testing.assert_allclose(found, expected, atol=0.02)
        np.testing.assert_allclose(found[::ratio], thick, atol=1e-3)


def test_chunks_and_integers():
    thick = np.arange(2 * 9 * 3, dtype=np.int16).reshape(9, 2, 3)
    whole = list(interpolated(thick, 4, chunk=100))
    assert [len(part) for part in interpolated(thick, 4, chunk=8)] == [8, 8, 8, 8, 1]
    assert len(whole) == 1
    assert whole[0].dtype == np.float32
    np.testing.assert_array_equal(np.concatenate(list(interpolated(thick, 4, chunk=8))), whole[0])
