"""What the chest phantom shows: the surfaces of its organs as implicit functions, and its branching vessels and bronchi.

Coordinates are (z, y, x) in mm from the centre of the chest, towards superior, posterior and left. Nothing here knows a voxel.
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
    """What differs between patients, and the surfaces that organs share: fields below 0 inside, for any points or grid.

    Attributes:
        size: factor on all but the layers of the chest wall.
        fat: thickness in mm under the skin.
        heart_size: factor on the heart alone.
        domes: height in mm of the diaphragm's top on the right and on the left.
        phase: mm by which the vertebrae are shifted along z; also seeds the texture.
        nodules: how many.
    """

    size: float
    fat: float
    heart_size: float
    domes: tuple[float, float]
    phase: float
    nodules: int

    @classmethod
    def draw(cls, rng: Rng) -> Anatomy:
        """Another patient."""
        return cls(
            size=rng.uniform(0.93, 1.0),
            fat=rng.uniform(6, 13),
            heart_size=rng.uniform(0.9, 1.1),
            domes=(rng.uniform(-36, -22), rng.uniform(-48, -34)),
            phase=rng.uniform(0, 22),
            nodules=int(rng.integers(5, 9)),
        )

    def lung(self, grid: Grid, side: int) -> Array:
        """Distance in mm to the surface of a lung, roughly; below 0 inside."""
        z, y, x = (axis / self.size for axis in grid)
        up = (z + 25).clip(0)
        middle = side * (66 - 0.0016 * up**2)
        shrink = (1 - (up / 103).clip(0, 0.999) ** 2.6) ** (
            1 / 2.2
        )  # to the apex, 78 mm above the centre
        outer = (
            (
                _oval(
                    (x - middle) / (60 * shrink + 1e-3), (y - 4 - 0.06 * up) / (87 * shrink + 1e-3)
                )
                - 1
            )
            * 60
            * shrink
        )
        spine = 13 / (1 + np.exp((34 - y) / 6))
        hilum = 11 * np.exp(-(((y - 6) / 24) ** 2) - ((z - 5) / 55) ** 2)
        below_heart = 14 / ((1 + np.exp((z + 48) / 4)) * (1 + np.exp((y - 20) / 6)))
        inner = 9 + spine + hilum + below_heart - side * x
        return np.asarray(
            np.maximum(self.size * np.maximum(outer, inner), -0.75 * self.dome(grid, side))
        )

    def dome(self, grid: Grid, side: int) -> Array:
        """Height in mm above the diaphragm of one side; below 0 under it."""
        z, y, x = (axis / self.size for axis in grid)
        top = self.domes[side > 0] - 46 * ((x - side * 58) / 62) ** 2 - 40 * ((y + 12) / 80) ** 2
        return np.asarray(self.size * (z - top))

    def cage(self, z: Array) -> tuple[Array, Array]:
        """Half width and half depth in mm of the line along which ribs run, at height z; its middle is 4 mm behind the centre."""
        up = (z / self.size + 25).clip(0)
        shrink = (1 - (up / 135).clip(0, 0.9) ** 2.6) ** (1 / 2.2)
        return self.size * 132 * shrink, self.size * 98 * shrink

    def cavity(self, grid: Grid) -> Array:
        """Below 0 inside the ribs."""
        z, y, x = grid
        a, b = self.cage(z)
        return _oval(x / (a - 7), (y - 4) / (b - 7)) - 1

    def trunk(self, grid: Grid, margin: float) -> Array:
        """Below 0 inside an oval trunk whose surface is ``margin`` mm outside the ribs where these are widest."""
        z, y, x = grid
        taper = 1 - 0.10 / (1 + np.exp((62 - z) / 9))
        a, b = (129 * self.size + margin) * taper, (92 * self.size + margin) * taper
        return _oval(x / a, (y - 4) / b) - 1

    @property
    def heart(self) -> tuple[Points, Points, Points]:
        """Ellipsoid: centre (3,) and semi-axes (3,) in mm, directions (3, 3); the long axis points left, down and forward."""
        centre, semi = np.array([-32.0, -24.0, 24.0]), np.array([56.0, 45.0, 42.0])
        return (
            centre * self.size,
            semi * self.size * self.heart_size,
            orthonormal(((-0.55, -0.45, 0.70), (0.2, 0.7, 0.6))),
        )

    def heart_core(self) -> Segment:
        """A capsule that stands for the heart where distance to it is asked for."""
        centre, semi, turn = self.heart
        reach = (semi[0] - semi[1]) * turn[0]
        return Segment(centre - reach, centre + reach, float(semi[1]) + 4)

    def great_vessels(self) -> Iterator[Segment]:
        """Aorta, pulmonary arteries and veins up to the lung, caval veins, and the oesophagus beside them."""
        for radius, path in _GREAT_VESSELS:
            points = np.array(path, dtype=np.float64) * self.size
            for start, end in itertools.pairwise(points):
                yield Segment(start, end, radius * self.size)


def orthonormal(rows: Sequence[Sequence[float]]) -> npt.NDArray[np.float64]:
    """Three orthonormal axes (3, 3): the first along the first row, the second in the plane of both."""
    first = np.asarray(rows[0]) / np.linalg.norm(rows[0])
    second = np.asarray(rows[1]) - first * (first @ np.asarray(rows[1]))
    second /= np.linalg.norm(second)
    return np.stack([first, second, np.cross(first, second)])


def _oval(x: Array, y: Array) -> Array:
    """1 on an outline between an ellipse and a rectangle."""
    return np.asarray((np.abs(x) ** 2.4 + np.abs(y) ** 2.4) ** (1 / 2.4))


class Segment(NamedTuple):
    """A piece of a branch: a tube from ``start`` to ``end``, (3,) each, with its radius, all in mm."""

    start: Points
    end: Points
    radius: float


def vessels(body: Anatomy, side: int, rng: Rng) -> list[Segment]:
    """Pulmonary arteries and veins of one lung: two interleaved trees from the hilum."""
    hila = np.array([[12, 2, side * 34], [-8, -6, side * 30]]) * body.size
    return [
        s
        for hilum in hila
        for s in _tree(hilum, targets(body, side, 650, 2.0, rng), 0.46, 2.5, rng)
    ]


def bronchi(body: Anatomy, side: int, rng: Rng) -> list[Segment]:
    """Bronchi of one lung, from the end of its main bronchus."""
    hilum = np.array([4.0, 12.0, 30.0 * side]) * body.size
    return list(_tree(hilum, targets(body, side, 60, 14, rng), 0.95, 2.3, rng))


def targets(body: Anatomy, side: int, count: int, depth: float, rng: Rng) -> Points:
    """``count`` points (count, 3) in a lung, at least ``depth`` mm from its surface."""
    low, high = np.array([-90, -90, 5]), np.array([80, 100, 130])
    points = rng.uniform(low, high, (20 * count, 3)) * (1, 1, side)
    z, y, x = points.T
    inside = body.lung((z, y, x), side) < -depth
    inside &= (
        body.lung((z + depth, y, x), side) < 0
    )  # in the apex the field is not quite a distance
    return points[inside][:count]


def clearance(points: Points, segments: list[Segment]) -> npt.NDArray[np.float64]:
    """Distance in mm (n,) of points (n, 3) to the nearest surface of the segments."""
    start, end = (np.stack([segment[i] for segment in segments]) for i in (0, 1))
    radius = np.array([segment.radius for segment in segments])
    along, offset = end - start, points[:, None] - start
    t = ((offset * along).sum(-1) / (along**2).sum(-1).clip(1e-9)).clip(0, 1)
    return np.asarray((np.linalg.norm(offset - t[..., None] * along, axis=-1) - radius).min(axis=1))


def _tree(
    start: Points, targets: Points, leaf_radius: float, exponent: float, rng: Rng
) -> Iterator[Segment]:
    """Branches that fill the space of ``targets`` (n, 3): each splits its targets in two halves and heads for their middle.

    Radii grow with the number of targets served to the power 1 / exponent; 3 is Murray's law.
    """
    count = len(targets)
    radius = leaf_radius * count ** (1 / exponent)
    if count == 1:
        yield from _bent(start, targets[0], radius, rng)
        return
    middle = targets.mean(axis=0)
    fork = start + rng.uniform(0.35, 0.55) * (middle - start)
    yield from _bent(start, fork, radius, rng)
    spread = targets - middle
    direction = np.linalg.svd(spread, full_matrices=False)[2][0] + 0.15 * rng.standard_normal(3)
    order = np.argsort(spread @ direction)
    cut = int(np.clip(round(count * rng.uniform(0.3, 0.7)), 1, count - 1))
    yield from _tree(fork, targets[order[:cut]], leaf_radius, exponent, rng)
    yield from _tree(fork, targets[order[cut:]], leaf_radius, exponent, rng)


def _bent(start: Points, end: Points, radius: float, rng: Rng) -> Iterator[Segment]:
    """A branch in pieces of about 9 mm that waver a little."""
    length = float(np.linalg.norm(end - start))
    knots = max(1, int(length / 9))
    path = np.linspace(start, end, knots + 1)
    path[1:-1] += rng.normal(0, 0.05 * length, (knots - 1, 3))
    for a, b in itertools.pairwise(path):
        yield Segment(a, b, radius)


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
