"""Reading scans slice by slice and whole: values, refused files, and the cost of reading."""

import gzip
import itertools
import os
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import peak, position_slab, streamed
from helpers import save as save_slab

from mpunet.io.scan_file import open_scan, read_volume
from mpunet.io.volume import volume_from_image

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


def whole(path, **options):
    return read_volume(path, **options).slab


@pytest.fixture(params=[whole, streamed])
def read(request):
    """Both ways to get a slab out of a file."""
    return request.param


class TestRead:
    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".NII.GZ"])
    def test_axes_are_depth_height_width(self, tmp_path, suffix):
        path = tmp_path / f"a{suffix}"
        save(tmp_path / f"a{suffix.lower()}").rename(path)
        # LPS+ in plane and S+ along depth: the slab is the stored array with its axes reversed.
        np.testing.assert_array_equal(streamed(path), ct().transpose(2, 1, 0))
        volume = read_volume(path)
        np.testing.assert_array_equal(volume.slab, ct().transpose(2, 1, 0))
        assert volume.slab.dtype == np.int16
        assert volume.slab.flags.c_contiguous
        for info in (volume, open_scan(path)):
            assert (info.slice_axis, info.shape, info.stored_shape, info.path) == (
                2,
                (3, 6, 4),
                (4, 6, 3),
                path,
            )
            np.testing.assert_allclose(info.affine, AXIAL, rtol=1e-7)

    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    @pytest.mark.parametrize("order", ["".join(axes) for axes in itertools.permutations("LPS")])
    def test_any_orientation(self, tmp_path, order, suffix):
        slab = position_slab((3, 6, 4))
        for flips in itertools.product((False, True), repeat=3):
            codes = "".join(
                "RAI"["LPS".index(c)] if flip else c for c, flip in zip(order, flips, strict=True)
            )
            path = save_slab(
                tmp_path / f"{codes}{suffix}", slab, spacing=(5, 0.8, 0.8), codes=codes
            )
            np.testing.assert_array_equal(whole(path, check_hu=False), slab)
            np.testing.assert_array_equal(streamed(path, check_hu=False), slab)
            # The last slice comes first if the file has it first and slices are contiguous in it.
            assert open_scan(path, check_hu=False).last_first == (codes[2] == "I")

    @pytest.mark.parametrize(
        ("dtype", "expected"),
        [
            ("<i2", np.int16),
            (">i2", np.int16),
            ("i1", np.int16),
            ("u1", np.int16),
            ("u2", np.float32),
            ("i4", np.float32),
        ]
        + [
            (">i4", np.float32),
            ("u8", np.float32),
            ("<f4", np.float32),
            (">f4", np.float32),
            ("f8", np.float32),
        ],
    )
    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    @pytest.mark.parametrize("image_class", [nib.Nifti1Image, nib.Nifti2Image])
    def test_types(self, tmp_path, read, image_class, suffix, dtype, expected):
        header = image_class.header_class(endianness=">" if dtype[0] == ">" else "<")
        header.set_data_dtype(dtype)
        voxels = np.arange(72).reshape(4, 6, 3)
        nib.save(image_class(voxels.astype(dtype), AXIAL, header), tmp_path / f"a{suffix}")
        slab = read(tmp_path / f"a{suffix}", check_hu=False)
        assert slab.dtype == expected
        np.testing.assert_array_equal(slab, voxels.transpose(2, 1, 0))

    @pytest.mark.parametrize(
        ("dtype", "slope", "inter"), [("<i2", 0.5, -1024), (">u2", 1, -1024), ("u1", 3.7, -1000.3)]
    )
    def test_scaling_is_applied(self, tmp_path, read, dtype, slope, inter):
        header = nib.Nifti1Header(endianness=">" if dtype[0] == ">" else "<")
        header.set_data_dtype(dtype)
        image = nib.Nifti1Image(np.arange(72).reshape(4, 6, 3).astype(dtype), AXIAL, header)
        image.header.set_slope_inter(
            slope, inter
        )  # nibabel writes voxels as they are beside a scaling that is set
        nib.save(image, tmp_path / "a.nii.gz")
        slab = read(tmp_path / "a.nii.gz", check_hu=False)
        assert slab.dtype == np.float32
        expected = np.arange(72).reshape(4, 6, 3).transpose(2, 1, 0) * float(
            np.float32(slope)
        ) + float(np.float32(inter))
        np.testing.assert_array_equal(slab, expected.astype(np.float32))
        image = nib.load(
            tmp_path / "a.nii.gz"
        )  # which nibabel scales in float32 where NumPy is older than 2
        np.testing.assert_allclose(slab, volume_from_image(image, check_hu=False).slab, rtol=2e-7)

    def test_slice_axis_can_be_given(self, tmp_path, read):
        assert read(save(tmp_path / "a.nii"), slice_axis=0).shape == (4, 3, 6)
        with pytest.raises(ValueError, match="slice_axis 0, 1, 2 or None, got 3"):
            read(tmp_path / "a.nii", slice_axis=3)

    def test_single_trailing_volume_is_dropped(self, tmp_path, read):
        np.testing.assert_array_equal(
            read(save(tmp_path / "a.nii", ct()[..., None])), ct().transpose(2, 1, 0)
        )

    @pytest.mark.parametrize(("notes", "offset"), [(1, 0), (0, 4096)])
    def test_voxels_behind_an_extension_or_a_gap(self, tmp_path, read, notes, offset):
        image = nib.Nifti1Image(ct(), AXIAL)
        image.header.extensions.extend([nib.nifti1.Nifti1Extension("comment", b"a note")] * notes)
        image.header.set_data_offset(offset)
        nib.save(image, tmp_path / "a.nii.gz")
        np.testing.assert_array_equal(read(tmp_path / "a.nii.gz"), ct().transpose(2, 1, 0))

    def test_no_affine_falls_back_to_spacing(self, tmp_path, read):
        path = save(tmp_path / "a.nii", affine=None, pixdim=[1, 0.8, 0.8, 5, 1, 1, 1, 1])
        header = read_volume(path).header
        assert header["sform_code"] == header["qform_code"] == 0
        assert read(path).shape == (3, 6, 4)

    def test_without_air_on_request(self, tmp_path, read):
        path = save(tmp_path / "a.nii", ct() + 1000)
        assert read(path, check_hu=False).min() == 0

    def test_padding_after_the_compressed_voxels(self, tmp_path, read):
        path = save(tmp_path / "a.nii.gz")
        path.write_bytes(
            path.read_bytes() + bytes(7)
        )  # as tapes and some archives leave it; gzip allows it
        np.testing.assert_array_equal(read(path), ct().transpose(2, 1, 0))


