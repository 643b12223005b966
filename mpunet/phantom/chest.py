"""A seeded chest phantom: the demo and the tests need no download, and its truth is known.

An invented object with the structures that thick slices lose: vessels, bronchi, fissures and ribs that run through the slices,
the domes of the diaphragm, small nodules. Sizes and HU are those of an adult's CT without contrast, but it is nobody's anatomy:
results on it show that the software works and are not clinical.

The anatomy is fixed in mm around the centre of the volume and does not depend on the grid: a seed at another spacing is the same
chest, and a smaller field of view cuts it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

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

if TYPE_CHECKING:
    import nibabel as nib

__all__ = ["ChestPhantom", "Nodule", "chest_phantom", "phantom_image"]

Rng = np.random.Generator

AIR, LUNG, FAT, MUSCLE, BLOOD, LIVER, CORTEX, MARROW = (
    -1000.0,
    -850.0,
    -100.0,
    50.0,
    42.0,
    62.0,
    650.0,
    220.0,
)
NODULE, GROUND_GLASS = 30.0, -580.0


class Nodule(NamedTuple):
    """A ball in the lung, solid or ground glass: centre (3,) in world mm (RAS+) of the phantom's affine, diameter in mm."""

    centre: tuple[float, float, float]
    diameter: float
    solid: bool


