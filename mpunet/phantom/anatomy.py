"""Shapes of the chest phantom: organ surfaces as implicit functions, trees of vessels and bronchi.

Coordinates are (z, y, x) in mm from the centre of the chest, towards superior, posterior and left.
The shapes do not depend on a voxel grid.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mpunet.phantom.voxelizer import Grid

__all__ = [
    "SIDES",
    "Anatomy",
    "Points",
    "Segment",
    "bronchi",
    "clearance",
    "orthonormal",
    "targets",
    "vessels",
]

Points = npt.NDArray[np.float64]
Array = npt.NDArray[np.floating]
Rng = np.random.Generator

SIDES = (-1, 1)  # right, left: the sign of x


@dataclass(frozen=True)
class Anatomy:
    """The features of one patient, and the surfaces of organs that follow from them.

    Each surface is a field that is defined for any points or grid: below 0 inside, above 0 outside.

    Attributes:
        size: scale factor of everything except the layers of the chest wall.
        fat: thickness of the fat under the skin in mm.
        heart_size: additional scale factor of the heart.
        domes: heights of the top of the diaphragm on the right and on the left in mm.
        phase: shift of the vertebrae along z in mm; also the seed of the texture.
        nodules: number of nodules.
    """

    size: float
    fat: float
    heart_size: float
    domes: tuple[float, float]
    phase: float
    nodules: int

    @classmethod
    def draw(cls, rng: Rng) -> Anatomy:
        """Draw a random patient."""
        return cls(
            size=rng.uniform(0.93, 1.0),
            fat=rng.uniform(6, 13),
            heart_size=rng.uniform(0.9, 1.1),
            domes=(rng.uniform(-36, -22), rng.uniform(-48, -34)),
            phase=rng.uniform(0, 22),
            nodules=int(rng.integers(5, 9)),
        )

    def lung(self, grid: Grid, side: int) -> Array:
        """Return the approximate distance in mm to the surface of a lung; below 0 inside.

        Args:
            grid: coordinates z, y and x in mm.
            side: -1 for the right lung, 1 for the left lung.
        """
        z, y, x = (axis / self.size for axis in grid)
        up = (z + 25).clip(0)
        middle = side * (66 - 0.0016 * up**2)
        # The lung becomes smaller towards the apex, 78 mm above the centre.
        shrink = (1 - (up / 103).clip(0, 0.999) ** 2.6) ** (1 / 2.2)
        a, b = 60 * shrink + 1e-3, 87 * shrink + 1e-3
        outer = (_superellipse((x - middle) / a, (y - 4 - 0.06 * up) / b) - 1) * 60 * shrink
        spine = 13 / (1 + np.exp((34 - y) / 6))
        hilum = 11 * np.exp(-(((y - 6) / 24) ** 2) - ((z - 5) / 55) ** 2)
        below_heart = 14 / ((1 + np.exp((z + 48) / 4)) * (1 + np.exp((y - 20) / 6)))
        inner = 9 + spine + hilum + below_heart - side * x
        return np.asarray(
            np.maximum(self.size * np.maximum(outer, inner), -0.75 * self.dome(grid, side))
        )

    def dome(self, grid: Grid, side: int) -> Array:
        """Return the height in mm above the diaphragm on one side; below 0 under the diaphragm."""
        z, y, x = (axis / self.size for axis in grid)
        top = self.domes[side > 0] - 46 * ((x - side * 58) / 62) ** 2 - 40 * ((y + 12) / 80) ** 2
        return np.asarray(self.size * (z - top))

    def cage(self, z: Array) -> tuple[Array, Array]:
        """Return half the width and half the depth in mm of the oval of the ribs at height z.

        The middle of the oval is 4 mm behind the centre of the chest.
        """
        up = (z / self.size + 25).clip(0)
        shrink = (1 - (up / 135).clip(0, 0.9) ** 2.6) ** (1 / 2.2)
        return self.size * 132 * shrink, self.size * 98 * shrink

    def cavity(self, grid: Grid) -> Array:
        """Return the field of the space inside the ribs."""
        z, y, x = grid
        a, b = self.cage(z)
        return _superellipse(x / (a - 7), (y - 4) / (b - 7)) - 1

    def trunk(self, grid: Grid, margin: float) -> Array:
        """Return the field of an oval trunk, ``margin`` mm outside the ribs at the widest level."""
        z, y, x = grid
        taper = 1 - 0.10 / (1 + np.exp((62 - z) / 9))
        a, b = (129 * self.size + margin) * taper, (92 * self.size + margin) * taper
        return _superellipse(x / a, (y - 4) / b) - 1

    @property
    def heart(self) -> tuple[Points, Points, Points]:
        """Ellipsoid of the heart: centre (3,) and semi-axes (3,) in mm, directions (3, 3).

        The long axis points left, down and forward.
        """
        centre, semi = np.array([-32.0, -24.0, 24.0]), np.array([56.0, 45.0, 42.0])
        return (
            centre * self.size,
            semi * self.size * self.heart_size,
            orthonormal(((-0.55, -0.45, 0.70), (0.2, 0.7, 0.6))),
        )

    def heart_core(self) -> Segment:
        """Return a capsule that approximates the heart, for distances to it."""
        centre, semi, turn = self.heart
        reach = (semi[0] - semi[1]) * turn[0]
        return Segment(centre - reach, centre + reach, float(semi[1]) + 4)

    def great_vessels(self) -> Iterator[Segment]:
        """Yield aorta, venae cavae, pulmonary arteries and veins up to the lung, and oesophagus."""
        for radius, path in _GREAT_VESSELS:
            points = np.array(path, dtype=np.float64) * self.size
            for start, end in itertools.pairwise(points):
                yield Segment(start, end, radius * self.size)


def orthonormal(rows: Sequence[Sequence[float]]) -> npt.NDArray[np.float64]:
    """Return three orthonormal axes (3, 3).

    The first is along the first row, the second in the plane of both rows.
    """
    first = np.asarray(rows[0]) / np.linalg.norm(rows[0])
    second = np.asarray(rows[1]) - first * (first @ np.asarray(rows[1]))
    second /= np.linalg.norm(second)
    return np.stack([first, second, np.cross(first, second)])


def _superellipse(x: Array, y: Array) -> Array:
    """Return a field that is 1 on an outline between an ellipse and a rectangle."""
    return np.asarray((np.abs(x) ** 2.4 + np.abs(y) ** 2.4) ** (1 / 2.4))


class Segment(NamedTuple):
    """A piece of a branch: a tube with round ends.

    Attributes:
        start: first end (3,), (z, y, x) in mm.
        end: second end (3,), (z, y, x) in mm.
        radius: in mm.
    """

    start: Points
    end: Points
    radius: float


def vessels(body: Anatomy, side: int, rng: Rng) -> list[Segment]:
    """Create the pulmonary arteries and veins of one lung: two interleaved trees from the hilum."""
    hila = np.array([[12, 2, side * 34], [-8, -6, side * 30]]) * body.size
    return [
        s
        for hilum in hila
        for s in _tree(hilum, targets(body, side, 650, 2.0, rng), 0.46, 2.5, rng)
    ]


def bronchi(body: Anatomy, side: int, rng: Rng) -> list[Segment]:
    """Create the bronchi of one lung, from the end of its main bronchus."""
    hilum = np.array([4.0, 12.0, 30.0 * side]) * body.size
    return list(_tree(hilum, targets(body, side, 60, 14, rng), 0.95, 2.3, rng))


def targets(body: Anatomy, side: int, count: int, depth: float, rng: Rng) -> Points:
    """Draw ``count`` random points (count, 3) in a lung, at least ``depth`` mm from its surface."""
    low, high = np.array([-90, -90, 5]), np.array([80, 100, 130])
    points = rng.uniform(low, high, (20 * count, 3)) * (1, 1, side)
    z, y, x = points.T
    inside = body.lung((z, y, x), side) < -depth
    # Near the apex, the field is not exactly a distance.
    inside &= body.lung((z + depth, y, x), side) < 0
    return points[inside][:count]


def clearance(points: Points, segments: list[Segment]) -> npt.NDArray[np.float64]:
    """Return the distance in mm (n,) of points (n, 3) to the nearest surface of the segments."""
    start, end = (np.stack([segment[i] for segment in segments]) for i in (0, 1))
    radius = np.array([segment.radius for segment in segments])
    along, offset = end - start, points[:, None] - start
    t = ((offset * along).sum(-1) / (along**2).sum(-1).clip(1e-9)).clip(0, 1)
    return np.asarray((np.linalg.norm(offset - t[..., None] * along, axis=-1) - radius).min(axis=1))


def _tree(
    start: Points, targets: Points, leaf_radius: float, exponent: float, rng: Rng
) -> Iterator[Segment]:
    """Yield the segments of a tree that fills the space of ``targets`` (n, 3).

    Each branch grows towards the mean of its targets, then splits them between two branches. Its
    radius is proportional to its number of targets to the power of 1 / ``exponent``; an exponent
    of 3 is Murray's law.
    """
    count = len(targets)
    radius = leaf_radius * count ** (1 / exponent)
    if count == 1:
        yield from _branch(start, targets[0], radius, rng)
        return
    middle = targets.mean(axis=0)
    fork = start + rng.uniform(0.35, 0.55) * (middle - start)
    yield from _branch(start, fork, radius, rng)
    spread = targets - middle
    direction = np.linalg.svd(spread, full_matrices=False)[2][0] + 0.15 * rng.standard_normal(3)
    order = np.argsort(spread @ direction)
    cut = int(np.clip(round(count * rng.uniform(0.3, 0.7)), 1, count - 1))
    yield from _tree(fork, targets[order[:cut]], leaf_radius, exponent, rng)
    yield from _tree(fork, targets[order[cut:]], leaf_radius, exponent, rng)


def _branch(start: Points, end: Points, radius: float, rng: Rng) -> Iterator[Segment]:
    """Yield a slightly irregular branch in segments of about 9 mm."""
    length = float(np.linalg.norm(end - start))
    knots = max(1, int(length / 9))
    path = np.linspace(start, end, knots + 1)
    path[1:-1] += rng.normal(0, 0.05 * length, (knots - 1, 3))
    for a, b in itertools.pairwise(path):
        yield Segment(a, b, radius)


# (radius, points (z, y, x)) in mm.
_GREAT_VESSELS = (
    # ascending aorta, arch, descending aorta
    (
        12.0,
        (
            (-12, -20, 4),
            (10, -28, -4),
            (30, -24, -5),
            (42, -8, 4),
            (45, 10, 14),
            (38, 28, 21),
            (22, 36, 22),
            (-88, 42, 12),
        ),
    ),
    # branches of the arch
    (4.5, ((42, -10, 2), (70, -14, -8), (88, -10, -14))),
    (3.8, ((44, 4, 10), (70, 0, 16), (88, -4, 20))),
    (4.2, ((42, 14, 16), (70, 14, 26), (88, 6, 34))),
    # superior and inferior vena cava
    (7.5, ((-20, -14, -22), (10, -16, -24), (45, -18, -22), (60, -22, -12), (70, -24, 18))),
    (11.0, ((-88, 14, -16), (-40, 4, -18), (-24, -8, -16))),
    # pulmonary trunk, right and left artery
    (12.0, ((-10, -34, 18), (14, -24, 20), (17, -8, 22))),
    (8.5, ((15, -10, 18), (10, -2, -12), (10, 2, -36))),
    (8.5, ((17, -8, 22), (16, 4, 38))),
    # pulmonary veins, left atrium
    (8.0, ((-8, -4, -34), (-10, 4, 0), (-8, -4, 34))),
    (17.0, ((-16, 10, 4), (-12, 8, 10))),
    # oesophagus
    (6.0, ((88, 28, 4), (40, 32, 4), (-20, 30, 4), (-70, 22, 10), (-88, 16, 18))),
)
