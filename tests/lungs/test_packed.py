"""Packed masks: each index gives what the unpacked array gives."""

import itertools

import numpy as np
import pytest

from mpunet.lungs.packed import PackedMask


@pytest.mark.parametrize("width", [1, 7, 8, 9, 16, 21])
def test_every_crop_of_every_width(width):
    mask = np.random.default_rng(width).random((3, 4, width)) < 0.5
    packed = PackedMask.pack(mask)
    assert packed.shape == mask.shape
    assert packed.bits.nbytes == 3 * 4 * -(-width // 8)
    for start, stop in itertools.combinations(range(width + 1), 2):
        found = packed[1:3, 1:4, start:stop]
        assert found.dtype == np.bool_
        np.testing.assert_array_equal(found, mask[1:3, 1:4, start:stop])
    for voxel in itertools.product(range(3), range(4), range(width)):
        assert packed[voxel] == mask[voxel]
    np.testing.assert_array_equal(packed, mask)


@pytest.mark.parametrize(
    "index",
    [
        ...,
        1,
        slice(2),
        (slice(None), 2),
        (1, slice(1, 3), slice(5, 50)),
        (slice(None), slice(None), -1),
        (0, 0, slice(9, 3)),
        (np.array([2, 0, 1]), slice(None), slice(3, 10)),
        (slice(0, 0), slice(None), slice(2, 4)),
    ],
)
def test_indices(index):
    mask = np.random.default_rng(0).random((3, 4, 13)) < 0.5
    np.testing.assert_array_equal(PackedMask.pack(mask)[index], mask[index])


def test_refused():
    packed = PackedMask.pack(np.ones((3, 4, 13), bool))
    for index in [(0, 0, 13), (0, 0, -14), (3, 0, 0), (0, 0, 0, 0)]:
        with pytest.raises(IndexError):
            packed[index]
    with pytest.raises(ValueError, match="slices of step 1"):
        packed[:, :, ::2]
    with pytest.raises(
        ValueError, match=r"bits \(D, H, 2\) of a mask 13 voxels wide, got shape \(3, 4, 3\)"
    ):
        PackedMask(np.zeros((3, 4, 3), np.uint8), 13)
