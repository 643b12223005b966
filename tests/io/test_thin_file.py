"""Writing thin slices: positions and headers in any slice order.

A failed or killed write leaves no file.
"""

import errno
import itertools
import re
import subprocess
import sys
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
from helpers import nifti, position_slab

from mpunet.io import file_lock
from mpunet.io.partial_file import remove_partials
from mpunet.io.scan_file import read_volume
from mpunet.io.thin_file import thin_image, write_slices, write_volume
from mpunet.io.volume import volume_from_image

AXIAL = np.array([[-0.8, 0, 0, 30], [0, -0.8, 0, 40], [0, 0, 5, -100], [0, 0, 0, 1]])
RATIO = 4


def ct(shape=(4, 6, 3), dtype=np.int16):
    """A distinct value for each voxel, -1000 to 0 HU and more."""
    return (np.arange(np.prod(shape)).reshape(shape) * 20 - 1000).astype(dtype)


def save(path, voxels=None, affine=AXIAL):
    nib.save(nib.Nifti1Image(ct() if voxels is None else voxels, affine), path)
    return path


def thin(volume):
    """Thick slice k at thin slice 4 k, linear in between: the exact result for these voxels."""
    depth = len(volume.slab)
    at = np.arange((depth - 1) * RATIO + 1) / RATIO
    low = np.minimum(at.astype(int), depth - 2)
    weight = (at - low)[:, None, None]
    return ((1 - weight) * volume.slab[low] + weight * volume.slab[low + 1]).astype(np.float32)


@pytest.fixture
def volume():
    """(3, 6, 4), stored in the slab's own order."""
    return volume_from_image(nib.Nifti1Image(ct(), AXIAL))


