"""Intensities in [0, 1]: read as HU for RPLHR-CT, refused otherwise, for every way to read."""

import nibabel as nib
import numpy as np
import pytest
from helpers import nifti, peak, position_slab, save, streamed

from mpunet.io.intensity_range import IntensityRange, check_voxels
from mpunet.io.rplhr import in_rplhr_layout, reads_as_rplhr, rplhr_to_hu
from mpunet.io.scan_file import open_scan, read_volume
from mpunet.io.scans import PredictLoader, find_scans
from mpunet.io.volume import volume_from_image
from mpunet.phantom.chest import phantom_image

SLAB = position_slab((19, 8, 10))
THERE = "test/5mm/a.nii.gz"


def unit(hu):
    """As RPLHR-CT stores HU."""
    return ((np.asarray(hu, np.float64) + 1024) / 3072).astype(np.float32)


def whole(path, **options):
    return read_volume(path, **options).slab


def of_image(path, **options):
    return volume_from_image(nib.load(path), **options).slab


@pytest.fixture(params=[whole, streamed, of_image])
def read(request):
    """The ways to get a slab out of a file."""
    return request.param


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/a/train/1mm/x.nii.gz", True),
        ("/a/val/5mm/sub/x.nii", True),
        ("test/1mm/x.nii", True),
        ("/a/train/lung/x.nii", False),
        ("/a/train/thin/1mm/x.nii", False),
        ("/a/1mm/train/x.nii", False),
        ("/a/test/3mm/x.nii", False),
        ("/a/test/1mm", False),
        ("/a/tests/1mm/x.nii", False),
        ("/a/test/5mm/../../x.nii", False),
    ],
)
def test_layout(path, expected):
    assert in_rplhr_layout(path) is expected


def test_layout_by_the_file_itself_or_what_it_links_to(tmp_path, monkeypatch):
    path = save(tmp_path / THERE, unit(SLAB))
    (tmp_path / "scans").symlink_to(path.parent)
    (tmp_path / "val" / "1mm").mkdir(parents=True)
    (tmp_path / "val" / "1mm" / "b.nii.gz").symlink_to(save(tmp_path / "b.nii.gz", unit(SLAB)))
    monkeypatch.chdir(path.parent)
    assert in_rplhr_layout("a.nii.gz")
    assert in_rplhr_layout(tmp_path / "scans" / "a.nii.gz")
    assert in_rplhr_layout(tmp_path / "val" / "1mm" / "b.nii.gz")
    assert not in_rplhr_layout(tmp_path / "b.nii.gz")
    assert reads_as_rplhr(tmp_path / "b.nii.gz", "rplhr")
    assert not reads_as_rplhr(None, "auto")


def test_every_hu_of_the_window_comes_back():
    hu = np.arange(-1024, 2049)
    found = rplhr_to_hu(unit(hu))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, hu, rtol=0, atol=1e-3)


