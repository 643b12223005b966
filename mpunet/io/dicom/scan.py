"""A DICOM series open for reading, slice by slice, as a NIfTI file is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from mpunet.intensity import HU_MAX, HU_MIN
from mpunet.io.base import ScanFile
from mpunet.io.dicom.headers import SliceHeader, one_line, pydicom
from mpunet.io.dicom.series import Series
from mpunet.io.rplhr import Intensity
from mpunet.io.volume import VolumeInfo

__all__ = ["DicomScan", "open_series"]

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
# A slice with more pixels than either is damaged: decoders allocate what its header announces.
PIXELS = 1 << 24  # 4096 x 4096
PIXELS_PER_BYTE = 1000  # of its file


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
        super().__init__(info, _dtype(series.slices))
        self.series = series
        self.slice_thickness = first.thickness

    @property
    def name(self) -> str:
        """UID of the series, for error messages: names of patients do not appear."""
        return f"series {self.series.uid}"

    def stored_planes(self) -> Iterator[npt.NDArray[Any]]:
        """Read and yield the slices in HU (columns, rows), in order along their normal."""
        for path, group in groupby(self.series.slices, key=lambda header: header.path):
            headers = list(group)
            frames = _frames(path, headers)
            for header in headers:
                try:
                    plane, padding = next(frames)
                except Exception as error:  # a damaged file can raise anything
                    raise ValueError(
                        f"{self.name}: voxels of {path.name} cannot be read: {one_line(error)}"
                    ) from error
                if plane.shape != header.size:
                    raise ValueError(
                        f"{self.name}: expected {header.size} pixels in {path.name}, got "
                        f"{plane.shape}."
                    )
                hu = self._hu(plane, header)
                if padding is not None and padding * header.slope + header.intercept > HU_MAX:
                    hu[plane == padding] = HU_MIN  # outside the field of view is air
                yield hu.T

    def _hu(self, plane: npt.NDArray[Any], header: SliceHeader) -> npt.NDArray[Any]:
        with np.errstate(over="ignore", invalid="ignore"):  # not finite: rejected by the caller
            hu = plane * np.float32(header.slope) + np.float32(header.intercept)
        if self.dtype == np.int16:
            hu = hu.clip(-32768, 32767)
        return np.asarray(hu, self.dtype)


def open_series(
    series: Series, *, check_hu: bool = True, intensity: Intensity = "auto"
) -> DicomScan:
    """Check all voxels of a series and open it for reading slice by slice.

    Arguments are those of :func:`mpunet.io.scan_file.open_scan`.

    Raises:
        ValueError: if a slice cannot be read or decoded, or intensities cannot be HU.
    """
    scan = DicomScan(series)
    scan.check(check_hu=check_hu, intensity=intensity)
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


def _frames(
    path: Path, headers: Sequence[SliceHeader]
) -> Iterator[tuple[npt.NDArray[Any], int | None]]:
    """Decode slices of a file one by one: stored values (rows, columns), PixelPaddingValue."""
    size, length = headers[0].size, path.stat().st_size
    if math.prod(size) > max(PIXELS, PIXELS_PER_BYTE * length):
        raise ValueError(f"{length} bytes cannot hold {size[0]} x {size[1]} pixels")
    dicom, single = pydicom(), headers[0].frame is None
    # Frames of a file may be many: they are looked for, up to the end of the last, but not kept.
    dataset = dicom.dcmread(path, defer_size=None if single else 1 << 16)
    syntax = dataset.file_meta.TransferSyntaxUID
    if not dicom.pixels.get_decoder(syntax).is_available:
        raise ValueError(f"{syntax.name} needs a decoder: pip install 'mpunet[dicom]'")
    if "PixelData" not in dataset:  # pydicom leaves it out if its end is missing
        raise ValueError("no PixelData, damaged or cut short")
    if single and int(dataset.get("NumberOfFrames") or 1) != 1:
        raise ValueError("several frames without positions")
    unused = dataset.BitsAllocated - dataset.BitsStored
    if dataset.HighBit != dataset.BitsStored - 1:  # PS3.5, section 8.1.1
        raise ValueError(f"expected {dataset.BitsStored - 1} as HighBit, got {dataset.HighBit}")
    padding = dataset.get("PixelPaddingValue")
    if padding is not None and not dataset.PixelRepresentation:
        padding %= 1 << dataset.BitsAllocated  # may be written as a signed number
    source: Any = dataset
    if not single:  # pydicom reads frames one by one from a file whose encoding is what it says
        plain = not syntax.is_deflated and dataset.original_encoding[0] == syntax.is_implicit_VR
        source = path if plain else dicom.dcmread(path)
    for pixels in dicom.pixels.iter_pixels(source, indices=[item.frame or 0 for item in headers]):
        if unused and pixels.dtype.itemsize * 8 == dataset.BitsAllocated:
            # Bits above the highest may hold an overlay, or lack the sign.
            pixels = (pixels << unused) >> unused
        yield pixels, padding
