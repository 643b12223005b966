"""Where slices stand: windows, grids and affines. Pure functions in slices and mm, NumPy only.

The rule that everything else follows: thick and thin slices are end-aligned. D thick slices at ratio r become
(D - 1) * r + 1 thin ones, thick slice k and thin slice r * k share one position, and a window of n thick slices that starts at
slice k covers the thin slices r * k ... r * (k + n - 1). It is not a scale factor of N / n.

Arrays that the library works on are *slabs*: axes (depth, height, width), depth = through-plane, slice 0 at the smallest
world coordinate. In patient terms the axes of an axial scan run towards superior, posterior and left, as in DICOM; scans along
another axis keep the same order of the remaining two. Files keep the orientation they came in: :class:`SlabFrame` maps both ways.
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
    """Number of thin slices that stand for ``thick_depth`` thick ones: (D - 1) * r + 1, or as many as fit where r is no whole number.

    >>> thin_depth(8, 5), thin_depth(8, 2.4)
    (36, 17)
    """
    if thick_depth < 2:
        raise ValueError(
            f"Expected at least 2 slices along depth, got {thick_depth}; a single slice cannot be interpolated."
        )
    if ratio < 1:
        raise ValueError(
            f"Expected a ratio of at least 1 (thick spacing / thin spacing), got {ratio}."
        )
    return (
        math.floor((thick_depth - 1) * ratio + 1e-3) + 1
    )  # a thousandth of a slice is rounding of spacings


def window_starts(depth: int, n_thick: int, stride: int = 1) -> list[int]:
    """First thick slice of each window, so that every thin slice of the volume lies in at least one window.

    Args:
        depth: thick slices in the volume, at least ``n_thick`` (pad shorter volumes first, see :func:`reflect_indices`).
        n_thick: thick slices in one window, at least 2.
        stride: thick slices between windows, 1 (the paper's) to ``n_thick - 1``. The last window is moved back to end with the volume.

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
    """Thin slices that the window starting at thick slice ``start`` covers.

    >>> thin_window(3, 8, 5)
    slice(15, 51, None)
    """
    return slice(start * ratio, start * ratio + thin_depth(n_thick, ratio))


def reflect_indices(depth: int, length: int) -> npt.NDArray[np.intp]:
    """Slice indices that extend ``depth`` slices to at least ``length`` by reflection at the last one (and the first, and so on).

    Padding is at the end only, so that slice k stays slice k.

    >>> reflect_indices(3, 8).tolist()
    [0, 1, 2, 1, 0, 1, 2, 1]
    """
    if depth < 2:
        raise ValueError(
            f"Expected at least 2 slices along depth, got {depth}; a single slice cannot be interpolated."
        )
    return np.pad(np.arange(depth), (0, max(0, length - depth)), mode="reflect")


def grid_spacing(affine: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Voxel spacing in mm along each of the three voxel axes of a 4 x 4 affine."""
    matrix = _checked_affine(affine)
    return np.asarray(np.linalg.norm(matrix[:3, :3], axis=0))


def find_slice_axis(affine: npt.ArrayLike) -> int:
    """The voxel axis along which slices are stacked.

    Pixels are square, so it is the axis whose spacing differs (by more than 1 %) from that of the other two, be it larger, as in
    thick scans, or smaller. Where that does not tell, it is an axis with at least 1.5 times the spacing of the others, or else the
    axis nearest to the patient's superior-inferior direction, the usual scan axis of CT.
    """
    matrix = _checked_affine(affine)
    spacing = grid_spacing(matrix)
    others = np.array([np.delete(spacing, axis) for axis in range(3)])
    square = others.max(axis=1) <= 1.01 * others.min(axis=1)
    thick = spacing >= 1.5 * others.max(axis=1)
    for told in (square, thick):
        if told.sum() == 1:
            return int(np.argmax(told))
    return int(np.argmax(np.abs(matrix[2, :3]) / spacing))


def thin_affine(affine: npt.ArrayLike, axis: int, ratio: float) -> Affine:
    """Affine of the thin grid: spacing along ``axis`` divided by ``ratio``, first and (of a whole number) last slice where they were.

    Holds for any rotation, shear or flip: the first slice keeps its position because the origin stays, and the last because
    ((D - 1) * r) * (spacing / r) = (D - 1) * spacing.
    """
    matrix = _checked_affine(affine).copy()
    matrix[:, axis] /= ratio
    return matrix


def thick_affine(affine: npt.ArrayLike, axis: int, ratio: int, start: int = 0) -> Affine:
    """Affine of every ``ratio``-th slice of a thin grid, beginning with thin slice ``start``."""
    matrix = _checked_affine(affine).copy()
    matrix[:, 3] += matrix[:, axis] * start
    matrix[:, axis] *= ratio
    return matrix


def slice_positions(affine: npt.ArrayLike, axis: int, depth: int) -> npt.NDArray[np.float64]:
    """World coordinates in mm, shape (depth, 3), of the first voxel of each slice along ``axis``."""
    matrix = _checked_affine(affine)
    return np.asarray(matrix[:3, 3] + np.arange(depth)[:, None] * matrix[:3, axis])


@dataclass(frozen=True)
class SlabFrame:
    """How a stored volume's voxel axes map to a slab's (depth, height, width), and back.

    Attributes:
        order: stored axis that becomes depth, height and width.
        flipped: for depth, height and width, whether the stored axis runs the other way.
    """

    order: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]

    @classmethod
    def from_affine(cls, affine: npt.ArrayLike, axis: int | None = None) -> SlabFrame:
        """Frame of a volume with this affine, ``axis`` being its slice axis (found by :func:`find_slice_axis` if not given)."""
        matrix = _checked_affine(affine)
        depth_axis = find_slice_axis(matrix) if axis is None else axis
        world = _nearest_world_axes(matrix)
        in_plane = sorted((a for a in range(3) if a != depth_axis), key=lambda a: -world[a])
        order = (depth_axis, in_plane[0], in_plane[1])
        # NIfTI worlds are RAS+; a slab's axes run towards S, P and L, so x and y count downwards.
        descending = [matrix[world[a], a] < 0 for a in order]
        flipped = [down == (world[a] == 2) for a, down in zip(order, descending, strict=True)]
        return cls(order, (bool(flipped[0]), bool(flipped[1]), bool(flipped[2])))

    @property
    def axis(self) -> int:
        """The stored volume's slice axis."""
        return self.order[0]

    def to_slab(self, stored: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """A view of the stored array with axes (depth, height, width)."""
        return np.flip(stored.transpose(self.order), self._flip_axes())

    def to_stored(self, slab: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """A view of the slab with the stored array's axes; the inverse of :meth:`to_slab` for any depth."""
        return np.flip(slab, self._flip_axes()).transpose(np.argsort(self.order))

    def slab_affine(self, affine: npt.ArrayLike, stored_shape: tuple[int, ...]) -> Affine:
        """Affine (RAS+, mm) of the slab that :meth:`to_slab` makes of a stored volume of this shape."""
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
    """For each voxel axis its own nearest world axis (0 = x, 1 = y, 2 = z): the assignment with the largest sum of cosines."""
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
