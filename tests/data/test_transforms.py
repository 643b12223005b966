"""Crops: values that encode positions must still match after every flip and turn.

This applies to thick and thin slices.
"""

import itertools

import numpy as np
import pytest
import torch
from helpers import position_slab, positions

from mpunet.data.slab_crops import RandSlabCropd
from mpunet.data.transforms import SimulateThickd, training_transforms
from mpunet.slices.simulate import profile_weights, thicken

RATIO, N_THICK = 3, 4
N_THIN = (N_THICK - 1) * RATIO + 1
SHAPE = (31, 9, 11)
SEEDS = range(40)


def case(shape=SHAPE, *, paired):
    thin = position_slab(shape)
    data = {"thin": thin, "lung": thin % 3 == 0, "lung_box": np.array([(0, n) for n in shape])}
    return data | ({"thick": thin[::RATIO]} if paired else {})


def crops(data, in_plane=(6, 6), seeds=SEEDS, **options):
    transforms = training_transforms(N_THICK, RATIO, in_plane, **options)
    for seed in seeds:
        transforms.set_random_state(seed=seed)
        yield transforms(data)


def to_hu(tensor):
    return tensor[0].double().numpy() * 4095 - 1024


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("in_plane", [(6, 6), (5, 7)])
def test_positions_stay_aligned(paired, in_plane):
    orientations, starts = set(), set()
    for crop in crops(case(paired=paired), in_plane):
        assert crop["thick"].shape == (1, N_THICK, *in_plane)
        assert crop["thin"].shape == crop["lung"].shape == (1, N_THIN, *in_plane)
        assert {t.dtype for t in crop.values() if isinstance(t, torch.Tensor)} == {torch.float32}
        thin = positions(to_hu(crop["thin"]), SHAPE)
        # One voxel along an axis of the crop is one voxel along an axis of the volume, forwards or
        # backwards.
        steps = [np.unique(np.diff(thin, axis=axis).reshape(-1, 3), axis=0) for axis in range(3)]
        assert [len(step) for step in steps] == [1, 1, 1]
        matrix = np.concatenate(steps)
        np.testing.assert_array_equal(np.abs(matrix).sum(axis=0), 1)
        np.testing.assert_array_equal(np.abs(matrix).sum(axis=1), 1)
        assert abs(matrix[0, 0]) == 1  # depth stays depth
        orientations.add(matrix.tobytes())
        # The mask went the same way.
        np.testing.assert_array_equal(
            crop["lung"][0], np.rint(to_hu(crop["thin"])).astype(int) % 3 == 0
        )
        # Thick slice k stands on thin slice 3 k.
        thick_z = thin[::RATIO, 0, 0, 0]
        starts.add(int(thick_z.min()))
        reach = 0 if paired else len(profile_weights(RATIO)) // 2
        inside = (thick_z >= reach) & (thick_z <= SHAPE[0] - 1 - reach)
        assert inside.sum() >= N_THICK - 2
        np.testing.assert_allclose(
            to_hu(crop["thick"])[inside], to_hu(crop["thin"])[::RATIO][inside], atol=1e-2
        )
    # 8 flips, and 8 more with height and width exchanged if they are equal; every possible start.
    assert len(orientations) == (16 if in_plane[0] == in_plane[1] else 8)
    assert starts <= (set(range(0, 22, 3)) if paired else set(range(22)))
    assert len(starts) >= (7 if paired else 12)


@pytest.mark.parametrize("shape", [(4, 9, 11), (7, 9, 11), (31, 4, 11), (31, 9, 3), (7, 3, 2)])
@pytest.mark.parametrize("paired", [False, True])
def test_volumes_smaller_than_the_crop(shape, paired):
    for crop in crops(case(shape, paired=paired)):
        assert crop["thin"].shape == (1, N_THIN, 6, 6)
        assert crop["thick"].shape == (1, N_THICK, 6, 6)
        thin = positions(to_hu(crop["thin"]), shape)
        # Reflected along depth: the neighbour is a neighbour. Repeated at the edge in plane.
        assert set(np.abs(np.diff(thin[:, 0, 0, 0]))) == {1}
        assert np.abs(np.diff(thin, axis=1)).max() <= 1
        assert np.abs(np.diff(thin, axis=2)).max() <= 1
        np.testing.assert_array_equal(
            crop["lung"][0], np.rint(to_hu(crop["thin"])).astype(int) % 3 == 0
        )
        if paired:
            np.testing.assert_allclose(
                to_hu(crop["thick"]), to_hu(crop["thin"])[::RATIO], atol=1e-2
            )
        elif shape[0] < N_THIN:
            np.testing.assert_allclose(
                to_hu(crop["thick"]), thicken(to_hu(crop["thin"]), RATIO), atol=1e-2
            )


