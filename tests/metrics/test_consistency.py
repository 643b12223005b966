"""Consistency against thicken() and NumPy, whole or in chunks, from either end; and on real CT."""

import math
import tracemalloc

import numpy as np
import pytest
from helpers import save

from mpunet.io.scan_file import open_scan, read_volume
from mpunet.metrics.consistency import (
    ConsistencyMeter,
    ConsistencyRange,
    consistency,
    consistency_map,
)
from mpunet.phantom.chest import chest_phantom
from mpunet.slices.sampled_profile import SampledProfile
from mpunet.slices.simulate import thicken

PROFILES = [("gaussian", None), ("gaussian", 1.3), ("box", None), ("box", 0.3), ("triangle", 0.7)]


def volumes(ratio=5, depth=7, shape=(6, 5), seed=0):
    """Thin and thick slices that have nothing to do with each other."""
    rng = np.random.default_rng(seed)
    return rng.uniform(-1000, 2000, ((depth - 1) * ratio + 1, *shape)), rng.integers(
        -1000, 2000, (depth, *shape)
    ).astype(np.int16)


@pytest.mark.parametrize(("profile", "fwhm"), PROFILES)
@pytest.mark.parametrize("ratio", [1, 2, 5, 8])
def test_map_is_thicken_minus_thick_to_the_ends(profile, fwhm, ratio):
    thin, thick = volumes(ratio)
    expected = thicken(thin, ratio, profile=profile, fwhm=fwhm) - thick
    slices = list(consistency_map(thin, thick, profile=profile, fwhm=fwhm))
    assert slices[0].dtype == np.float32
    np.testing.assert_allclose(np.stack(slices), expected, atol=1e-3)


def test_numbers_are_those_of_the_map():
    thin, thick = volumes()
    lung = np.random.default_rng(1).random(thin.shape) < 0.3
    difference = thicken(thin, 5).astype(float) - thick
    found = consistency(thin, thick, lung=lung)
    for part, values in ((found, difference), (found.lungs, difference[lung[::5]])):
        assert part.mae == pytest.approx(np.abs(values).mean(), rel=1e-6)
        assert part.rmse == pytest.approx(np.sqrt(np.square(values).mean()), rel=1e-6)
        assert part.bias == pytest.approx(values.mean(), rel=1e-5)
    by_slice = np.abs(difference).mean(axis=(1, 2))
    assert found.worst_slice == by_slice.argmax()
    assert found.worst_mae == pytest.approx(by_slice.max(), rel=1e-6)
    in_lung = [np.abs(d[m]).mean() for d, m in zip(difference, lung[::5], strict=True)]
    assert found.lungs.worst_slice == np.argmax(in_lung)


@pytest.mark.parametrize("last_first", [False, True])
def test_a_sampled_profile(last_first):
    """A triangle as samples; and a skewed profile, by hand, in both orders of slices."""
    thin, thick = volumes(5)
    triangle = SampledProfile(np.array([-6.0, 0.0, 6.0]), np.array([0.0, 3.0, 0.0]))
    expected = list(consistency_map(thin, thick, profile="triangle"))
    found = list(consistency_map(thin, thick, profile=triangle, spacing=6.0))
    np.testing.assert_allclose(found, expected, atol=1e-3)

    skewed = SampledProfile(np.array([-1.0, 0.0, 1.0]), np.array([3.0, 2.0, 1.0]))
    thin, thick = volumes(2)
    padded = np.concatenate([thin[:1] * 0, thin, thin[:1] * 0])
    sums = 3 * padded[0:-2:2] + 2 * padded[1:-1:2] + padded[2::2]
    parts = np.array([3, *[6] * 5, 5])[:, None, None]
    order = slice(None, None, -1) if last_first else slice(None)
    meter = ConsistencyMeter(
        thick[order], thick.shape, 2, profile=skewed, spacing=2.0, last_first=last_first
    )
    meter.add(thin[order])
    assert meter.result().bias == pytest.approx((sums / parts - thick).mean(), abs=1e-3)
    with pytest.raises(ValueError, match="Expected the thick slice spacing in mm"):
        consistency(thin, thick, profile=skewed)


def test_limits():
    thin, _ = volumes()
    perfect = consistency(thin, thicken(thin, 5))
    assert (perfect.mae, perfect.bias, perfect.lungs) == (0, 0, None)
    # A constant is added whole, whatever the profile.
    assert consistency(thin[:, :3] + 50, thicken(thin[:, :3], 5)).bias == pytest.approx(
        50, abs=1e-3
    )
    nowhere = consistency(thin, thicken(thin, 5), lung=np.zeros(thin.shape)).lungs
    assert math.isnan(nowhere.mae)
    assert nowhere.worst_slice == -1


def test_what_a_network_cannot_see_does_not_count():
    """Scanners fill the corners with -2000 or less; networks see and return -1024 there."""
    thin, thick = np.full((11, 4, 4), -1024), np.full((3, 4, 4), -3024)
    assert consistency(thin, thick).mae == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("chunks", [[31], [1] * 31, [3, 8, 20]])