class ChestPhantom(NamedTuple):
    """A thin-slice slab and its truth.

    Attributes:
        thin: (D, H, W), int16, in HU, axes (depth, height, width) towards superior, posterior and left.
        lung: (D, H, W); the lungs with their vessels and nodules, without trachea and main bronchi.
        affine: (4, 4), slab voxels to world mm (RAS+); the centre of the volume is at (0, 0, 0).
        nodules: those whose centre is in the field of view.
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
    """The chest that belongs to a seed, on the grid asked for.

    Args:
        seed: equal seeds give equal voxels, different ones another patient.
        shape: (D, H, W), at least 2 each. For ratio r take D = (d - 1) * r + 1; 176 = 35 * 5 + 1.
        spacing: in mm, of depth, height and width. The chest needs a field of about 176 x 256 x 333 mm.
        noise: standard deviation in HU, correlated over about a millimetre.

    >>> chest = chest_phantom(0, shape=(36, 64, 84), spacing=(5, 4, 4))
    >>> chest.thin.shape, bool(chest.lung.any())
    ((36, 64, 84), True)
    """
    if len(shape) != 3 or min(shape) < 2:
        raise ValueError(
            f"Expected a shape (depth, height, width) of at least 2 voxels each, got {tuple(shape)}."
        )
    if len(spacing) != 3 or not min(spacing) > 0:
        raise ValueError(
            f"Expected three positive spacings in mm (depth, height, width), got {tuple(spacing)}."
        )
    if not noise >= 0:
        raise ValueError(f"Expected noise as a standard deviation of 0 HU or more, got {noise}.")
    # Two streams: the anatomy must not change with the number of voxels that noise is drawn for.
    rng, noise_rng = (np.random.default_rng([seed, stream]) for stream in (0, 1))
    body = Anatomy.draw(rng)
    voxels = Voxelizer(shape, spacing)
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
    if noise > 0:
        voxels.hu += noise * _noise(noise_rng, voxels)
    affine = _affine(shape, spacing)
    thin = np.rint(voxels.hu.clip(-1024, 3071)).astype(np.int16)
    return ChestPhantom(thin, voxels.lung > 0.5, affine, nodules)


def phantom_image(
    seed: int,
    *,
    shape: Sequence[int] = (176, 160, 208),
    spacing: Sequence[float] = (1.0, 1.6, 1.6),
    noise: float = 15.0,
) -> nib.Nifti1Image:
    """The phantom as converters from DICOM store an axial series: int16, voxel axes x, y, z towards left, posterior and superior.

    >>> phantom_image(0, shape=(16, 20, 24), spacing=(10, 12, 12)).shape
    (24, 20, 16)
    """
    import nibabel as nib  # slow to import, and the phantom itself does without

    chest = chest_phantom(seed, shape=shape, spacing=spacing, noise=noise)
    image = nib.Nifti1Image(chest.thin.transpose(2, 1, 0), chest.affine[:, [2, 1, 0, 3]])
    image.header.set_xyzt_units("mm")
    return image


def _affine(shape: Sequence[int], spacing: Sequence[float]) -> npt.NDArray[np.float64]:
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = np.asarray(spacing, dtype=np.float64) * (1, -1, -1)
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    affine[3, 3] = 1
    return affine


def _paint_body(voxels: Voxelizer, body: Anatomy) -> None:
    """Skin, fat, muscle, and inside the rib cage the fat in which the organs lie."""
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
    # Below the domes: liver on the right, spleen behind and stomach in front on the left, fat between.
    cavity, below_right, below_left = (
        100 * body.cavity(grid),
        0.7 * body.dome(grid, -1),
        0.7 * body.dome(grid, 1),
    )
    voxels.paint(coverage(np.maximum(cavity, np.minimum(below_right, below_left) + 2)), fat)
    for edges, hu in (
        ((below_right + 2, x - 28 + 0.5 * (y + 20)), LIVER),
        ((below_left + 2, 38 - x, 12 - y), LIVER - 10),
        ((below_left + 4, 30 - x + 0.4 * y, y - 6), 18.0),
    ):
        organ = functools.reduce(np.maximum, edges, cavity + 4)
        voxels.paint(coverage(organ), hu + 5 * texture)


def _paint_lungs(voxels: Voxelizer, body: Anatomy, rng: Rng) -> None:
    """Parenchyma, denser where it hangs (posterior), and the fissures: planes thinner than a slice, slightly curved."""
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
) -> list[Nodule]:
    """Balls in the lung, each at that of some places drawn which is farthest from vessels, bronchi and other nodules."""
    taken = [*branches, *body.great_vessels(), body.heart_core()]
    nodules = []
    for index in range(body.nodules):
        diameter, solid = float(rng.uniform(4, 12)), index % 3 != 2
        places = targets(body, SIDES[index % 2], 100, diameter / 2 + 4, rng)
        place = places[clearance(places, taken).argmax()]
        taken.append(Segment(place, place, diameter / 2))
        nodules.append(
            Nodule((-float(place[2]), -float(place[1]), float(place[0])), diameter, solid)
        )
        voxels.ball(place, diameter / 2, NODULE if solid else GROUND_GLASS, in_lung=True)
    reach = (np.asarray(voxels.hu.shape) - 1)[::-1] / 2 * voxels.spacing[::-1]
    return [nodule for nodule in nodules if (np.abs(nodule.centre) <= reach).all()]


def _paint_mediastinum(voxels: Voxelizer, body: Anatomy) -> None:
    """Heart with its fat and two chambers, great vessels, oesophagus."""
    centre, semi, turn = body.heart
    voxels.ellipsoid(centre + np.array([-3, -1, 3]), semi + 4, FAT, turn=turn)
    voxels.ellipsoid(centre, semi, MUSCLE, turn=turn)
    for shift, scale in (((4, -8, -14), 0.45), ((-4, 6, 12), 0.42)):
        voxels.ellipsoid(centre + np.array(shift), semi * scale, BLOOD - 6, turn=turn)
    for segment in body.great_vessels():
        voxels.tube(*segment, BLOOD)


def _paint_airways(voxels: Voxelizer, body: Anatomy, tree: list[Segment]) -> None:
    """Trachea, main bronchi and the trees of bronchi in the lungs: all walls first, so that no wall closes a lumen."""
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
    """Spine, ribs that fall from the spine to the front, scapulae, clavicles, sternum; walls first, then marrow."""
    _paint_spine(voxels, body)
    shells = []
    for side in SIDES:
        for head in np.arange(-110, 130, 23.5) + rng.uniform(-3, 3):
            turn = np.linspace(
                0.16, 2.35, 22
            )  # from the spine round the side to the cartilage in front
            z = head + 8 * np.sin(turn) - 52 * (turn / 2.35) ** 1.3
            a, b = body.cage(z)
            path = np.stack(
                [z, 4 + b * np.cos(turn), side * a * np.abs(np.sin(turn)) ** 0.85], axis=1
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
    """Vertebrae and discs in turn: a column whose waist, wall and filling change along z with a period of 23 mm."""
    box = voxels.box((-500, 30, -45), (500, 140, 45))
    z, y, x = voxels.grid(box)
    if min(y.size, x.size) < 2:
        return
    beat = np.abs(
        ((z + body.phase) / 23) % 1 - 0.5
    )  # 0 in the middle of a vertebra, 0.5 in that of a disc
    disc = ((beat - 0.38) * 23 / voxels.spacing[0] + 0.5).clip(0, 1)
    waist = 1 + 0.10 * (beat / 0.38).clip(0, 1) ** 2
    y = y - 64 - 0.0008 * z**2
    column = np.sqrt((x / 17) ** 2 + (y / 14.5) ** 2) - waist
    bone = np.where(column > -0.11, 480, 190) + 180 * (beat > 0.30)
    voxels.paint(coverage(column), bone * (1 - disc) + 85 * disc, box=box)
    arch = np.sqrt((x / 13) ** 2 + ((y - 22) / 12) ** 2) - 1
    solid = (1.35 - 3.2 * beat).clip(0, 1)
    voxels.paint(coverage(arch) * solid, 420, box=box)
    process = np.maximum(np.abs(x) - 3.2, np.maximum(30 - y, y - 52 + 20 * beat))
    sweep = ((z + body.phase + 0.6 * (y - 30)) / 23) % 1
    voxels.paint(
        coverage(process + 0 * z) * ((0.30 - np.abs(sweep - 0.5)) * 12).clip(0, 1), 380, box=box
    )
    across = np.maximum(np.abs(y - 22) - 4, np.abs(x) - 34)
    voxels.paint(coverage(across + 0 * z) * ((0.17 - beat) * 14).clip(0, 1), 340, box=box)
    canal = np.sqrt(x**2 + (y - 22) ** 2) - 8 + 0 * z
    voxels.paint(coverage(canal), 15, box=box)


def _paint_table(voxels: Voxelizer, body: Anatomy) -> None:
    """A curved shell filled with foam under the back, which sinks in."""
    z, y, x = voxels.grid()
    top = 4 + 92 * body.size + 20 + body.fat - 0.0011 * x**2
    outside = (voxels.hu < -500) & (voxels.lung < 0.01) & (y > 60)
    shell = _sheet(y - top + 0 * z, 2.5)
    foam = coverage(np.maximum(top - y, y - top - 30) + 0 * z)
    voxels.paint(foam * outside, -930)
    voxels.paint(shell * outside, -350)


def _pipe(voxels: Voxelizer, path: Points, radius: float, value: float) -> None:
    for start, end in itertools.pairwise(path):
        voxels.tube(start, end, radius, value)


def _sheet(field: Field, thickness: float) -> Field:
    """Fraction of each voxel in a sheet ``thickness`` mm thick where ``field``, a distance in mm, is 0."""
    return coverage(field - np.float32(thickness / 2)) - coverage(field + np.float32(thickness / 2))


def _texture(voxels: Voxelizer, phase: float) -> Field:
    """Waves of a few centimetres in all directions with unit variance: tissue is nowhere flat. The same at every spacing."""
    rng = np.random.default_rng(int(phase * 1e6))
    z, y, x = voxels.grid()
    out = np.zeros(voxels.hu.shape, dtype=np.float32)
    for wave in (rng.standard_normal((6, 3)) / 6).astype(np.float32):
        start = np.float32(rng.uniform(0, 2 * np.pi))
        out += (np.exp(1j * (wave[0] * z + start)) * np.exp(1j * (wave[1] * y + wave[2] * x))).real
    return out / np.float32(np.sqrt(3))


def _noise(rng: Rng, voxels: Voxelizer) -> Field:
    """Correlated noise with unit variance: over 0.8 mm (standard deviation) in-plane, 0.4 mm along depth; less in air."""
    white = rng.standard_normal(voxels.hu.shape, dtype=np.float32)
    smooth = ndimage.gaussian_filter(white, np.array([0.4, 0.8, 0.8]) / voxels.spacing)
    scale = 1 / smooth.std()
    return np.asarray(smooth * scale * (0.5 + 0.5 * ((voxels.hu + 1000) / 900).clip(0, 1)))
