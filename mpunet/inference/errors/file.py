"""The error map of a result, written beside it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypedDict

import numpy as np
import numpy.typing as npt

from mpunet.inference.thin_slices import ThinSlices
from mpunet.intensity import HU_MAX, round_hu
from mpunet.io.dicom.scan import DicomScan
from mpunet.io.dicom.writer import Origin, write_series
from mpunet.io.thin_file import Dtype, write_slices
from mpunet.io.volume import VolumeInfo, without_nifti_suffix

__all__ = ["LUNG_HU", "ErrorFile", "ErrorRecord", "error_path", "with_error_map"]

LUNG_HU = (-950.0, -500.0)
"""Voxels of the result that count as lung in the manifest; our choice, as no mask is computed."""


class ErrorRecord(TypedDict):
    """Summary of an error map, in HU.

    Attributes:
        mean: mean over the volume.
        p95: 95th percentile over the volume.
        lung_mean: mean over the voxels of -950 to -500 HU in the result; null if there are none.
        lung_p95: 95th percentile over the same voxels.
    """

    mean: float
    p95: float
    lung_mean: float | None
    lung_p95: float | None


def error_path(result: Path, *, as_dicom: bool = False) -> Path:
    """Return the path of the error map of a result: a NIfTI file, or the folder of a DICOM series.

    >>> error_path(Path("thin/a.nii")).as_posix()
    'thin/a_error.nii.gz'
    >>> error_path(Path("thin/a"), as_dicom=True).as_posix()
    'thin/a_error'
    """
    if as_dicom:
        return result.with_name(f"{result.name}_error")
    return result.with_name(f"{without_nifti_suffix(result.name)}_error.nii.gz")


class ErrorFile:
    """Writes the error map of a result while the result is written.

    The estimates wait in an unnamed temporary file until the result has all its slices: then the
    map is written, and only then the result gets its name. So there is no result without its map.

    Args:
        slices: the thin slices, with error estimates.
        result: path of the result.
        like: the thick scan.
        origin: what made the result; the map is then a DICOM series, as its result is. Default: a
            NIfTI file.
    """

    def __init__(
        self, slices: ThinSlices, result: Path, like: VolumeInfo, *, origin: Origin | None = None
    ) -> None:
        self.path = error_path(result, as_dicom=origin is not None)
        self._slices = slices
        self._origin = origin
        self._like = like
        self._written = False
        # Voxels by HU of the estimate: all, and those of the lung's density.
        self._counts = np.zeros((2, int(HU_MAX) + 1), np.int64)

    def images(self, dtype: Dtype) -> Iterator[npt.NDArray[Any]]:
        """Yield the chunks of the slices, see :meth:`ThinSlices.chunks`, and write their errors."""
        with tempfile.TemporaryFile(dir=self.path.parent) as waiting:
            sizes = []
            for image, error in self._slices.chunks_with_error(dtype):
                rounded = error if error.dtype == np.int16 else round_hu(error)
                self._count(rounded, image)
                waiting.write(np.ascontiguousarray(rounded).data)
                sizes.append(len(rounded))
                yield image
            waiting.seek(0)
            plane = self._like.shape[1:]
            chunks = (_read(waiting, (size, *plane)) for size in sizes)
            self._write(chunks)
            self._written = True

    def _write(self, chunks: Iterator[npt.NDArray[np.int16]]) -> None:
        like, ratio, order = self._like, self._slices.ratio, self._slices.last_first
        if (origin := self._origin) is None:
            write_slices(self.path, chunks, like, ratio, last_first=order)
        else:
            assert isinstance(like, DicomScan)
            write_series(
                self.path, chunks, like, ratio, origin=origin, last_first=order, errors=True
            )

    def discard(self) -> None:
        """Remove the map of a result that could not be written, not that of an earlier result."""
        if not self._written:
            return
        if self._origin is None:
            self.path.unlink(missing_ok=True)
        else:
            shutil.rmtree(self.path, ignore_errors=True)

    def record(self) -> ErrorRecord:
        """Return the summary of all errors so far."""
        (mean, p95), (lung_mean, lung_p95) = map(_summary, self._counts)
        assert mean is not None
        assert p95 is not None
        return ErrorRecord(mean=mean, p95=p95, lung_mean=lung_mean, lung_p95=lung_p95)

    def _count(self, error: npt.NDArray[np.int16], image: npt.NDArray[Any]) -> None:
        lung = (image >= LUNG_HU[0]) & (image <= LUNG_HU[1])
        for counts, values in zip(self._counts, (error.ravel(), error[lung]), strict=True):
            counts += np.bincount(values, minlength=len(counts))


@contextmanager
def with_error_map(
    slices: ThinSlices, result: Path, like: VolumeInfo, dtype: Dtype, origin: Origin | None = None
) -> Iterator[tuple[Iterator[npt.NDArray[Any]], ErrorFile | None]]:
    """Yield the chunks of thin slices; if these have error estimates, also their file.

    The map is written while the chunks are read, and removed if the block fails. Arguments are
    those of :class:`ErrorFile` and of :meth:`ThinSlices.chunks`.
    """
    if not slices.estimated:
        yield slices.chunks(dtype), None
        return
    file = ErrorFile(slices, result, like, origin=origin)
    try:
        yield file.images(dtype), file
    except BaseException:
        file.discard()
        raise


def _read(file: IO[bytes], shape: tuple[int, ...]) -> npt.NDArray[np.int16]:
    return np.frombuffer(file.read(2 * int(np.prod(shape))), np.int16).reshape(shape)


def _summary(counts: npt.NDArray[np.int64]) -> tuple[float, float] | tuple[None, None]:
    total = int(counts.sum())
    if not total:
        return None, None
    mean = float(counts @ np.arange(len(counts))) / total
    return round(mean, 2), float(np.searchsorted(np.cumsum(counts), 0.95 * total))
