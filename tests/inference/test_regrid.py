"""Slices at a spacing of one's choice: positions in mm, streams, and what is refused."""

import itertools

import nibabel as nib
import numpy as np
import pytest
from test_reconstruct import GRIDS, TestKinds, check_world_positions, reconstructor

from mpunet.geometry import thin_affine, thin_depth
from mpunet.inference.regrid import output_ratio, regridded
from mpunet.models import interpolation_matrix


@pytest.mark.parametrize(("directions", "axis"), GRIDS)
@pytest.mark.parametrize(
    ("depth", "thin_spacing"), [(2, 4.0), (3, 1.0), (4, 0.7), (9, 1.25), (10, 2.3), (23, 3.0)]
)
def test_world_positions_from_file_to_file(tmp_path, directions, axis, depth, thin_spacing):
    """The first stored slice stays where it was."""
    for image, thin, thick in check_world_positions(
        tmp_path, directions, axis, depth, 5, thin_spacing=thin_spacing
    ):
        assert image.shape[axis] == int((depth - 1) * 5 / thin_spacing + 1e-9) + 1
        assert nib.affines.voxel_sizes(image.affine)[axis] == pytest.approx(thin_spacing, abs=1e-5)
        np.testing.assert_allclose(thin.take(0, axis), thick.take(0, axis), atol=1e-3)
        assert image.header["pixdim"][1 + axis] == pytest.approx(thin_spacing, abs=1e-5)


@pytest.mark.parametrize("flip", [1, -1])
def test_an_image_gives_what_its_file_gives(tmp_path, flip):
    image = nib.Nifti1Image(
        TestKinds.thick.transpose(2, 1, 0)[..., ::flip].astype(np.int16),
        np.diag([-0.8, -0.8, 5 * flip, 1]),
    )
    nib.save(image, tmp_path / "thick.nii")
    reconstruct = reconstructor(thin_spacing=2.0)
    reconstruct.file(tmp_path / "thick.nii", tmp_path / "thin.nii")
    result, file = reconstruct(image), nib.load(tmp_path / "thin.nii")
    assert result.shape == (4, 3, 11)
    np.testing.assert_array_equal(np.asanyarray(result.dataobj), np.asanyarray(file.dataobj))
    np.testing.assert_allclose(result.affine, file.affine)
    assert np.asanyarray(result.dataobj)[0, 0].tolist() == [
        flip * hu for hu in range(-1000, 1001, 200)
    ]


def test_the_networks_own_positions_are_met_exactly():
    planes = np.random.default_rng(0).normal(size=(11, 2, 3)).astype(np.float32)
    np.testing.assert_array_equal(list(regridded(planes, 11, 1, 11)), planes)
    np.testing.assert_array_equal(list(regridded(planes, 11, 2.5, 5))[::2], planes[[0, 5, 10]])


@pytest.mark.parametrize("depth", [2, 3, 4, 9])
def test_between_them_it_is_cubic_convolution(depth):
    planes = np.random.default_rng(depth).normal(size=(depth, 2, 3))
    expected = np.einsum("Nn,nhw->Nhw", interpolation_matrix(depth, 4, "cubic"), planes)
    np.testing.assert_allclose(
        list(regridded(planes, depth, 0.25, 4 * depth - 3)), expected, atol=1e-6
    )


def test_each_slice_comes_as_soon_as_it_can():
    taken = []

    def planes():
        for k in itertools.count():
            taken.append(k)
            yield np.full((1, 1), float(k))

    slices = regridded(planes(), 1000, 1.5, 600)
    assert [float(next(slices)[0, 0]) for _ in range(21)] == pytest.approx(np.arange(21) * 1.5)
    assert taken[-1] == 32  # two slices after position 30


def test_the_rest_of_the_stream_is_taken():
    source = iter(np.zeros((10, 1, 1)))
    assert len(list(regridded(source, 10, 4.0, 3))) == 3
    assert next(source, None) is None


@pytest.mark.parametrize("spacing", [3.0, 2.9999998, 3.0000002])
def test_rounding_of_a_files_spacing_neither_adds_nor_loses_a_slice(spacing):
    ratio = output_ratio(spacing, 1.0)
    assert thin_depth(101, ratio) == 301
    assert len(list(regridded(np.zeros((501, 1, 1)), 501, 5 / ratio, 301))) == 301
    assert np.linalg.norm(
        thin_affine(np.diag([1, 1, spacing, 1]), 2, ratio)[:, 2]
    ) == pytest.approx(1.0, abs=1e-12)


def test_refused():
    image = nib.Nifti1Image(
        TestKinds.thick.transpose(2, 1, 0).astype(np.int16), np.diag([-0.8, -0.8, 5, 1])
    )
    for thin_spacing in (5.0, 7):
        with pytest.raises(
            ValueError,
            match=f"spacing of 5 mm is not larger than the thin_spacing of {thin_spacing:g} mm;",
        ):
            reconstructor(thin_spacing=thin_spacing)(image)
    for thin_spacing in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="thin_spacing above 0 mm, got"):
            reconstructor(thin_spacing=thin_spacing)
    with pytest.raises(ValueError, match="An array has no slice spacing"):
        reconstructor(thin_spacing=1.0)(TestKinds.thick)