class TestSlices:
    @pytest.mark.parametrize("affine", [AXIAL, AXIAL @ np.diag([1, 1, -1, 1])])
    def test_iterations_are_independent(self, tmp_path, affine):
        scan = open_scan(save(tmp_path / "a.nii.gz", affine=affine))
        assert len(scan) == 3
        for first, second in zip(scan, scan, strict=True):
            np.testing.assert_array_equal(first, second)
            first[:] = 0  # slices belong to the caller
        assert next(iter(scan)).min() == -1000

    def test_slices_that_lie_across_the_file_are_kept_and_copied(self, tmp_path):
        path = save(tmp_path / "a.nii.gz")
        scan = open_scan(path, slice_axis=0)
        path.unlink()
        for plane in scan:
            plane[:] = 0
        np.testing.assert_array_equal(np.stack(list(scan)), ct().transpose(0, 2, 1))

    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    def test_memory_does_not_grow_with_depth(self, tmp_path, suffix):
        voxels = np.zeros((256, 256, 60), np.int16)
        voxels[:128] = -1000
        shallow, deep = (
            save(tmp_path / f"{depth}{suffix}", voxels[..., :depth]) for depth in (6, 60)
        )

        def read(path):
            for _ in open_scan(path):
                pass

        one_slice = 256 * 256 * 2
        read(shallow)  # what is loaded at first use is not the question
        assert peak(lambda: read(deep)) < peak(lambda: read(shallow)) + one_slice

    def test_file_that_changes_after_it_was_opened(self, tmp_path):
        path = save(
            tmp_path / "a.nii.gz",
            np.random.default_rng(0).integers(-1000, 1000, (64, 64, 8)).astype(np.int16),
        )
        scan = open_scan(path)
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(
            ValueError, match=r"a.nii.gz: voxels cannot be read, damaged or cut short: ."
        ):
            list(scan)
        path.unlink()
        with pytest.raises(ValueError, match=r"a.nii.gz: no such file"):
            next(iter(scan))


