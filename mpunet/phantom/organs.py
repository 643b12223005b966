"""Drawing of the chest phantom: the organs of one patient as voxels.

Shapes that are drawn later replace earlier ones, so the order of drawing matters. Coordinates are
(z, y, x) in mm from the centre of the chest, towards superior, posterior and left.
"""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import numpy as np

from mpunet.phantom.anatomy import (
    SIDES,
    Anatomy,
    Points,
    Segment,
    bronchi,
    clearance,
    orthonormal,
    targets,
    vessels,
)
from mpunet.phantom.voxelizer import Field, Voxelizer, coverage

__all__ = ["Ball", "paint_chest"]

Rng = np.random.Generator

# HU of tissues.
AIR = -1000.0
LUNG = -850.0
FAT = -100.0
MUSCLE = 50.0
BLOOD = 42.0
LIVER = 62.0
CORTEX = 650.0
MARROW = 220.0
NODULE = 30.0
GROUND_GLASS = -580.0


class Ball(NamedTuple):
    """A nodule in the lung.

    Attributes:
        centre: (3,), (z, y, x) in mm.
        diameter: in mm.
        solid: True for a solid nodule, False for a ground-glass nodule.
    """

    centre: Points
    diameter: float
    solid: bool


def paint_chest(voxels: Voxelizer, body: Anatomy, rng: Rng) -> list[Ball]:
    """Draw the chest of a patient without noise, and the table of the scanner.

    Args:
        voxels: volume of air to draw in.
        body: the patient.
        rng: random number generator for what ``body`` does not determine: fissures, vessels,
            bronchi, ribs and nodules.

    Returns:
        All nodules of the patient, also those outside the volume.
    """
    _paint_body(voxels, body)
    _paint_lungs(voxels, body, rng)
    blood = [segment for side in SIDES for segment in vessels(body, side, rng)]
    air = [segment for side in SIDES for segment in bronchi(body, side, rng)]
    for segment in blood:
        voxels.tube(*segment, BLOOD, in_lung=True)
    _paint_mediastinum(voxels, body)
    _paint_airways(voxels, body, air)
    nodules = _paint_nodules(voxels, body, blood + air, rng)
    _paint_skeleton(voxels, body, rng)
    _paint_table(voxels, body)
    return nodules


def _paint_body(voxels: Voxelizer, body: Anatomy) -> None:
    """Draw skin, fat and muscle, the fat inside the rib cage, liver, spleen and stomach."""
    grid = voxels.grid()
    texture = _texture(voxels, body.phase)
    fat, muscle = FAT + 6 * texture, MUSCLE + 6 * texture
    for margin, hu in (
        (17 + body.fat, 20.0),
        (15 + body.fat, fat),
        (13.0, muscle),
        (7.0, fat),
        (5.5, muscle),
    ):
        voxels.paint(coverage(body.trunk(grid, margin)), hu)
    z, y, x = grid
    voxels.paint(
        coverage(np.sqrt((x / 42) ** 2 + ((y + 18) / 66) ** 2 + ((z + 35) / 95) ** 2) - 1), fat
    )
    # Below the diaphragm: liver on the right; spleen (posterior) and stomach (anterior) on the
    # left; fat between them.
    cavity = 100 * body.cavity(grid)
    below_right, below_left = 0.7 * body.dome(grid, -1), 0.7 * body.dome(grid, 1)
    voxels.paint(coverage(np.maximum(cavity, np.minimum(below_right, below_left) + 2)), fat)
    for edges, hu in (
        ((below_right + 2, x - 28 + 0.5 * (y + 20)), LIVER),
        ((below_left + 2, 38 - x, 12 - y), LIVER - 10),
        ((below_left + 4, 30 - x + 0.4 * y, y - 6), 18.0),
    ):
        organ = functools.reduce(np.maximum, edges, cavity + 4)
        voxels.paint(coverage(organ), hu + 5 * texture)


def _paint_lungs(voxels: Voxelizer, body: Anatomy, rng: Rng) -> None:
    """Draw the lung tissue, which is denser in posterior parts, and the fissures.

    A fissure is a slightly curved plane, thinner than a slice.
    """
    grid = voxels.grid()
    z, y, x = grid
    tissue = LUNG + 0.32 * y + 10 * _texture(voxels, body.phase + 1)
    for side in SIDES:
        lung = coverage(body.lung(grid, side))
        voxels.hu += lung * (tissue - voxels.hu)
        voxels.lung += lung
        height, slope = rng.uniform(-12, 2), rng.uniform(0.75, 0.95)
        oblique = (
            z - height - slope * y - 0.002 * (side * x - 60) ** 2 - 5 * np.sin(y / 25)
        ) / np.hypot(1, slope)
        voxels.paint(_sheet(oblique, 0.8) * lung, -680, in_lung=True)
        if side < 0:
            level = z - rng.uniform(-2, 8) + 0.0015 * (x + 70) ** 2 - 0.05 * y
            voxels.paint(_sheet(level, 0.8) * lung * (oblique > 0), -680, in_lung=True)


