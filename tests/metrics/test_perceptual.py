"""Perceptual distance of coronal planes."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from mpunet.metrics.perceptual import perceptual_distance

CT = np.random.default_rng(0).normal(-600, 300, (12, 20, 16))


def two_channels(planes):
    return [torch.cat([planes, 1 - planes], dim=1)]


def test_equals_the_formula_on_all_planes():
    other = CT + 100
    expected = []
    for row in range(CT.shape[1]):
        vectors = []
        for volume in (other, CT):
            shade = ((volume[:, row] + 600) / 1500 + 0.5).clip(0, 1)
            vector = np.stack([shade, 1 - shade])
            vectors.append(vector / np.linalg.norm(vector, axis=0))
        expected.append(((vectors[0] - vectors[1]) ** 2).sum(axis=0).mean())
    found = perceptual_distance(other, CT, two_channels, planes=CT.shape[1])
    assert found == pytest.approx(np.mean(expected), rel=1e-5)


def test_grows_with_blur_along_depth_and_sums_over_layers():
    blurred = [gaussian_filter(CT, (sigma, 0, 0)) for sigma in (0, 0.5, 1, 2)]
    distances = [perceptual_distance(volume, CT, two_channels) for volume in blurred]
    assert distances[0] == 0
    assert distances == sorted(distances)
    twice = perceptual_distance(blurred[2], CT, lambda x: two_channels(x) * 2)
    assert twice == pytest.approx(2 * distances[2], rel=1e-6)


def test_planes_are_coronal():
    slicewise = CT.copy()
    slicewise[:, 10] = -600.0  # one coronal plane differs
    assert perceptual_distance(slicewise, CT, two_channels, planes=20) > 0
    assert perceptual_distance(slicewise[:, :10], CT[:, :10], two_channels, planes=10) == 0


@pytest.mark.parametrize(
    ("volume", "planes", "words"), [(CT[1:], 16, r"one shape.*\(11, 20, 16\)"), (CT, 0, "and 0")]
)
def test_refuses(volume, planes, words):
    with pytest.raises(ValueError, match=words):
        perceptual_distance(volume, CT, two_channels, planes=planes)