class TestWrite:
    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    @pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
    def test_orientation_and_thick_slices_stay(self, tmp_path, order, suffix):
        flips = np.diag([1, -1, 1, 1]) if order[0] else np.diag([-1, 1, -1, 1])
        affine = (AXIAL @ flips)[:, [*order, 3]]
        voxels = ct().transpose(order)
        volume = read_volume(save(tmp_path / "thick.nii", voxels, affine))
        write_volume(tmp_path / f"thin{suffix}", thin(volume), volume, RATIO)
        image = nib.load(tmp_path / f"thin{suffix}")
        axis = order.index(2)
        every = tuple(slice(None, None, RATIO if a == axis else 1) for a in range(3))
        np.testing.assert_array_equal(np.asanyarray(image.dataobj)[every], voxels)
        assert image.shape[axis] == 9
        for corner in itertools.product((0, 1), repeat=3):
            thick_index = np.array(corner) * (np.array(voxels.shape) - 1)
            thin_index = np.array(corner) * (np.array(image.shape) - 1)
            expected = nib.affines.apply_affine(affine, thick_index)
            np.testing.assert_allclose(
                nib.affines.apply_affine(image.affine, thin_index), expected, atol=1e-4
            )

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
        write_volume(tmp_path / "thin.nii.gz", thin(volume), volume, RATIO)
        thick_image, thinned = (
            nib.load(tmp_path / "thick.nii.gz"),
            nib.load(tmp_path / "thin.nii.gz"),
        )
        assert (thinned.header["sform_code"], thinned.header["qform_code"]) == codes
        assert thinned.header.get_xyzt_units() == ("mm", "sec")
        assert thinned.header["descrip"] == b"kernel B31f"
        assert thinned.header["cal_max"] == 400
        assert thinned.header.extensions[0].get_content() == b"a note"
        assert thinned.get_data_dtype() == np.int16
        assert (thinned.dataobj.slope, thinned.dataobj.inter) == (1, 0)
        np.testing.assert_allclose(thinned.header.get_zooms(), (0.8, 0.8, 1.25), rtol=1e-6)
        finer = np.diag([1, 1, 1 / RATIO, 1])
        np.testing.assert_allclose(thinned.affine, thick_image.affine @ finer, atol=1e-4)
        for get in ("get_sform", "get_qform"):
            before, after = (
                getattr(thick_image, get)(coded=True)[0],
                getattr(thinned, get)(coded=True)[0],
            )
            assert (before is None) == (after is None)
            if before is not None:
                np.testing.assert_allclose(after, before @ finer, atol=1e-4)

    def test_oblique_qform_stays_the_only_one(self, tmp_path):
        turn = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0.2, 0.3))
        image = nib.Nifti1Image(ct(), turn @ AXIAL)
        image.set_qform(turn @ AXIAL, 1)
        image.set_sform(None, 0)
        volume = volume_from_image(image)
        write_volume(tmp_path / "a.nii", thin(volume), volume, RATIO)
        nib.save(thin_image(thin(volume), volume, RATIO), tmp_path / "b.nii")
        for name in ("a.nii", "b.nii"):
            written = nib.load(tmp_path / name)
            assert (written.header["sform_code"], written.header["qform_code"]) == (0, 1)
            np.testing.assert_allclose(
                written.affine, turn @ AXIAL @ np.diag([1, 1, 1 / RATIO, 1]), atol=1e-4
            )

    @pytest.mark.parametrize("damage", [1.2, np.nan])
    def test_a_damaged_qform_counts_as_absent(self, tmp_path, damage):
        image = nib.Nifti1Image(ct(), AXIAL)
        image.set_sform(AXIAL, 1)
        image.set_qform(AXIAL, 1)
        image.header["quatern_b"] = damage  # b² + c² + d² is at most 1
        nib.save(image, tmp_path / "thick.nii")
        volume = read_volume(tmp_path / "thick.nii")
        write_volume(tmp_path / "thin.nii", thin(volume), volume, RATIO)
        written = nib.load(tmp_path / "thin.nii")
        assert (written.header["sform_code"], written.header["qform_code"]) == (1, 0)
        np.testing.assert_allclose(written.affine, AXIAL @ np.diag([1, 1, 1 / RATIO, 1]))
        np.testing.assert_allclose(written.header.get_zooms(), (0.8, 0.8, 1.25), rtol=1e-6)

    def test_given_slice_axis_goes_both_ways(self, tmp_path):
        volume = read_volume(save(tmp_path / "thick.nii"), slice_axis=0)
        write_volume(tmp_path / "thin.nii", thin(volume), volume, RATIO)
        image = nib.load(tmp_path / "thin.nii")
        np.testing.assert_array_equal(np.asanyarray(image.dataobj)[::4], ct())
        np.testing.assert_allclose(image.header.get_zooms(), (0.2, 0.8, 5), rtol=1e-6)

    @pytest.mark.parametrize("dtype", ["int16", "float32"])
    def test_big_endian_nifti2(self, tmp_path, dtype):
        nib.save(
            nib.Nifti2Image(ct().astype(">i2"), AXIAL, nib.Nifti2Header(endianness=">")),
            tmp_path / "thick.nii",
        )
        volume = read_volume(tmp_path / "thick.nii")
        write_volume(tmp_path / "thin.nii.gz", thin(volume), volume, RATIO, dtype=dtype)
        written = nib.load(tmp_path / "thin.nii.gz")
        assert type(written) is nib.Nifti2Image
        assert written.get_data_dtype() == np.dtype(dtype).newbyteorder(">")
        np.testing.assert_array_equal(np.asanyarray(written.dataobj)[..., ::RATIO], ct())

    def test_int16_rounds_and_clips_float32_does_not(self, volume):
        slab = np.zeros((9, 6, 4), np.float32)
        slab[0, 0] = [-2000, -3.5, 41.6, 5000]
        np.testing.assert_array_equal(
            thin_image(slab, volume, 4).dataobj[:, 0, 0], [-1024, -4, 42, 3071]
        )
        exact = thin_image(slab, volume, 4, dtype="float32")
        np.testing.assert_array_equal(exact.dataobj[:, 0, 0], slab[0, 0])
        assert exact.get_data_dtype() == np.float32

    def test_raw_values_of_the_input_leave_no_scaling(self, tmp_path):
        image = nib.Nifti1Image(ct(), AXIAL)
        image.header.set_slope_inter(2, -1024)
        volume = volume_from_image(image)
        write_volume(tmp_path / "a.nii", thin(volume), volume, RATIO)
        assert np.frombuffer((tmp_path / "a.nii").read_bytes()[112:120], np.float32).tolist() == [
            1,
            0,
        ]  # scl_slope, scl_inter

    def test_same_bytes_each_time(self, tmp_path, volume):
        for name in ("a.nii.gz", "b.nii.gz"):
            write_volume(tmp_path / name, thin(volume), volume, RATIO)
        raw = (tmp_path / "a.nii.gz").read_bytes()
        assert raw == (tmp_path / "b.nii.gz").read_bytes()
        assert raw[:8] == bytes([0x1F, 0x8B, 8, 0, 0, 0, 0, 0])  # gzip, DEFLATE, no name, no time

    def test_refused(self, tmp_path, volume):
        with pytest.raises(
            ValueError, match=r"Expected \(9, 6, 4\) thin slices .* at ratio 4, got \(10, 6, 4\)"
        ):
            write_volume(tmp_path / "a.nii", np.zeros((10, 6, 4)), volume, RATIO)
        with pytest.raises(
            ValueError, match=r"Expected \(9, 6, 4\) thin slices .* at ratio 4, got \(9, 4, 6\)"
        ):
            thin_image(np.zeros((9, 4, 6)), volume, RATIO)
        with pytest.raises(ValueError, match=r"ending in .nii or .nii.gz, got a.mha"):
            write_volume(tmp_path / "a.mha", thin(volume), volume, RATIO)
        assert not list(tmp_path.iterdir())


