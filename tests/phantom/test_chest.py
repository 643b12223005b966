"""The chest phantom: what it states about itself, measured on its voxels."""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest

from mpunet.geometry import SlabFrame, grid_spacing
from mpunet.phantom.chest import ChestPhantom, chest_phantom, phantom_image
from mpunet.phantom.voxelizer import Voxelizer

COARSE: dict[str, Any] = {"shape": (88, 80, 104), "spacing": (2.0, 3.2, 3.2)}


@pytest.fixture(scope="module")
def chest() -> ChestPhantom:
    return chest_phantom(0, noise=0)


@pytest.fixture(scope="module")
def coarse() -> ChestPhantom:
    return chest_phantom(0, noise=0, **COARSE)


@pytest.fixture(scope="module")
def world(chest: ChestPhantom) -> npt.NDArray[np.float32]:
    """World coordinates (3, D, H, W) of the fine phantom's voxels."""
    axes = np.indices(chest.thin.shape, dtype=np.float32)
    offset = chest.affine[:3, 3, None, None, None].astype(np.float32)
    return np.tensordot(chest.affine[:3, :3].astype(np.float32), axes, 1) + offset


def test_equal_seeds_give_equal_voxels(coarse: ChestPhantom) -> None:
    first, again = (chest_phantom(0, shape=(10, 20, 30), spacing=(3, 5, 5)) for _ in range(2))
    np.testing.assert_array_equal(again.thin, first.thin)
    np.testing.assert_array_equal(again.lung, first.lung)
    assert again.nodules == first.nodules
    assert set(first.nodules) <= set(coarse.nodules), "a smaller field of view shows some of them"


def test_different_seeds_give_different_patients(coarse: ChestPhantom) -> None:
    other = chest_phantom(1, noise=0, **COARSE)
    assert other.nodules != coarse.nodules
    assert (other.lung != coarse.lung).mean() > 0.01


def test_anatomy_does_not_depend_on_the_grid(chest: ChestPhantom, coarse: ChestPhantom) -> None:
    """A voxel of twice the size is the mean of eight: partial volume is correct at all edges."""
    eighths = chest.thin.reshape(88, 2, 80, 2, 104, 2).astype(float).mean(axis=(1, 3, 5))
    difference = np.abs(coarse.thin - eighths)
    assert difference.mean() < 6
    assert np.corrcoef(coarse.thin.ravel(), eighths.ravel())[0, 1] > 0.998
    assert coarse.lung.mean() == pytest.approx(chest.lung.mean(), rel=0.01)
    np.testing.assert_allclose(
        [n.centre for n in coarse.nodules], [n.centre for n in chest.nodules]
    )


def test_hu_of_tissues(chest: ChestPhantom, world: npt.NDArray[np.float32]) -> None:
    hu = chest.thin
    lung = hu[chest.lung]
    assert -870 < np.median(lung) < -830
    assert lung.size * 2.56 / 1e6 == pytest.approx(2.7, rel=0.15), "litres"
    front, back = (np.median(hu[chest.lung & (world[1] * sign > 30)]) for sign in (1, -1))
    assert back - front > 20, "lung is denser where it hangs"
    assert hu[:, 0].max() == -1000, "air in front of the patient"
    assert np.median(hu[50:56, 64:68, 112:118]) == pytest.approx(45, abs=12), "heart"
    assert hu.max() > 500, "cortical bone"
    assert (np.abs(hu + 100) < 25).mean() > 0.05, "fat"


def test_noise(chest: ChestPhantom) -> None:
    middle = np.s_[44:-44, 40:-40, 52:-52]
    noisy = chest_phantom(0, noise=20, shape=(88, 80, 104))
    added = noisy.thin.astype(float) - chest.thin[middle]
    added = added[2:-2, 2:-2, 2:-2][(chest.thin[middle] > 0)[2:-2, 2:-2, 2:-2]].reshape(-1)
    assert added.std() == pytest.approx(20, rel=0.05)
    assert abs(added.mean()) < 0.5
    np.testing.assert_array_equal(noisy.lung, chest.lung[middle])