def _paint_nodules(
    voxels: Voxelizer, body: Anatomy, branches: list[Segment], rng: Rng
) -> list[Ball]:
    """Draw and return the nodules.

    For each nodule, 100 random points in a lung are drawn. The point farthest from vessels, bronchi
    and other nodules becomes its centre.
    """
    taken = [*branches, *body.great_vessels(), body.heart_core()]
    nodules = []
    for index in range(body.nodules):
        diameter, solid = float(rng.uniform(4, 12)), index % 3 != 2
        places = targets(body, SIDES[index % 2], 100, diameter / 2 + 4, rng)
        place = places[clearance(places, taken).argmax()]
        taken.append(Segment(place, place, diameter / 2))
        nodules.append(Ball(place, diameter, solid))
        voxels.ball(place, diameter / 2, NODULE if solid else GROUND_GLASS, in_lung=True)
    return nodules


def _paint_mediastinum(voxels: Voxelizer, body: Anatomy) -> None:
    """Draw the heart with its fat and two chambers, the great vessels and the oesophagus."""
    centre, semi, turn = body.heart
    voxels.ellipsoid(centre + np.array([-3, -1, 3]), semi + 4, FAT, turn=turn)
    voxels.ellipsoid(centre, semi, MUSCLE, turn=turn)
    for shift, scale in (((4, -8, -14), 0.45), ((-4, 6, 12), 0.42)):
        voxels.ellipsoid(centre + np.array(shift), semi * scale, BLOOD - 6, turn=turn)
    for segment in body.great_vessels():
        voxels.tube(*segment, BLOOD)


def _paint_airways(voxels: Voxelizer, body: Anatomy, tree: list[Segment]) -> None:
    """Draw the trachea, the main bronchi and the bronchial trees of the lungs.

    All walls are drawn first, so that no wall closes a lumen.
    """
    carina = np.array([20.0, 16.0, 0.0]) * body.size
    trachea = [np.array([95.0, 6.0, 2.0]), np.array([60.0, 12.0, 1.0]) * body.size, carina]
    wide = [Segment(a, b, 8.5) for a, b in itertools.pairwise(trachea)]
    wide += [Segment(carina, np.array([4.0, 12.0, 30.0 * side]) * body.size, 6.5) for side in SIDES]
    for start, end, radius in tree:
        voxels.tube(start, end, 1.12 * radius + 0.35, -60, in_lung=True)
    for start, end, radius in wide:
        voxels.tube(start, end, radius + 1.5, 30)
    for segment in tree:
        voxels.tube(*segment, AIR + 30, in_lung=True)
    for segment in wide:
        voxels.tube(*segment, AIR + 5)


def _paint_skeleton(voxels: Voxelizer, body: Anatomy, rng: Rng) -> None:
    """Draw spine, ribs, scapulae, clavicles and sternum: cortical bone first, then marrow.

    The ribs descend from the spine to the front.
    """
    _paint_spine(voxels, body)
    shells = []
    for side in SIDES:
        for head in np.arange(-110, 130, 23.5) + rng.uniform(-3, 3):
            # The angle goes from the spine around the side to the cartilage in front.
            angle = np.linspace(0.16, 2.35, 22)
            z = head + 8 * np.sin(angle) - 52 * (angle / 2.35) ** 1.3
            a, b = body.cage(z)
            path = np.stack(
                [z, 4 + b * np.cos(angle), side * a * np.abs(np.sin(angle)) ** 0.85], axis=1
            )
            shells += [Segment(p, q, 5.0) for p, q in itertools.pairwise(path)]
            cartilage = np.stack([path[-1], [z[-1] + 6, path[-1][1] - 6, side * 18]])
            _pipe(voxels, cartilage, 4.5, 110)
        plate = orthonormal(((0.0, 0.75, side * 0.66), (1.0, 0.0, side * 0.15)))
        voxels.ellipsoid((48, 86 * body.size, side * 88 * body.size), (4, 44, 30), 330, turn=plate)
        _pipe(
            voxels,
            np.array([(72, -62, side * 16), (80, -58, side * 60), (92, -30, side * 110)]),
            5.5,
            420,
        )
    for wall, value in ((0.0, CORTEX), (1.6, MARROW)):
        for start, end, radius in shells:
            voxels.tube(start, end, radius - wall, value)
    for wall, value in ((0.0, 420.0), (1.8, 170.0)):
        voxels.ellipsoid((14, -84 * body.size, 0), (68 - wall, 6 - wall, 15 - wall), value)


