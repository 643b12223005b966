"""HU to [0, 1] and back, by literals: 4095 HU are the whole range."""

import numpy as np
import pytest
import torch

from mpunet.intensity import HU_RANGE, from_hu, round_hu, to_hu

HU = [-1024.0, 3071.0, -2000.0, 5000.0, 1023.5, -1023.0]
INTENSITY = [0.0, 1.0, 0.0, 1.0, 0.5, 1 / 4095]


@pytest.mark.parametrize("array", [np.array, torch.tensor])
def test_literals(array):
    assert HU_RANGE == 4095
    out = from_hu(array(HU))
    assert isinstance(out, type(array(HU)))
    np.testing.assert_allclose(np.asarray(out), INTENSITY, atol=1e-7)


@pytest.mark.parametrize("array", [np.array, torch.tensor])
def test_back_is_the_inverse_inside_and_not_clipped_outside(array):
    inside = array([-1024.0, -850.0, 40.0, 3071.0])
    np.testing.assert_allclose(np.asarray(to_hu(from_hu(inside))), np.asarray(inside), atol=1e-3)
    np.testing.assert_allclose(np.asarray(to_hu(array([-0.1, 1.1]))), [-1433.5, 3480.5], atol=1e-3)


def test_rounding_is_to_the_nearest_and_clipped():
    out = round_hu(np.array([-1024.4, -0.6, 0.4, 39.7, 3071.4, 1e6, -1e6], np.float32))
    assert out.dtype == np.int16
    assert out.tolist() == [-1024, -1, 0, 40, 3071, 3071, -1024]


def test_every_hu_of_a_file_survives_float32():
    hu = np.arange(-1024, 3072, dtype=np.float32)
    np.testing.assert_array_equal(round_hu(to_hu(from_hu(hu))), hu)
