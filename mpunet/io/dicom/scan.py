"""A DICOM series open for reading, slice by slice, as a NIfTI file is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from mpunet.io.dicom.headers import SliceHeader, pydicom
from mpunet.io.dicom.series import Series
from mpunet.io.rplhr import Intensity
from mpunet.io.scan_file import ScanFile
from mpunet.io.volume import VolumeInfo

__all__ = ["DicomScan", "open_series"]

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


class DicomScan(ScanFile):
    """A series; iteration yields its slices (H, W) in HU, in slab orientation.

    Voxels are stored as NIfTI converters store them: columns, rows, slices. Each slice is read when
    it is needed, so that memory does not grow with depth.

    Attributes:
        series: the slices and their headers.
    """

    def __init__(self, series: Series) -> None:
        first, last = series.slices[0], series.slices[-1]
        rows, columns = first.size
        shape = (columns, rows, len(series.slices))
        affine = _affine(first, last, len(series.slices))
        header = nib.Nifti1Header()
        header.set_data_shape(shape)
        header.set_data_dtype(np.int16)
        header.set_zooms(np.linalg.norm(affine[:3, :3], axis=0))
        header.set_xyzt_units("mm")
        header.set_sform(affine, code="scanner")
        header.set_qform(affine, code="scanner", strip_shears=True)
        info = VolumeInfo((len(series.slices), rows, columns), affine, 2, header, series.folder)
        frame = info.frame
        info.shape = (shape[frame.order[0]], shape[frame.order[1]], shape[frame.order[2]])
        self._describe(info, _dtype(series.slices))
        self.series = series
        self.slice_thickness = first.thickness

    @property
    def name(self) -> str:
        """UID of the series, for error messages: names of patients do not appear."""
        return f"series {self.series.uid}"

    def _stored_planes(self) -> Iterator[npt.NDArray[Any]]:
        files: dict[Any, Any] = {}
        for header in self.series.slices:
            try:
                if header.path not in files:  # of a multi-frame file all frames are read at once
                    files = {header.path: _pixels(header)}
                stored = files[header.path]
            except Exception as error:  # a damaged file can raise anything
                reason = " ".join(str(error).split()) or type(error).__name__
                raise ValueError(
                    f"{self.name}: voxels of {header.path.name} cannot be read: {reason}"
                ) from error
            plane = stored if header.frame is None else stored[header.frame]
            if plane.shape != header.size:
                raise ValueError(
                    f"{self.name}: expected {header.size} pixels in {header.path.name}, got "
                    f"{plane.shape}."
                )
            scaled = plane.T * np.float32(header.slope) + np.float32(header.intercept)
            yield np.asarray(scaled, self.dtype)


def open_series(
    series: Series, *, check_hu: bool = True, intensity: Intensity = "auto"
) -> DicomScan:
    """Check all voxels of a series and open it for reading slice by slice.

    Arguments are those of :func:`mpunet.io.scan_file.open_scan`.

    Raises:
        ValueError: if a slice cannot be read or decoded, or intensities cannot be HU.
    """
    scan = DicomScan(series)
    scan._read_through(None, check_hu=check_hu, intensity=intensity)
    return scan


def _affine(first: SliceHeader, last: SliceHeader, depth: int) -> npt.NDArray[np.float64]:
    """Transform from (column, row, slice) to RAS+ in mm; sheared if the gantry was tilted."""
    row, column = np.reshape(first.orientation, (2, 3))
    affine = np.eye(4)
    affine[:3, 0] = row * first.pixel_spacing[1]
    affine[:3, 1] = column * first.pixel_spacing[0]
    affine[:3, 2] = (np.array(last.position) - np.array(first.position)) / (depth - 1)
    affine[:3, 3] = first.position
    affine[:3] = LPS_TO_RAS @ affine[:3]
    return affine


def _dtype(slices: tuple[SliceHeader, ...]) -> np.dtype[Any]:
    """int16 if all slices have whole HU, else float32."""
    whole = all(header.slope == 1 and header.intercept.is_integer() for header in slices)
    return np.dtype(np.int16 if whole else np.float32)


def _pixels(header: SliceHeader) -> npt.NDArray[Any]:
    """Decode the pixels of a file: (rows, columns), or (frames, rows, columns)."""
    dataset = pydicom().dcmread(header.path)
    pixels = np.asarray(dataset.pixel_array)
    unused = int(dataset.BitsAllocated) - int(dataset.HighBit) - 1
    if unused and pixels.dtype.itemsize * 8 == int(dataset.BitsAllocated):
        # Bits above the highest may hold an overlay, or lack the sign.
        pixels = (pixels << unused) >> unused
    frames = int(dataset.get("NumberOfFrames") or 1)
    return pixels[None] if frames == 1 and header.frame is not None else pixels
