"""Prepare the data of a case for the viewer: coronal, sagittal and axial slices of its volumes.

Each volume keeps its own grid; slices are placed by position in mm.
:mod:`mpunet.report.patient_grid` orients volumes for display, :mod:`mpunet.report.hu_codec` encodes
slices as text.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpunet.io.intensity_range import check_voxels
from mpunet.io.scan_file import read_info, read_volume
from mpunet.report.hu_codec import HU_LEVELS, encode_slice, to_codes, uniform_levels
from mpunet.report.patient_grid import (
    OBLIQUE_DEGREES,
    PatientGrid,
    directions_of,
    patient_grid,
    patient_voxels,
    turn,
)
from mpunet.report.shown_case import Plane, ShownCase, ShownPlane, ShownVolume

__all__ = ["PAGE_BYTES", "PLANES", "encode_case"]

Box = list[tuple[float, float]]  # lowest and highest mm along left, posterior, inferior

# Axes of the planes: across slices, down the rows, along the columns (0 left, 1 posterior, 2
# inferior).
PLANES: dict[Plane, tuple[int, int, int]] = {
    "coronal": (1, 2, 0),
    "sagittal": (0, 2, 1),
    "axial": (2, 1, 0),
}
HU_WINDOWS = [("Lung", -600.0, 1500.0), ("Mediastinum", 40.0, 400.0), ("Bone", 400.0, 1800.0)]

PAGE_BYTES = 40e6  # small enough for mail and shared folders
_BYTES_PER_PIXEL = 0.75  # in Base64, for noisy thin slices; see hu_codec
_BODY_HU = -500.0
_MARGIN_MM = 5.0


def encode_case(
    name: str,
    files: Mapping[str, Path],
    *,
    reference: str | None = None,
    error_maps: Mapping[str, Path] | None = None,
    slices: int | None = None,
    size: float = PAGE_BYTES,
) -> ShownCase:
    """Read the volumes of a case and encode the slices that the page shows.

    Slices are evenly spaced over the bounding box of the body (above -500 HU) and cropped to this
    box with a margin of 5 mm. The box is that of the reference or, if there is none, of the volume
    with the smallest voxels. The other volumes show their slices nearest to the same positions.
    Volumes are read one after the other, so that only one is in memory.

    Args:
        name: name of the case.
        files: name and file of each volume, in display order.
        reference: name of the reference; volumes whose voxels are aligned with it are compared.
        error_maps: file of the error map of volumes, by their names; on the grid of its volume.
        slices: number of slices in each of the three planes; by default as many as ``size`` allows.
        size: size of the case in the page, in bytes.

    Raises:
        ValueError: if a file cannot be read, the reference is not among the volumes, or an error
            map is not on the grid of its volume.
    """
    if not files or (reference is not None and reference not in files):
        raise ValueError(
            f"{name}: expected volumes with the reference {reference!r} among them, "
            f"got {list(files)}."
        )
    if slices is not None and slices < 1:
        raise ValueError(f"Expected at least 1 slice in each plane, got {slices}.")
    infos = {key: read_info(path) for key, path in files.items()}
    directions = directions_of(next(iter(infos.values())))
    grids = {key: patient_grid(info, directions) for key, info in infos.items()}
    main = reference or min(grids, key=lambda key: float(grids[key].spacing.prod()))
    maps = dict(error_maps or {})
    for key, path in maps.items():
        _check_error_map(key, path, grids[key], directions)

    voxels, is_hu = _read_lpi(files[main])
    box = _box(voxels if is_hu else None, grids[main])
    bytes_per_slice = sum(_bytes_per_slice(grids[key], box) for key in (*files, *maps))
    count = slices or max(1, int(size / bytes_per_slice))
    positions = {
        plane: _positions(grids[main], axes[0], box, count) for plane, axes in PLANES.items()
    }
    shown: dict[str, ShownVolume] = {}
    for key in (main, *(key for key in files if key != main)):  # one volume in memory at a time
        if key != main:
            del voxels
            voxels, is_hu = _read_lpi(files[key])
        compared = reference is not None and grids[key].aligned(grids[reference])
        shown[key] = _show(key, voxels, is_hu, grids[key], box, positions, compared)
    volumes = [shown[key] for key in files]
    windows = _common_windows(volumes)
    for key, path in maps.items():
        errors = patient_voxels(read_volume(path, check_hu=False))
        found = _show(f"Error map of {key}", errors, False, grids[key], box, positions, False)
        found["unit"], found["error_of"] = "HU", key
        volumes.append(found)
    return {
        "name": name,
        "notes": _notes(grids),
        "windows": windows,
        "directions": directions.round(6).tolist(),
        "positions": positions,
        "reference": reference,
        "volumes": volumes,
    }


def _show(
    name: str,
    voxels: npt.NDArray[Any],
    is_hu: bool,
    grid: PatientGrid,
    box: Box,
    positions: dict[Plane, list[float]],
    compared: bool,
) -> ShownVolume:
    levels = HU_LEVELS if is_hu else uniform_levels(float(voxels.min()), float(voxels.max()))
    planes: dict[Plane, ShownPlane] = {}
    for plane, (through, down, across) in PLANES.items():
        rows, columns = (
            grid.indices(axis, box[axis][0] - _MARGIN_MM, box[axis][1] + _MARGIN_MM)
            for axis in (down, across)
        )
        nearest = np.rint(
            (np.array(positions[plane]) - grid.first[through]) / grid.spacing[through]
        )
        indices = np.unique(nearest.clip(0, grid.shape[through] - 1).astype(int))
        oriented = voxels.transpose(through, down, across)
        pictures = (
            oriented[index, rows.start : rows.stop, columns.start : columns.stop]
            for index in indices
        )
        planes[plane] = {
            "rows": len(rows),
            "columns": len(columns),
            "first": [
                round(float(grid.mm(axis, part.start)), 4)
                for axis, part in ((across, columns), (down, rows))
            ],
            "spacing": [round(float(grid.spacing[axis]), 6) for axis in (across, down)],
            "at": grid.mm(through, indices).round(4).tolist(),
            "slices": [encode_slice(to_codes(picture, levels)) for picture in pictures],
        }
    size, mm = (
        " × ".join(f"{n:.0f}" for n in grid.shape),
        " × ".join(f"{step:.2f}" for step in grid.spacing),
    )
    return {
        "name": name,
        "size": f"{size} voxels",
        "caption": f"{mm} mm",
        "spacing": grid.spacing.round(6).tolist(),
        "unit": "HU" if is_hu else "",
        "levels": levels.tolist(),
        "window": None if is_hu else _percentile_window(voxels),
        "compared": compared,
        "error_of": None,
        "planes": planes,
    }


def _read_lpi(path: Path) -> tuple[npt.NDArray[Any], bool]:
    """Voxels along left, posterior and inferior, as a view, and whether they are in HU."""
    volume = read_volume(path, check_hu=False)
    try:
        check_voxels(volume.slab, name=path.name)
        is_hu = True
    except ValueError:
        is_hu = False
    return patient_voxels(volume), is_hu


def _box(voxels: npt.NDArray[Any] | None, grid: PatientGrid) -> Box:
    """Range in mm along each axis from the first to the last slice with at least 1 % body.

    Without such slices, or if ``voxels`` is None, it is the range of the whole volume.
    """
    every = 4
    ends = [(0, int(n) - 1) for n in grid.shape]
    if voxels is not None:
        body = voxels[::every, ::every, ::every] > _BODY_HU
        for axis, (_, last) in enumerate(ends):
            share = body.mean(axis=tuple(other for other in range(3) if other != axis))
            inside = np.flatnonzero(share >= 0.01) * every
            if inside.size:
                ends[axis] = (int(inside[0]), min(int(inside[-1]) + every - 1, last))
    return [
        (float(grid.mm(axis, low)), float(grid.mm(axis, high)))
        for axis, (low, high) in enumerate(ends)
    ]


def _positions(grid: PatientGrid, axis: int, box: Box, count: int) -> list[float]:
    """Positions of the middle slices of ``count`` equal parts of the box, or of all its slices."""
    indices = grid.indices(axis, *box[axis])
    if count < len(indices):
        middles = indices.start + (np.arange(count) + 0.5) * len(indices) / count - 0.5
        return [round(float(mm), 4) for mm in grid.mm(axis, np.rint(middles))]
    return [round(float(mm), 4) for mm in grid.mm(axis, indices)]


def _bytes_per_slice(grid: PatientGrid, box: Box) -> float:
    """Size of one slice in each plane of a volume."""
    counts = [
        len(grid.indices(axis, low - _MARGIN_MM, high + _MARGIN_MM))
        for axis, (low, high) in enumerate(box)
    ]
    pixels = sum(counts[down] * counts[across] for _, down, across in PLANES.values())
    return pixels * _BYTES_PER_PIXEL


def _check_error_map(
    name: str, path: Path, grid: PatientGrid, directions: npt.NDArray[np.float64]
) -> None:
    """Raise ValueError if the error map of a volume has another grid."""
    info = read_info(path)
    own = patient_grid(info, directions)
    same = (np.allclose(a, b, atol=1e-3) for a, b in zip(own, grid, strict=True))
    if not np.array_equal(own.shape, grid.shape) or not all(same):
        raise ValueError(
            f"Expected an error map on the grid of {name}, got {path.name} of {info.shape} voxels "
            "at other positions; mpunet predict --error_map writes one beside each result."
        )


def _percentile_window(voxels: npt.NDArray[Any]) -> tuple[float, float]:
    low, high = (float(value) for value in np.percentile(voxels[::4, ::4, ::4], [1, 99]))
    return (low + high) / 2, max(high - low, 1e-6)


def _common_windows(volumes: list[ShownVolume]) -> list[tuple[str, float, float]]:
    """Windows to choose from; if no volume is in HU, all use the window of the first one."""
    first = volumes[0]["window"]
    if first is None or any(volume["window"] is None for volume in volumes):
        return HU_WINDOWS
    for volume in volumes:
        volume["window"] = None
    return [("Percentiles 1–99", *first)]


def _notes(grids: dict[str, PatientGrid]) -> list[str]:
    first, grid = next(iter(grids.items()))
    notes = []
    tilt = turn(grid.directions, np.eye(3))
    if tilt > OBLIQUE_DEGREES:
        notes.append(
            "Oblique scan: slices are shown along the axes of the volumes, which are "
            f"turned by up to {tilt:.0f}° against the patient's axes."
        )
    for name, other in grids.items():
        degrees = turn(other.directions, grid.directions)
        if degrees > OBLIQUE_DEGREES:
            notes.append(
                f"{name} is turned by {degrees:.0f}° against {first}: it is shown along its own "
                "axes, and only its centre is at the right position."
            )
    return notes
