"""Noise of known standard deviation near vessels; sharpness of random fields of known spectra."""

import itertools
import math

import numpy as np
import pytest
from scipy import ndimage

from mpunet.geometry import grid_spacing
from mpunet.io.scan_file import read_volume
from mpunet.lungs.threshold import lung_mask
from mpunet.metrics.texture import noise, sharpness
from mpunet.phantom.chest import chest_phantom
from mpunet.slices.simulate import thicken

SPACING = (5.0, 0.8, 0.8)


@pytest.fixture(scope="module")
def chest():
    """Lungs with vessels, bronchi, fissures and nodules, without noise."""
    return chest_phantom(0, shape=(20, 320, 416), spacing=SPACING, noise=0)


def field(shape, sigma, seed=0):
    """Gaussian noise of variance 1, correlated by a Gaussian of ``sigma`` voxels."""
    out = ndimage.gaussian_filter(
        np.random.default_rng(seed).normal(size=shape), sigma, mode="wrap"
    )
    return out / out.std()


class TestNoise:
    @pytest.mark.parametrize(
        "correlated", [0.0, 0.5, 0.8]
    )  # standard deviation of the kernel, in mm
    @pytest.mark.parametrize("deviation", [16, 30])
    def test_among_vessels(self, chest, correlated, deviation):
        grain = field(chest.thin.shape, (0, correlated / 0.8, correlated / 0.8))
        found = noise(np.rint(chest.thin + deviation * grain).astype(np.int16), chest.lung, SPACING)
        assert found.lung == pytest.approx(deviation, rel=0.1)
        assert found.lung_windows > 500

    @pytest.mark.parametrize("deviation", [5, 10])
    def test_in_air(self, chest, deviation):
        found = noise(chest.thin + deviation * field(chest.thin.shape, 0), chest.lung, SPACING)
        assert found.air == pytest.approx(deviation, rel=0.05)

    def test_clipped_air_has_none(self, chest):
        noisy = (chest.thin + 25 * field(chest.thin.shape, 0)).clip(-1024, 3071)
        found = noise(noisy, chest.lung, SPACING)
        assert math.isnan(found.air)
        assert found.air_windows > 1000
        assert found.lung == pytest.approx(25, rel=0.1)

    def test_what_was_filled_in_is_not_air(self):
        volume = np.full((10, 60, 60), -1024.0)
        volume[:, 20:40, 20:40] = -850 + 20 * field((10, 20, 20), 0)
        found = noise(volume, volume > -1000, (1, 1, 1))
        assert found.air_windows == 0
        assert math.isnan(found.air)

    def test_too_little_lung(self, chest):
        found = noise(chest.thin, np.zeros(chest.lung.shape), SPACING)
        assert math.isnan(found.lung)
        assert found.lung_windows == 0

    def test_errors(self):
        with pytest.raises(ValueError, match=r"one shape .*got \(4, 8, 8\), \(4, 8, 7\)"):
            noise(np.zeros((4, 8, 8)), np.zeros((4, 8, 7)), (1, 1, 1))
        with pytest.raises(ValueError, match=r"positive spacings in mm .*got \(1, 1\)"):
            noise(np.zeros((4, 8, 8)), np.zeros((4, 8, 8)), (1, 1))


class TestSharpness:
    # 2 mm of correlation on a grid of 1.25 x 0.8 x 0.8 mm
    SPACING = (1.25, 0.8, 0.8)
    SIGMA = 1.0
    BAND = (0.08, 0.25)

    def isotropic(self, along_depth=0.0):
        """A field correlated over SIGMA mm, blurred by ``along_depth`` mm more along depth."""
        sigma = (
            np.array([math.hypot(self.SIGMA, along_depth), self.SIGMA, self.SIGMA]) / self.SPACING
        )
        # Not normed: the blurred field is the isotropic one, blurred.
        white = np.random.default_rng(0).normal(0, 1000, (240, 160, 160))
        return ndimage.gaussian_filter(white, sigma, mode="wrap", truncate=6)

    def test_isotropic_is_one(self):
        found = sharpness(self.isotropic(), self.SPACING, band=self.BAND)
        assert found.ratio == pytest.approx(1, rel=0.04)
        assert (found.low, found.high) == self.BAND

    @pytest.mark.parametrize("blur", [0.5, 1.0, 1.5])
    def test_blur_along_depth_by_the_closed_form(self, blur):
        """Power at f falls by exp(-(2 pi blur f)^2) along depth.

        In plane it falls at all f by the loss of depth, 1 / sqrt(1 + (blur / SIGMA)^2).
        """
        found = sharpness(self.isotropic(blur), self.SPACING, band=self.BAND)
        f = np.linspace(*self.BAND, 1000)
        before = np.exp(-((2 * np.pi * self.SIGMA * f) ** 2))
        along = (before * np.exp(-((2 * np.pi * blur * f) ** 2))).mean()
        expected = along / (before.mean() / math.hypot(1, blur / self.SIGMA))
        assert found.ratio == pytest.approx(expected, rel=0.05)

    def test_band_ends_below_the_nyquist_frequency_of_the_widest_spacing(self):
        found = sharpness(np.random.default_rng(0).normal(size=(40, 40, 40)), (2.5, 0.8, 0.8))
        assert (found.low, found.high) == (0.1, pytest.approx(0.8 / 5))
        thick = sharpness(np.zeros((40, 40, 40)), (5.0, 0.8, 0.8))
        assert math.isnan(thick.ratio)

    def test_box_around_the_lungs(self):
        rng = np.random.default_rng(0)
        volume = np.zeros((40, 60, 60))
        volume[5:35, 10:40, 20:50] = rng.normal(0, 100, (30, 30, 30))
        lung = np.zeros(volume.shape, bool)
        lung[5:35, 10:40, 20:50] = True
        inside = sharpness(volume, (1, 1, 1), lung)
        assert inside == sharpness(volume[5:35, 10:40, 20:50], (1, 1, 1), lung[5:35, 10:40, 20:50])
        assert inside.ratio == pytest.approx(1, abs=0.1)

    def test_flat_or_tiny_volumes_have_none(self):
        assert math.isnan(sharpness(np.zeros((40, 40, 40)), (1, 1, 1)).ratio)
        assert math.isnan(
            sharpness(np.random.default_rng(0).normal(size=(10, 40, 40)), (1, 1, 1)).ratio
        )


def test_real_ct_and_its_interpolation(shared_ct):
    volume = read_volume(shared_ct / "val" / "MIDRC-RICORD-1A-001012.nii.gz")
    part = (slice(80, 161), slice(0, 280), slice(0, 400))
    thin, spacing = volume.slab[part], grid_spacing(volume.slab_affine)
    lung = lung_mask(thin, spacing)
    thick = thicken(thin, 5)
    share = np.arange(5, dtype=np.float32)[:, None, None] / 5
    linear = np.concatenate(
        [*((1 - share) * a + share * b for a, b in itertools.pairwise(thick)), thick[-1:]]
    )
    assert sharpness(linear, spacing, lung).ratio < 0.2 * sharpness(thin, spacing, lung).ratio
    assert noise(linear, lung, spacing).lung < 0.8 * noise(thin, lung, spacing).lung
