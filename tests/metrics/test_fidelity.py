"""HU bias and lung density against NumPy and literals."""

import math

import numpy as np
import pytest

from mpunet.metrics.fidelity import HU_EDGES, hu_bias, lung_density

RNG = np.random.default_rng(0)
REFERENCE = RNG.integers(-1024, 1500, (5, 30, 20)).astype(np.int16)
PREDICTION = (REFERENCE + RNG.normal(5, 40, REFERENCE.shape)).astype(np.float32)
LUNG = RNG.random(REFERENCE.shape) < 0.3


class TestBias:
    def test_against_numpy(self):
        found = hu_bias(PREDICTION, REFERENCE, LUNG)
        error = PREDICTION.astype(float).clip(-1024, 3071) - REFERENCE
        assert found.whole == pytest.approx(error.mean(), rel=1e-6)
        assert found.lungs == pytest.approx(error[LUNG].mean(), rel=1e-6)
        assert found.outside == pytest.approx(error[~LUNG].mean(), rel=1e-6)
        assert len(found.bins) == len(HU_EDGES) - 1
        for i, part in enumerate(found.bins):
            there = np.digitize(REFERENCE, HU_EDGES) == i + 1
            assert (part.low, part.high, part.voxels) == (*HU_EDGES[i : i + 2], there.sum())
            assert part.bias == pytest.approx(error[there].mean(), rel=1e-6)
        assert sum(part.voxels for part in found.bins) == REFERENCE.size

    def test_edges_belong_to_the_bin_above_and_the_last_to_the_last(self):
        reference = np.array([-1024, -950, -850, 300, 3071], np.int16).reshape(1, 1, 5)
        assert [part.voxels for part in hu_bias(reference, reference).bins] == [
            1,
            1,
            1,
            0,
            0,
            0,
            0,
            2,
        ]
        inner = hu_bias(reference + 1, reference, edges=(-950, -850))
        assert inner.bins == ((-950, -850, 1.0, 2),)
        assert inner.whole == pytest.approx(0.8)  # 3071 is clipped

    def test_values_that_no_window_shows_do_not_count(self):
        reference = np.full((1, 2, 2), -3024, np.int16)
        assert hu_bias(np.full((1, 2, 2), -1024.0), reference).whole == 0

    def test_no_mask_empty_mask_empty_bin(self):
        without, empty = (
            hu_bias(PREDICTION, REFERENCE),
            hu_bias(PREDICTION, REFERENCE, np.zeros(REFERENCE.shape)),
        )
        assert math.isnan(without.lungs)
        assert math.isnan(without.outside)
        assert math.isnan(empty.lungs)
        assert empty.outside == empty.whole == without.whole
        assert math.isnan(without.bins[-1].bias) == (without.bins[-1].voxels == 0)
        assert math.isnan(hu_bias(PREDICTION, REFERENCE, edges=(2000, 3000)).bins[0].bias)

    def test_errors(self):
        with pytest.raises(ValueError, match=r"one shape .*got \(5, 30, 20\), \(4, 30, 20\)"):
            hu_bias(PREDICTION, REFERENCE[:4])
        with pytest.raises(ValueError, match=r"rising edges of HU bins, got \[0, 0\]"):
            hu_bias(PREDICTION, REFERENCE, edges=(0, 0))


class TestDensity:
    def test_whole_hu_are_exact(self):
        for seed in range(20):
            rng = np.random.default_rng(seed)
            volume = rng.normal(-900, 60, (3, 9, 7 + seed)).clip(-1024, 3071).astype(np.int16)
            lung = rng.random(volume.shape) < 0.4
            found = lung_density(volume, lung)
            assert found.laa950 == pytest.approx(100 * (volume[lung] < -950).mean(), rel=1e-12)
            assert found.laa910 == pytest.approx(100 * (volume[lung] < -910).mean(), rel=1e-12)
            assert found.perc15 == pytest.approx(np.percentile(volume[lung], 15), rel=1e-12)
            assert found.voxels == lung.sum()
            assert (
                lung_density(volume.astype(np.float32), lung) == found
            )  # as scaled files are read

    def test_other_values_to_a_bin(self):
        volume = np.random.default_rng(0).normal(-900, 30, (20, 60, 60)).astype(np.float32)
        found = lung_density(volume, np.ones(volume.shape))
        assert found.laa950 == pytest.approx(100 * (volume < -950).mean(), rel=1e-6)
        assert found.perc15 == pytest.approx(np.percentile(volume, 15), abs=0.1)

    def test_literals(self):
        volume = np.array([-951, -950, -949, -911, -910]).reshape(1, 1, 5)
        found = lung_density(volume, np.ones(volume.shape))
        assert (found.laa950, found.laa910) == (20, 80)
        one = lung_density(volume, volume == -949)
        assert (one.perc15, one.voxels) == (-949, 1)

    def test_no_lung(self):
        found = lung_density(REFERENCE, np.zeros(REFERENCE.shape))
        assert math.isnan(found.laa950)
        assert math.isnan(found.laa910)
        assert math.isnan(found.perc15)
        assert found.voxels == 0

    def test_errors(self):
        with pytest.raises(ValueError, match=r"got \(5, 30, 20\), \(5, 30\)"):
            lung_density(REFERENCE, LUNG[..., 0])
