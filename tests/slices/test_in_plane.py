"""In-plane as depth: positions in turned volumes, thickness of thin slices, and crops from them."""

import nibabel as nib
import numpy as np
import pytest

from mpunet.data.transforms import training_transforms
from mpunet.geometry import grid_spacing
from mpunet.io.volume import volume_from_image
from mpunet.slices.in_plane import DEPTH_AXES, turned

AXES = {"height": (1, 0, 2), "width": (2, 0, 1)}
SHAPE = (15, 40, 30)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize(
    "spacing", [(2.5, 0.7, 0.7), (1.0, 1.0, 1.0), (5.0, 1.5, 1.5), (0.9, 0.8, 0.8)]
)
def test_each_voxel_shows_its_place(axis, spacing):
    """Ramps in mm along each axis of the scan.

    Splines and symmetric blurs do not change them, except at the ends of the blur.
    """
    order, mm = AXES[axis], np.array(spacing)
    places = []
    for source in order:
        ramp = np.indices(SHAPE)[source] * mm[source]
        volume = turned(
            np.rint(50 * ramp).astype(np.int16) - 1000,
            spacing,
            ramp > 0,
            axis=axis,
            thin_spacing=1.0,
        )
        np.testing.assert_allclose(volume.spacing, (1.0, mm[2], mm[2]))
        places.append((volume.slab.astype(float) + 1000) / 50)
    # As many slices as fit between the first voxel and the last.
    last = (np.array(SHAPE) - 1) * mm
    new_mm = np.array([1.0, mm[2], mm[2]])
    assert volume.slab.shape == tuple(
        int(last[a] / step + 1e-9) + 1 for a, step in zip(order, new_mm, strict=True)
    )
    middle = slice(4, -4) if new_mm[0] > mm[1] else slice(None)
    for found, expected in zip(
        places, np.indices(volume.slab.shape) * new_mm[:, None, None, None], strict=True
    ):
        np.testing.assert_allclose(
            found[middle], expected[middle], atol=0.025
        )  # voxels were rounded to 0.02 mm


@pytest.mark.parametrize("axis", AXES)
def test_cubes_are_only_turned(axis):
    slab = np.random.default_rng(0).integers(-1024, 3071, SHAPE).astype(np.int16)
    volume = turned(slab, (0.8, 0.8, 0.8), slab > 0, axis=axis, thin_spacing=0.8)
    np.testing.assert_array_equal(volume.slab, slab.transpose(AXES[axis]))
    np.testing.assert_array_equal(volume.lung, slab.transpose(AXES[axis]) > 0)
    assert volume.slab.dtype == np.int16
    assert volume.lung.dtype == np.bool_


@pytest.mark.parametrize("axis", AXES)
def test_the_mask_goes_to_the_nearest_voxel(axis):
    mask = np.random.default_rng(0).random(SHAPE) < 0.5
    volume = turned(np.zeros(SHAPE, np.int16), (2.5, 0.7, 0.7), mask, axis=axis, thin_spacing=1.0)
    for place in [(0, 0, 0), (7, 20, 11), (12, 33, 29), (18, 49, 2)]:
        at = np.empty(3, int)
        at[list(AXES[axis])] = np.floor(
            np.array(place) * (1.0, 0.7, 0.7) / np.array((2.5, 0.7, 0.7))[list(AXES[axis])] + 0.5
        )
        assert volume.lung[place] == mask[tuple(at)]


@pytest.mark.parametrize("period", [2.0, 4.0, 8.0])
def test_slices_are_as_thick_as_a_scanners(period):
    """A wave along the new depth is damped by exp(-2 (pi sigma / period)²).

    This is the Gaussian that turns pixels of 0.5 mm into slices of 1 mm.
    """
    wave = np.cos(2 * np.pi * 0.5 * np.arange(160) / period)
    slab = np.rint(1000 * np.broadcast_to(wave[None, :, None], (4, 160, 4))).astype(np.int16)
    slices = turned(slab, (2.0, 0.5, 0.5), slab > 0, axis="height", thin_spacing=1.0).slab[
        10:-10, 2, 2
    ]
    sigma = 0.9 * np.sqrt(1.0**2 - 0.5**2) / 2.3548
    expected = (
        1000
        * np.exp(-2 * (np.pi * sigma / period) ** 2)
        * np.cos(2 * np.pi * np.arange(10, 70) / period)
    )
    np.testing.assert_allclose(slices, expected, atol=10)


