"""Lung mask of a CT volume by thresholds and connected components, for use without a mask file.

The paper does not say where its masks come from; this method is our choice. It finds air in the
body, removes the trachea and the main bronchi, keeps the lungs, and fills vessels and nodules. It
has the limits of thresholds: consolidated lung and effusions look like soft tissue and are left
out, unless lung surrounds them.

All steps but the last run on cells of about 2 mm, which are blocks of voxels. The last step
computes the boundary at full resolution.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

__all__ = ["lung_mask"]

Mask = npt.NDArray[np.bool_]
Spacing = npt.NDArray[np.float64]

AIR_HU = -400.0  # between lung (-850) and soft tissue (0)
LUMEN_HU = -930.0  # the lumen of an airway is air (-1000); lung also contains tissue
GAS_HU = -950.0  # largest median of a space of gas without tissue: outside air, bowel
GRID_MM = 2.0
MIN_LUNG_ML = 50.0
NECK_MM = 5.0  # lung and outside are separated at connections narrower than twice this
MIN_SECOND_LUNG = 0.05  # fraction of the volume of the larger lung
MIN_LUMEN_ML = 2.0
# Largest fraction of the surroundings of an airway or bowel that may be air: lung surrounds a
# bronchus in part, and emphysema completely.
MAX_OPEN = 0.75
LUMEN_RADIUS_MM = 3.0
RIM_CELLS = 3
CLOSING_MM = 5.0
MAX_HOLE_MM2 = 300.0


def lung_mask(slab_hu: npt.NDArray[Any], spacing: npt.ArrayLike) -> Mask:
    """Segment both lungs with their vessels and nodules, without trachea and main bronchi.

    Args:
        slab_hu: CT volume (depth, height, width) in HU, any real type. The first and the last slice
            may cut the lungs.
        spacing: (3,), voxel spacing of depth, height and width in mm.

    Returns:
        Mask (depth, height, width); all False if there is no lung of at least 50 mL, as in a head.

    Raises:
        ValueError: if the volume or the spacing is invalid.

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
    padding = _padding(hu, factors)
    air = _lung_air((cells < AIR_HU) & ~padding, padding, cells, cell_mm)
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
    # The threshold would remove vessels at the edge that were filled.
    edge &= ~(filled & ~np.logical_or.reduce(lungs))
    shape = hu[voxels].shape
    mask[voxels] = _upsampled(filled & ~edge, factors, shape) | (
        _upsampled(edge, factors, shape) & (hu[voxels] < AIR_HU)
    )
    if padding.any():
        padded = _upsampled(ndimage.binary_dilation(padding[box]), factors, shape) & (
            hu[voxels] == hu.min()
        )
        mask[voxels] &= ~padded
    return mask


def _checked_spacing(hu: npt.NDArray[Any], spacing: npt.ArrayLike) -> Spacing:
    mm = np.asarray(spacing, dtype=np.float64)
    if hu.ndim != 3 or hu.size == 0:
        raise ValueError(
            f"Expected a volume (depth, height, width), got shape {hu.shape}; "
            f"use one channel of one case."
        )
    if mm.shape != (3,) or not (np.isfinite(mm).all() and (mm > 0).all()):
        raise ValueError(
            f"Expected three positive spacings in mm (depth, height, width), got {spacing!r}."
        )
    return mm


def _block_mean(hu: npt.NDArray[Any], factors: npt.NDArray[np.int_]) -> npt.NDArray[np.float32]:
    """Return the means of blocks of ``factors`` voxels, which have less noise than the voxels.

    The last block of an axis may be smaller.
    """
    out: npt.NDArray[Any] = hu
    for axis, factor in enumerate(factors):
        starts = np.arange(0, hu.shape[axis], factor)
        counts = np.diff(np.append(starts, hu.shape[axis]))
        shape = [-1 if a == axis else 1 for a in range(3)]
        out = np.add.reduceat(out, starts, axis=axis, dtype=np.float32) / counts.astype(
            np.float32
        ).reshape(shape)
    return out


def _lung_air(air: Mask, padding: Mask, hu: npt.NDArray[np.float32], mm: Spacing) -> Mask:
    """Return the air spaces that may be lung.

    They are denser than gas, because they contain tissue, and lie inside the body.

    A space that touches the edge of the field of view is not necessarily outside the body: a small
    field of view cuts the lung, and a crop to the lungs shows the outside only in its corners. A
    space is outside if its area of contact with the edge is large for its volume. If the cut
    leaves only a thin chest wall, lung and outside are one space at first; they are separated at
    their narrow connection.

    A crop from within the lung touches the edge everywhere. It is recognized by the absence of any
    space inside the body.
    """
    labels, _ = ndimage.label(air)
    possible, within = _candidates(labels, padding, hu, mm)
    outside = air & ~np.isin(labels, within)
    pieces = _split_at_necks(outside, mm)
    inside = np.isin(labels, within) | np.isin(pieces, _candidates(pieces, padding, hu, mm)[1])
    return inside if inside.any() else np.isin(labels, possible)


def _candidates(
    labels: npt.NDArray[np.int32], padding: Mask, hu: npt.NDArray[np.float32], mm: Spacing
) -> tuple[list[int], list[int]]:
    """Return the labels of spaces as large and as dense as lung, and of those inside the body."""
    volume = np.bincount(labels.ravel()) * mm.prod()
    contact = _contact(labels, padding, mm)
    large = [i for i in range(1, len(volume)) if volume[i] >= 1000 * MIN_LUNG_ML]
    dense = [i for i in large if np.median(hu[labels == i]) > GAS_HU]
    return dense, [i for i in dense if contact[i] < volume[i] ** (2 / 3)]


