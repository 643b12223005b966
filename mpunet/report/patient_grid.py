"""Positions of voxels in the patient, in mm along axes towards left, posterior and inferior.

This is the display convention of radiology: the patient's right is on the left of the image, the
front or the head is at the top. All volumes of a case are placed along the axes of one of them.
These axes are the patient's axes unless the scan is oblique.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)

from mpunet.io.volume import Volume, VolumeInfo

__all__ = [
    "OBLIQUE_DEGREES",
    "PatientGrid",
    "directions_of",
    "patient_grid",
    "patient_voxels",
    "turn",
]

Vector = npt.NDArray[np.float64]

OBLIQUE_DEGREES = 0.5  # larger angles between axes count as oblique


class PatientGrid(NamedTuple):
    """Grid of a volume whose axes point towards left, posterior and inferior.

    Attributes:
        shape: (3,), number of voxels.
        first: (3,), position of the first voxel along the case's axes in mm.
        spacing: (3,), voxel spacing in mm.
        directions: (3, 3), unit vectors of the volume's own axes, as columns.
    """

    shape: Vector
    first: Vector
    spacing: Vector
    directions: Vector

    def aligned(self, other: PatientGrid) -> bool:
        """Return whether the voxels of both grids are at the same positions where both overlap.

        The tolerance is a tenth of a voxel.
        """
        same_steps = (
            np.abs(self.spacing / other.spacing - 1) * np.maximum(self.shape, other.shape) < 0.1
        )
        offset = (self.first - other.first) / other.spacing
        turned = turn(self.directions, other.directions)
        return bool(
            same_steps.all()
            and np.allclose(offset, np.rint(offset), atol=0.1)
            and turned < OBLIQUE_DEGREES
        )

    def indices(self, axis: int, low: float, high: float) -> range:
        """Return the voxels whose centre is between ``low`` and ``high`` mm, at least one."""
        start, stop = (np.array([low, high]) - self.first[axis]) / self.spacing[axis]
        last = int(self.shape[axis]) - 1
        begin = min(max(math.ceil(start - 1e-3), 0), last)
        return range(begin, min(max(math.floor(stop + 1e-3), begin), last) + 1)

    def mm(self, axis: int, indices: Any) -> Vector:
        """Return the positions of voxels along an axis in mm."""
        return np.asarray(self.first[axis] + np.asarray(indices) * self.spacing[axis])


def patient_voxels(volume: Volume) -> npt.NDArray[Any]:
    """Return the slab with its axes reordered and flipped to left, posterior, inferior, as a view.

    Each axis is assigned to the nearest of these directions.
    """
    return apply_orientation(volume.slab, _to_lpi(volume))  # type: ignore[no-any-return]


def directions_of(info: VolumeInfo) -> Vector:
    """Return unit vectors of the axes nearest to left, posterior, inferior: (3, 3), as columns."""
    affine = _lpi_affine(info)[:3, :3]
    return np.asarray(affine / np.linalg.norm(affine, axis=0))


def patient_grid(info: VolumeInfo, directions: Vector) -> PatientGrid:
    """Return the grid of a volume along the axes of its case.

    Args:
        info: header of the volume.
        directions: (3, 3), axes of the case, see :func:`directions_of`.
    """
    affine = _lpi_affine(info)
    shape = np.array(info.shape, np.float64)[np.argsort(_to_lpi(info)[:, 0])]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    # Place the volume by its centre. If its directions differ from those of the case, its centre is
    # still at the right position.
    centre = np.linalg.solve(directions, affine[:3, :3] @ ((shape - 1) / 2) + affine[:3, 3])
    return PatientGrid(shape, centre - spacing * (shape - 1) / 2, spacing, affine[:3, :3] / spacing)


def turn(one: Vector, other: Vector) -> float:
    """Return the largest angle between corresponding axes of two grids in degrees."""
    return float(np.degrees(np.arccos((one * other).sum(axis=0).clip(-1, 1))).max())


def _to_lpi(info: VolumeInfo) -> Vector:
    return np.asarray(ornt_transform(io_orientation(info.slab_affine), axcodes2ornt("LPI")))


def _lpi_affine(info: VolumeInfo) -> Vector:
    """(4, 4): from voxel indices to mm, both along left, posterior and inferior."""
    return np.asarray(
        np.diag([-1, -1, -1, 1]) @ info.slab_affine @ inv_ornt_aff(_to_lpi(info), info.shape)
    )
