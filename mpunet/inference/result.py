"""Write the thin slices of a scan, as a NIfTI file or a DICOM series."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy.typing as npt

from mpunet.geometry import grid_spacing, thin_affine, thin_depth
from mpunet.inference.manifest import Written
from mpunet.io.base import ScanFile
from mpunet.io.dicom.scan import DicomScan
from mpunet.io.dicom.template import TemplatedScan
from mpunet.io.dicom.writer import Origin, write_series
from mpunet.io.thin_file import Dtype, write_slices

__all__ = ["origin_of", "write_result"]


def write_result(
    path: Path,
    chunks: Iterable[npt.NDArray[Any]],
    scan: ScanFile,
    ratio: float,
    *,
    as_dicom: bool,
    origin: Origin,
    dtype: Dtype,
    last_first: bool,
) -> Written:
    """Write thin slices while they are produced; the result appears only when it is complete.

    Args:
        path: NIfTI file, or folder of a DICOM series.
        chunks: consecutive thin slices, arrays (k, H, W) in HU.
        scan: the thick scan.
        ratio: thick spacing / thin spacing.
        as_dicom: write a DICOM series.
        origin: what made the slices; recorded in a DICOM series.
        dtype: data type of the voxels in a NIfTI file.
        last_first: whether slices come in order from last to first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    series = None
    if as_dicom and isinstance(scan, DicomScan):
        series = write_series(path, chunks, scan, ratio, origin=origin, last_first=last_first)
    else:
        write_slices(path, chunks, scan, ratio, dtype=dtype, last_first=last_first)
    axis = scan.slice_axis
    shape = list(scan.stored_shape)
    shape[axis] = thin_depth(len(scan), ratio)
    spacing = grid_spacing(thin_affine(scan.affine, axis, ratio), axis)
    return Written(shape, [round(float(mm), 6) for mm in spacing], series)


def origin_of(module: Any, checkpoint: str | None, scan: ScanFile) -> Origin:
    """Return what the voxels of a result depend on.

    Args:
        module: the LightningModule; options are read from its ``reconstructor``, if it has one.
        checkpoint: SHA-256 of the checkpoint file.
        scan: the thick scan.
    """
    reconstructor = getattr(module, "reconstructor", None)
    engine = getattr(reconstructor, "engine", None)
    names = ("stride", "flips", "tile", "autocast")
    options = [f"{name} {getattr(engine, name, None)}" for name in names]
    if (profile := getattr(reconstructor, "profile", None)) is not None:
        options.append(f"profile {profile.sha256}")
    if isinstance(scan, TemplatedScan):
        options.append(f"voxels {scan.sha256}")
    return Origin(checkpoint or "", ", ".join(options))