def test_simulated_slices_are_those_of_the_whole_volume():
    """A crop with its margins sees all that the profile needs, at the volume's ends too."""
    rng = np.random.default_rng(0)
    thin = rng.integers(-1000, 1000, (31, 6, 6)).astype(np.int16)
    data = {"thin": thin, "lung": thin > 0, "lung_box": np.array([(0, 31), (0, 6), (0, 6)])}
    found = set()
    for crop in crops(data, flip=False):
        whole = to_hu(crop["thin"])
        start = next(i for i in range(31) if np.abs(thin[i : i + N_THIN] - whole).max() < 0.01)
        expected = thicken(thin[start % RATIO :], RATIO)[start // RATIO : start // RATIO + N_THICK]
        # Thickening from slice start % 3 truncates the first profile; the crop has the slices
        # before it.
        rows = slice(1, None) if 0 < start < 3 else slice(None)
        np.testing.assert_allclose(to_hu(crop["thick"])[rows], expected[rows], atol=0.01)
        found.add(start)
    assert {0, 21} <= found


def test_profile_is_passed_on():
    thin = np.random.default_rng(0).integers(-1000, 1000, (31, 6, 6)).astype(np.int16)
    data = {"thin": thin, "lung": thin > 0, "lung_box": np.array([(0, 31), (0, 6), (0, 6)])}
    for crop in crops(data, flip=False, profile="box", seeds=range(3)):
        thick, thin_crop = to_hu(crop["thick"]), to_hu(crop["thin"])
        for k in range(1, N_THICK - 1):
            np.testing.assert_allclose(
                thick[k], thin_crop[3 * k - 1 : 3 * k + 2].mean(axis=0), atol=0.01
            )
    blurred, centre = (
        next(crops(data, flip=False, profile="triangle", fwhm=fwhm, seeds=[0]))
        for fwhm in (1.0, 1 / 3)
    )
    np.testing.assert_allclose(to_hu(centre["thick"]), to_hu(centre["thin"])[::RATIO], atol=0.01)
    assert np.abs(to_hu(blurred["thick"]) - to_hu(blurred["thin"])[::RATIO]).max() > 10


def test_intensities_are_scaled_and_clipped():
    thin = np.full((31, 6, 6), -1024, np.int16)
    thin[:, :3] = 3071
    thin[:, 0] = 5000
    data = {
        "thin": thin,
        "thick": thin[::3],
        "lung": thin > 0,
        "lung_box": np.array([(0, 31), (0, 6), (0, 6)]),
    }
    crop = next(crops(data, flip=False))
    for key in ("thick", "thin"):
        assert crop[key][0, 0, :, 0].tolist() == [1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("paired", [False, True])
def test_the_same_for_a_seed_and_another_for_another(paired):
    data = case(paired=paired)
    first, again = (list(crops(data, seeds=range(6))) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        for key in ("thick", "thin", "lung"):
            torch.testing.assert_close(a[key], b[key], rtol=0, atol=0)
    assert not any(torch.equal(a["thin"], b["thin"]) for a, b in itertools.combinations(first, 2))


@pytest.mark.parametrize("paired", [False, True])
def test_lung_rate(paired):
    data = case((61, 7, 9), paired=paired)
    lung = np.zeros((61, 7, 9), bool)
    lung[50, 2, 7] = True
    data |= {"lung": lung, "lung_box": np.array([[50, 51], [2, 3], [7, 8]])}
    rates = {}
    for lung_rate in (0.0, 0.5, 1.0):
        found = [crop["lung"].any() for crop in crops(data, (3, 3), range(60), lung_rate=lung_rate)]
        rates[lung_rate] = np.mean(found)
    assert rates[1.0] == 1
    assert rates[0.0] < 0.2
    assert 0.4 < rates[0.5] < 0.7


def test_a_lung_mask_with_a_sparse_box_is_hit_nearly_always():
    data = case(paired=False)
    data["lung"] = np.zeros(SHAPE, bool)
    data["lung"][5:25:5, 2:8:2, 2:8:2] = True
    data["lung_box"] = np.array([[5, 21], [2, 7], [2, 7]])
    assert np.mean([crop["lung"].any() for crop in crops(data, (1, 1), lung_rate=1.0)]) > 0.6


def test_the_crop_alone_keeps_a_margin_for_the_profile():
    crop = RandSlabCropd(N_THICK, RATIO, (6, 6), margin=3)
    befores = set()
    for seed in SEEDS:
        crop.set_random_state(seed=seed)
        out = crop(case(paired=False))
        first = positions(out["thin"], SHAPE)[0, 0, 0, 0, 0]
        befores.add(out["before"])
        assert out["thin"].shape[1] == out["before"] + N_THIN + min(
            3, SHAPE[0] - first - out["before"] - N_THIN
        )
    assert {0, 3} <= befores <= {0, 1, 2, 3}
    assert (
        SimulateThickd(N_THICK, RATIO).margin == 3
    )  # a Gaussian of 2.7 slices reaches 3 sigma = 3.4 slices


def test_memory_mapped_volumes_are_only_read_where_cut(tmp_path):
    """The whole volume is never loaded: a read-only memory map is cropped, and crops are copies."""
    np.save(tmp_path / "thin.npy", position_slab(SHAPE))
    data = case(paired=False) | {"thin": np.load(tmp_path / "thin.npy", mmap_mode="r")}
    crop = next(crops(data))
    crop["thin"].zero_()
    np.testing.assert_array_equal(data["thin"], position_slab(SHAPE))
