"""Automatic reader: finds nodules as blobs in the lungs, with the same settings for every spacing.

Candidates are local extrema of the scale-normalised Laplacian (Lindeberg 1998) for each of several
diameters. They are scored with the dot filter of Li, Sone and Doi (Med. Phys. 2003), which is based
on the eigenvalues of the Hessian: a nodule is brighter than its surroundings in every direction, a
vessel is not along its own direction. Of overlapping balls, the one with the highest score is kept.

The reader compares how well nodules are visible in different conditions. It is not a detection
product: it reports forks and bends of vessels as nodules, and it misses nodules that are not much
brighter than the lung.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import KDTree

from mpunet.geometry import grid_spacing
from mpunet.reader_study.findings import Finding
from mpunet.slices.interpolate import interpolated

__all__ = ["DIAMETERS", "MIN_SCORE_HU", "blob_findings"]

DIAMETERS = (3.0, 3.8, 4.8, 6.0, 7.5, 9.5, 12.0, 15.0)  # mm, about a quarter apart
MIN_SCORE_HU = 120.0
PARENCHYMA_HU = -850.0
BRIGHTEST_HU = 50.0  # brighter voxels, such as calcium, get this value: soft tissue scores the same
GRID_MM = 1.0
CHUNK_MM = 80.0
_REACH = 3.0  # radius of Gaussian filters in standard deviations

Array = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


class _Blobs(NamedTuple):
    """Candidates: voxel indices (n, 3), diameters (n,) in mm, scores (n,) in HU."""

    voxel: Floats
    diameter: Floats
    score: Floats


def blob_findings(
    slab: npt.NDArray[Any],
    affine: npt.ArrayLike,
    lung: npt.NDArray[Any],
    *,
    min_score: float = MIN_SCORE_HU,
) -> list[Finding]:
    """Find blobs of 3 to 15 mm in the lungs, sorted from the highest score to the lowest.

    Args:
        slab: (D, H, W) in HU.
        affine: (4, 4), slab indices to RAS+ in mm.
        lung: (D, H, W), nonzero in the lungs including their vessels and nodules, such as the mask
            of :func:`mpunet.lungs.threshold`.
        min_score: lowest score in HU. An isolated ball scores about 0.3 of its contrast to the
            lung; the score is lower if slices are thick or a vessel is near. The default is our
            choice, based on phantoms (docs/reader_study.md).

    Returns:
        Findings with the centre in mm (RAS+), the diameter of the ball that fits best, and the
        score.

    Raises:
        ValueError: if the mask has another shape, or ``min_score`` is not positive.

    >>> z, y, x = np.ogrid[-15:16, -15:16, -15:16]
    >>> ball = np.where(z**2 + y**2 + x**2 <= 9, 30, -850)
    >>> blob_findings(ball, np.eye(4), np.ones_like(ball))[0].position
    (15.0, 15.0, 15.0)
    """
    if slab.ndim != 3 or lung.shape != slab.shape:
        raise ValueError(
            "Expected a volume (depth, height, width) and a lung mask on its grid, "
            f"got {slab.shape} and {lung.shape}."
        )
    if not min_score > 0:
        raise ValueError(
            f"Expected a lowest score above 0 HU, got {min_score}; "
            "otherwise every voxel would be a candidate."
        )
    matrix = np.asarray(affine, dtype=np.float64)
    found = ndimage.find_objects(lung.astype(bool).view(np.uint8))
    if not found:
        return []
    box = tuple(slice(max(0, s.start - 1), s.stop + 1) for s in found[0])
    spacing = grid_spacing(matrix, slice_axis=0)
    parts = list(_candidates(slab[box], lung[box], spacing, min_score))
    blobs = _Blobs(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    centres = (blobs.voxel + [s.start for s in box]) @ matrix[:3, :3].T + matrix[:3, 3]
    return [
        Finding((float(x), float(y), float(z)), float(blobs.diameter[i]), float(blobs.score[i]))
        for i in _non_overlapping(centres, blobs)
        for x, y, z in [centres[i]]
    ]


def _candidates(
    slab: npt.NDArray[Any], lung: npt.NDArray[Any], spacing: Floats, min_score: float
) -> Iterator[_Blobs]:
    """Candidates of all diameters on a grid of about 1 mm, found in overlapping chunks of slices.

    Chunks overlap by the radius of the filters.
    """
    factors = np.maximum(1, np.floor(1.1 * GRID_MM / spacing)).astype(int)
    # Thick slices contain the same information as their interpolation, but filters would find less
    # on the coarse grid. Therefore thick slices are interpolated.
    ratio = max(1, round(spacing[0] / GRID_MM)) if len(slab) > 1 else 1
    mm = spacing * factors / [ratio, 1, 1]
    step = max(1, round(CHUNK_MM / (spacing[0] * factors[0])))
    halo = int(np.ceil(_REACH * _sigma(DIAMETERS[-1]) / (spacing[0] * factors[0]))) + 4
    for start in range(0, -(-len(slab) // factors[0]), step):
        first = max(0, start - halo)
        part = slice(first * factors[0], (start + step + halo) * factors[0])
        hu = _on_grid(slab[part], factors, ratio)
        inside = _on_grid(lung[part] != 0, factors, ratio) >= 0.5
        # Voxels outside the lungs get the value of lung, so that the chest wall and the mediastinum
        # do not influence the filters inside.
        hu = np.where(inside, hu.clip(PARENCHYMA_HU - 100, BRIGHTEST_HU), np.float32(PARENCHYMA_HU))
        inside[: (start - first) * ratio] = False
        inside[(start - first + step) * ratio :] = False
        for diameter in DIAMETERS:
            index, score = _dots(hu, inside, mm, _sigma(diameter), min_score)
            voxel = (index / [ratio, 1, 1] + [first, 0, 0]) * factors + (factors - 1) / 2
            yield _Blobs(voxel, np.full(len(index), diameter), score)


def _on_grid(voxels: npt.NDArray[Any], factors: npt.NDArray[np.int_], ratio: int) -> Array:
    """Average blocks of ``factors`` voxels, then interpolate ``ratio`` slices for one along depth.

    The last block of an axis may be smaller.
    """
    out = np.asarray(voxels, dtype=np.float32)
    for axis, factor in enumerate(factors):
        if factor > 1:
            starts = np.arange(0, out.shape[axis], factor)
            counts = np.diff(np.append(starts, out.shape[axis])).reshape(
                [-1 if a == axis else 1 for a in range(3)]
            )
            out = np.divide(np.add.reduceat(out, starts, axis=axis), counts, dtype=np.float32)
    return out if ratio == 1 or len(out) < 2 else np.concatenate(list(interpolated(out, ratio)))


def _sigma(diameter: float) -> float:
    """Standard deviation at which the Laplacian of a ball is largest: radius / sqrt(3)."""
    return diameter / 12**0.5


def _dots(
    hu: Array, inside: Mask, mm: Floats, sigma: float, min_score: float
) -> tuple[Floats, Floats]:
    """Minima of the Laplacian at one scale with a sufficient score: indices (n, 3), scores (n,)."""
    smooth = ndimage.gaussian_filter(hu, sigma / mm, mode="nearest", truncate=_REACH)
    # Differences of neighbouring voxels instead of sampled derivatives of the Gaussian, as these do
    # not sum to 0 if sigma is about one voxel.
    laplacian = np.zeros_like(smooth)
    for axis in range(3):
        laplacian += ndimage.correlate1d(
            smooth, np.array([1, -2, 1]) * sigma**2 / mm[axis] ** 2, axis=axis, mode="nearest"
        )
    # The score of a dot is at most a third of the Laplacian, so this threshold excludes no dot.
    peak = (
        inside
        & (laplacian <= -3 * min_score)
        & (laplacian == ndimage.minimum_filter(laplacian, 3, mode="nearest"))
    )
    index = np.argwhere(peak)
    values = np.linalg.eigvalsh(sigma**2 * _hessians(smooth, index, mm))
    strong, weak = values[:, 0], values[:, 2]
    score = np.where(weak < 0, weak**2 / np.maximum(-strong, 1e-6), 0.0)
    keep = score >= min_score
    return index[keep].astype(np.float64), score[keep]


def _hessians(smooth: Array, index: npt.NDArray[np.int_], mm: Floats) -> Floats:
    """Second differences (n, 3, 3) in HU / mm^2 at voxels (n, 3)."""
    last = np.array(smooth.shape) - 1
    unit = np.eye(3, dtype=int)

    def at(shift: npt.NDArray[np.int_]) -> Floats:
        return np.asarray(smooth[tuple((index + shift).clip(0, last).T)], dtype=np.float64)

    out = np.empty((len(index), 3, 3))
    for a in range(3):
        out[:, a, a] = (at(unit[a]) + at(-unit[a]) - 2 * at(0 * unit[a])) / mm[a] ** 2
        for b in range(a):
            mixed = (
                at(unit[a] + unit[b])
                + at(-unit[a] - unit[b])
                - at(unit[a] - unit[b])
                - at(unit[b] - unit[a])
            )
            out[:, a, b] = out[:, b, a] = mixed / (4 * mm[a] * mm[b])
    return out


def _non_overlapping(centres: Floats, blobs: _Blobs) -> list[int]:
    """Indices of blobs that do not overlap a kept blob with a higher score, sorted by score."""
    tree = KDTree(centres.reshape(-1, 3))
    alive = np.ones(len(centres), dtype=bool)
    kept = []
    for i in np.lexsort((blobs.diameter, -blobs.score)):
        if not alive[i]:
            continue
        kept.append(int(i))
        near = np.array(tree.query_ball_point(centres[i], (blobs.diameter[i] + DIAMETERS[-1]) / 2))
        distance = np.linalg.norm(centres[near] - centres[i], axis=1)
        alive[near[distance < (blobs.diameter[near] + blobs.diameter[i]) / 2]] = False
    return kept