class TestSlices:
    @pytest.mark.parametrize("dtype", ["int16", "float32"])
    @pytest.mark.parametrize("order", ["".join(axes) for axes in itertools.permutations("LPS")])
    def test_any_orientation_order_and_chunks_give_the_file_that_nibabel_writes(
        self, tmp_path, order, dtype
    ):
        slab = position_slab((9, 6, 4)) + (0.3 if dtype == "float32" else np.int16(0))
        sizes = itertools.cycle([(9,), (1,) * 9, (4, 0, 3, 2)])
        for flips in itertools.product((False, True), repeat=3):
            codes = "".join(
                "RAI"["LPS".index(c)] if flip else c for c, flip in zip(order, flips, strict=True)
            )
            volume = volume_from_image(
                nifti(slab[::RATIO], spacing=(5, 0.8, 0.7), codes=codes), check_hu=False
            )
            nib.save(thin_image(slab, volume, RATIO, dtype=dtype), tmp_path / "whole.nii")
            np.testing.assert_array_equal(
                read_volume(
                    tmp_path / "whole.nii", slice_axis=volume.slice_axis, check_hu=False
                ).slab,
                slab.astype(dtype),
            )
            for last_first in (False, True):
                bounds = np.cumsum([0, *next(sizes)])
                coming = slab[::-1] if last_first else slab
                chunks = [coming[start:stop] for start, stop in itertools.pairwise(bounds)]
                for name in ("slices.nii", "slices.nii.gz"):
                    write_slices(
                        tmp_path / name, chunks, volume, RATIO, dtype=dtype, last_first=last_first
                    )
                assert (tmp_path / "slices.nii").read_bytes() == (
                    tmp_path / "whole.nii"
                ).read_bytes()
                assert (
                    nib.load(tmp_path / "slices.nii.gz").to_bytes()
                    == nib.load(tmp_path / "whole.nii").to_bytes()
                )

    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    @pytest.mark.parametrize("last_first", [False, True])
    def test_memory_is_that_of_a_few_chunks(self, tmp_path, suffix, last_first):
        affine = AXIAL @ np.diag([1, 1, -1 if last_first else 1, 1])
        volume = volume_from_image(
            nib.Nifti1Image(np.zeros((128, 128, 101), np.int16), affine), check_hu=False
        )

        def chunks():
            for _ in range(100):
                yield np.zeros((4, 128, 128), np.float32)
            yield np.zeros((1, 128, 128), np.float32)

        tracemalloc.start()
        try:
            write_slices(tmp_path / f"a{suffix}", chunks(), volume, RATIO, last_first=last_first)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert (
            peak < 12 * 4 * 128 * 128 * 4
        )  # of 100: four wait, one is made, one is rounded, with its copies, and written

    def test_slices_are_on_disk_before_the_last_is_made(self, tmp_path):
        volume = volume_from_image(
            nib.Nifti1Image(np.zeros((64, 64, 31), np.int16), AXIAL), check_hu=False
        )
        sizes = []

        def chunks():
            for _ in range(11):
                sizes.append(next(tmp_path.iterdir()).stat().st_size)
                yield np.zeros((11, 64, 64), np.int16)

        write_slices(tmp_path / "a.nii", chunks(), volume, RATIO)
        assert (
            sizes[-1] >= 5 * 11 * 64 * 64 * 2
        )  # ten came before, of which four may wait and one be in the buffer

    @pytest.mark.parametrize(
        ("shapes", "got"),
        [
            ([(4, 6, 4), (4, 6, 4)], (8, 6, 4)),
            ([(4, 6, 4), (6, 6, 4), (6, 6, 4)], (10, 6, 4)),
            ([(4, 6, 4), (5, 4, 6)], (9, 4, 6)),
            ([(9, 6, 4, 1)], (9, 6, 4, 1)),
            ([], (0, 6, 4)),
        ],
    )
    @pytest.mark.parametrize("last_first", [False, True])
    def test_wrong_slices(self, tmp_path, volume, shapes, got, last_first):
        message = (
            f"Expected (9, 6, 4) thin slices for a thick slab of (3, 6, 4) at ratio 4, got {got}."
        )
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            write_slices(
                tmp_path / "a.nii.gz", map(np.zeros, shapes), volume, RATIO, last_first=last_first
            )
        assert not list(tmp_path.iterdir())


