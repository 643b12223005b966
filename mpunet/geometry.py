"""Slice positions: windows, grids and affines, in slices and mm. Pure functions, NumPy only.

Thick and thin slices are end-aligned. D thick slices at ratio r become (D - 1) * r + 1 thin slices,
and thick slice k has the position of thin slice r * k. A window of n thick slices that starts at
slice k covers the thin slices r * k ... r * (k + n - 1). This is not a scale factor of N / n.

The library works on *slabs*: arrays with axes (depth, height, width), where depth is through-plane
and slice 0 has the smallest world coordinate. For an axial scan the axes point to superior,
posterior and left, as in DICOM; for scans along another axis the other two keep this order. Files
keep their orientation: :class:`SlabFrame` converts between a stored array and a slab.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

__all__ = [
    "SlabFrame",
    "find_slice_axis",
    "gantry_tilt",
    "grid_spacing",
    "reflect_indices",
    "slice_positions",
    "thick_affine",
    "thin_affine",
    "thin_depth",
    "thin_window",
    "window_starts",
]

Scalar = TypeVar("Scalar", bound=np.generic)
Affine = npt.NDArray[np.float64]


def thin_depth(thick_depth: int, ratio: float) -> int:
    """Compute the number of thin slices from the first to the last of D thick slices.

    It is (D - 1) * r + 1, or the number that fits if r is not an integer.

    Args:
        thick_depth: number of thick slices, D; at least 2.
        ratio: thick spacing / thin spacing, r; at least 1.

    Raises:
        ValueError: if an argument is out of range.

    >>> thin_depth(8, 5), thin_depth(8, 2.4)
    (36, 17)
    """
    if thick_depth < 2:
        raise ValueError(
            f"Expected at least 2 slices along depth, got {thick_depth}; a single slice cannot be "
            "interpolated."
        )
    if ratio < 1:
        raise ValueError(
            f"Expected a ratio of at least 1 (thick spacing / thin spacing), got {ratio}."
        )
    # The tolerance of a thousandth of a slice allows for rounded spacings.
    return math.floor((thick_depth - 1) * ratio + 1e-3) + 1


def window_starts(depth: int, n_thick: int, stride: int = 1) -> list[int]:
    """Compute the first thick slice of each window.

    The windows cover every thin slice of the volume at least once.

    Args:
        depth: number of thick slices in the volume, at least ``n_thick``. Pad shorter volumes
            first; see :func:`reflect_indices`.
        n_thick: number of thick slices in a window, at least 2.
        stride: distance between windows in thick slices, 1 (the paper's value) to ``n_thick - 1``.
            The last window is moved back so that it ends with the volume.

    Raises:
        ValueError: if an argument is out of range.

    >>> window_starts(20, 8, stride=5)
    [0, 5, 10, 12]
    """
    if n_thick < 2:
        raise ValueError(f"Expected windows of at least 2 thick slices, got {n_thick}.")
    if not 1 <= stride <= n_thick - 1:
        raise ValueError(
            f"Expected a window stride of 1 to {n_thick - 1} (n_thick - 1), got {stride}; "
            "a larger stride leaves thin slices between windows that no window reconstructs."
        )
    if depth < n_thick:
        raise ValueError(
            f"Expected a depth of at least n_thick = {n_thick}, got {depth}; pad the volume first."
        )
    last = depth - n_thick
    starts = list(range(0, last + 1, stride))
    return starts if starts[-1] == last else [*starts, last]


def thin_window(start: int, n_thick: int, ratio: int) -> slice:
    """Compute the thin slices covered by the window that starts at thick slice ``start``.

    >>> thin_window(3, 8, 5)
    slice(15, 51, None)
    """
    return slice(start * ratio, start * ratio + thin_depth(n_thick, ratio))


def reflect_indices(depth: int, length: int) -> npt.NDArray[np.intp]:
    """Compute slice indices that extend ``depth`` slices to at least ``length`` by reflection.

    Indices reflect at the last slice, then at the first, and so on. Padding is added at the end
    only, so that the index of each slice does not change.

    Raises:
        ValueError: if ``depth`` is below 2.

    >>> reflect_indices(3, 8).tolist()
    [0, 1, 2, 1, 0, 1, 2, 1]
    """
    if depth < 2:
        raise ValueError(
            f"Expected at least 2 slices along depth, got {depth}; a single slice cannot be "
            "interpolated."
        )
    return np.pad(np.arange(depth), (0, max(0, length - depth)), mode="reflect")


def grid_spacing(affine: npt.ArrayLike, slice_axis: int | None = None) -> npt.NDArray[np.float64]:
    """Compute the distance between neighbouring voxels in mm along the axes of a 4 x 4 affine.

    Along ``slice_axis``, if given, it is the slice spacing instead: the distance between
    neighbouring slice planes along their normal, which is smaller in tilted scans.

    >>> tilted = [[0.7, 0, 0, 0], [0, 0.7, 0.75, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    >>> grid_spacing(tilted).tolist(), grid_spacing(tilted, slice_axis=2).round(9).tolist()
    ([0.7, 0.7, 1.25], [0.7, 0.7, 1.0])
    """
    spacing = np.linalg.norm(_checked_affine(affine)[:3, :3], axis=0)
    if slice_axis is not None:
        spacing[slice_axis] *= math.cos(math.radians(gantry_tilt(affine, slice_axis)))
    return np.asarray(spacing)


def gantry_tilt(affine: npt.ArrayLike, slice_axis: int) -> float:
    """Compute the angle in degrees between the slice axis and the normal of the slice planes.

    >>> round(gantry_tilt([[0.7, 0, 0, 0], [0, 0.7, 0.75, 0], [0, 0, 1, 0], [0, 0, 0, 1]], 2), 3)
    36.87
    """
    matrix = _checked_affine(affine)[:3, :3]
    normal = np.cross(*np.delete(matrix, slice_axis, axis=1).T)
    across = np.linalg.norm(np.cross(normal, matrix[:, slice_axis]))
    return math.degrees(math.atan2(across, abs(normal @ matrix[:, slice_axis])))


def find_slice_axis(affine: npt.ArrayLike) -> int:
    """Find the voxel axis along which slices are stacked.

    Three rules are tried in this order:

    1. Pixels are square: the axis for which the other two have equal spacings (within 1 %).
    2. The axis whose spacing is at least 1.5 times that of the others.
    3. The axis closest to the patient's superior-inferior direction, the usual scan axis of CT.

    The first two rules apply only if they select exactly one axis.
    """
    matrix = _checked_affine(affine)
    spacing = grid_spacing(matrix)
    others = np.array([np.delete(spacing, axis) for axis in range(3)])
    square = others.max(axis=1) <= 1.01 * others.min(axis=1)
    thick = spacing >= 1.5 * others.max(axis=1)
    for candidates in (square, thick):
        if candidates.sum() == 1:
            return int(np.argmax(candidates))
    return int(np.argmax(np.abs(matrix[2, :3]) / spacing))


def thin_affine(affine: npt.ArrayLike, axis: int, ratio: float) -> Affine:
    """Compute the affine of the thin grid: the spacing along ``axis`` is divided by ``ratio``.

    For any rotation, shear or flip, the first slice keeps its position because the origin does not
    change. For an integer ratio the last slice keeps its position too, because
    ((D - 1) * r) * (spacing / r) = (D - 1) * spacing.
    """
    matrix = _checked_affine(affine).copy()
    matrix[:, axis] /= ratio
    return matrix


def thick_affine(affine: npt.ArrayLike, axis: int, ratio: int, start: int = 0) -> Affine:
    """Compute the affine of every ``ratio``-th slice of a thin grid, from slice ``start`` on."""
    matrix = _checked_affine(affine).copy()
    matrix[:, 3] += matrix[:, axis] * start
    matrix[:, axis] *= ratio
    return matrix


def slice_positions(affine: npt.ArrayLike, axis: int, depth: int) -> npt.NDArray[np.float64]:
    """Compute the world coordinates of the first voxel of each slice along ``axis``.

    Returns:
        Coordinates in mm, shape (depth, 3).
    """
    matrix = _checked_affine(affine)
    return np.asarray(matrix[:3, 3] + np.arange(depth)[:, None] * matrix[:3, axis])


@dataclass(frozen=True)
class SlabFrame:
    """Mapping between the voxel axes of a stored volume and the axes of a slab.

    Attributes:
        order: stored axes that become depth, height and width.
        flipped: for depth, height and width, whether the stored axis has the opposite direction.
    """

    order: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]

    @classmethod
    def from_affine(cls, affine: npt.ArrayLike, axis: int | None = None) -> SlabFrame:
        """Create the frame of a volume with this affine.

        Args:
            affine: 4 x 4 affine of the stored volume, RAS+, mm.
            axis: slice axis of the stored volume; default: :func:`find_slice_axis`.

        Raises:
            ValueError: if the affine is not a finite, invertible 4 x 4 matrix.
        """
        matrix = _checked_affine(affine)
        depth_axis = find_slice_axis(matrix) if axis is None else axis
        world = _nearest_world_axes(matrix)
        in_plane = sorted((a for a in range(3) if a != depth_axis), key=lambda a: -world[a])
        order = (depth_axis, in_plane[0], in_plane[1])
        # NIfTI coordinates are RAS+ and slab axes point to S, P and L, so x and y are reversed.
        descending = [matrix[world[a], a] < 0 for a in order]
        flipped = [down == (world[a] == 2) for a, down in zip(order, descending, strict=True)]
        return cls(order, (bool(flipped[0]), bool(flipped[1]), bool(flipped[2])))

    @property
    def axis(self) -> int:
        """Slice axis of the stored volume."""
        return self.order[0]

    def to_slab(self, stored: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """Return a view of the stored array with axes (depth, height, width)."""
        return np.flip(stored.transpose(self.order), self._flip_axes())

    def to_stored(self, slab: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """Return a view of the slab with the axes of the stored array.

        This is the inverse of :meth:`to_slab`; the depth may differ from that of the stored array.
        """
        return np.flip(slab, self._flip_axes()).transpose(np.argsort(self.order))

    def slab_affine(self, affine: npt.ArrayLike, stored_shape: tuple[int, ...]) -> Affine:
        """Compute the affine (RAS+, mm) of the slab of a stored volume.

        Args:
            affine: 4 x 4 affine of the stored volume, RAS+, mm.
            stored_shape: shape of the stored volume.
        """
        matrix = _checked_affine(affine)
        out = matrix.copy()
        for slab_axis, (stored_axis, flip) in enumerate(zip(self.order, self.flipped, strict=True)):
            column = matrix[:, stored_axis]
            out[:, slab_axis] = -column if flip else column
            if flip:
                out[:, 3] += column * (stored_shape[stored_axis] - 1)
        return out

    def _flip_axes(self) -> tuple[int, ...]:
        return tuple(i for i, flip in enumerate(self.flipped) if flip)


def _nearest_world_axes(matrix: Affine) -> list[int]:
    """Assign each voxel axis a different world axis (0 = x, 1 = y, 2 = z).

    The assignment is the one with the largest sum of cosines between the axes.
    """
    cosines = np.abs(matrix[:3, :3]) / grid_spacing(matrix)
    return list(
        max(permutations(range(3)), key=lambda world: float(cosines[list(world), range(3)].sum()))
    )


def _checked_affine(affine: Any) -> Affine:
    matrix = np.asarray(affine, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise ValueError(
            f"Expected a finite 4 x 4 affine in mm, got shape {matrix.shape}: {matrix.tolist()}"
        )
    if abs(np.linalg.det(matrix[:3, :3])) < 1e-9:
        raise ValueError(f"The affine is singular, so voxels have no volume: {matrix.tolist()}")
    return matrix