@pytest.mark.parametrize("last_first", [False, True])
@pytest.mark.parametrize(("profile", "fwhm"), PROFILES[:3])
def test_chunks_in_either_order(chunks, last_first, profile, fwhm):
    thin, thick = volumes()
    expected = consistency(thin, thick, profile=profile, fwhm=fwhm)
    order = slice(None, None, -1 if last_first else 1)
    meter = ConsistencyMeter(
        thick[order], thick.shape, 5, profile=profile, fwhm=fwhm, last_first=last_first
    )
    parts = np.split(thin[order], np.cumsum(chunks)[:-1])
    np.testing.assert_array_equal(np.concatenate(list(meter.watch(parts))), thin[order])
    found = meter.result()
    np.testing.assert_allclose(found[:3], expected[:3], rtol=1e-5)
    assert found.worst_slice == expected.worst_slice


@pytest.mark.parametrize("codes", ["LPS", "LPI", "SPL"])
def test_scan_files_are_read_slice_by_slice_in_their_order(tmp_path, codes):
    thin, thick = volumes()
    scan = open_scan(
        save(tmp_path / "scan.nii", thick, spacing=(5.0, 0.7, 0.7), codes=codes), slice_axis=None
    )
    assert scan.last_first == (codes == "LPI")
    meter = ConsistencyMeter(scan, scan.shape, 5, last_first=scan.last_first)
    meter.add(thin[::-1] if scan.last_first else thin)
    expected = consistency(thin, thick)
    np.testing.assert_allclose(meter.result()[:3], expected[:3], rtol=1e-5)
    assert meter.result().worst_slice == expected.worst_slice


def test_holds_a_few_rows_only():
    thin = np.zeros((201, 256, 256), np.int16)
    thick = np.zeros((41, 256, 256), np.int16)
    tracemalloc.start()
    consistency(thin, thick)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 256 * 256 * 4  # bytes of ten float32 slices


def test_errors():
    thin, thick = volumes()
    with pytest.raises(
        ValueError, match=r"got \(30, 6, 5\) thin and \(7, 6, 5\) thick; cut both to the range"
    ):
        consistency(thin[:-1], thick)
    with pytest.raises(ValueError, match=r"got \(31, 6, 4\) thin and \(7, 6, 5\) thick"):
        list(consistency_map(thin[..., :4], thick))
    with pytest.raises(ValueError, match=r"a mask on the thin grid, got .*\(7, 6, 5\) lung"):
        consistency(thin, thick, lung=thick)
    meter = ConsistencyMeter(thick, thick.shape, 5)
    meter.add(thin[:20])
    with pytest.raises(ValueError, match="thin slices of 7 thick ones, got those of 3"):
        meter.result()


def test_range():
    assert ConsistencyRange(1, 8, 2).limit == 12
    assert ConsistencyRange(**ConsistencyRange(1, 8, 2, "box", 0.5)._asdict()) == ConsistencyRange(
        1, 8, 2, "box", 0.5
    )


def test_interpolation_is_less_consistent_than_the_truth_and_a_shift_still_less():
    chest = chest_phantom(0, shape=(71, 60, 76), spacing=(1.0, 4.0, 4.0))
    thick = thicken(chest.thin, 5)
    nearest = thick.repeat(5, axis=0)[2:-2]
    errors = [
        consistency(thin, thick).mae
        for thin in (chest.thin, nearest, np.roll(chest.thin, 1, axis=0))
    ]
    assert errors == sorted(errors)
    assert errors[0] < 1e-3 < 2 < errors[1]


def test_the_genuine_pair(shared_ct):
    """A scanner's thin slices, thickened by the default profile, are its thick ones to a few HU."""
    thin, thick = (
        read_volume(shared_ct / "pair" / f"head_{kind}.nii.gz").slab for kind in ("thin", "thick")
    )
    first, last = 1, len(thick) - 2  # thick slice k stands at thin slice 5 k + 2
    start, end = (5 * k + 2 for k in (first, last))
    slices = np.stack(list(consistency_map(thin[start : end + 1], thick[first : last + 1])))
    inner = np.abs(slices[2:-2]).mean()
    assert inner < 5
    shifted = np.stack(list(consistency_map(thin[start - 2 : end - 1], thick[first : last + 1])))
    assert np.abs(shifted[2:-2]).mean() > 4 * inner


@pytest.mark.parametrize("ratio", [1.2, 2.5, 3.0000002, 6.1])
@pytest.mark.parametrize(
    ("profile", "fwhm"),
    [("gaussian", None), ("gaussian", 0.3), ("box", None), ("box", 0.4), ("triangle", None)],
)
def test_slices_at_any_spacing(ratio, profile, fwhm):
    """A thickened ramp is the same ramp, with two exceptions.

    These are the ends, where the profile is truncated, and profiles narrower than the spacing.
    """
    thick = np.broadcast_to(10 * np.arange(9.0)[:, None, None], (9, 2, 3))
    thin = np.arange(int(8 * ratio + 1e-3) + 1) * 10 / ratio
    meter = ConsistencyMeter(thick, thick.shape, ratio, profile=profile, fwhm=fwhm)
    meter.add(np.broadcast_to(thin[:, None, None], (len(thin), 2, 3)))
    assert meter.result().mae < (1.5 if profile == "gaussian" and fwhm is None else 1 + 5 / ratio)
