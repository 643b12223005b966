"""Augmentation keeps thick and thin aligned, for each transform and all of them together.

Tested on ramps, whose values give the original position of each voxel.
"""

import numpy as np
import pytest
import torch
from helpers import position_slab, save

from mpunet.data.augmentation import Augmentation, RandCTNoised, ct_noise, rotated, rotation_borders
from mpunet.data.datamodule import ThickThinDataModule
from mpunet.data.slab_crops import RandRotatedSlabCropd
from mpunet.data.transforms import RandSimulateThickd, training_transforms
from mpunet.slices.profile_range import ProfileRange
from mpunet.slices.simulate import profile_weights, thicken, thickening_matrix

RATIO, N_THICK = 3, 4
N_THIN = (N_THICK - 1) * RATIO + 1
SHAPE = (43, 40, 44)
ALL = {
    "rotate": Augmentation(rotate_prob=1.0, rotate_degrees=180.0),
    "shift": Augmentation(shift_prob=1.0),
    "scale": Augmentation(scale_prob=1.0),
    "noise": Augmentation(noise_prob=1.0),
    "all": Augmentation(rotate_prob=0.8, shift_prob=0.8, scale_prob=0.8, noise_prob=0.8),
}


def case(thin, *, paired):
    """A case with lung from column 22 on.

    Centres of crops are drawn in the middle of the volume, so that no patch reaches its edge.
    """
    lung = np.broadcast_to(np.arange(SHAPE[2]) >= 22, SHAPE)
    data = {"thin": thin, "lung": lung, "lung_box": np.array([(0, SHAPE[0]), (18, 22), (22, 26)])}
    return data | ({"thick": thin[::RATIO]} if paired else {})


def to_hu(tensor):
    return tensor[0].double().numpy() * 4095 - 1024


def crop(transforms, seed, data):
    transforms.set_random_state(seed=seed)
    return transforms(data)


def ramp_crops(transforms, seed, *, paired):
    """The same crop of ramps along depth, height and width, in voxels.

    The same crop of zeros is subtracted to remove noise and offset.
    """
    zero = crop(transforms, seed, case(np.zeros(SHAPE, np.int16), paired=paired))
    out = {"lung": zero["lung"][0].numpy()}
    for axis, name in enumerate("zyx"):
        ramp = (10 * np.indices(SHAPE)[axis]).astype(np.int16)
        one = crop(transforms, seed, case(ramp, paired=paired))
        out |= {
            f"{key} {name}": (to_hu(one[key]) - to_hu(zero[key])) / 10 for key in ("thick", "thin")
        }
    return out


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_thick_and_thin_show_the_same_place(name, paired):
    transforms = training_transforms(
        N_THICK,
        RATIO,
        (8, 8),
        lung_rate=1.0,
        profile=["gaussian", "triangle"],
        fwhm=(0.5, 1.1),
        augmentation=ALL[name],
    )
    angles = set()
    for seed in range(12):
        maps = ramp_crops(transforms, seed, paired=paired)
        # All HU were scaled by the same 1 + f about 0, so positions are known up to this factor.
        factor = np.abs(np.diff(maps["thin z"], axis=0)).mean()
        assert factor == pytest.approx(1, abs=0.021 if name in ("scale", "all") else 1e-4)
        z, y, x = (maps[f"thin {axis}"] / factor for axis in "zyx")
        thick_z, thick_y, thick_x = (maps[f"thick {axis}"] / factor for axis in "zyx")
        # Consecutive slices of the crop are consecutive in the volume, everywhere in plane: nothing
        # mixes along depth.
        assert np.abs(np.diff(z, axis=0) * np.sign(z[1, 0, 0] - z[0, 0, 0]) - 1).max() < 0.01
        assert np.ptp(z, axis=(1, 2)).max() < 0.01
        # Thick slice k is at thin slice 3 k if the profile does not extend past the volume's end.
        inside = (z[::RATIO, 0, 0] >= 5) & (z[::RATIO, 0, 0] <= SHAPE[0] - 6)
        np.testing.assert_allclose(thick_z[inside], z[::RATIO][inside], atol=0.01)
        # In plane all slices, thick and thin, went the same way.
        for thick, thin in ((thick_y, y), (thick_x, x)):
            np.testing.assert_allclose(thick, np.broadcast_to(thin[:1], thick.shape), atol=0.01)
            np.testing.assert_allclose(thin, np.broadcast_to(thin[:1], thin.shape), atol=0.01)
        # It is a rigid motion, up to the error of bicubic interpolation on a ramp, 0.05 voxels.
        grid = np.indices((8, 8)).reshape(2, -1).T - 3.5
        motion = np.linalg.lstsq(
            grid, np.stack([y[0].ravel() - y[0].mean(), x[0].ravel() - x[0].mean()], 1), rcond=None
        )[0]
        np.testing.assert_allclose(motion @ motion.T, np.eye(2), atol=0.02)
        assert np.abs(grid @ motion[:, 1] + x[0].mean() - x[0].ravel()).max() < 0.06
        angles.add(round(float(np.arctan2(motion[1, 0], motion[0, 0])), 2))
        # The mask moved in the same way: it started at column 22, so voxels up to 21 are outside
        # and voxels from 22 on inside.
        sure = np.abs(x - 21.5) > 0.8
        np.testing.assert_array_equal(maps["lung"][sure], x[sure] > 21.5)
        assert sure.mean() > 0.7
    assert len(angles) > (9 if name == "rotate" else 3)