def test_interpolated_slices_pass_through_the_given_ones():
    slab = np.random.default_rng(0).integers(-1000, 1000, (6, 7, 8)).astype(np.int16)
    volume = turned(slab, (2.0, 1.0, 1.0), slab > 0, axis="width", thin_spacing=0.5)
    np.testing.assert_array_equal(volume.slab[::2, ::2], slab.transpose(2, 0, 1))


def test_both_axes_and_small_volumes():
    slab = np.full((2, 3, 4), 2000, np.int16)
    volumes = [turned(slab, (5.0, 1.0, 1.0), slab > 0, axis=axis) for axis in DEPTH_AXES]
    assert (
        [v.slab.shape for v in volumes] == [v.lung.shape for v in volumes] == [(3, 6, 4), (4, 6, 3)]
    )
    assert all((v.slab == 2000).all() and v.lung.all() for v in volumes)


def test_intensities_stay_in_the_window():
    """A spline overshoots at an edge; files hold [-1024, 3071]."""
    slab = np.full((8, 8, 8), -1024, np.int16)
    slab[4:] = 3071
    volume = turned(slab, (3.0, 1.0, 1.0), slab > 0, axis="height")
    assert (volume.slab.min(), volume.slab.max()) == (-1024, 3071)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (
            {"slab": np.zeros((1, 8, 8))},
            r"at least 2 voxels along each axis and three spacings in mm, got shape \(1, 8, 8\)",
        ),
        ({"spacing": (2.5, 0.7)}, r"got shape \(8, 8, 8\) and spacing \(2.5, 0.7\)"),
        ({"spacing": (2.5, 0.0, 0.7)}, r"spacing \(2.5, 0.0, 0.7\)"),
        ({"thin_spacing": 0.0}, r"slice spacing above 0 mm, got 0.0"),
        (
            {"lung": np.zeros((8, 8, 7), bool)},
            r"mask of the volume's shape \(8, 8, 8\), got \(8, 8, 7\)",
        ),
    ],
)
def test_refused(given, reason):
    with pytest.raises(ValueError, match=reason):
        turned(
            **{
                "slab": np.zeros((8, 8, 8)),
                "spacing": (2.5, 0.7, 0.7),
                "lung": np.zeros((8, 8, 8), bool),
                "axis": "height",
            }
            | given
        )


def test_real_ct(shared_ct):
    """With the height of a scan with 2.5 mm slices as depth, crops have the same HU.

    They have detail along depth that the slices of the scan do not have.
    """
    image = nib.load(shared_ct / "train" / "LIDC-IDRI-0001.nii.gz").slicer[200:330, 60:230, 40:80]
    scan = volume_from_image(image, path="LIDC-IDRI-0001.nii.gz")
    spacing = grid_spacing(scan.slab_affine)
    np.testing.assert_allclose(spacing, (2.5, 0.703, 0.703), atol=1e-3)
    volume = turned(scan.slab, spacing, scan.slab < -500, axis="height", thin_spacing=1.0)
    assert volume.slab.shape == (119, 139, 130)
    assert volume.slab.mean() == pytest.approx(scan.slab.mean(), abs=25)
    assert volume.lung.mean() == pytest.approx((scan.slab < -500).mean(), abs=0.03)
    # Power at periods below 5 mm, which 2.5 mm slices cannot represent: along the new depth, and
    # along the original depth.
    fine = []
    for axis, mm in ((0, 1.0), (1, spacing[2])):
        lines = np.moveaxis(volume.slab - volume.slab.mean(), axis, -1)
        power = np.abs(np.fft.rfft(lines * np.hanning(lines.shape[-1]))) ** 2
        fine.append(power[..., np.fft.rfftfreq(lines.shape[-1], mm) > 1 / 5].sum() / power.sum())
    assert fine[0] > 5 * fine[1]
    data = {
        "thin": volume.slab,
        "lung": volume.lung,
        "lung_box": np.array([(0, n) for n in volume.slab.shape]),
    }
    transforms = training_transforms(8, 5, (64, 64))
    transforms.set_random_state(seed=0)
    crop = transforms(data)
    assert (crop["thick"].shape, crop["thin"].shape) == ((1, 8, 64, 64), (1, 36, 64, 64))
    assert (
        crop["thick"] - crop["thin"][:, ::5]
    ).abs().mean() * 4095 > 10  # thick slices blur what thin ones show
