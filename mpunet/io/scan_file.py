"""Open scans, whatever their format: NIfTI files and DICOM series.

Reading slice by slice needs an amount of memory that does not grow with depth.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mpunet.io.base import ScanFile
from mpunet.io.dicom.folder import series_at
from mpunet.io.dicom.headers import is_dicom
from mpunet.io.dicom.scan import DicomScan
from mpunet.io.nifti.scan import find_nifti
from mpunet.io.rplhr import Intensity
from mpunet.io.volume import Volume, VolumeInfo, nifti_suffix

__all__ = ["ScanFile", "open_scan", "read_info", "read_like", "read_volume"]


def open_scan(
    path: str | Path,
    *,
    slice_axis: int | None = None,
    check_hu: bool = True,
    intensity: Intensity = "auto",
) -> ScanFile:
    """Check all of a scan and open it for reading slice by slice.

    If the slice axis is the last stored one, as in DICOM series and nearly all axial NIfTI files,
    this needs memory for a few slices only. In other files each slice is spread over the whole
    file; their slab is read into memory and kept.

    Args:
        path: NIfTI file (``.nii``, ``.nii.gz``), or DICOM series: a folder with one series, or
            FOLDER/UID for one of several, as :func:`mpunet.io.scans.find_scans` names them.
        slice_axis: stored axis (0, 1 or 2) of a NIfTI file along which slices are stacked; by
            default the axis that :func:`mpunet.geometry.find_slice_axis` finds.
        check_hu: reject intensities that cannot be HU, see
            :func:`mpunet.io.intensity_range.check_voxels`.
        intensity: scale of intensities that all lie in [0, 1]. "auto" (default) converts them to HU
            if the file is in the folder layout of the benchmark RPLHR-CT (see
            :mod:`mpunet.io.rplhr`), and rejects them otherwise. "rplhr" converts them to HU in any
            folder.

    Raises:
        ValueError: if the scan cannot be read or is not one 3D volume in HU. The message is one
            line with the file's name or the series' UID. A later iteration raises it too if the
            file has changed.
    """
    scan = _find(Path(path), slice_axis)
    scan.check(check_hu=check_hu, intensity=intensity)
    return scan


def read_volume(
    path: str | Path,
    *,
    slice_axis: int | None = None,
    check_hu: bool = True,
    intensity: Intensity = "auto",
) -> Volume:
    """Read a scan as a slab in HU.

    Arguments and errors are those of :func:`open_scan`.
    """
    return _find(Path(path), slice_axis).read(check_hu=check_hu, intensity=intensity)


def read_like(path: str | Path, other: VolumeInfo) -> Volume:
    """Read a volume that belongs to another, such as its mask, as a slab along the same axes.

    Intensities may be anything. Slices are those of ``other``, however the file is stored and
    whatever its spacings. Its grid remains to be checked.

    Raises:
        ValueError: if the file cannot be read as one 3D volume.
    """
    along = other.slab_affine[:3, 0]
    axes = read_info(path).affine[:3, :3]
    cosines = np.abs(along @ axes) / np.linalg.norm(axes, axis=0)
    return read_volume(path, slice_axis=int(cosines.argmax()), check_hu=False)


def read_info(path: str | Path, *, slice_axis: int | None = None) -> VolumeInfo:
    """Read shape and affine of a scan from its headers, but no voxels.

    Errors are those of :func:`open_scan`.
    """
    scan = _find(Path(path), slice_axis)
    info = VolumeInfo(scan.shape, scan.affine, scan.slice_axis, scan.header, scan.path)
    info.slice_thickness = scan.slice_thickness
    return info


def _find(path: Path, slice_axis: int | None) -> ScanFile:
    """Return a scan whose headers were read and checked."""
    if nifti_suffix(path) is None and (path.is_dir() or is_dicom(path) or not path.exists()):
        series = series_at(path)
        if series is not None:
            return DicomScan(series)
    return find_nifti(path, slice_axis)
