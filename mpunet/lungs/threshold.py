"""Lung mask of a CT volume by thresholding and connected components, where no mask file is given.

The paper does not say where its masks come from; this method is our choice. It finds air in the body, takes the trachea and main
bronchi away, keeps the lungs and fills vessels and nodules. It goes as far as thresholding goes: consolidated lung and effusions,
which look like soft tissue, are left out unless lung surrounds them.

All steps but the last run on a grid of about 2 mm; the boundary is then drawn at full resolution.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

__all__ = ["lung_mask"]

Mask = npt.NDArray[np.bool_]
Spacing = npt.NDArray[np.float64]

AIR_HU = -400.0  # between lung, -850, and soft tissue, 0
LUMEN_HU = -930.0  # an airway's lumen is air, -1000; parenchyma holds tissue
GAS_HU = -950.0  # median of a space filled with gas alone: outside air, bowel
GRID_MM = 2.0
MIN_LUNG_ML = 50.0
NECK_MM = 5.0  # half the width of a connection at which lung and outside are separated
MIN_SECOND_LUNG = 0.05  # of the larger one's volume
MIN_LUMEN_ML = 2.0
MAX_OPEN = 0.75  # of what is around an airway or bowel may be air: a bronchus lies in lung in part, emphysema altogether
LUMEN_RADIUS_MM = 3.0
RIM_CELLS = 3
CLOSING_MM = 5.0
MAX_HOLE_MM2 = 300.0


def lung_mask(slab_hu: npt.NDArray[Any], spacing: npt.ArrayLike) -> Mask:
    """Both lungs with the vessels and nodules inside, without trachea and main bronchi.

    Args:
        slab_hu: (depth, height, width), any real type, in HU. Lungs may be cut by the first and the last slice.
        spacing: (3,), in mm, of depth, height and width.

    Returns:
        (depth, height, width); all False where there is no lung of at least 50 mL, as in a head.

    >>> body = np.full((20, 60, 60), 40, dtype=np.int16)
    >>> body[:, 10:50, 10:50] = -850
    >>> int(lung_mask(body, (2.0, 2.0, 2.0)).sum()) == 20 * 40 * 40
    True
    """
    hu = np.asarray(slab_hu)
    mm = _checked_spacing(hu, spacing)
    factors = np.maximum(1, np.minimum(np.floor(1.25 * GRID_MM / mm), hu.shape)).astype(int)
    cell_mm = mm * factors
    cells = _block_mean(hu, factors)

    mask = np.zeros(hu.shape, dtype=bool)
    unseen = _unseen(hu, factors)
    air = _lung_air((cells < AIR_HU) & ~unseen, unseen, cells, cell_mm)
    if not air.any():
        return mask
    box = _box(air, margin=RIM_CELLS)
    air, cells = air[box], cells[box]
    gas = _gas(air, cells, cell_mm)
    lungs = _largest_two(air & ~gas, cell_mm)
    if not lungs:
        return mask
    filled = np.logical_or.reduce([_filled(lung, cell_mm) for lung in lungs]) & ~gas

    voxels = tuple(slice(s.start * f, s.stop * f) for s, f in zip(box, factors, strict=True))
    edge = ndimage.binary_dilation(filled) & ~gas & ~ndimage.binary_erosion(filled, border_value=1)
    edge &= ~(
        filled & ~np.logical_or.reduce(lungs)
    )  # a vessel at the edge was filled, so it is not asked again
    shape = hu[voxels].shape
    mask[voxels] = _repeated(filled & ~edge, factors, shape) | (
        _repeated(edge, factors, shape) & (hu[voxels] < AIR_HU)
    )
    if unseen.any():
        padded = _repeated(ndimage.binary_dilation(unseen[box]), factors, shape) & (
            hu[voxels] == hu.min()
        )
        mask[voxels] &= ~padded
    return mask


def _checked_spacing(hu: npt.NDArray[Any], spacing: npt.ArrayLike) -> Spacing:
    mm = np.asarray(spacing, dtype=np.float64)
    if hu.ndim != 3 or hu.size == 0:
        raise ValueError(
            f"Expected a volume (depth, height, width), got shape {hu.shape}; take one channel of one case."
        )
    if mm.shape != (3,) or not (np.isfinite(mm).all() and (mm > 0).all()):
        raise ValueError(
            f"Expected three positive spacings in mm (depth, height, width), got {spacing!r}."
        )
    return mm


def _block_mean(hu: npt.NDArray[Any], factors: npt.NDArray[np.int_]) -> npt.NDArray[np.float32]:
    """Mean over blocks of ``factors`` voxels, which also averages the noise; the last block of an axis may be smaller."""
    out: npt.NDArray[Any] = hu
    for axis, factor in enumerate(factors):
        starts = np.arange(0, hu.shape[axis], factor)
        counts = np.diff(np.append(starts, hu.shape[axis]))
        shape = [-1 if a == axis else 1 for a in range(3)]
        out = np.add.reduceat(out, starts, axis=axis, dtype=np.float32) / counts.astype(
            np.float32
        ).reshape(shape)
    return out


def _lung_air(air: Mask, unseen: Mask, hu: npt.NDArray[np.float32], mm: Spacing) -> Mask:
    """Air spaces that may be lung: they hold tissue, so their density is above that of gas, and they lie inside the body.

    Touching the edge of the field of view does not make a space the outside: a small field of view cuts lung there, and a crop
    to the lungs shows the outside in corners only. The outside touches it with more than its volume's worth of area. Where the
    cut leaves a thin chest wall, lung and outside are one space at first, and are separated at their narrow connection.

    A crop from within the lung touches the edge everywhere. It is told by having nothing else.
    """
    labels, _ = ndimage.label(air)
    possible, within = _candidates(labels, unseen, hu, mm)
    outside = air & ~np.isin(labels, within)
    pieces = _cut_at_necks(outside, mm)
    inside = np.isin(labels, within) | np.isin(pieces, _candidates(pieces, unseen, hu, mm)[1])
    return inside if inside.any() else np.isin(labels, possible)


def _candidates(
    labels: npt.NDArray[np.int32], unseen: Mask, hu: npt.NDArray[np.float32], mm: Spacing
) -> tuple[list[int], list[int]]:
    """Labels of spaces as large and as dense as lung, and of those of them that lie inside the body."""
    volume = np.bincount(labels.ravel()) * mm.prod()
    contact = _contact(labels, unseen, mm)
    large = [i for i in range(1, len(volume)) if volume[i] >= 1000 * MIN_LUNG_ML]
    dense = [i for i in large if np.median(hu[labels == i]) > GAS_HU]
    return dense, [i for i in dense if contact[i] < volume[i] ** (2 / 3)]


def _contact(labels: npt.NDArray[np.int32], unseen: Mask, mm: Spacing) -> npt.NDArray[np.float64]:
    """Area in mm² that each label shares with other labels, with ``unseen`` cells, and with the in-plane border."""
    codes = np.pad(np.where(unseen, -1, labels), [(0, 0), (1, 1), (1, 1)], constant_values=-1)
    area = np.zeros(labels.max() + 1)
    for axis in range(3):
        low, high = np.delete(codes, -1, axis), np.delete(codes, 0, axis)
        facing = (low != high) & (low != 0) & (high != 0)
        for side in (low, high):
            area += np.bincount(side[facing].clip(0), minlength=len(area)) * mm.prod() / mm[axis]
    return area


def _cut_at_necks(air: Mask, mm: Spacing) -> npt.NDArray[np.int32]:
    """Labels of the spaces of ``air``, cut where they are narrower than twice ``NECK_MM``; the border counts as a wall."""
    walled = np.pad(air, [(0, 0), (1, 1), (1, 1)])
    labels, _ = ndimage.label((_distance_inside(walled, mm) > NECK_MM)[:, 1:-1, 1:-1])
    # Each core takes back its surroundings, all at the same speed, and as far as air goes.
    free = air & (labels == 0)
    cross = ndimage.generate_binary_structure(3, 1)
    while True:
        grown = np.where(free, ndimage.maximum_filter(labels, footprint=cross), labels)
        if (grown == labels).all():
            return np.asarray(labels)
        labels, free = grown, free & (grown == 0)


def _unseen(hu: npt.NDArray[Any], factors: npt.NDArray[np.int_]) -> Mask:
    """Cells outside a round field of view: padded with one value, the smallest, from the border on. Air has noise."""
    flat = _block_mean(hu == min(hu.min(), GAS_HU), factors) == 1
    labels, _ = ndimage.label(flat)
    faces = (labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1])
    touching = np.unique(np.concatenate([face.ravel() for face in faces]))
    return np.asarray(flat & np.isin(labels, touching))


def _gas(air: Mask, hu: npt.NDArray[np.float32], mm: Spacing) -> Mask:
    """Trachea and main bronchi, and bowel that leaks into the lung through a thin diaphragm.

    They are wide lumens at the density of air with a wall around: emphysema, as empty, has lung around. Their rims, blurred to the
    density of lung, go with them and are reached through air only, so that lung behind the wall stays.
    """
    lumen = air & (hu < LUMEN_HU)
    core = _distance_inside(lumen, mm) > LUMEN_RADIUS_MM
    labels, _ = ndimage.label(_grown(core, LUMEN_RADIUS_MM, mm) & lumen)
    gas = np.zeros_like(air)
    volume = np.bincount(labels.ravel()) * mm.prod() / 1000
    for label in range(1, len(volume)):
        if volume[label] < MIN_LUMEN_ML:
            continue
        box = _box(labels == label, margin=RIM_CELLS)
        found = labels[box] == label
        near = ndimage.binary_dilation(found, iterations=RIM_CELLS)
        rim = ndimage.binary_dilation(found, mask=air[box], iterations=RIM_CELLS)
        if rim.sum() - found.sum() < MAX_OPEN * (near.sum() - found.sum()):
            gas[box] |= rim
    return gas


def _largest_two(air: Mask, mm: Spacing) -> list[Mask]:
    """The lungs, together or apart. Opened, which frees them of rims of airway walls; then their own thin parts come back."""
    opened = ndimage.binary_opening(np.pad(air, 1, mode="edge"))[1:-1, 1:-1, 1:-1]
    labels, _ = ndimage.label(opened)
    volume = np.bincount(labels.ravel()) * mm.prod() / 1000
    volume[0] = 0
    largest = np.argsort(volume)[::-1][:2]
    least = max(MIN_LUNG_ML, MIN_SECOND_LUNG * volume[largest[0]])
    lungs = (labels == label for label in largest if volume[label] >= least)
    return [np.asarray(ndimage.binary_dilation(lung, mask=air, iterations=2)) for lung in lungs]


def _filled(lung: Mask, mm: Spacing) -> Mask:
    """One lung closed by a few mm, with what it encloses; alone, so that closing does not bridge the mediastinum."""
    box = _box(lung)
    margin = np.ceil(CLOSING_MM / mm).astype(int) + 1
    padded = np.pad(lung[box], [(m, m) for m in margin])
    closed = ~_grown(~_grown(padded, CLOSING_MM, mm), CLOSING_MM, mm)
    closed = ndimage.binary_fill_holes(closed | padded)
    # Vessels at the hilum are open to the mediastinum, yet enclosed in most axial slices. A larger enclosed
    # area stays open: it may be the liver under the dome of the diaphragm.
    in_plane = np.zeros((3, 3, 3), dtype=bool)
    in_plane[1] = ndimage.generate_binary_structure(2, 1)
    labels, _ = ndimage.label(~closed, in_plane)
    area = np.bincount(labels.ravel()) * mm[1] * mm[2]
    closed |= (area < MAX_HOLE_MM2)[labels]
    out = np.zeros_like(lung)
    out[box] = closed[tuple(slice(m, -m) for m in margin)]
    return out


def _box(mask: Mask, margin: int = 0) -> tuple[slice, ...]:
    found: tuple[slice, ...] = ndimage.find_objects(mask.astype(np.int8))[0]
    return tuple(
        slice(max(0, s.start - margin), min(n, s.stop + margin))
        for s, n in zip(found, mask.shape, strict=True)
    )


def _repeated(mask: Mask, factors: npt.NDArray[np.int_], shape: tuple[int, ...]) -> Mask:
    for axis, factor in enumerate(factors):
        mask = mask.repeat(factor, axis=axis)
    return mask[tuple(slice(n) for n in shape)]


def _distance_inside(mask: Mask, mm: Spacing) -> npt.NDArray[np.float64]:
    return np.asarray(ndimage.distance_transform_edt(mask, sampling=mm))


def _grown(mask: Mask, radius_mm: float, mm: Spacing) -> Mask:
    """Mask and all within ``radius_mm`` of it."""
    return _distance_inside(~mask, mm) <= radius_mm if mask.any() else mask
