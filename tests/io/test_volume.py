"""Volumes in memory: what is known of them, what comes of an image, what is refused."""

import errno
import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import nifti, position_slab

from mpunet.io.intensity_range import IntensityRange, check_voxels
from mpunet.io.volume import (
    nifti_suffix,
    one_line_errors,
    volume_from_image,
    volume_info,
)


class TestInfo:
    def test_of_a_sagittal_image(self):
        image = nifti(position_slab((3, 6, 4)), spacing=(5, 0.8, 0.7), start=-100, codes="IAR")
        info = volume_info(image.as_reoriented([[1, 1], [2, 1], [0, 1]]), path="folder/a.nii")
        assert (info.name, info.path) == ("a.nii", Path("folder/a.nii"))
        assert info.shape == (3, 6, 4)
        assert info.stored_shape == (4, 3, 6)
        assert info.slice_axis == 1
        # The slab's axes run towards S, P and L, and its first voxel is the first of the LPS image.
        np.testing.assert_allclose(
            info.slab_affine,
            [[0, 0, -0.7, 80], [0, -0.8, 0, 60], [5, 0, 0, -100], [0, 0, 0, 1]],
            rtol=1e-6,
        )

    def test_image_without_file(self):
        assert volume_info(nifti(position_slab((3, 6, 4)))).name == "image"


class TestFromImage:
    def test_array_that_lies_right_is_not_copied(self):
        image = nifti(position_slab((3, 6, 4)))
        assert np.shares_memory(volume_from_image(image, check_hu=False).slab, image.dataobj)

    @pytest.mark.parametrize(
        ("dtype", "expected"),
        [
            (np.int16, np.int16),
            (">i2", np.int16),
            (np.int8, np.int16),
            (np.uint8, np.int16),
            (np.uint16, np.float32),
        ]
        + [(np.int32, np.float32), (np.float32, np.float32), (">f8", np.float32)],
    )
    def test_types(self, dtype, expected):
        slab = (position_slab((3, 6, 4)) + 1010).astype(dtype)
        volume = volume_from_image(nifti(slab), check_hu=False)
        assert volume.slab.dtype == expected
        assert volume.slab.flags.c_contiguous
        np.testing.assert_array_equal(volume.slab, slab)

    def test_other_image_class(self):
        with pytest.raises(
            ValueError,
            match=r"expected a NIfTI image, got MGHImage; "
            r"convert it with nibabel.Nifti1Image.from_image",
        ):
            volume_from_image(nib.MGHImage(position_slab((3, 6, 4)), np.eye(4)))


class TestIntensities:
    def test_parts_are_judged_together(self):
        voxels = position_slab((3, 6, 4)).astype(np.float64)
        seen = IntensityRange()
        for part in np.array_split(voxels, 3):
            seen.add(part)
        assert (seen.low, seen.high, seen.voxels, seen.not_finite) == (-1000, -929, 72, 0)
        with pytest.raises(ValueError, match="a: intensities of -1000 to -929 are not HU"):
            seen.check(name="a")
        seen.check(name="a", check_hu=False)
        for extra, message in [
            (
                np.array([np.nan, 3, np.inf]),
                "a: expected finite intensities, got 2 NaN or infinite voxels of 75.",
            ),
            (
                np.array([-np.inf]),
                "a: expected finite intensities, got 3 NaN or infinite voxels of 76.",
            ),
        ]:
            seen.add(extra)
            with pytest.raises(ValueError, match=message):
                seen.check(name="a", check_hu=False)

    @pytest.mark.parametrize(("low", "high"), [(-200, -100), (-200, 3000), (-1024, -924)])
    def test_hu(self, low, high):
        check_voxels(np.array([low, high]), name="a")

    @pytest.mark.parametrize(("low", "high"), [(-199, 3000), (-1024, -925), (0, 4095)])
    def test_not_hu(self, low, high):
        with pytest.raises(
            ValueError, match=f"a: intensities of {low} to {high} are not HU, where air is -1000"
        ):
            check_voxels(np.array([low, high]), name="a")

    def test_int16_range_does_not_overflow(self):
        check_voxels(np.array([-32768, 32767], np.int16), name="a")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "in/a.nii"),
            "a.nii: no such file: in/a.nii",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "in/a.nii"),
            "a.nii: cannot be read: permission denied",
        ),
        (OSError(errno.EIO, "Input/output error"), "a.nii: cannot be read: input/output error"),
        (
            gzip.BadGzipFile("CRC check\n failed"),
            "a.nii: not a scan, damaged or cut short: CRC check failed",
        ),
        (EOFError(), "a.nii: not a scan, damaged or cut short: EOFError"),
    ],
)
def test_errors_in_one_line(error, message):
    with (
        pytest.raises(ValueError, match=f"^{message}$") as caught,
        one_line_errors("a.nii", "not a scan"),
    ):
        raise error
    assert caught.value.__cause__ is error


def test_other_errors_pass():
    with pytest.raises(MemoryError), one_line_errors("a.nii", "not a scan"):
        raise MemoryError


def test_suffix():
    names = ["a.nii", "a.nii.gz", "a.b.NII.GZ", "a.gz", "nii", "a.nii.bz2"]
    assert [nifti_suffix(Path(name)) for name in names] == [
        ".nii",
        ".nii.gz",
        ".NII.GZ",
        None,
        None,
        None,
    ]
