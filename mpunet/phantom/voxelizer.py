"""Drawing of shapes, given in mm, into a CT volume, with the partial volume effect of a scanner.

Coordinates are (z, y, x) in mm from the centre of the volume, towards superior, posterior and
left: the axes of a slab.
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
    """A CT volume to draw shapes into; it is filled with air at first.

    A shape replaces the contents of a voxel by the fraction of the voxel that it fills. By
    default, it also removes this fraction of the voxel from the lung. A shape drawn *in* the lung
    (``in_lung``: vessels, nodules) belongs to the lung and ends at the border of the lung.

    Args:
        shape: (depth, height, width).
        spacing: voxel spacing of depth, height and width in mm.

    Attributes:
        hu: (depth, height, width), HU of each voxel.
        lung: (depth, height, width), fraction of each voxel that is lung, 0 to 1.
        spacing: (3,), voxel spacing in mm.
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
        """Return the box of voxels between two corners (z, y, x) in mm.

        It has a margin for soft edges.
        """
        slices = []
        for axis, start, stop, step in zip(
            self._axes, np.asarray(low), np.asarray(high), self.spacing, strict=True
        ):
            first, last = np.searchsorted(axis, (start - 2 * step, stop + 2 * step))
            slices.append(slice(int(first), int(last)))
        return (slices[0], slices[1], slices[2])

    def grid(self, box: Box | None = None) -> Grid:
        """Return the coordinates z (d, 1, 1), y (1, h, 1), x (1, 1, w) of voxels in mm.

        Args:
            box: box of voxels; the whole volume by default.
        """
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
        """Draw a shape that is given by the fraction of each voxel that it fills.

        Args:
            fraction: fraction of each voxel of the box, 0 to 1.
            value: HU of the shape, one number or one for each voxel of the box.
            box: box of voxels; the whole volume by default.
            in_lung: whether the shape belongs to the lung and ends at the border of the lung.
        """
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
        """Draw a round tube with round ends.

        Args:
            start: first end (3,), (z, y, x) in mm.
            end: second end (3,), (z, y, x) in mm.
            radius: in mm.
            value: HU of the tube.
            in_lung: whether the tube belongs to the lung and ends at the border of the lung.
        """
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
        # The soft edge is as wide as a voxel across the tube. The outer half of a curved soft edge
        # has more area than the inner half, so the edge is moved inwards to keep the area of pi
        # r^2. Below a radius of 1 / sqrt(3) voxel, the largest fraction is reduced instead.
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
        """Draw a ball; its volume is correct for radii of a voxel or more.

        Args:
            centre: (3,), (z, y, x) in mm.
            radius: in mm.
            value: HU of the ball.
            in_lung: whether the ball belongs to the lung and ends at the border of the lung.
        """
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
        """Draw an ellipsoid.

        Args:
            centre: (3,), (z, y, x) in mm.
            semi_axes: (3,), lengths of the semi-axes in mm.
            value: HU of the ellipsoid.
            turn: (3, 3), whose rows are the directions of the semi-axes; z, y and x by default.
            in_lung: whether the ellipsoid belongs to the lung and ends at the border of the lung.
        """
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
    """Return the fraction of each voxel in the region in which ``field`` is below 0.

    The distance of a voxel to the surface is field / |gradient| in voxels, so any smooth implicit
    function works: it need not be a distance.

    Args:
        field: implicit function on a grid of at least 2 voxels along each axis.

    >>> coverage(np.indices((4, 2, 2))[0] - 1.25)[:, 0, 0].tolist()
    [1.0, 0.75, 0.0, 0.0]
    """
    field = np.asarray(field, dtype=np.float32)
    square = sum(np.square(step) for step in np.gradient(field))
    return np.asarray(
        (0.5 - field / np.sqrt(square + np.float32(1e-12))).clip(0, 1), dtype=np.float32
    )