class TestAtomic:
    @pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
    @pytest.mark.parametrize("name", ["new.nii.gz", "old.nii.gz"])
    def test_nothing_stays_of_a_failed_write(self, tmp_path, volume, name, error):
        def chunks():
            for _ in range(8):
                yield np.zeros((1, 6, 4))
            raise error

        (tmp_path / "old.nii.gz").write_bytes(b"as it was")
        with pytest.raises(type(error)):
            write_slices(tmp_path / name, chunks(), volume, RATIO)
        assert [path.name for path in tmp_path.iterdir()] == ["old.nii.gz"]
        assert (tmp_path / "old.nii.gz").read_bytes() == b"as it was"

    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    @pytest.mark.parametrize("limit", [100, 30_000, 100_000])
    def test_disk_full(self, tmp_path, suffix, limit):
        resource = pytest.importorskip("resource", reason="needs a limit on the size of files")
        volume = volume_from_image(
            nib.Nifti1Image(np.zeros((64, 64, 8), np.int16), AXIAL), check_hu=False
        )
        noise = np.random.default_rng(0).integers(-1000, 1000, (29, 64, 64)).astype(np.int16)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(OSError, match="File too large") as caught:
                write_slices(tmp_path / f"a{suffix}", [noise], volume, RATIO)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert caught.value.errno == errno.EFBIG
        assert not list(tmp_path.iterdir())

    def test_folder_is_the_callers(self, tmp_path, volume):
        with pytest.raises(FileNotFoundError):
            write_volume(tmp_path / "missing" / "a.nii", thin(volume), volume, RATIO)

    def test_temporary_name_is_hidden_beside_the_result_and_says_nifti(self, tmp_path, volume):
        def chunks():
            (partial,) = tmp_path.iterdir()
            assert re.fullmatch(r"\.a\.v2\.[0-9a-f]{8}\.partial\.nii\.gz", partial.name)
            yield np.zeros((9, 6, 4))

        write_slices(tmp_path / "a.v2.nii.gz", chunks(), volume, RATIO)
        assert [path.name for path in tmp_path.iterdir()] == ["a.v2.nii.gz"]