@pytest.mark.parametrize("angle", [0.0, 0.3, -1.2, np.pi / 2])
def test_rotation_about_the_centre(angle):
    """Closed form: the voxel (y, x) off the centre shows what stood at the rotated place."""
    y, x = np.indices((21, 30), dtype=np.float64) - np.array([10, 14.5])[:, None, None]
    wave = np.stack([np.cos(0.3 * y + 0.2 * x), np.sin(0.5 * x)]).astype(np.float32)
    turned_y, turned_x = (
        np.cos(angle) * y - np.sin(angle) * x,
        np.sin(angle) * y + np.cos(angle) * x,
    )
    expected = np.stack([np.cos(0.3 * turned_y + 0.2 * turned_x), np.sin(0.5 * turned_x)])
    known = (np.abs(turned_y) < 8) & (np.abs(turned_x) < 12)
    assert known.sum() > 150
    np.testing.assert_allclose(rotated(wave, angle)[:, known], expected[:, known], atol=0.03)
    nearest = rotated(y[None].astype(np.float32), angle, nearest=True)[0]
    assert np.abs(nearest - turned_y)[known].max() < 0.72  # half a voxel's diagonal


@pytest.mark.parametrize("size", [(16, 16), (9, 20)])
@pytest.mark.parametrize("degrees", [1, 30, 45, 90, 170])
def test_borders_fill_the_corners(size, degrees):
    border = rotation_borders(size, np.deg2rad(degrees))
    wide = np.zeros((1, size[0] + 2 * border[0], size[1] + 2 * border[1]), np.float32)
    wide[0] = 1
    wide[0, [0, -1]] = wide[0, :, [0, -1]] = 50  # what repeats beyond the edge
    inner = rotated(wide, np.deg2rad(degrees))[
        0, border[0] : -border[0] or None, border[1] : -border[1] or None
    ]
    assert inner.shape[0] >= size[0]
    np.testing.assert_allclose(inner[: size[0], : size[1]], 1, atol=1e-4)


@pytest.mark.parametrize("shape", [(31, 9, 11), (31, 4, 3)])
def test_beyond_the_volume_its_edge_is_repeated(shape):
    """If a patch extends over either edge, a ramp stays within its bounds; 0° is no rotation."""
    thin = np.broadcast_to(100 * np.arange(shape[2], dtype=np.int16), shape)
    data = {"thin": thin, "lung": thin > 0, "lung_box": np.array([(0, n) for n in shape])}
    for degrees in (0.0, 180.0):
        turn = RandRotatedSlabCropd(N_THICK, RATIO, (6, 6), prob=1.0, degrees=degrees)
        for seed in range(20):
            out = crop(turn, seed, data)
            assert out["thin"].shape == out["lung"].shape == (1, N_THIN, 6, 6)
            assert -20 < out["thin"].min() <= out["thin"].max() < 100 * (shape[2] - 1) + 20
            if not degrees:
                start = int(out["thin"][0, 0, 0, 0]) // 100
                expected = 100 * np.minimum(np.arange(start, start + 6), shape[2] - 1)
                np.testing.assert_array_equal(out["thin"][0, 3, 2], expected)