class TestRefused:
    @pytest.mark.parametrize(
        ("voxels", "message"),
        [
            (ct((4, 6)), r"a.nii: expected a 3D volume, got 2D of shape \(4, 6\)"),
            (ct((4, 6, 3, 2)), r"expected a 3D volume, got 4D of shape \(4, 6, 3, 2\)"),
            (
                ct((4, 6, 1)),
                r"at least 2 slices along depth \(axis 2 of shape \(4, 6, 1\)\), "
                r"got 1; a single slice",
            ),
            (ct((4, 0, 3)), r"expected voxels, got an empty volume of shape \(4, 0, 3\)"),
            (
                np.where(ct() < -980, np.nan, ct()),
                "finite intensities, got 1 NaN or infinite voxels of 72",
            ),
            (
                np.where(ct() > 390, -np.inf, ct()),
                "finite intensities, got 2 NaN or infinite voxels of 72",
            ),
            (
                np.where(ct() > 390, 1e300, ct()),
                "finite intensities, got 2 NaN or infinite voxels of 72",
            ),
            (
                ct() / 1420 + 0.7,
                "intensities of -0.00422535 to 0.995775 are not HU.*check_hu=False",
            ),
            (
                (ct() + 1000).astype(np.uint16),
                "intensities of 0 to 1420 are not HU, where air is -1000",
            ),
            (np.full((4, 6, 3), -1000, np.int16), "intensities of -1000 to -1000 are not HU"),
            (ct().astype(np.complex64), "one real number per voxel, got data of type complex64"),
            (
                np.zeros((4, 6, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")]),
                "one real number per voxel",
            ),
        ],
    )
    def test_voxels(self, tmp_path, read, voxels, message):
        path = save(tmp_path / "a.nii", voxels)
        with pytest.raises(ValueError, match=message):
            read(path)
        with pytest.raises(ValueError, match=message):
            volume_from_image(nib.load(path), path=path)

    def test_singular_affine(self, tmp_path, read):
        path = patched(save(tmp_path / "a.nii"), 280, bytes(12))  # srow_x
        with pytest.raises(ValueError, match=r"a.nii: The affine is singular"):
            read(path)

    def test_missing_and_not_a_file(self, tmp_path, read):
        with pytest.raises(ValueError, match=r"a.nii: no such file"):
            read(tmp_path / "a.nii")
        (tmp_path / "b.nii.gz").symlink_to(tmp_path / "gone")
        with pytest.raises(ValueError, match=r"b.nii.gz: no such file"):
            read(tmp_path / "b.nii.gz")
        (tmp_path / "c.nii.gz").mkdir()
        with pytest.raises(ValueError, match=r"c.nii.gz: not a NIfTI file but a folder or device"):
            read(tmp_path / "c.nii.gz")
        (tmp_path / "d.mha").write_bytes(b"")
        with pytest.raises(
            ValueError, match=r"d.mha: expected a file name ending in .nii or .nii.gz"
        ):
            read(tmp_path / "d.mha")

    @pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pipes in folders")
    def test_pipe(self, tmp_path, read):
        os.mkfifo(tmp_path / "a.nii.gz")
        with pytest.raises(ValueError, match=r"a.nii.gz: not a NIfTI file but a folder or device"):
            read(tmp_path / "a.nii.gz")

    @pytest.mark.skipif(sys.platform == "win32", reason="Windows knows no read permission in modes")
    @pytest.mark.parametrize("closed", ["file", "folder"])
    def test_no_read_permission(self, read, closed):
        with (
            tempfile.TemporaryDirectory() as name
        ):  # below a folder that everybody may enter, unlike tmp_path
            path = save(Path(name) / "a.nii.gz")
            path.chmod(0 if closed == "file" else 0o644)
            path.parent.chmod(0 if closed == "folder" else 0o755)
            root = os.geteuid() == 0
            if root:  # who may read everything
                os.seteuid(65534)
            try:
                with pytest.raises(
                    ValueError, match=r"^a.nii.gz: cannot be read: permission denied$"
                ):
                    read(path)
            finally:
                if root:
                    os.seteuid(0)
                path.parent.chmod(0o755)

    @pytest.mark.parametrize(
        "content",
        [b"", b"hello", b"hello" * 1000, gzip.compress(b"hello" * 1000)],
        ids=["empty", "short", "text", "compressed"],  # compressed bytes have the time in them
    )
    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    def test_other_content(self, tmp_path, read, suffix, content):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=f"a{suffix}: not a NIfTI file, damaged or cut short: ."
        ):
            read(path)

    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    def test_cut_short_anywhere(self, tmp_path, read, suffix):
        path = save(
            tmp_path / f"a{suffix}",
            np.random.default_rng(0).integers(-1000, 1000, (16, 16, 8)).astype(np.int16),
        )
        raw = path.read_bytes()
        for length in (*(int(len(raw) * share) for share in (0.02, 0.1, 0.5, 0.99)), len(raw) - 1):
            path.write_bytes(raw[:length])
            with pytest.raises(ValueError, match="damaged or cut short"):
                read(path)

    def test_flipped_bits(self, tmp_path, read):
        """nibabel alone reads these without complaint: it stops before the checksum."""
        path = save(
            tmp_path / "a.nii.gz",
            np.random.default_rng(0).integers(-1000, 1000, (16, 16, 8)).astype(np.int16),
        )
        raw = path.read_bytes()
        for position in range(1000, len(raw) - 8, len(raw) // 20):
            damaged = bytearray(raw)
            damaged[position] ^= 4
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match="damaged or cut short"):
                read(path)

    def test_garbage_after_the_compressed_voxels(self, tmp_path, read):
        path = save(
            tmp_path / "a.nii.gz",
            np.random.default_rng(0).integers(-1000, 1000, (16, 16, 8)).astype(np.int16),
        )
        path.write_bytes(path.read_bytes() + b"garbage")
        with pytest.raises(
            ValueError, match=r"a.nii.gz: voxels cannot be read, damaged or cut short: ."
        ):
            read(path)

    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    @pytest.mark.parametrize(("side", "depth"), [(32767, 32767), (32767, 2), (2, 32767)])
    def test_header_that_promises_too_much(self, tmp_path, read, suffix, side, depth):
        header = nib.Nifti1Header()
        header.set_data_dtype(np.float64)
        header.set_data_shape((side, side, depth))
        header.set_sform(AXIAL, 1)
        header["magic"], header["vox_offset"] = b"n+1", 352
        raw = bytes(header.binaryblock) + bytes(4)
        path = tmp_path / f"a{suffix}"
        path.write_bytes(gzip.compress(raw) if suffix == ".nii.gz" else raw)
        got = f"{path.stat().st_size} compressed" if suffix == ".nii.gz" else "352"
        message = f"damaged or cut short: expected {352 + side**2 * depth * 8} bytes, got {got}"

        def refused():
            with pytest.raises(ValueError, match=message):
                read(path)

        assert peak(refused) < 2e6