WRITER = """
import sys
import time
import nibabel as nib
import numpy as np
from mpunet.io.thin_file import write_slices
from mpunet.io.volume import volume_from_image

def chunks():
    yield np.zeros((5, 6, 4))
    print("writing", flush=True)
    time.sleep(60)

image = nib.Nifti1Image(np.zeros((4, 6, 3), np.int16), np.diag([1, 1, 5, 1]))
volume = volume_from_image(image, check_hu=False)
write_slices(sys.argv[1], chunks(), volume, 4)
"""


class TestRemovePartials:
    def test_killed_process(self, tmp_path):
        (tmp_path / "sub").mkdir()
        target = tmp_path / "sub" / "a.nii.gz"
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, target], stdout=subprocess.PIPE
        ) as process:
            try:
                assert process.stdout.readline().strip() == b"writing"
                (partial,) = target.parent.iterdir()
                assert remove_partials(tmp_path) == []  # it is being written
                assert partial.exists()
            finally:
                process.kill()
        assert list(target.parent.iterdir()) == [partial]
        assert remove_partials(tmp_path) == [partial]
        assert list(target.parent.iterdir()) == []

    def test_only_what_has_the_name(self, tmp_path):
        left = [
            ".a.0123abcd.partial.nii.gz",
            ".b c.v2.00000000.partial.nii",
            ".a.0123abcd.partial.NII.GZ",
        ]
        others = [
            "a.nii.gz",
            ".a.nii",
            "a.0123abcd.partial.nii.gz",
            ".a.0123abc.partial.nii.gz",
            ".a.0123abcx.partial.nii",
        ]
        others += [".a.0123abcd.partial.nii.gz.txt", ".a.0123abcd.partial.mha", ".a.partial.nii.gz"]
        for name in left + others:
            (tmp_path / name).write_bytes(b"")
        (tmp_path / ".folder.0123abcd.partial.nii").mkdir()
        assert sorted(path.name for path in remove_partials(tmp_path)) == sorted(left)
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
            [*others, ".folder.0123abcd.partial.nii"]
        )
        assert remove_partials(tmp_path / "missing") == []

    @pytest.mark.skipif(sys.platform == "win32", reason="Windows needs no locks")
    def test_file_system_without_locks(self, tmp_path, monkeypatch, volume):
        def flock(file, operation):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(file_lock.fcntl, "flock", flock)
        write_volume(tmp_path / "a.nii.gz", thin(volume), volume, RATIO)
        np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz").slab[::RATIO], volume.slab)
        (tmp_path / ".a.0123abcd.partial.nii.gz").write_bytes(b"")  # perhaps another computer's
        assert remove_partials(tmp_path) == []

    @pytest.mark.skipif(sys.platform == "win32", reason="Windows needs no locks")
    def test_file_removed_before_it_is_locked(self, tmp_path, monkeypatch, volume):
        original = file_lock.fcntl.flock
        removed = []

        def flock(file, operation):
            if not removed:
                removed.append(None)  # first, as this call locks too
                removed.extend(remove_partials(tmp_path))
            original(file, operation)

        monkeypatch.setattr(file_lock.fcntl, "flock", flock)
        write_volume(tmp_path / "a.nii.gz", thin(volume), volume, RATIO)
        assert len(removed) == 2
        np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz").slab[::RATIO], volume.slab)