class TestNoise:
    def test_variance_and_correlation(self):
        noise = ct_noise((30, 80, 90), 12.0, np.random.default_rng(0))
        assert noise.dtype == np.float32
        assert noise.std() == pytest.approx(12, rel=0.01)
        for axis, lags in (
            (0, (0, 0, 0)),
            (1, (4 / 6, 1 / 6, 0)),
            (2, (4 / 6, 1 / 6, 0)),
        ):  # of the weights 1, 2, 1
            moved = np.moveaxis(noise, axis, 0)
            found = [(moved[:-lag] * moved[lag:]).mean() / 144 for lag in (1, 2, 3)]
            np.testing.assert_allclose(found, lags, atol=0.03)

    def test_genuine_thick_slices_get_the_mean_of_the_same_noise(self):
        weights = profile_weights(RATIO)
        noised = RandCTNoised(N_THICK, RATIO, weights, prob=1.0, max_hu=30.0)
        stds = []
        for seed in range(8):
            thin, thick = (
                np.full((1, N_THIN, 40, 40), 100, np.float32),
                np.full((1, N_THICK, 40, 40), 100, np.float32),
            )
            out = crop(noised, seed, {"thin": thin, "thick": thick, "lung": thin > 0})
            noise, left = out["thin"][0] - 100, out["thick"][0] - 100
            stds.append(noise.std())
            # The second thick slice (at 3) and the third (at 6) extend over 3 thin slices to either
            # side, within the ten thin slices.
            for k in (1, 2):
                np.testing.assert_allclose(
                    left[k], np.tensordot(weights, noise[3 * k - 3 : 3 * k + 4], axes=1), atol=1e-3
                )
            ratios = left.std(axis=(1, 2)) / noise.std()
            np.testing.assert_allclose(
                ratios, np.sqrt((weights**2).sum()), rtol=0.25
            )  # the ends too
        assert 0 < min(stds) < 10 < 20 < max(stds) < 30.5

    def test_simulated_thick_slices_are_made_of_noisy_thin_ones(self):
        transforms = training_transforms(
            N_THICK, RATIO, (8, 8), flip=False, augmentation=Augmentation(noise_prob=1.0)
        )
        out = crop(transforms, 3, case(np.zeros(SHAPE, np.int16), paired=False))
        thin, thick = to_hu(out["thin"]), to_hu(out["thick"])
        assert thin.std() > 1
        for k in (1, 2):
            np.testing.assert_allclose(
                thick[k],
                np.tensordot(profile_weights(RATIO), thin[3 * k - 3 : 3 * k + 4], axes=1),
                atol=0.01,
            )


@pytest.mark.parametrize(("option", "size"), [("scale", 0.02), ("shift", 20.0)])
def test_intensities_of_thick_and_thin_change_alike(option, size):
    """Water in the first rows, air at -900 HU in the rest: an offset changes both, a scale air."""
    thin = np.full(SHAPE, -900, np.int16)
    thin[:, :20] = 0
    transforms = training_transforms(
        N_THICK, RATIO, SHAPE[1:], flip=False, augmentation=Augmentation(**{f"{option}_prob": 0.5})
    )
    found = []
    for seed in range(40):
        out = crop(transforms, seed, case(thin, paired=True))
        water, air = (
            np.concatenate([to_hu(out[key])[:, rows] for key in ("thick", "thin")])
            for rows in (slice(20), slice(20, 40))
        )
        assert max(np.ptp(water), np.ptp(air)) < 1e-2
        found.append((air.mean() + 900) / (-900 if option == "scale" else 1))
        assert water.mean() == pytest.approx(0 if option == "scale" else found[-1], abs=1e-2)
    unchanged = np.abs(found) < 1e-3 * size
    assert 10 <= unchanged.sum() <= 30
    assert min(found) < -0.6 * size < 0.6 * size < max(found)
    assert np.abs(found).max() <= 1.001 * size