def _paint_spine(voxels: Voxelizer, body: Anatomy) -> None:
    """Draw the spine: alternating vertebrae and discs.

    It is a column whose width, wall and filling change along z with a period of 23 mm.
    """
    box = voxels.box((-500, 30, -45), (500, 140, 45))
    z, y, x = voxels.grid(box)
    if min(y.size, x.size) < 2:
        return
    # 0 in the middle of a vertebra, 0.5 in the middle of a disc.
    level = np.abs(((z + body.phase) / 23) % 1 - 0.5)
    disc = ((level - 0.38) * 23 / voxels.spacing[0] + 0.5).clip(0, 1)
    width = 1 + 0.10 * (level / 0.38).clip(0, 1) ** 2
    y = y - 64 - 0.0008 * z**2
    column = np.sqrt((x / 17) ** 2 + (y / 14.5) ** 2) - width
    bone = np.where(column > -0.11, 480, 190) + 180 * (level > 0.30)
    voxels.paint(coverage(column), bone * (1 - disc) + 85 * disc, box=box)
    arch = np.sqrt((x / 13) ** 2 + ((y - 22) / 12) ** 2) - 1
    solid = (1.35 - 3.2 * level).clip(0, 1)
    voxels.paint(coverage(arch) * solid, 420, box=box)
    process = np.maximum(np.abs(x) - 3.2, np.maximum(30 - y, y - 52 + 20 * level))
    sweep = ((z + body.phase + 0.6 * (y - 30)) / 23) % 1
    voxels.paint(
        coverage(process + 0 * z) * ((0.30 - np.abs(sweep - 0.5)) * 12).clip(0, 1), 380, box=box
    )
    across = np.maximum(np.abs(y - 22) - 4, np.abs(x) - 34)
    voxels.paint(coverage(across + 0 * z) * ((0.17 - level) * 14).clip(0, 1), 340, box=box)
    canal = np.sqrt(x**2 + (y - 22) ** 2) - 8 + 0 * z
    voxels.paint(coverage(canal), 15, box=box)


def _paint_table(voxels: Voxelizer, body: Anatomy) -> None:
    """Draw the table under the back: a curved shell filled with foam. The back sinks into it."""
    z, y, x = voxels.grid()
    top = 4 + 92 * body.size + 20 + body.fat - 0.0011 * x**2
    outside = (voxels.hu < -500) & (voxels.lung < 0.01) & (y > 60)
    shell = _sheet(y - top + 0 * z, 2.5)
    foam = coverage(np.maximum(top - y, y - top - 30) + 0 * z)
    voxels.paint(foam * outside, -930)
    voxels.paint(shell * outside, -350)


def _pipe(voxels: Voxelizer, path: Points, radius: float, value: float) -> None:
    """Draw tubes along a path of points (n, 3)."""
    for start, end in itertools.pairwise(path):
        voxels.tube(start, end, radius, value)


def _sheet(field: Field, thickness: float) -> Field:
    """Return the fraction of each voxel in a sheet ``thickness`` mm thick.

    The sheet is the surface on which ``field``, a distance in mm, is 0.
    """
    return coverage(field - np.float32(thickness / 2)) - coverage(field + np.float32(thickness / 2))


def _texture(voxels: Voxelizer, phase: float) -> Field:
    """Return the texture of tissue: waves of a few centimetres in all directions, unit variance.

    ``phase`` is the seed. The texture in mm does not depend on the spacing.
    """
    rng = np.random.default_rng(int(phase * 1e6))
    z, y, x = voxels.grid()
    out = np.zeros(voxels.hu.shape, dtype=np.float32)
    for wave in (rng.standard_normal((6, 3)) / 6).astype(np.float32):
        start = np.float32(rng.uniform(0, 2 * np.pi))
        out += (np.exp(1j * (wave[0] * z + start)) * np.exp(1j * (wave[1] * y + wave[2] * x))).real
    return out / np.float32(np.sqrt(3))