class TestRead:
    @pytest.mark.parametrize("codes", ["LPS", "RAI", "SPL"])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64, ">f4"])
    def test_by_its_place(self, tmp_path, read, codes, dtype):
        path = save(tmp_path / THERE, unit(SLAB).astype(dtype), codes=codes)
        slab = read(path)
        assert slab.dtype == np.float32
        np.testing.assert_allclose(slab, SLAB, rtol=0, atol=1e-3)
        # Intensities that cannot be HU are converted with and without the check; otherwise a viewer
        # would not show what training uses.
        np.testing.assert_array_equal(read(path, check_hu=False), slab)

    def test_scaled_integers(self, tmp_path, read):
        """[0, 1] kept in 15 bits by the header's slope."""
        image = nib.Nifti1Image(
            np.rint(unit(SLAB) * 32767).astype(np.int16).transpose(2, 1, 0),
            np.diag([-0.7, -0.7, 1, 1]),
        )
        image.header.set_slope_inter(1 / 32767, 0)
        (tmp_path / THERE).parent.mkdir(parents=True)
        nib.save(image, tmp_path / THERE)
        np.testing.assert_allclose(read(tmp_path / THERE), SLAB, rtol=0, atol=3072 / 32767)

    def test_refused_elsewhere_unless_told(self, tmp_path, read):
        path = save(tmp_path / "a.nii.gz", unit(SLAB))
        with pytest.raises(
            ValueError,
            match=r"intensities of 0.0078125 to .* are not HU.*RPLHR-CT.*--data.intensity rplhr",
        ):
            read(path)
        np.testing.assert_allclose(read(path, intensity="rplhr"), SLAB, rtol=0, atol=1e-3)
        np.testing.assert_array_equal(read(path, check_hu=False), unit(SLAB))

    @pytest.mark.parametrize("intensity", ["auto", "rplhr"])
    @pytest.mark.parametrize("dtype", [np.int16, np.float32])
    def test_hu_there_are_hu(self, tmp_path, read, intensity, dtype):
        slab = read(save(tmp_path / THERE, SLAB.astype(dtype)), intensity=intensity)
        assert slab.dtype == dtype
        np.testing.assert_array_equal(slab, SLAB)

    @pytest.mark.parametrize(
        ("voxels", "range_"),
        [
            (np.zeros(SLAB.shape, np.float32), "0 to 0"),
            (np.ones(SLAB.shape, np.float32), "1 to 1"),
            ((SLAB % 2).astype(np.float32), "0 to 1"),  # a mask
            ((SLAB % 2).astype(np.uint8), "0 to 1"),
            (SLAB.clip(-1, 1).astype(np.int16), "-1 to 1"),
            (SLAB.clip(-0.5, 1).astype(np.float32), "-0.5 to 1"),  # HU between soft tissue limits
            (SLAB.clip(0, 400).astype(np.float32), "0 to 400"),
            (unit(SLAB) * 2, "0.015625 to .*"),  # another scale
            (unit(np.where(SLAB < 0, 0, SLAB)), "0 to .*"),  # no air: 0 to 519 in HU
            (np.full(SLAB.shape, 0.5, np.float32), "512 to 512"),  # nothing at all
        ],
    )
    def test_neither(self, tmp_path, read, voxels, range_):
        """Not HU and no scan of RPLHR-CT either, even in its folders."""
        with pytest.raises(ValueError, match=f"intensities of {range_} are not HU"):
            read(save(tmp_path / THERE, voxels))

    def test_masks_stay_masks(self, tmp_path, read):
        mask = (SLAB % 3 == 0).astype(np.float32)
        np.testing.assert_array_equal(
            read(save(tmp_path / THERE, mask), check_hu=False, intensity="rplhr"), mask
        )

    def test_resampled_by_a_hair_too_far(self, tmp_path, read):
        hu = np.where(SLAB < -900, -1026, SLAB)
        np.testing.assert_allclose(read(save(tmp_path / THERE, unit(hu))), hu, rtol=0, atol=1e-3)

    def test_nan(self, tmp_path, read):
        with pytest.raises(ValueError, match=r"got 1 NaN or infinite voxels of 1520"):
            read(save(tmp_path / THERE, np.where(SLAB > 518, np.nan, unit(SLAB))))

    def test_unknown_intensity(self, tmp_path, read):
        with pytest.raises(ValueError, match="an intensity among 'auto' and 'rplhr', got 'unit'"):
            read(save(tmp_path / "a.nii", unit(SLAB)), intensity="unit")

    def test_a_phantom(self, tmp_path, read):
        image = phantom_image(0, shape=(20, 30, 32), spacing=(1.0, 10.0, 10.0))
        expected = volume_from_image(image).slab.clip(-1024, 2048)
        path = tmp_path / "train" / "1mm" / "0.nii.gz"
        path.parent.mkdir(parents=True)
        nib.save(
            nib.Nifti1Image(unit(np.asarray(image.dataobj).clip(-1024, 2048)), image.affine), path
        )
        np.testing.assert_array_equal(np.rint(read(path)), expected)


def test_image_keeps_its_own_voxels(tmp_path):
    image = nifti(unit(SLAB))
    np.testing.assert_allclose(
        volume_from_image(image, intensity="rplhr").slab, SLAB, rtol=0, atol=1e-3
    )
    np.testing.assert_array_equal(np.asarray(image.dataobj).max(), unit(SLAB).max())


def test_streamed_slice_by_slice(tmp_path):
    voxels = np.zeros((256, 256, 60), np.float32)
    voxels[:128] = 0.4
    paths = {depth: tmp_path / "test" / "5mm" / f"{depth}.nii.gz" for depth in (6, 60)}
    paths[6].parent.mkdir(parents=True)
    for depth, path in paths.items():
        nib.save(nib.Nifti1Image(voxels[..., :depth], np.diag([0.8, 0.8, 5, 1])), path)

    def read(depth):
        for _ in open_scan(paths[depth]):
            pass

    read(6)  # what is loaded at first use is not the question
    assert peak(lambda: read(60)) < peak(lambda: read(6)) + 256 * 256 * 4


def test_whole_volume_takes_no_second_copy(tmp_path):
    path = tmp_path / "test" / "5mm" / "a.nii"
    path.parent.mkdir(parents=True)
    voxels = np.linspace(0, 1, 128 * 128 * 60, dtype=np.float32).reshape(128, 128, 60)
    nib.save(nib.Nifti1Image(voxels, np.diag([0.8, 0.8, 5, 1])), path)
    assert peak(lambda: read_volume(path)) < 1.3 * voxels.nbytes


def test_scans_to_predict(tmp_path):
    save(tmp_path / THERE, unit(SLAB))
    save(tmp_path / "elsewhere.nii", unit(SLAB))
    scans = find_scans(tmp_path)
    refused, found = PredictLoader(scans)
    np.testing.assert_allclose(list(found.volume), SLAB, rtol=0, atol=1e-3)
    assert "--data.intensity rplhr" in refused.error
    assert [case.error for case in PredictLoader(scans, intensity="rplhr")] == [None, None]


def test_what_was_seen_in_parts():
    seen = IntensityRange()
    for part in (
        np.zeros(3),
        np.ones(2),
        np.array([0.25, 1]),
    ):  # the first two alone would be a mask
        seen.add(part)
    assert seen.unit
    assert (seen.in_hu().low, seen.in_hu().high, seen.in_hu().voxels) == (-1024, 2048, 7)
    seen.add(np.array([1.5]))
    assert not seen.unit
    with pytest.raises(ValueError, match=r"intensities of 0 to 1 are not HU.*as in RPLHR-CT"):
        check_voxels(np.array([0, 0.5, 1]), name="a")
