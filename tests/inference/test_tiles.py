"""Tiles cover a plane, share enough with their neighbours, and their weights sum to one."""

import itertools

import numpy as np
import pytest
import torch

from mpunet.inference.tiles import OVERLAP, plan_tiles, tile_starts, tile_weights


@pytest.mark.parametrize("size", [1, 31, 64, 65, 100, 128, 300, 512, 1023])
@pytest.mark.parametrize("tile", [1, 2, 32, 64, 256])
def test_starts_and_weights(size, tile):
    starts, length = tile_starts(size, tile), min(size, tile)
    assert starts[0] == 0
    assert starts[-1] + length == size
    for before, after in itertools.pairwise(starts):
        assert 0 < after - before <= tile - int(OVERLAP * tile)
    total = np.zeros(size)
    for start, weight in zip(starts, tile_weights(size, tile), strict=True):
        assert (weight > 0).all()
        total[start : start + length] += weight
    np.testing.assert_allclose(total, 1, rtol=1e-12)


def test_weights_are_smooth_and_fall_towards_inner_borders():
    left, middle, right = tile_weights(512, 256)
    # The outer half of an end tile has nothing beside it but the next tile's ramp.
    np.testing.assert_array_equal(left[:128], 1)
    np.testing.assert_allclose(left, right[::-1])
    np.testing.assert_allclose(middle, middle[::-1])
    assert left[-1] < 2e-4
    assert np.abs(np.diff(left)).max() < 0.03
    # Half way between two tiles both count alike.
    assert left[192] == pytest.approx(0.5, abs=0.02)


def test_planes():
    tiles = plan_tiles(40, 23, (16, 32), torch.device("cpu"))
    assert [(t.rows.start, t.rows.stop) for t in tiles] == [(0, 16), (12, 28), (24, 40)]
    assert {(t.columns.start, t.columns.stop) for t in tiles} == {(0, 23)}
    total = torch.zeros(40, 23)
    for rows, columns, weight in plan_tiles(40, 23, (16, 9), torch.device("cpu")):
        total[rows, columns] += weight
    torch.testing.assert_close(total, torch.ones(40, 23))
