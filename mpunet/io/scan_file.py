"""Read scans from disk in HU, slice by slice or whole as a slab.

Reading slice by slice needs an amount of memory that does not grow with depth.
"""

from __future__ import annotations

import math
import stat
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import numpy.typing as npt
from isal import igzip
from nibabel.volumeutils import apply_read_scaling

from mpunet.io.intensity_range import IntensityRange
from mpunet.io.rplhr import Intensity, reads_as_rplhr, rplhr_to_hu
from mpunet.io.volume import (
    Volume,
    VolumeInfo,
    nifti_suffix,
    one_line_errors,
    slab_dtype,
    volume_info,
)

__all__ = ["ScanFile", "open_scan", "read_info", "read_volume"]

# DEFLATE compresses at most 258 bytes into 2 bits: https://zlib.net/zlib_tech.html. A file smaller
# than that cannot contain the voxels that its header announces.
_MAX_COMPRESSION = 1032


class ScanFile(VolumeInfo):
    """A scan checked by :func:`open_scan`.

    Iteration yields slices (H, W) in HU, in slab orientation. Each slice is a new C-contiguous
    array, which the caller may change. Each iteration opens the file again, so that several
    iterations can run at the same time.

    Attributes:
        dtype: data type of the slices, int16 or float32.
        last_first: order of the slices. False is the order of the slab: slice 0, at the smallest
            world coordinate, comes first. True is from the last slice to the first.
    """

    def __init__(self, info: VolumeInfo, proxy: Any) -> None:
        scaled = (proxy.slope, proxy.inter) != (1, 0)
        self._describe(info, np.dtype(np.float32) if scaled else slab_dtype(proxy.dtype))
        self._proxy = proxy  # nibabel's: position, type and scaling of the voxels in the file

    def _describe(self, info: VolumeInfo, dtype: np.dtype[Any]) -> None:
        super().__init__(info.shape, info.affine, info.slice_axis, info.header, info.path)
        self.dtype = dtype
        self.last_first = self.slice_axis == 2 and self.frame.flipped[0]
        self._slab: npt.NDArray[Any] | None = None
        self._rplhr = False

    def __len__(self) -> int:
        """Number of slices."""
        return self.shape[0]

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        """Read and yield the slices one by one."""
        if self._slab is not None:
            for plane in self._slab:
                yield plane.copy()
            return
        frame = self.frame
        for plane in self._stored_planes():
            yield np.ascontiguousarray(frame.to_slab(plane[..., None])[0])

    def _read_through(
        self, slab: npt.NDArray[Any] | None, *, check_hu: bool, intensity: Intensity
    ) -> None:
        """Check the whole file and determine the scale of its intensities.

        If ``slab`` is given, fill it with the voxels in HU.
        """
        by_place = reads_as_rplhr(self.path, intensity)
        stored = None if slab is None else self.frame.to_stored(slab)
        seen = IntensityRange()
        for index, plane in enumerate(self._stored_planes()):
            seen.add(plane)
            if stored is not None:
                stored[..., index] = plane
        self._rplhr = by_place and seen.unit  # known only after all voxels were read
        if self._rplhr:
            seen = seen.in_hu()
            for plane in () if slab is None else slab:
                plane[:] = rplhr_to_hu(plane)
        seen.check(name=self.name, check_hu=check_hu)

    def _stored_planes(self) -> Iterator[npt.NDArray[Any]]:
        """Yield planes of the first two stored axes in HU, in the order of the file.

        Read to the end of the file, so that its checksum is verified.
        """
        first, second, third = self.stored_shape
        with (
            one_line_errors(self.name, "voxels cannot be read"),
            _open(Path(self._proxy.file_like)) as file,
        ):
            file.seek(self._proxy.offset)
            for _ in range(third):
                plane = np.empty((second, first), self._proxy.dtype)
                got = file.readinto(plane.reshape(-1).view(np.uint8).data)
                if got < plane.nbytes:
                    raise EOFError(f"expected {plane.nbytes} bytes of a slice, got {got}")
                yield self._in_hu(plane.T)
            while file.read(1 << 16):
                pass

    def _in_hu(self, plane: npt.NDArray[Any]) -> npt.NDArray[Any]:
        # Values beyond the range of float32 become infinite, and infinite values are rejected.
        with np.errstate(over="ignore"):
            scaled = np.asarray(
                apply_read_scaling(plane, self._proxy.slope, self._proxy.inter), self.dtype
            )
        return rplhr_to_hu(scaled) if self._rplhr else scaled


