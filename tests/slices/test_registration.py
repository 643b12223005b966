"""Registration against offsets, turns and gaps that were planted in phantoms."""

import numpy as np
import pytest

from mpunet.phantom.chest import chest_phantom
from mpunet.slices.registration import find_steps, register
from mpunet.slices.simulate import profile_density, profile_weights, thickening_matrix

RATIO = 5


@pytest.fixture(scope="module")
def thin():
    return chest_phantom(1, shape=(101, 48, 60), spacing=(1.6, 5.5, 5.5)).thin.astype(np.float32)


def thickened(thin, start, profile="gaussian", noise=5.0):
    """Thick slices of ``profile`` from ``start`` (may be fractional), with new noise, in HU."""
    count = int((len(thin) - 1 - start) // RATIO) + 1
    centres = start + RATIO * np.arange(count)
    weights = profile_density(np.arange(len(thin)) - centres[:, None], profile, RATIO)
    thick = np.tensordot(weights / weights.sum(axis=1, keepdims=True), thin, axes=1)
    return thick + np.random.default_rng(0).normal(0, noise, thick.shape)


class TestRegister:
    @pytest.mark.parametrize("profile", ["gaussian", "box", "triangle"])
    @pytest.mark.parametrize("start", [0, 2, 7, 2.25, 3.5, 4.8])
    def test_offset_to_a_tenth_of_a_thin_slice(self, thin, start, profile):
        found = register(thickened(thin, start, profile), thin, RATIO)
        assert found.offset == pytest.approx(start, abs=0.1)
        assert found.turned == ""
        assert found.agreement > 0.97
        assert found.gain == pytest.approx(1, abs=0.03)
        assert found.bias == pytest.approx(0, abs=4)

    def test_thick_slices_reach_past_the_thin_ones(self, thin):
        found = register(thickened(thin, 1), thin[21:], RATIO)
        assert found.offset == pytest.approx(-20, abs=0.1)
        assert found.slices == 16

    def test_another_scale_moves_nothing_and_is_told(self, thin):
        found = register(1.5 * thickened(thin, 3) + 200, thin, RATIO)
        assert found.offset == pytest.approx(3, abs=0.1)
        assert found.gain == pytest.approx(1.5, abs=0.03)
        assert found.bias == pytest.approx((0.5 * thin + 200).mean(), abs=15)

    @pytest.mark.parametrize(
        ("axes", "name"),
        [
            ((0,), "upside down"),
            ((1,), "front to back"),
            ((2,), "left to right"),
            ((1, 2), "front to back and left to right"),
            ((0, 1, 2), "turned in all three axes"),
        ],
    )
    def test_turns(self, thin, axes, name):
        found = register(np.flip(thickened(thin, 2), axes), thin, RATIO)
        assert found.turned == name
        assert found.offset == pytest.approx(2, abs=0.1)

    def test_another_patient_agrees_nowhere(self, thin):
        other = chest_phantom(2, shape=(101, 48, 60), spacing=(1.6, 5.5, 5.5)).thin.astype(
            np.float32
        )
        assert register(thickened(other, 0), thin, RATIO).agreement < 0.9

    def test_headers_decide_where_voxels_do_not(self):
        ramp = np.arange(60.0)[:, None, None] * np.ones((1, 6, 6)) + np.arange(36.0).reshape(6, 6)
        assert register(ramp[10:51:5], ramp, RATIO, expected=10).offset == pytest.approx(
            10, abs=0.1
        )

    def test_refused(self, thin):
        with pytest.raises(
            ValueError, match=r"at least 2 thick slices .* got \(1, 48, 60\) and \(101, 48, 60\)"
        ):
            register(thin[:1], thin, RATIO)
        with pytest.raises(ValueError, match="of one size"):
            register(thin[::5, :-1], thin, RATIO)


class TestSteps:
    def test_none_where_all_is_well(self, thin):
        for start in (0, 2.5):
            assert find_steps(thickened(thin, start), thin, RATIO, start) == []

    @pytest.mark.parametrize(("missing", "by"), [(slice(10, 11), 5), (slice(10, 12), 10)])
    def test_missing_thick_slices(self, thin, missing, by):
        thick = np.delete(thickened(thin, 0), missing, axis=0)
        (step,) = find_steps(thick, thin, RATIO, register(thick, thin, RATIO).offset)
        assert step.thick == pytest.approx(10, abs=1)
        assert step.by == pytest.approx(by, abs=0.3)

    @pytest.mark.parametrize("count", [1, 2])
    def test_missing_thin_slices(self, thin, count):
        cut = np.delete(thin, range(52, 52 + count), axis=0)
        thick = thickened(thin, 0)
        (step,) = find_steps(thick, cut, RATIO, register(thick, cut, RATIO).offset)
        assert step.thick == pytest.approx(10.5, abs=1)
        assert step.by == pytest.approx(-count, abs=0.3)

    def test_a_doubled_thin_slice(self, thin):
        doubled = np.insert(thin, 52, thin[52], axis=0)
        thick = thickened(thin, 0)
        (step,) = find_steps(thick, doubled, RATIO, register(thick, doubled, RATIO).offset)
        assert step.by == pytest.approx(1, abs=0.3)


def test_the_genuine_pair_is_found_without_its_headers(shared_ct):
    """Thick slice k of the head stands on thin slice 5 k + 2."""
    from mpunet.data.checks.survey import survey
    from mpunet.io.scan_file import read_volume

    thin, thick = (
        survey(read_volume(shared_ct / "pair" / f"head_{kind}.nii.gz")).planes
        for kind in ("thin", "thick")
    )
    found = register(thick, thin, RATIO)
    assert found.offset == pytest.approx(2, abs=0.05)
    assert found.agreement > 0.999
    assert find_steps(thick, thin, RATIO, found.offset) == []


def test_the_thickened_series_is_the_one_of_simulate(thin):
    matrix = thickening_matrix(len(thin), RATIO, profile_weights(RATIO), start=2)
    thick = np.tensordot(matrix, thin, axes=1)
    assert register(thick, thin, RATIO).agreement == pytest.approx(1, abs=1e-5)
