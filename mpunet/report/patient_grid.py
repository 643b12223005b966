"""Where the voxels of volumes stand in the patient: axes towards left, posterior and inferior, positions in mm.

Radiologists look at slices in this order: with the patient's right on the viewer's left, front or head at the top. Volumes of one
case are placed along the axes of one of them, which are the patient's own unless the scan is oblique.
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

OBLIQUE_DEGREES = 0.5


class PatientGrid(NamedTuple):
    """Voxels along left, posterior, inferior.

    Attributes:
        shape: (3,).
        first: (3,), mm of the first voxel along the case's axes.
        spacing: (3,), mm.
        directions: (3, 3), unit vectors of the volume's own axes, as columns.
    """

    shape: Vector
    first: Vector
    spacing: Vector
    directions: Vector

    def aligned(self, other: PatientGrid) -> bool:
        """Whether voxels of both stand at the same places, to a tenth, wherever both have some."""
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
        """Voxels whose centre is from ``low`` to ``high`` mm, at least the one that is nearest."""
        start, stop = (np.array([low, high]) - self.first[axis]) / self.spacing[axis]
        last = int(self.shape[axis]) - 1
        begin = min(max(math.ceil(start - 1e-3), 0), last)
        return range(begin, min(max(math.floor(stop + 1e-3), begin), last) + 1)

    def mm(self, axis: int, indices: Any) -> Vector:
        """Positions of voxels along an axis."""
        return np.asarray(self.first[axis] + np.asarray(indices) * self.spacing[axis])


def patient_voxels(volume: Volume) -> npt.NDArray[Any]:
    """(left, posterior, inferior): a view of the slab along its nearest axes."""
    return apply_orientation(volume.slab, _to_lpi(volume))  # type: ignore[no-any-return]


def directions_of(info: VolumeInfo) -> Vector:
    """(3, 3): as columns, the unit vectors of a volume's axes nearest to left, posterior and inferior."""
    affine = _lpi_affine(info)[:3, :3]
    return np.asarray(affine / np.linalg.norm(affine, axis=0))


def patient_grid(info: VolumeInfo, directions: Vector) -> PatientGrid:
    """Grid of a volume, placed along the axes ``directions`` of its case, see :func:`directions_of`."""
    affine = _lpi_affine(info)
    shape = np.array(info.shape, np.float64)[np.argsort(_to_lpi(info)[:, 0])]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    # By its centre: a volume along other directions than the first one's is then at least in the right place as a whole.
    centre = np.linalg.solve(directions, affine[:3, :3] @ ((shape - 1) / 2) + affine[:3, 3])
    return PatientGrid(shape, centre - spacing * (shape - 1) / 2, spacing, affine[:3, :3] / spacing)


def turn(one: Vector, other: Vector) -> float:
    """Largest angle in degrees between axes of two grids."""
    return float(np.degrees(np.arccos((one * other).sum(axis=0).clip(-1, 1))).max())


def _to_lpi(info: VolumeInfo) -> Vector:
    return np.asarray(ornt_transform(io_orientation(info.slab_affine), axcodes2ornt("LPI")))


def _lpi_affine(info: VolumeInfo) -> Vector:
    """(4, 4): indices along left, posterior and inferior to mm along left, posterior and inferior."""
    return np.asarray(
        np.diag([-1, -1, -1, 1]) @ info.slab_affine @ inv_ornt_aff(_to_lpi(info), info.shape)
    )
