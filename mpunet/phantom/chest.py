"""The chest phantom: an invented CT volume, created from a seed, with known nodules and lung mask.

With it, the demo and the tests need no download. It has the structures that thick slices lose:
vessels, bronchi, fissures and ribs that cross the slices, the domes of the diaphragm, and small
nodules. Sizes and HU are typical of an adult's CT without contrast, but the anatomy is invented:
results on the phantom show that the software works and are not clinical.

The anatomy is defined in mm from the centre of the volume and does not depend on the grid. The same
seed at another spacing gives the same chest; a smaller field of view crops it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from mpunet.phantom.anatomy import Anatomy
from mpunet.phantom.organs import Ball, paint_chest
from mpunet.phantom.voxelizer import Field, Voxelizer

if TYPE_CHECKING:
    import nibabel as nib

__all__ = ["ChestPhantom", "Nodule", "chest_phantom", "phantom_image"]

Rng = np.random.Generator


class Nodule(NamedTuple):
    """A spherical nodule in the lung.

    Attributes:
        centre: (3,), world coordinates in mm (RAS+) of the phantom's affine.
        diameter: in mm.
        solid: True for a solid nodule, False for a ground-glass nodule.
    """

    centre: tuple[float, float, float]
    diameter: float
    solid: bool


class ChestPhantom(NamedTuple):
    """A thin-slice slab with its lung mask and nodules.

    Attributes:
        thin: (D, H, W) in HU, int16; the axes (depth, height, width) point towards superior,
            posterior and left.
        lung: (D, H, W), mask of the lungs with their vessels and nodules, without trachea and main
            bronchi.
        affine: (4, 4), from slab voxels to world coordinates in mm (RAS+); the centre of the volume
            is at (0, 0, 0).
        nodules: the nodules whose centre is in the field of view.
    """

    thin: npt.NDArray[np.int16]
    lung: npt.NDArray[np.bool_]
    affine: npt.NDArray[np.float64]
    nodules: list[Nodule]


def chest_phantom(
    seed: int,
    *,
    shape: Sequence[int] = (176, 160, 208),
    spacing: Sequence[float] = (1.0, 1.6, 1.6),
    noise: float = 15.0,
) -> ChestPhantom:
    """Create the chest phantom of a seed on a grid.

    Args:
        seed: random seed. Equal seeds give equal voxels; another seed gives another patient.
        shape: (D, H, W), at least 2 each. For d thick slices at ratio r, use D = (d - 1) * r + 1:
            36 slices at ratio 5 need 176.
        spacing: voxel spacing of depth, height and width in mm. The whole chest needs a field of
            view of about 176 x 256 x 333 mm.
        noise: standard deviation of the noise in HU, 0 for none. Noise is correlated over about a
            millimetre.

    Raises:
        ValueError: if the shape, the spacing or the noise is invalid.

    >>> chest = chest_phantom(0, shape=(36, 64, 84), spacing=(5, 4, 4))
    >>> chest.thin.shape, bool(chest.lung.any())
    ((36, 64, 84), True)
    """
    if len(shape) != 3 or min(shape) < 2:
        raise ValueError(
            f"Expected a shape (depth, height, width) of at least 2 voxels each, "
            f"got {tuple(shape)}."
        )
    if len(spacing) != 3 or not min(spacing) > 0:
        raise ValueError(
            f"Expected three positive spacings in mm (depth, height, width), got {tuple(spacing)}."
        )
    if not noise >= 0:
        raise ValueError(f"Expected noise as a standard deviation of 0 HU or more, got {noise}.")
    # Separate generators: the anatomy must not depend on the number of voxels, which noise uses.
    rng, noise_rng = (np.random.default_rng([seed, stream]) for stream in (0, 1))
    body = Anatomy.draw(rng)
    voxels = Voxelizer(shape, spacing)
    nodules = paint_chest(voxels, body, rng)
    if noise > 0:
        voxels.hu += noise * _noise(noise_rng, voxels)
    affine = _affine(shape, spacing)
    thin = np.rint(voxels.hu.clip(-1024, 3071)).astype(np.int16)
    return ChestPhantom(thin, voxels.lung > 0.5, affine, _nodules_in_view(nodules, voxels))


def phantom_image(
    seed: int,
    *,
    shape: Sequence[int] = (176, 160, 208),
    spacing: Sequence[float] = (1.0, 1.6, 1.6),
    noise: float = 15.0,
) -> nib.Nifti1Image:
    """Create the chest phantom as an image in the layout of an axial series converted from DICOM.

    Voxels are int16; the voxel axes x, y, z point towards left, posterior and superior. The
    arguments are those of :func:`chest_phantom`.

    >>> phantom_image(0, shape=(16, 20, 24), spacing=(10, 12, 12)).shape
    (24, 20, 16)
    """
    import nibabel as nib  # slow to import, and the phantom itself does not need it

    chest = chest_phantom(seed, shape=shape, spacing=spacing, noise=noise)
    image = nib.Nifti1Image(chest.thin.transpose(2, 1, 0), chest.affine[:, [2, 1, 0, 3]])
    image.header.set_xyzt_units("mm")
    return image


def _nodules_in_view(nodules: list[Ball], voxels: Voxelizer) -> list[Nodule]:
    """Return the nodules whose centre is in the volume, in world coordinates."""
    reach = (np.asarray(voxels.hu.shape) - 1)[::-1] / 2 * voxels.spacing[::-1]
    in_world = [
        Nodule((-float(x), -float(y), float(z)), diameter, solid)
        for (z, y, x), diameter, solid in nodules
    ]
    return [nodule for nodule in in_world if (np.abs(nodule.centre) <= reach).all()]


def _affine(shape: Sequence[int], spacing: Sequence[float]) -> npt.NDArray[np.float64]:
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = np.asarray(spacing, dtype=np.float64) * (1, -1, -1)
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    affine[3, 3] = 1
    return affine


def _noise(rng: Rng, voxels: Voxelizer) -> Field:
    """Return correlated noise with unit variance in soft tissue and half the amplitude in air.

    The standard deviation of its Gaussian filter is 0.8 mm in plane and 0.4 mm along depth.
    """
    white = rng.standard_normal(voxels.hu.shape, dtype=np.float32)
    smooth = ndimage.gaussian_filter(white, np.array([0.4, 0.8, 0.8]) / voxels.spacing)
    scale = 1 / smooth.std()
    return np.asarray(smooth * scale * (0.5 + 0.5 * ((voxels.hu + 1000) / 900).clip(0, 1)))