class TestProfiles:
    def test_one_profile_is_no_range(self):
        assert ProfileRange.of() == ProfileRange(("gaussian",), None)
        assert not ProfileRange.of("box", 0.8).varies
        assert ProfileRange.of("box", 0.8).fixed == ("box", 0.8)
        assert ProfileRange.of(["triangle", "box"]).fixed == ("triangle", None)
        assert ProfileRange.of("gaussian", (0.6, 1.0)).fixed == ("gaussian", pytest.approx(0.8))

    def test_drawn_from_all_kinds_and_the_whole_range(self):
        profiles = ProfileRange.of(["gaussian", "box"], [0.7, 1.1])
        assert profiles.varies
        random, widths = np.random.RandomState(0), {"gaussian": [], "box": []}
        for _ in range(200):
            weights = profiles.draw(5, random)
            assert len(weights) // 2 <= profiles.reach(5)
            away = np.arange(len(weights)) - len(weights) // 2
            flat = np.isclose(weights[away == 0], weights[away == 1]).item()
            # The inner slices of a box have the weight 1 / width; a Gaussian decreases to
            # exp(-1/2 sigma²) in one slice.
            centre, beside = weights[away == 0].item(), weights[away == 1].item()
            width = 1 / centre if flat else np.sqrt(8 * np.log(2) / (2 * np.log(centre / beside)))
            widths["box" if flat else "gaussian"].append(width / 5)
        for found in widths.values():
            assert 70 <= len(found) <= 130
            assert 0.7 <= min(found) < 0.75
            assert 1.05 < max(found) <= 1.1

    def test_each_crop_is_thickened_by_the_profile_drawn_for_it(self):
        thin = np.random.default_rng(0).integers(-900, 900, SHAPE).astype(np.int16)
        transforms = training_transforms(N_THICK, RATIO, (8, 8), flip=False, fwhm=(0.5, 1.5))
        simulate = next(t for t in transforms.transforms if isinstance(t, RandSimulateThickd))
        assert simulate.margin == len(profile_weights(RATIO, fwhm=1.5)) // 2
        drawn = set()
        for seed in range(12):
            out = crop(transforms, seed, case(thin, paired=False))
            matrix = thickening_matrix(N_THIN, RATIO, simulate.weights, count=N_THICK)
            reach = len(simulate.weights) // 2
            whole = [
                k for k in range(N_THICK) if reach <= RATIO * k < N_THIN - reach
            ]  # what needs no margin
            expected = np.tensordot(matrix[whole], to_hu(out["thin"]), axes=1)
            np.testing.assert_allclose(to_hu(out["thick"])[whole], expected, atol=0.02)
            drawn.add(round(simulate.weights.max(), 4))
        assert len(drawn) > 9

    @pytest.mark.parametrize(
        ("given", "reason"),
        [
            ({"profile": []}, "at least one slice profile"),
            ({"fwhm": (1.1, 0.7)}, r"the smaller first and above 0, got 1.1 and 0.7"),
            ({"fwhm": 0.0}, r"above 0, got 0.0"),
            ({"profile": ["gaussian", "sinc"]}, r"got 'sinc'"),
        ],
    )
    def test_refused(self, given, reason):
        with pytest.raises(ValueError, match=reason):
            ProfileRange.of(**given)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"rotate_prob": 1.5}, r"probability from 0 to 1, got rotate_prob = 1.5"),
        ({"noise_prob": -0.1}, r"got noise_prob = -0.1"),
        (
            {"shift_hu": -20.0},
            r"largest change, 0 or more, got shift_hu = -20.0; it is drawn in both directions",
        ),
        ({"scale": float("nan")}, r"got scale = nan"),
    ],
)
def test_refused(given, reason):
    with pytest.raises(ValueError, match=reason):
        Augmentation(**given)


class TestDataModule:
    @pytest.fixture
    def data(self, thin_folder, tmp_path):
        save(tmp_path / "val" / "v.nii.gz", position_slab((19, 8, 10)))
        vary = Augmentation(rotate_prob=0.7, shift_prob=0.7, scale_prob=0.7, noise_prob=0.7)
        data = ThickThinDataModule(
            train_dir=str(thin_folder),
            val_dir=str(tmp_path / "val"),
            n_thick=4,
            ratio=3,
            crop=(4, 6),
            num_workers=0,
            cache_dir=str(tmp_path / "cache"),
            crops_per_epoch=8,
            batch_size=2,
            augmentation=vary,
            profile=["triangle", "gaussian"],
            fwhm=(0.6, 1.2),
        )
        data.prepare_data()
        data.setup("fit")
        return data

    def test_the_same_whatever_the_workers(self, data):
        alone = list(data.train_dataloader())
        data.num_workers = 2
        for a, b in zip(alone, data.train_dataloader(), strict=True):
            for key, tensor in a.items():
                torch.testing.assert_close(tensor, b[key], rtol=0, atol=0)
        assert not torch.equal(alone[0]["thin"], alone[1]["thin"])

    def test_validation_keeps_to_one_profile(self, data):
        (first, *_) = data.val_dataloader()
        np.testing.assert_allclose(
            first["thick"],
            thicken(position_slab((19, 8, 10)), 3, profile="triangle", fwhm=0.9),
            atol=1e-3,
        )


def test_crops_of_turned_cases_come_at_their_rate(thin_folder, tmp_path):
    """Two folders represent real thin scans (from -1000 to -997 on) and turned ones (-990 on)."""
    save(tmp_path / "turned" / "t.nii.gz", position_slab((19, 8, 10)) + 10)
    options = {
        "n_thick": 4,
        "ratio": 3,
        "crop": (4, 6),
        "num_workers": 0,
        "cache_dir": str(tmp_path / "cache"),
    }
    data, other = (
        ThickThinDataModule(train_dir=str(d), **options) for d in (thin_folder, tmp_path / "turned")
    )
    for module in (data, other):
        module.setup("fit")
    crops = data.train_dataloader().dataset
    crops.transforms = lambda data: dict.fromkeys(
        ("thick", "thin", "lung"), int(data["thin"][0, 0, 0]) == -990
    )
    crops.transforms.set_random_state = lambda seed: None
    for cases, rate, low, high in (
        (crops.cases, 0.0, 0, 0),
        (crops.cases, 0.3, 90, 150),
        ([], 0.3, 400, 400),
    ):
        crops.cases, crops.turned, crops.turned_rate = cases, other.cases["train"], rate
        assert low <= sum(crops[item]["thin"] for item in range(400)) <= high