def _contact(labels: npt.NDArray[np.int32], padding: Mask, mm: Spacing) -> npt.NDArray[np.float64]:
    """Return the area in mm² between each label and other labels, padding or in-plane border."""
    codes = np.pad(np.where(padding, -1, labels), [(0, 0), (1, 1), (1, 1)], constant_values=-1)
    area = np.zeros(labels.max() + 1)
    for axis in range(3):
        low, high = np.delete(codes, -1, axis), np.delete(codes, 0, axis)
        facing = (low != high) & (low != 0) & (high != 0)
        for side in (low, high):
            area += np.bincount(side[facing].clip(0), minlength=len(area)) * mm.prod() / mm[axis]
    return area


def _split_at_necks(air: Mask, mm: Spacing) -> npt.NDArray[np.int32]:
    """Return labels of the spaces of ``air``, split where they are narrower than twice ``NECK_MM``.

    The in-plane border counts as a wall.
    """
    walled = np.pad(air, [(0, 0), (1, 1), (1, 1)])
    labels, _ = ndimage.label((_distance_inside(walled, mm) > NECK_MM)[:, 1:-1, 1:-1])
    # All cores grow back into the air at the same speed.
    free = air & (labels == 0)
    cross = ndimage.generate_binary_structure(3, 1)
    while True:
        grown = np.where(free, ndimage.maximum_filter(labels, footprint=cross), labels)
        if (grown == labels).all():
            return np.asarray(labels)
        labels, free = grown, free & (grown == 0)


def _padding(hu: npt.NDArray[Any], factors: npt.NDArray[np.int_]) -> Mask:
    """Return the cells outside a round field of view.

    They are connected to the border and filled with one value, the smallest of the volume. Air is
    not, because it has noise.
    """
    flat = _block_mean(hu == min(hu.min(), GAS_HU), factors) == 1
    labels, _ = ndimage.label(flat)
    faces = (labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1])
    touching = np.unique(np.concatenate([face.ravel() for face in faces]))
    return np.asarray(flat & np.isin(labels, touching))


def _gas(air: Mask, hu: npt.NDArray[np.float32], mm: Spacing) -> Mask:
    """Find trachea and main bronchi, and bowel that leaks into the lung through a thin diaphragm.

    They are wide lumens with the density of air and a wall around them. Emphysema has the same
    density, but lung around it. Their rims are blurred to the density of lung and are included.
    Rims are grown through air only, so that lung behind the wall is kept.
    """
    lumen = air & (hu < LUMEN_HU)
    core = _distance_inside(lumen, mm) > LUMEN_RADIUS_MM
    labels, _ = ndimage.label(_dilated(core, LUMEN_RADIUS_MM, mm) & lumen)
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
    """Return the lungs: one mask if they are connected, two if they are separate.

    Morphological opening removes rims of airway walls; dilation then restores thin parts of the
    lungs.
    """
    opened = ndimage.binary_opening(np.pad(air, 1, mode="edge"))[1:-1, 1:-1, 1:-1]
    labels, _ = ndimage.label(opened)
    volume = np.bincount(labels.ravel()) * mm.prod() / 1000
    volume[0] = 0
    largest = np.argsort(volume)[::-1][:2]
    least = max(MIN_LUNG_ML, MIN_SECOND_LUNG * volume[largest[0]])
    lungs = (labels == label for label in largest if volume[label] >= least)
    return [np.asarray(ndimage.binary_dilation(lung, mask=air, iterations=2)) for lung in lungs]


def _filled(lung: Mask, mm: Spacing) -> Mask:
    """Close the surface of one lung by ``CLOSING_MM`` and fill everything that it encloses.

    Each lung is filled alone, so that closing does not bridge the mediastinum.
    """
    box = _box(lung)
    margin = np.ceil(CLOSING_MM / mm).astype(int) + 1
    padded = np.pad(lung[box], [(m, m) for m in margin])
    closed = ~_dilated(~_dilated(padded, CLOSING_MM, mm), CLOSING_MM, mm)
    closed = ndimage.binary_fill_holes(closed | padded)
    # Vessels at the hilum are connected to the mediastinum, but enclosed in most axial slices. A
    # larger enclosed area is not filled: it may be the liver under the dome of the diaphragm.
    in_plane = np.zeros((3, 3, 3), dtype=bool)
    in_plane[1] = ndimage.generate_binary_structure(2, 1)
    labels, _ = ndimage.label(~closed, in_plane)
    area = np.bincount(labels.ravel()) * mm[1] * mm[2]
    closed |= (area < MAX_HOLE_MM2)[labels]
    out = np.zeros_like(lung)
    out[box] = closed[tuple(slice(m, -m) for m in margin)]
    return out


def _box(mask: Mask, margin: int = 0) -> tuple[slice, ...]:
    """Return the bounding box of a mask, enlarged by ``margin`` cells."""
    found: tuple[slice, ...] = ndimage.find_objects(mask.astype(np.int8))[0]
    return tuple(
        slice(max(0, s.start - margin), min(n, s.stop + margin))
        for s, n in zip(found, mask.shape, strict=True)
    )


def _upsampled(mask: Mask, factors: npt.NDArray[np.int_], shape: tuple[int, ...]) -> Mask:
    """Return a mask of cells as a mask of voxels, cropped to ``shape``."""
    for axis, factor in enumerate(factors):
        mask = mask.repeat(factor, axis=axis)
    return mask[tuple(slice(n) for n in shape)]


def _distance_inside(mask: Mask, mm: Spacing) -> npt.NDArray[np.float64]:
    return np.asarray(ndimage.distance_transform_edt(mask, sampling=mm))


def _dilated(mask: Mask, radius_mm: float, mm: Spacing) -> Mask:
    """Return the mask with everything within ``radius_mm`` of it."""
    return _distance_inside(~mask, mm) <= radius_mm if mask.any() else mask
