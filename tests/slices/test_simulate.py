"""Slice profiles by literals; thick slices must preserve constants, ramps and positions."""

import numpy as np
import pytest

from mpunet.data.pairs import align_pair
from mpunet.io.scan_file import read_volume
from mpunet.slices.simulate import profile_weights, thicken, thickening_matrix


class TestProfile:
    def test_literals(self):
        np.testing.assert_allclose(profile_weights(5, profile="box"), [0.2] * 5)
        # Four slices wide: half of the two outermost is in the box.
        np.testing.assert_allclose(
            profile_weights(4, profile="box"), np.array([0.5, 1, 1, 1, 0.5]) / 4
        )
        np.testing.assert_allclose(profile_weights(5, profile="box", fwhm=0.6), [1 / 3] * 3)
        np.testing.assert_allclose(
            profile_weights(3, profile="triangle"), np.array([1, 2, 3, 2, 1]) / 9
        )
        np.testing.assert_allclose(profile_weights(5, profile="triangle", fwhm=0.2), [1])

    def test_gaussian_literal(self):
        # FWHM of 2 slices: 1/2 at distance 1, (1/2)^4 at 2, and (1/2)^9 at 3, which is the limit of
        # 3 sigma.
        weights = profile_weights(2, fwhm=1.0)
        np.testing.assert_allclose(
            weights / weights.max(), [2**-9, 2**-4, 2**-1, 1, 2**-1, 2**-4, 2**-9]
        )

    @pytest.mark.parametrize("profile", ["gaussian", "box", "triangle"])
    def test_odd_symmetric_sum_one_and_of_the_width_asked_for(self, profile):
        for ratio in range(2, 9):
            for fwhm in (0.5, 0.9, 1.0, 1.7):
                weights = profile_weights(ratio, profile=profile, fwhm=fwhm)
                assert len(weights) % 2 == 1
                np.testing.assert_allclose(weights, weights[::-1])
                assert weights.sum() == pytest.approx(1)
                assert (weights >= 0).all()
                # Half the maximum at half the width to either side, to the accuracy of one slice.
                distance = np.abs(np.arange(len(weights)) - len(weights) // 2)
                half = weights >= weights.max() / 2 - 1e-12
                assert half[distance <= fwhm * ratio / 2 - 1e-9].all()
                assert not half[distance > fwhm * ratio / 2 + 0.5].any()

    def test_the_default_is_a_gaussian_of_0_9(self):
        np.testing.assert_array_equal(
            profile_weights(5), profile_weights(5, profile="gaussian", fwhm=0.9)
        )
        weights = profile_weights(5)
        # FWHM 4.5 slices: weight 2 ** -((2 d / 4.5) ** 2) relative to the centre.
        distance = np.arange(len(weights)) - len(weights) // 2
        np.testing.assert_allclose(weights / weights.max(), 2.0 ** -((2 * distance / 4.5) ** 2))

    def test_refused(self):
        with pytest.raises(ValueError, match="positive width, got fwhm=0"):
            profile_weights(5, fwhm=0)
        with pytest.raises(ValueError, match="'gaussian', 'box' and 'triangle', got 'sinc'"):
            profile_weights(5, profile="sinc")


class TestThicken:
    def test_box_is_the_mean_of_five(self):
        thin = np.random.default_rng(0).normal(0, 300, (21, 3, 4)).astype(np.float32)
        thick = thicken(thin, 5, profile="box")
        assert thick.shape == (5, 3, 4)
        assert thick.dtype == np.float32
        for k in range(1, 4):
            np.testing.assert_allclose(
                thick[k], thin[5 * k - 2 : 5 * k + 3].mean(axis=0), atol=1e-3
            )
        # At the ends there are three of the five.
        np.testing.assert_allclose(thick[0], thin[:3].mean(axis=0), atol=1e-3)
        np.testing.assert_allclose(thick[4], thin[18:].mean(axis=0), atol=1e-3)

    @pytest.mark.parametrize("profile", ["gaussian", "box", "triangle"])
    @pytest.mark.parametrize("ratio", [2, 3, 5, 8])
    def test_constants_stay_to_the_last_slice(self, profile, ratio):
        np.testing.assert_allclose(
            thicken(np.full((3 * ratio + 1, 2, 2), -850, np.int16), ratio, profile=profile),
            -850,
            rtol=1e-6,
        )

    @pytest.mark.parametrize("profile", ["gaussian", "box", "triangle"])
    @pytest.mark.parametrize("ratio", [2, 3, 5, 8])
    def test_ramps_stay_where_they_are(self, profile, ratio):
        thin = np.broadcast_to(
            np.arange(9 * ratio + 2, dtype=np.float32)[:, None, None], (9 * ratio + 2, 2, 2)
        )
        thick = thicken(thin, ratio, profile=profile)
        assert len(thick) == 10  # the one thin slice past the last of them makes none
        np.testing.assert_allclose(thick[2:-2], thin[::ratio][2:-2], atol=1e-4)

    @pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64])
    def test_any_type_comes_out_as_float32(self, dtype):
        thin = (np.arange(13) * 10 - 60).astype(dtype)[:, None, None]
        thick = thicken(thin, 3, profile="box")
        assert thick.dtype == np.float32
        np.testing.assert_allclose(thick[:, 0, 0], [-55, -30, 0, 30, 55])

    def test_an_impulse_meets_the_weights(self):
        weights = profile_weights(3)
        thin = np.zeros((31, 1, 1), np.float32)
        thin[14] = 1
        # 14 is two past thick slice 4 (at 12) and one before thick slice 5 (at 15).
        thick = thicken(thin, 3)[:, 0, 0]
        centre = len(weights) // 2
        np.testing.assert_allclose(
            thick[4:6], [weights[centre + 2], weights[centre - 1]], atol=1e-6
        )

    def test_start_and_count(self):
        thin = np.arange(40.0)
        matrix = thickening_matrix(40, 5, profile_weights(5), start=7, count=5)
        assert matrix.shape == (5, 40)
        np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-6)
        np.testing.assert_allclose(matrix @ thin, 7 + 5 * np.arange(5), atol=1e-4)
        assert len(thickening_matrix(40, 5, profile_weights(5), start=7)) == 7  # 7, 12, ..., 37

    def test_refused(self):
        for shape in ((5, 4, 4), (11, 4)):
            with pytest.raises(
                ValueError, match=r"at least 6 thin slices .* ratio 5, got shape \(" + str(shape[0])
            ):
                thicken(np.zeros(shape), 5)


def test_profile_of_a_scanner(shared_ct):
    """A Gaussian of 0.9 thick spacings gives the genuine pair's 5 mm series; a box does not."""
    thin, thick = (
        read_volume(shared_ct / "pair" / f"head_{kind}.nii.gz") for kind in ("thin", "thick")
    )
    used_thick, used_thin = align_pair(thick, thin, 5)
    count = used_thick.stop - used_thick.start
    found = {}
    for profile in ("gaussian", "triangle", "box"):
        matrix = thickening_matrix(
            len(thin.slab),
            5,
            profile_weights(5, profile=profile),
            start=used_thin.start,
            count=count,
        )
        made = np.tensordot(matrix, thin.slab.astype(np.float32), axes=1)
        # Away from the ends, where the profile lacks thin slices.
        found[profile] = np.sqrt(np.mean((made - thick.slab[used_thick])[2:-2] ** 2))
    assert found["gaussian"] == pytest.approx(6.8, abs=0.1)
    assert found["triangle"] == pytest.approx(16.8, abs=0.1)
    assert found["box"] == pytest.approx(34.9, abs=0.1)
