"""lung_mask: literal bodies of which the lung is known, and real CT where it is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest

from mpunet.geometry import SlabFrame, grid_spacing
from mpunet.lungs.threshold import lung_mask
from mpunet.phantom.chest import chest_phantom

MM = (2.0, 2.0, 2.0)


def ball(
    shape: tuple[int, ...], centre: tuple[float, ...], radius: tuple[float, ...]
) -> npt.NDArray[np.bool_]:
    grid = np.indices(shape)
    return np.asarray(
        sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radius, strict=True)) < 1
    )


@pytest.fixture
def body() -> tuple[npt.NDArray[np.int16], npt.NDArray[np.bool_]]:
    """A box of tissue in air with 2 mm voxels, and its lung mask.

    It has a lung with a vessel on each side and a trachea between them.
    """
    shape = (50, 70, 100)
    hu = np.full(shape, -1000, dtype=np.int16)
    hu[:, 8:62, 8:92] = 40
    lungs = ball(shape, (24, 35, 28), (20, 18, 14)) | ball(shape, (24, 35, 72), (20, 18, 14))
    hu[lungs] = -850
    hu[20:30, 34:37, 20:30] = 40
    hu[:, 32:38, 47:53] = -1000
    return hu, lungs


def dice(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_known_lungs(body: Any) -> None:
    hu, lungs = body
    mask = lung_mask(hu, MM)
    assert mask.dtype == bool
    assert dice(mask, lungs) > 0.995
    assert mask[20:30, 34:37, 20:30].all(), "the vessel belongs to the lung"
    assert not mask[:, 32:38, 47:53].any(), "the trachea does not"
    assert not mask[:, :8].any(), "nor does the air outside"
    assert not mask[:, :, 92:].any()


def test_noise_changes_little(body: Any) -> None:
    hu, lungs = body
    noisy = hu + np.random.default_rng(0).normal(0, 60, hu.shape)
    assert dice(lung_mask(noisy, MM), lungs) > 0.99


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_flipped_volume_gives_the_flipped_mask(body: Any, axis: int) -> None:
    hu, _ = body
    np.testing.assert_array_equal(
        lung_mask(np.flip(hu, axis), MM), np.flip(lung_mask(hu, MM), axis)
    )


def test_slices_may_cut_the_lungs(body: Any) -> None:
    hu, lungs = body
    assert dice(lung_mask(hu[12:36], MM), lungs[12:36]) > 0.99


def test_field_of_view_may_cut_the_lungs(body: Any) -> None:
    hu, lungs = body
    part = np.s_[:, 10:60, 18:82]
    assert dice(lung_mask(hu[part], MM), lungs[part]) > 0.99


@pytest.fixture(scope="module")
def chest() -> Any:
    """A phantom on a coarse grid, its lungs 100 mm to each side of the middle."""
    return chest_phantom(1, shape=(59, 80, 104), spacing=(3, 3.2, 3.2))


@pytest.mark.parametrize(
    "columns", [slice(18, None), slice(None, 84), slice(20, 84)], ids=["right", "left", "both"]
)
def test_field_of_view_may_cut_the_body(chest: Any, columns: slice) -> None:
    """Lung, chest wall and outside all end at the edge: there they can be one space."""
    hu, lung = chest.thin[:, :, columns], chest.lung[:, :, columns]
    assert lung[:, :, [0, -1]].any(), "the edge runs through the lung"
    assert dice(lung_mask(hu, (3, 3.2, 3.2)), lung) > 0.97


def test_a_thin_cut_wall_may_leak(chest: Any) -> None:
    """A hole of 6 mm where the edge cuts the chest wall: lung and outside are connected."""
    hu, lung = chest.thin[:, :, 18:].copy(), chest.lung[:, :, 18:]
    rows = np.flatnonzero(lung[30, :, 0])
    hu[29:31, : rows[0], 0] = -990
    assert lung_mask(hu, (3, 3.2, 3.2))[:, :, :30].any()
    assert dice(lung_mask(hu, (3, 3.2, 3.2)), lung) > 0.97


@pytest.mark.parametrize("padding", [-1024, -3024])
def test_round_field_of_view_may_cut_the_lungs(chest: Any, padding: int) -> None:
    y, x = np.ogrid[:80, :104]
    unseen = (y - 40) ** 2 + (x - 52) ** 2 > 33**2
    hu, lung = np.where(unseen, padding, chest.thin), chest.lung & ~unseen
    assert (chest.lung & unseen).sum() > 0.05 * chest.lung.sum(), (
        "the circle runs through the lungs"
    )
    assert dice(lung_mask(hu, (3, 3.2, 3.2)), lung) > 0.97


def test_crop_from_within_a_lung() -> None:
    hu = np.full((40, 40, 40), -850, dtype=np.int16)
    hu[18:22, 10:13] = 40
    assert lung_mask(hu, MM).mean() > 0.99


def test_corner_with_foam_outside_is_not_lung(body: Any) -> None:
    hu, lungs = body
    hu[:, 62:] = -900  # as dense as lung, and larger than both lungs
    assert dice(lung_mask(hu, MM), lungs) > 0.995


def test_spacing_in_mm_not_voxels(body: Any) -> None:
    hu, lungs = body
    fine = hu.repeat(2, axis=1).repeat(3, axis=2)
    assert (
        dice(lung_mask(fine, (2.0, 1.0, 2 / 3)), lungs.repeat(2, axis=1).repeat(3, axis=2)) > 0.995
    )


@pytest.mark.parametrize(
    "hu",
    [
        np.full((20, 40, 40), 40, dtype=np.int16),
        np.full((20, 40, 40), -1000, dtype=np.int16),
        np.full((20, 40, 40), -3024.0),
        np.zeros((1, 1, 1), dtype=np.int16),
    ],
    ids=["tissue", "air", "padding", "one voxel"],
)
def test_no_lung_gives_an_empty_mask(hu: Any) -> None:
    mask = lung_mask(hu, MM)
    assert mask.shape == hu.shape
    assert not mask.any()


def test_gas_in_a_body_is_not_lung() -> None:
    hu = np.full((40, 60, 60), 40, dtype=np.int16)
    hu[ball(hu.shape, (20, 30, 30), (15, 20, 20))] = -1000
    assert not lung_mask(hu, MM).any()


def test_phantom(chest: Any) -> None:
    assert dice(lung_mask(chest.thin, (3, 3.2, 3.2)), chest.lung) > 0.98


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"\(depth, height, width\), got shape \(4, 4\)"):
        lung_mask(np.zeros((4, 4)), MM)
    with pytest.raises(ValueError, match=r"three positive spacings.*got \(1, 0, 1\)"):
        lung_mask(np.zeros((4, 4, 4)), (1, 0, 1))


def real_ct(path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
    image = nib.load(path)
    frame = SlabFrame.from_affine(image.affine, axis=2)
    return frame.to_slab(np.asarray(image.dataobj)), grid_spacing(
        frame.slab_affine(image.affine, image.shape)
    )


@pytest.mark.parametrize(
    ("name", "litres"),
    [
        ("train/LIDC-IDRI-0001", 3.7),
        ("val/MIDRC-RICORD-1A-001012", 2.8),
        ("thick/Lung_Dx-A0001-B", 5.5),
        ("train/LungFCP-01-0001", 1.3),
        ("train/LIDC-IDRI-0002", 5.3),
        ("train/LIDC-IDRI-0003", 5.9),
    ],
)
def test_real_lungs(shared_ct: Path, name: str, litres: float) -> None:
    """The volume was measured once and checked on overlays; other bounds hold for any lungs."""
    hu, mm = real_ct(shared_ct / f"{name}.nii.gz")
    mask = lung_mask(hu, mm)
    assert mask.sum() * mm.prod() / 1e6 == pytest.approx(litres, rel=0.05)
    assert -900 < np.median(hu[mask]) < -750
    right, left = (half.sum() / mask.sum() for half in np.array_split(mask, 2, axis=2))
    assert right > 0.4
    assert left > 0.4
    assert not mask[:, 0].any()
    assert not mask[:, :, 0].any()


def test_real_lungs_of_unequal_size(shared_ct: Path) -> None:
    """The right upper lobe of LIDC-IDRI-0314 is small."""
    hu, mm = real_ct(shared_ct / "train/LIDC-IDRI-0314.nii.gz")
    right, left = (
        half.sum() * mm.prod() / 1e6 for half in np.array_split(lung_mask(hu, mm), 2, axis=2)
    )
    assert (right, left) == pytest.approx((0.93, 1.92), rel=0.05)


def test_real_lung_cut_by_the_field_of_view(shared_ct: Path) -> None:
    """RIDER-0117's right lung ends at the edge, and is connected there with the air outside."""
    hu, mm = real_ct(shared_ct / "test/RIDER-0117.nii.gz")
    mask = lung_mask(hu, mm)
    right, left = (half.sum() * mm.prod() / 1e6 for half in np.array_split(mask, 2, axis=2))
    assert (right, left) == pytest.approx((0.755, 1.222), rel=0.03)
    assert mask[:, :, 0].any()
    assert -900 < np.median(hu[mask]) < -750
    outside = np.s_[:, 400:]  # table and air
    assert not mask[outside].any()


def test_real_head_has_no_lung(shared_ct: Path) -> None:
    assert not lung_mask(*real_ct(shared_ct / "pair/head_thin.nii.gz")).any()


def test_real_crop_from_within_a_lung(shared_ct: Path) -> None:
    hu, mm = real_ct(shared_ct / "fixture/lesion_1.25mm.nii.gz")
    assert 0.7 < lung_mask(hu, mm).mean() < 0.9