def open_scan(
    path: str | Path,
    *,
    slice_axis: int | None = None,
    check_hu: bool = True,
    intensity: Intensity = "auto",
) -> ScanFile:
    """Check all of a NIfTI file (``.nii``, ``.nii.gz``) and open it for reading slice by slice.

    If the slice axis is the last stored one, as in nearly all axial scans, this needs memory for a
    few slices only. In other files each slice is spread over the whole file; their slab is read
    into memory and kept.

    Args:
        path: NIfTI file.
        slice_axis: stored axis (0, 1 or 2) along which slices are stacked; by default the axis that
            :func:`mpunet.geometry.find_slice_axis` finds.
        check_hu: reject intensities that cannot be HU, see
            :func:`mpunet.io.intensity_range.check_voxels`.
        intensity: scale of intensities that all lie in [0, 1]. "auto" (default) converts them to HU
            if the file is in the folder layout of the benchmark RPLHR-CT (see
            :mod:`mpunet.io.rplhr`), and rejects them otherwise. "rplhr" converts them to HU in any
            folder.

    Raises:
        ValueError: if the file cannot be read or does not contain one 3D volume in HU. The message
            is one line with the file's name. A later iteration raises it too if the file has
            changed.
    """
    scan = _read_header(Path(path), slice_axis)
    slab = None if scan.slice_axis == 2 else np.empty(scan.shape, scan.dtype)
    scan._read_through(slab, check_hu=check_hu, intensity=intensity)
    scan._slab = slab
    return scan


def read_volume(
    path: str | Path,
    *,
    slice_axis: int | None = None,
    check_hu: bool = True,
    intensity: Intensity = "auto",
) -> Volume:
    """Read a NIfTI file as a slab in HU.

    Arguments and errors are those of :func:`open_scan`.
    """
    scan = _read_header(Path(path), slice_axis)
    slab = np.empty(scan.shape, scan.dtype)
    scan._read_through(slab, check_hu=check_hu, intensity=intensity)
    return Volume(slab, scan.affine, scan.slice_axis, scan.header, scan.path)


def read_info(path: str | Path, *, slice_axis: int | None = None) -> VolumeInfo:
    """Read shape and affine from the header of a NIfTI file, but no voxels; takes 1 to 2 ms.

    Errors are those of :func:`open_scan`.
    """
    scan = _read_header(Path(path), slice_axis)
    return VolumeInfo(scan.shape, scan.affine, scan.slice_axis, scan.header, scan.path)


def _read_header(path: Path, slice_axis: int | None) -> ScanFile:
    rule = "not a NIfTI file"
    with one_line_errors(path.name, rule):
        status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait forever
        raise ValueError(f"{path.name}: {rule} but a folder or device.")
    if nifti_suffix(path) is None:
        raise ValueError(
            f"{path.name}: expected a file name ending in .nii or .nii.gz; "
            "convert it with nibabel.load and nibabel.save."
        )
    with one_line_errors(path.name, rule):
        # Without this, nibabel reports an unknown format for a file without read permission.
        path.open("rb").close()
        image = nib.load(path, mmap=False)
    info = volume_info(image, slice_axis=slice_axis, path=path)
    # A wrong header must not cause a large allocation, or hours of reading, before the file turns
    # out to be too short.
    proxy = image.dataobj
    expected = proxy.offset + math.prod(info.shape) * proxy.dtype.itemsize
    compressed = path.suffix.lower() == ".gz"
    if expected > status.st_size * (_MAX_COMPRESSION if compressed else 1):
        got = f"{status.st_size} compressed" if compressed else f"{status.st_size}"
        raise ValueError(
            f"{path.name}: voxels cannot be read, damaged or cut short: "
            f"expected {expected} bytes, got {got}."
        )
    return ScanFile(info, proxy)


def _open(path: Path) -> BufferedIOBase:
    # igzip needs half the time of gzip.
    return (
        cast(BufferedIOBase, igzip.open(path)) if path.suffix.lower() == ".gz" else path.open("rb")
    )
