"""A CT volume to paint on: analytic shapes in mm become voxels with the partial volume that a scanner would give them.

Coordinates are (z, y, x) in mm from the centre of the volume, towards superior, posterior and left: the axes of a slab.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["Field", "Grid", "Voxelizer", "coverage"]

Field = npt.NDArray[np.float32]
Grid = tuple[npt.NDArray[np.floating], npt.NDArray[np.floating], npt.NDArray[np.floating]]
Box = tuple[slice, slice, slice]


class Voxelizer:
    """HU and lung fraction of each voxel, both (depth, height, width); it starts as air.

    What is painted covers what was there by the fraction of the voxel that it fills. Paint on the lung takes the voxel from it;
    paint *in* the lung (vessels, nodules) belongs to it and stops at its border.

    Args:
        shape: (depth, height, width).
        spacing: in mm, of depth, height and width.
    """

    def __init__(self, shape: Sequence[int], spacing: Sequence[float]) -> None:
        self.hu: Field = np.full(tuple(shape), -1000, dtype=np.float32)
        self.lung: Field = np.zeros(tuple(shape), dtype=np.float32)
        self.spacing = np.asarray(spacing, dtype=np.float64)
        self._axes = [
            ((np.arange(n) - (n - 1) / 2) * s).astype(np.float32)
            for n, s in zip(shape, self.spacing, strict=True)
        ]

    def box(self, low: npt.ArrayLike, high: npt.ArrayLike) -> Box:
        """Voxels between two corners (z, y, x) in mm, with a margin for their soft edges."""
        slices = []
        for axis, start, stop, step in zip(
            self._axes, np.asarray(low), np.asarray(high), self.spacing, strict=True
        ):
            first, last = np.searchsorted(axis, (start - 2 * step, stop + 2 * step))
            slices.append(slice(int(first), int(last)))
        return (slices[0], slices[1], slices[2])

    def grid(self, box: Box | None = None) -> Grid:
        """Coordinates z (d, 1, 1), y (1, h, 1), x (1, 1, w) in mm of a box of voxels, of all without one."""
        z, y, x = (
            axis[part] for axis, part in zip(self._axes, box or (slice(None),) * 3, strict=True)
        )
        return z[:, None, None], y[None, :, None], x[None, None, :]

    def paint(
        self,
        fraction: Field,
        value: float | Field,
        *,
        box: Box | None = None,
        in_lung: bool = False,
    ) -> None:
        """Cover voxels of a box by ``fraction`` (0 to 1) with ``value`` in HU."""
        where = box or (slice(None),) * 3
        if in_lung:
            fraction = fraction * self.lung[where]
        else:
            self.lung[where] *= 1 - fraction
        self.hu[where] += fraction * (value - self.hu[where])

    def tube(
        self,
        start: npt.NDArray[np.float64],
        end: npt.NDArray[np.float64],
        radius: float,
        value: float,
        *,
        in_lung: bool = False,
    ) -> None:
        """Paint a round tube with round ends between two points (z, y, x) in mm."""
        box = self.box(np.minimum(start, end) - radius, np.maximum(start, end) + radius)
        z, y, x = self.grid(box)
        if not (z.size and y.size and x.size):
            return
        along = (end - start).astype(np.float32)
        length = float(np.linalg.norm(along))
        z, y, x = z - np.float32(start[0]), y - np.float32(start[1]), x - np.float32(start[2])
        t = (
            (z * along[0] + y * along[1] + x * along[2]) / np.float32(max(length, 1e-6) ** 2)
        ).clip(0, 1)
        distance = np.sqrt(
            (z - t * along[0]) ** 2 + (y - t * along[1]) ** 2 + (x - t * along[2]) ** 2
        )
        # The edge is as soft as a voxel is wide across the tube. A curved soft edge holds more outside than inside: the radius
        # that keeps pi r^2 is smaller, and below 1 / sqrt(3) of a voxel it is the fraction that tells the radius.
        across = (1 - (along / max(length, 1e-6)) ** 2) / 2 if length > 0 else np.full(3, 1 / 3)
        square = float(across @ self.spacing**2)
        edge = np.sqrt(max(radius**2 - square / 12, square / 4)) + np.sqrt(square) / 2
        most = min(1.0, 3 * radius**2 / square)
        self.paint(
            ((edge - distance) / np.sqrt(square)).clip(0, 1) * np.float32(most),
            value,
            box=box,
            in_lung=in_lung,
        )

    def ball(
        self, centre: npt.ArrayLike, radius: float, value: float, *, in_lung: bool = False
    ) -> None:
        """Paint a ball with its centre (z, y, x) in mm; its volume is right down to radii of a voxel."""
        soft = float(np.mean(self.spacing**2)) / 12
        self.ellipsoid(
            centre, 3 * [max(radius - soft / radius, radius / 2)], value, in_lung=in_lung
        )

    def ellipsoid(
        self,
        centre: npt.ArrayLike,
        semi_axes: npt.ArrayLike,
        value: float,
        *,
        turn: npt.NDArray[np.float64] | None = None,
        in_lung: bool = False,
    ) -> None:
        """Paint an ellipsoid with centre and semi-axes (z, y, x) in mm; if turned, its axes are the rows of ``turn`` (3, 3)."""
        middle, semi = np.asarray(centre, dtype=np.float32), np.asarray(semi_axes, dtype=np.float32)
        axes = np.eye(3, dtype=np.float32) if turn is None else turn.astype(np.float32)
        reach = np.abs(axes.T) @ semi
        box = self.box(middle - reach, middle + reach)
        z, y, x = (axis - m for axis, m in zip(self.grid(box), middle, strict=True))
        if min(z.size, y.size, x.size) < 2:
            return
        square = sum(
            ((z * a[0] + y * a[1] + x * a[2]) / s) ** 2 for a, s in zip(axes, semi, strict=True)
        )
        self.paint(coverage(np.sqrt(square) - 1), value, box=box, in_lung=in_lung)


def coverage(field: npt.NDArray[np.floating]) -> Field:
    """Fraction of each voxel in the region where ``field`` < 0, from its distance to the surface in voxels: field / |gradient|.

    Any smooth implicit function will do: it need not be a distance. The field needs at least 2 voxels along each axis.

    >>> coverage(np.indices((4, 2, 2))[0] - 1.25)[:, 0, 0].tolist()
    [1.0, 0.75, 0.0, 0.0]
    """
    field = np.asarray(field, dtype=np.float32)
    square = sum(np.square(step) for step in np.gradient(field))
    return np.asarray(
        (0.5 - field / np.sqrt(square + np.float32(1e-12))).clip(0, 1), dtype=np.float32
    )