def test_nodules_are_where_and_as_large_as_stated(
    chest: ChestPhantom, world: npt.NDArray[np.float32]
) -> None:
    assert 5 <= len(chest.nodules) <= 8
    for nodule in chest.nodules:
        distance = np.sqrt(sum((w - c) ** 2 for w, c in zip(world, nodule.centre, strict=True)))
        near = distance < nodule.diameter / 2 + 2
        around = np.median(
            chest.thin[(distance < nodule.diameter / 2 + 5) & (distance > nodule.diameter / 2 + 2)]
        )
        value = 30 if nodule.solid else -580
        share = ((chest.thin[near] - around) / (value - around)).clip(0, 1)
        # What is as faint as ground glass may be a fissure beside it.
        assert share.sum() * 2.56 == pytest.approx(
            np.pi / 6 * nodule.diameter**3, rel=0.12 if nodule.solid else 0.35
        ), nodule
        middle = (world[:, near] * share).sum(axis=1) / share.sum()
        np.testing.assert_allclose(middle, nodule.centre, atol=0.4)
        assert chest.lung[distance < nodule.diameter / 2].all()
        assert 4 <= nodule.diameter <= 12


def test_nodules_of_another_patient_lie_in_lung() -> None:
    other = chest_phantom(5, noise=0, shape=(59, 80, 104), spacing=(3, 3.2, 3.2))
    index = np.linalg.solve(
        other.affine[:3, :3], np.transpose([n.centre for n in other.nodules]) - other.affine[:3, 3:]
    )
    z, y, x = np.rint(index).astype(int)
    assert other.lung[z, y, x].all()
    assert (other.thin[z, y, x] > -750).all()


def test_thin_slices_hold_detail_that_thick_ones_lose(chest: ChestPhantom) -> None:
    lung = np.where(chest.lung, chest.thin, -850).astype(float)
    between = (lung[:-5:5] + lung[5::5]) / 2
    assert np.abs(lung[2:-3:5] - between)[chest.lung[2:-3:5]].mean() > 10


def test_small_field_of_view_cuts_the_same_chest(coarse: ChestPhantom) -> None:
    part = chest_phantom(0, shape=(28, 30, 44), spacing=COARSE["spacing"], noise=0)
    np.testing.assert_allclose(
        part.thin[2:-2, 2:-2, 2:-2], coarse.thin[32:-32, 27:-27, 32:-32], atol=1
    )


@pytest.mark.parametrize("shape", [(2, 2, 2), (300, 3, 200)])
def test_any_shape(shape: tuple[int, int, int]) -> None:
    assert chest_phantom(0, shape=shape, spacing=(1, 1, 1)).thin.shape == shape


def test_image_is_stored_as_dicom_conversions_are() -> None:
    grid: dict[str, Any] = {"shape": (16, 20, 24), "spacing": (9.0, 12.0, 13.0)}
    chest, image = chest_phantom(0, **grid), phantom_image(0, **grid)
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
    assert image.get_data_dtype() == np.int16
    frame = SlabFrame.from_affine(image.affine)
    np.testing.assert_array_equal(frame.to_slab(np.asarray(image.dataobj)), chest.thin)
    np.testing.assert_allclose(
        frame.slab_affine(image.affine, image.shape), chest.affine, atol=1e-9
    )
    np.testing.assert_allclose(grid_spacing(chest.affine), grid["spacing"])
    np.testing.assert_allclose(chest.affine @ [7.5, 9.5, 11.5, 1], [0, 0, 0, 1], atol=1e-9)


@pytest.mark.parametrize(("radius", "rel"), [(0.4, 0.03), (1.0, 0.03), (3.0, 0.02)])
def test_tube_fills_its_volume(radius: float, rel: float) -> None:
    """pi r^2 l in the middle of an oblique tube, thinner and wider than a voxel."""
    voxels = Voxelizer((60, 60, 60), (1.0, 1.3, 1.6))
    start, end = np.array([-100.0, -55.0, -40.0]), np.array([100.0, 55.0, 40.0])
    voxels.tube(start, end, radius, 0)
    per_slice = (voxels.hu[20:40] + 1000).sum() / 1000 * 1.3 * 1.6 / 20
    assert per_slice == pytest.approx(
        np.pi * radius**2 * np.linalg.norm(end - start) / 200, rel=rel
    )


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"at least 2 voxels each, got \(1, 8, 8\)"):
        chest_phantom(0, shape=(1, 8, 8))
    with pytest.raises(ValueError, match=r"three positive spacings.*got \(1, 1\)"):
        chest_phantom(0, spacing=(1, 1))
    with pytest.raises(ValueError, match="0 HU or more, got -1"):
        chest_phantom(0, noise=-1)
