"""DICOM series as templates: patient, study and positions for scans that were converted to NIfTI."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpunet.io.base import ScanFile
from mpunet.io.content import file_sha256
from mpunet.io.dicom.folder import NamedSeries, dicom_files, name_series, visible
from mpunet.io.dicom.scan import DicomScan
from mpunet.io.dicom.series import Series
from mpunet.io.volume import VolumeInfo

__all__ = ["TemplatedScan", "find_templates"]

# Largest distance in mm between corresponding voxels of a scan and its template. Our choice: far
# above the rounding of converters (affines in float32), far below a voxel.
TOLERANCE = 1e-2


class TemplatedScan(DicomScan):
    """Voxels of a NIfTI file on the grid of the DICOM series that the file was converted from.

    All but the voxels is the series', including the order of slices, rows and columns, which
    converters flip. If the slices of the file are in the opposite order, they are read into memory.

    Args:
        scan: the opened file.
        template: the series.

    Attributes:
        sha256: SHA-256 of the file. A result's UIDs must depend on it (``Origin.options``), because
            several files may have the same template.

    Raises:
        ValueError: if a voxel of the file is further than 0.01 mm from that of the series.
    """

    def __init__(self, scan: ScanFile, template: Series) -> None:
        super().__init__(template)
        if (found := _difference(scan, self)) is not None:
            raise ValueError(
                f"{scan.name}: expected the grid of its template, {super().name}, but {found}"
            )
        self.scan = scan
        self.dtype = scan.dtype
        self.sha256 = "" if scan.path is None else file_sha256(scan.path)

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.scan.name

    def stored_planes(self) -> Iterator[npt.NDArray[Any]]:
        """Yield the slices of the file in HU, as the series stores them."""
        planes = iter(self.scan)
        if self.scan.last_first != self.last_first:
            planes = reversed(list(planes))
        for plane in planes:
            yield self.frame.to_stored(plane[None])[..., 0]


def find_templates(folder: str | Path, names: Sequence[Path]) -> list[NamedSeries]:
    """Find the DICOM series that has the name of a scan, for each scan.

    For a scan ``sub/a.nii.gz`` it is the series in ``sub/a`` (or in a folder there, if it is the
    only one). For a single scan it is the only series in ``folder``, whatever its name.

    Args:
        folder: folder of the series.
        names: paths of the scans relative to their folder, without suffix.

    Returns:
        For each name the series, or the problem: none, several, or a series that is no volume.

    Raises:
        ValueError: if there is no series at all, or pydicom is not installed.
    """
    folder = Path(folder)
    root, paths = (folder.parent, [folder]) if folder.is_file() else (folder, visible(folder))
    found = name_series(root, dicom_files(paths))
    if not found:
        raise ValueError(f"Expected DICOM series as templates in {folder}, found none.")
    if len(names) == len(found) == 1:
        return found
    by_name = {item.name: item for item in found}
    inside = defaultdict(list)
    for item in found:
        inside[item.name.parent].append(item)
    return [
        _the_only_one(name, [by_name[name]] if name in by_name else inside[name], folder)
        for name in names
    ]


def _the_only_one(name: Path, found: Sequence[NamedSeries], folder: Path) -> NamedSeries:
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(str(item.name) for item in found[:3])
        problem = f"expected one DICOM series as template in {folder / name}, found {len(found)}"
        return NamedSeries(name, None, f"{problem}: {names}{', ...' if len(found) > 3 else ''}")
    return NamedSeries(
        name, None, f"expected a DICOM series as template in {folder / name}, found none"
    )


def _difference(scan: VolumeInfo, template: VolumeInfo) -> str | None:
    """Say how the grid of a scan differs from its template's, in world coordinates."""
    if scan.shape != template.shape:
        sizes = [" x ".join(map(str, info.shape)) for info in (scan, template)]
        return f"it has {sizes[0]} slices, rows and columns, the template {sizes[1]}"
    # The largest distance is at a corner, as both grids are affine.
    corners = np.array([(*corner, 1) for corner in product(*((0, n - 1) for n in scan.shape))])
    shifts = (corners @ (scan.slab_affine - template.slab_affine).T)[:, :3]
    distance = float(np.linalg.norm(shifts, axis=1).max())
    if distance <= TOLERANCE:
        return None
    if (np.abs(scan.spacing - template.spacing) * (np.array(scan.shape) - 1)).max() > TOLERANCE:
        sizes = [" x ".join(f"{mm:.5g}" for mm in info.spacing) for info in (scan, template)]
        return f"its voxels have {sizes[0]} mm (slices, rows, columns), the template's {sizes[1]}"
    if np.ptp(shifts, axis=0).max() > TOLERANCE:
        return f"it is turned or tilted: voxels are up to {distance:.3g} mm from the template's"
    x, y, z = shifts.mean(axis=0).round(3) + 0.0  # no -0
    return f"it is shifted by {x:g}, {y:g}, {z:g} mm to the right, front and head"
