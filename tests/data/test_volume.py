"""Reading and writing volumes: what comes back, what is kept, what is refused, and what a failed write leaves (nothing)."""

import gzip
import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mpunet.data import volume as volume_module
from mpunet.data.volume import read_volume, thin_image, volume_from_image, write_volume

AXIAL = np.array([[-0.8, 0, 0, 30], [0, -0.8, 0, 40], [0, 0, 5, -100], [0, 0, 0, 1]])


def ct(shape=(4, 6, 3), dtype=np.int16):
    """A distinct value for each voxel, -1000 to 0 HU and more."""
    return (np.arange(np.prod(shape)).reshape(shape) * 20 - 1000).astype(dtype)


def save(path, voxels=None, affine=AXIAL, **header):
    image = nib.Nifti1Image(ct() if voxels is None else voxels, affine)
    for field, value in header.items():
        image.header[field] = value
    nib.save(image, path)
    return path


def patched(path, offset, data):
    """Overwrite bytes of an uncompressed file, for headers that nibabel refuses to write."""
    raw = bytearray(path.read_bytes())
    raw[offset : offset + len(data)] = data
    path.write_bytes(raw)
    return path


class TestRead:
    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    def test_axes_are_depth_height_width(self, tmp_path, suffix):
        volume = read_volume(save(tmp_path / f"a{suffix}"))
        # LPS+ in-plane and S+ along depth, so that the slab is the stored array with its axes reversed.
        np.testing.assert_array_equal(volume.slab, ct().transpose(2, 1, 0))
        assert volume.slab.dtype == np.int16
        assert volume.slab.flags.c_contiguous
        assert volume.slice_axis == 2
        np.testing.assert_allclose(volume.affine, AXIAL, rtol=1e-7)

    def test_flipped_axes_turn(self, tmp_path):
        volume = read_volume(save(tmp_path / "a.nii", affine=AXIAL @ np.diag([-1, 1, -1, 1])))
        np.testing.assert_array_equal(volume.slab, ct()[::-1, :, ::-1].transpose(2, 1, 0))

    def test_slice_axis_can_be_given(self, tmp_path):
        assert read_volume(save(tmp_path / "a.nii"), slice_axis=0).slab.shape == (4, 3, 6)
        with pytest.raises(ValueError, match="slice_axis 0, 1, 2 or None, got 3"):
            read_volume(tmp_path / "a.nii", slice_axis=3)

    def test_scaling_is_applied(self, tmp_path):
        image = nib.Nifti1Image((ct() + 1024) * 2, AXIAL)
        image.header.set_slope_inter(0.5, -1024)  # nibabel writes voxels as they are beside a scaling that is set
        nib.save(image, tmp_path / "a.nii.gz")
        volume = read_volume(tmp_path / "a.nii.gz")
        assert volume.slab.dtype == np.float32
        np.testing.assert_array_equal(volume.slab, ct().transpose(2, 1, 0))

    def test_big_endian(self, tmp_path):
        header = nib.Nifti1Header(endianness=">")
        header.set_data_dtype(np.int16)
        nib.save(nib.Nifti1Image(ct(), AXIAL, header), tmp_path / "a.nii")
        volume = read_volume(tmp_path / "a.nii")
        assert volume.slab.dtype.isnative
        np.testing.assert_array_equal(volume.slab, ct().transpose(2, 1, 0))

    def test_single_trailing_volume_is_dropped(self, tmp_path):
        assert read_volume(save(tmp_path / "a.nii", ct()[..., None])).slab.shape == (3, 6, 4)

    def test_no_affine_falls_back_to_spacing(self, tmp_path):
        path = save(tmp_path / "a.nii", affine=None, pixdim=[1, 0.8, 0.8, 5, 1, 1, 1, 1])
        volume = read_volume(path)
        assert volume.header["sform_code"] == volume.header["qform_code"] == 0
        assert volume.slab.shape == (3, 6, 4)

    def test_without_air_on_request(self, tmp_path):
        path = save(tmp_path / "a.nii", ct() + 1000)
        assert read_volume(path, check_hu=False).slab.min() == 0


