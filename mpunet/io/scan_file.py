"""Scans on disk: read slice by slice in HU, with memory that does not grow with depth, or whole as a slab."""

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

from mpunet.io.rplhr import Intensity, reads_as_rplhr, rplhr_to_hu
from mpunet.io.volume import (
    IntensityRange,
    Volume,
    VolumeInfo,
    nifti_suffix,
    one_line_errors,
    slab_dtype,
    volume_info,
)

__all__ = ["ScanFile", "open_scan", "read_info", "read_volume"]

# DEFLATE packs at most 258 bytes into 2 bits: https://zlib.net/zlib_tech.html. A smaller file breaks its header's promise.
_MAX_COMPRESSION = 1032


class ScanFile(VolumeInfo):
    """A scan that :func:`open_scan` has checked, iterated over as slices (H, W) in HU, in slab orientation.

    Slices are C-contiguous and belong to the caller. Each iteration opens the file anew, so that several may go on at once.

    Attributes:
        dtype: of the slices, int16 or float32.
        last_first: the order in which slices come. False is the slab's, slice 0 at the smallest world coordinate first; True is
            from the last to the first.
    """

    def __init__(self, info: VolumeInfo, proxy: Any) -> None:
        super().__init__(info.shape, info.affine, info.slice_axis, info.header, info.path)
        scaled = (proxy.slope, proxy.inter) != (1, 0)
        self.dtype = np.dtype(np.float32) if scaled else slab_dtype(proxy.dtype)
        self.last_first = self.slice_axis == 2 and self.frame.flipped[0]
        self._proxy = proxy  # where nibabel found the voxels in the file
        self._slab: npt.NDArray[Any] | None = None
        self._rplhr = False

    def __len__(self) -> int:
        """Number of slices."""
        return self.shape[0]

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        """Slices one by one, read when asked for."""
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
        """Check the file to its end, find out what its intensities stand for, and fill ``slab``, if there is one to fill."""
        by_place = reads_as_rplhr(self.path, intensity)
        stored = None if slab is None else self.frame.to_stored(slab)
        seen = IntensityRange()
        for index, plane in enumerate(self._stored_planes()):
            seen.add(plane)
            if stored is not None:
                stored[..., index] = plane
        self._rplhr = by_place and seen.unit  # known only now that all voxels were seen
        if self._rplhr:
            seen = seen.in_hu()
            for plane in () if slab is None else slab:
                plane[:] = rplhr_to_hu(plane)
        seen.check(name=self.name, check_hu=check_hu)

    def _stored_planes(self) -> Iterator[npt.NDArray[Any]]:
        """Planes of the first two stored axes in HU, in the file's order; reads on to the end for the checksum."""
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
        with np.errstate(
            over="ignore"
        ):  # what float32 cannot hold is infinite, and refused as such
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
    """Check a NIfTI file (``.nii``, ``.nii.gz``) from end to end, to read its slices afterwards.

    Takes the memory of a few slices where the slice axis is the last stored one, as in nearly all axial scans. The slices of other
    files lie all over them, so their slab is held in memory from here on.

    Args:
        path: the file.
        slice_axis: stored axis along which slices are stacked; by default :func:`mpunet.geometry.find_slice_axis` tells.
        check_hu: refuse intensities that cannot be HU, see :func:`mpunet.io.volume.check_voxels`.
        intensity: what intensities that lie within [0, 1] are. "auto": RPLHR-CT's, and turned into HU, if the file lies in that
            benchmark's layout, see :mod:`mpunet.io.rplhr`; refused elsewhere. "rplhr": RPLHR-CT's wherever the file lies.

    Raises:
        ValueError: in one line with the file's name, if it cannot be read or does not hold one 3D volume of HU. Later iterations
            raise it too, should the file have changed.
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
    """Read a NIfTI file as a slab in HU; arguments and errors as for :func:`open_scan`."""
    scan = _read_header(Path(path), slice_axis)
    slab = np.empty(scan.shape, scan.dtype)
    scan._read_through(slab, check_hu=check_hu, intensity=intensity)
    return Volume(slab, scan.affine, scan.slice_axis, scan.header, scan.path)


def read_info(path: str | Path, *, slice_axis: int | None = None) -> VolumeInfo:
    """What a NIfTI file's header tells, in a millisecond or two: shape and affine, but no voxel. Errors of :func:`open_scan`."""
    scan = _read_header(Path(path), slice_axis)
    return VolumeInfo(scan.shape, scan.affine, scan.slice_axis, scan.header, scan.path)


def _read_header(path: Path, slice_axis: int | None) -> ScanFile:
    rule = "not a NIfTI file"
    with one_line_errors(path.name, rule):
        status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise ValueError(f"{path.name}: {rule} but a folder or device.")
    if nifti_suffix(path) is None:
        raise ValueError(
            f"{path.name}: expected a file name ending in .nii or .nii.gz; nibabel.load and nibabel.save convert."
        )
    with one_line_errors(path.name, rule):
        path.open(
            "rb"
        ).close()  # nibabel takes a file that it may not read for one of unknown format
        image = nib.load(path, mmap=False)
    info = volume_info(image, slice_axis=slice_axis, path=path)
    # A header that lies must not make us allocate, or read for hours, before the file turns out to be short.
    proxy = image.dataobj
    promised = proxy.offset + math.prod(info.shape) * proxy.dtype.itemsize
    packed = path.suffix.lower() == ".gz"
    if promised > status.st_size * (_MAX_COMPRESSION if packed else 1):
        got = f"{status.st_size} compressed" if packed else f"{status.st_size}"
        raise ValueError(
            f"{path.name}: voxels cannot be read, damaged or cut short: expected {promised} bytes, got {got}."
        )
    return ScanFile(info, proxy)


def _open(path: Path) -> BufferedIOBase:
    # igzip takes half the time of gzip.
    return (
        cast(BufferedIOBase, igzip.open(path)) if path.suffix.lower() == ".gz" else path.open("rb")
    )