class TestRefused:
    @pytest.mark.parametrize(
        ("voxels", "message"),
        [
            (ct((4, 6)), r"a.nii: expected a 3D volume, got 2D of shape \(4, 6\)"),
            (ct((4, 6, 3, 2)), r"expected a 3D volume, got 4D of shape \(4, 6, 3, 2\)"),
            (ct((4, 6, 1)), r"at least 2 slices along depth \(axis 2 of shape \(4, 6, 1\)\), got 1; a single slice"),
            (ct((4, 0, 3)), r"expected voxels, got an empty volume of shape \(4, 0, 3\)"),
            (np.where(ct() < -980, np.nan, ct()), "finite intensities, got 1 NaN or infinite voxels of 72"),
            (np.where(ct() > 390, -np.inf, ct()), "finite intensities, got 2 NaN or infinite voxels of 72"),
            (ct() / 1420 + 0.7, "intensities of -0.00422535 to 0.995775 are not HU.*check_hu=False"),
            ((ct() + 1000).astype(np.uint16), "intensities of 0 to 1420 are not HU, where air is -1000"),
            (np.full((4, 6, 3), -1000, np.int16), "intensities of -1000 to -1000 are not HU"),
            (ct().astype(np.complex64), "one real number per voxel, got data of type complex64"),
            (np.zeros((4, 6, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "one real number per voxel"),
        ],
    )
    def test_voxels(self, tmp_path, voxels, message):
        with pytest.raises(ValueError, match=message):
            read_volume(save(tmp_path / "a.nii", voxels))

    def test_singular_affine(self, tmp_path):
        path = patched(save(tmp_path / "a.nii"), 280, bytes(12))  # srow_x
        with pytest.raises(ValueError, match=r"a.nii: The affine is singular"):
            read_volume(path)

    def test_missing_and_not_a_file(self, tmp_path):
        with pytest.raises(ValueError, match=r"a.nii: no such file"):
            read_volume(tmp_path / "a.nii")
        (tmp_path / "b.nii.gz").symlink_to(tmp_path / "gone")
        with pytest.raises(ValueError, match=r"b.nii.gz: no such file"):
            read_volume(tmp_path / "b.nii.gz")
        (tmp_path / "c.nii.gz").mkdir()
        with pytest.raises(ValueError, match=r"c.nii.gz: not a NIfTI file"):
            read_volume(tmp_path / "c.nii.gz")

    @pytest.mark.parametrize("content", [b"", b"hello", b"hello" * 1000, gzip.compress(b"hello" * 1000)])
    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    def test_other_content(self, tmp_path, suffix, content):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"a{suffix}: not a NIfTI file, damaged or cut short: ."):
            read_volume(path)

    def test_other_image_class(self):
        with pytest.raises(ValueError, match=r"expected a NIfTI image, got MGHImage; nibabel.Nifti1Image.from_image converts"):
            volume_from_image(nib.MGHImage(ct(), AXIAL))

    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    def test_cut_short_anywhere(self, tmp_path, suffix):
        whole = save(tmp_path / f"a{suffix}", np.random.default_rng(0).integers(-1000, 1000, (16, 16, 8)).astype(np.int16))
        raw = whole.read_bytes()
        for share in (0.02, 0.1, 0.5, 0.99):
            whole.write_bytes(raw[: int(len(raw) * share)])
            with pytest.raises(ValueError, match="damaged or cut short"):
                read_volume(whole)
        whole.write_bytes(raw[:-1])
        with pytest.raises(ValueError, match="damaged or cut short"):
            read_volume(whole)

    def test_flipped_bits(self, tmp_path):
        """nibabel alone reads these without complaint: it stops before the checksum."""
        path = save(tmp_path / "a.nii.gz", np.random.default_rng(0).integers(-1000, 1000, (16, 16, 8)).astype(np.int16))
        raw = path.read_bytes()
        for position in range(1000, len(raw) - 8, len(raw) // 20):
            damaged = bytearray(raw)
            damaged[position] ^= 4
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match="damaged or cut short"):
                read_volume(path)


class TestWrite:
    ratio = 4

    def thin(self, volume):
        """Thick slice k at thin slice 4 k, linear between them: what a perfect network gives for these voxels."""
        depth = len(volume.slab)
        at = np.arange((depth - 1) * self.ratio + 1) / self.ratio
        low = np.minimum(at.astype(int), depth - 2)
        weight = (at - low)[:, None, None]
        return ((1 - weight) * volume.slab[low] + weight * volume.slab[low + 1]).astype(np.float32)

    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    @pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
    def test_orientation_and_thick_slices_stay(self, tmp_path, order, suffix):
        flips = np.diag([1, -1, 1, 1]) if order[0] else np.diag([-1, 1, -1, 1])
        affine = (AXIAL @ flips)[:, [*order, 3]]
        voxels = ct().transpose(order)
        volume = read_volume(save(tmp_path / "thick.nii", voxels, affine))
        write_volume(tmp_path / f"thin{suffix}", self.thin(volume), volume, self.ratio)
        image = nib.load(tmp_path / f"thin{suffix}")
        axis = order.index(2)
        every = tuple(slice(None, None, self.ratio if a == axis else 1) for a in range(3))
        np.testing.assert_array_equal(np.asanyarray(image.dataobj)[every], voxels)
        assert image.shape[axis] == 9
        for corner in itertools.product((0, 1), repeat=3):
            thick_index = np.array(corner) * (np.array(voxels.shape) - 1)
            thin_index = np.array(corner) * (np.array(image.shape) - 1)
            expected = nib.affines.apply_affine(affine, thick_index)
            np.testing.assert_allclose(nib.affines.apply_affine(image.affine, thin_index), expected, atol=1e-4)

    @pytest.mark.parametrize("codes", [(1, 1), (0, 1), (1, 0), (4, 2), (0, 0)])
    def test_header_is_kept(self, tmp_path, codes):
        image = nib.Nifti1Image(ct(), AXIAL)
        registered = AXIAL.copy()
        registered[:3, 3] += 7  # sform and qform may name different spaces
        image.set_sform(registered, codes[0])
        image.set_qform(AXIAL, codes[1])
        image.header.set_xyzt_units("mm", "sec")
        image.header["descrip"] = b"kernel B31f"
        image.header["cal_max"] = 400
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a note"))
        nib.save(image, tmp_path / "thick.nii.gz")

        volume = read_volume(tmp_path / "thick.nii.gz")
        write_volume(tmp_path / "thin.nii.gz", self.thin(volume), volume, self.ratio)
        thick, thin = nib.load(tmp_path / "thick.nii.gz"), nib.load(tmp_path / "thin.nii.gz")
        assert (thin.header["sform_code"], thin.header["qform_code"]) == codes
        assert thin.header.get_xyzt_units() == ("mm", "sec")
        assert thin.header["descrip"] == b"kernel B31f"
        assert thin.header["cal_max"] == 400
        assert thin.header.extensions[0].get_content() == b"a note"
        assert thin.get_data_dtype() == np.int16
        assert (thin.dataobj.slope, thin.dataobj.inter) == (1, 0)
        np.testing.assert_allclose(thin.header.get_zooms(), (0.8, 0.8, 1.25), rtol=1e-6)
        finer = np.diag([1, 1, 1 / self.ratio, 1])
        np.testing.assert_allclose(thin.affine, thick.affine @ finer, atol=1e-4)
        for get in ("get_sform", "get_qform"):
            before, after = getattr(thick, get)(coded=True)[0], getattr(thin, get)(coded=True)[0]
            assert (before is None) == (after is None)
            if before is not None:
                np.testing.assert_allclose(after, before @ finer, atol=1e-4)

    def test_given_slice_axis_goes_both_ways(self, tmp_path):
        volume = read_volume(save(tmp_path / "thick.nii"), slice_axis=0)
        write_volume(tmp_path / "thin.nii", self.thin(volume), volume, self.ratio)
        image = nib.load(tmp_path / "thin.nii")
        np.testing.assert_array_equal(np.asanyarray(image.dataobj)[::4], ct())
        np.testing.assert_allclose(image.header.get_zooms(), (0.2, 0.8, 5), rtol=1e-6)

    def test_nifti2(self, tmp_path):
        nib.save(nib.Nifti2Image(ct(), AXIAL), tmp_path / "thick.nii.gz")
        volume = read_volume(tmp_path / "thick.nii.gz")
        write_volume(tmp_path / "thin.nii.gz", self.thin(volume), volume, self.ratio)
        assert type(nib.load(tmp_path / "thin.nii.gz")) is nib.Nifti2Image

    def test_int16_rounds_and_clips_float32_does_not(self):
        volume = volume_from_image(nib.Nifti1Image(ct(), AXIAL))
        slab = np.zeros((9, 6, 4), np.float32)
        slab[0, 0] = [-2000, -3.5, 41.6, 5000]
        np.testing.assert_array_equal(thin_image(slab, volume, 4).dataobj[:, 0, 0], [-1024, -4, 42, 3071])
        exact = thin_image(slab, volume, 4, dtype="float32")
        np.testing.assert_array_equal(exact.dataobj[:, 0, 0], slab[0, 0])
        assert exact.get_data_dtype() == np.float32

    def test_raw_values_of_the_input_leave_no_scaling(self, tmp_path):
        image = nib.Nifti1Image(ct(), AXIAL)
        image.header.set_slope_inter(2, -1024)
        volume = volume_from_image(image)
        write_volume(tmp_path / "a.nii", self.thin(volume), volume, self.ratio)
        assert np.frombuffer((tmp_path / "a.nii").read_bytes()[112:120], np.float32).tolist() == [1, 0]  # scl_slope, scl_inter

    def test_refused(self, tmp_path):
        volume = volume_from_image(nib.Nifti1Image(ct(), AXIAL))
        with pytest.raises(ValueError, match=r"Expected \(9, 6, 4\) thin slices .* at ratio 4, got \(10, 6, 4\)"):
            write_volume(tmp_path / "a.nii", np.zeros((10, 6, 4)), volume, 4)
        with pytest.raises(ValueError, match=r"ending in .nii or .nii.gz, got a.mha"):
            write_volume(tmp_path / "a.mha", self.thin(volume), volume, 4)
        assert not list(tmp_path.iterdir())


class TestAtomic:
    @pytest.fixture
    def volume(self):
        return volume_from_image(nib.Nifti1Image(ct(), AXIAL))

    @pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
    def test_nothing_stays_of_a_failed_write(self, tmp_path, monkeypatch, volume, error):
        def half(image, path):
            Path(path).write_bytes(b"half")
            raise error

        (tmp_path / "old.nii.gz").write_bytes(b"as it was")
        monkeypatch.setattr(volume_module.nib, "save", half)
        for name in ("new.nii.gz", "old.nii.gz"):
            with pytest.raises(type(error)):
                write_volume(tmp_path / name, np.zeros((9, 6, 4)), volume, 4)
        assert [path.name for path in tmp_path.iterdir()] == ["old.nii.gz"]
        assert (tmp_path / "old.nii.gz").read_bytes() == b"as it was"

    def test_temporary_name_is_hidden_beside_the_result_and_says_nifti(self, tmp_path, monkeypatch, volume):
        seen = []
        original = nib.save
        monkeypatch.setattr(volume_module.nib, "save", lambda image, path: (seen.append(Path(path)), original(image, path)))
        write_volume(tmp_path / "a.nii.gz", np.zeros((9, 6, 4)), volume, 4)
        assert seen[0].parent == tmp_path
        assert seen[0].name.startswith(".a.")
        assert seen[0].name.endswith(".partial.nii.gz")
        assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]

    def test_same_bytes_each_time(self, tmp_path, volume):
        for name in ("a.nii.gz", "b.nii.gz"):
            write_volume(tmp_path / name, np.zeros((9, 6, 4)), volume, 4)
        assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
