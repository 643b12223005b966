"""A scan on disk whose slices are read when they are needed, whatever its format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from mpunet.io.intensity_range import IntensityRange
from mpunet.io.rplhr import Intensity, reads_as_rplhr, rplhr_to_hu
from mpunet.io.volume import Volume, VolumeInfo

__all__ = ["ScanFile"]


class ScanFile(VolumeInfo, ABC):
    """A scan on disk. Open one with :func:`mpunet.io.scan_file.open_scan`.

    Iteration yields slices (H, W) in HU, in slab orientation. Each slice is a new C-contiguous
    array, which the caller may change. Each iteration opens the file again, so that several
    iterations can run at the same time.

    A format is a derived class with :meth:`stored_planes`.

    Args:
        info: shape and position of the voxels.
        dtype: data type of the slices, int16 or float32.

    Attributes:
        dtype: data type of the slices.
        last_first: order of the slices. False is the order of the slab: slice 0, at the smallest
            world coordinate, comes first. True is from the last slice to the first.
    """

    def __init__(self, info: VolumeInfo, dtype: np.dtype[Any]) -> None:
        super().__init__(info.shape, info.affine, info.slice_axis, info.header, info.path)
        self.slice_thickness = info.slice_thickness
        self.dtype = dtype
        self.last_first = self.slice_axis == 2 and self.frame.flipped[0]
        self._slab: npt.NDArray[Any] | None = None
        self._rplhr = False

    @abstractmethod
    def stored_planes(self) -> Iterator[npt.NDArray[Any]]:
        """Yield planes of the first two stored axes in HU, in the order of the file.

        Raises:
            ValueError: if the voxels cannot be read; one line with the scan's name.
        """

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
        for plane in self.stored_planes():
            hu = rplhr_to_hu(plane) if self._rplhr else plane
            yield np.ascontiguousarray(frame.to_slab(hu[..., None])[0])

    def check(self, *, check_hu: bool = True, intensity: Intensity = "auto") -> None:
        """Check all voxels, so that slices can be read one by one afterwards.

        If each slice is spread over the whole file, its slab is kept in memory.

        Raises:
            ValueError: see :func:`mpunet.io.scan_file.open_scan`.
        """
        slab = None if self.slice_axis == 2 else np.empty(self.shape, self.dtype)
        self._read_through(slab, check_hu=check_hu, intensity=intensity)
        self._slab = slab

    def read(self, *, check_hu: bool = True, intensity: Intensity = "auto") -> Volume:
        """Check and read all voxels; see :func:`mpunet.io.scan_file.read_volume`."""
        slab = np.empty(self.shape, self.dtype)
        self._read_through(slab, check_hu=check_hu, intensity=intensity)
        volume = Volume(slab, self.affine, self.slice_axis, self.header, self.path)
        volume.slice_thickness = self.slice_thickness
        return volume

    def _read_through(
        self, slab: npt.NDArray[Any] | None, *, check_hu: bool, intensity: Intensity
    ) -> None:
        """Check the whole file and determine the scale of its intensities.

        If ``slab`` is given, fill it with the voxels in HU.
        """
        by_place = reads_as_rplhr(self.path, intensity)
        stored = None if slab is None else self.frame.to_stored(slab)
        seen = IntensityRange()
        for index, plane in enumerate(self.stored_planes()):
            seen.add(plane)
            if stored is not None:
                stored[..., index] = plane
        self._rplhr = by_place and seen.unit  # known only after all voxels were read
        if self._rplhr:
            seen = seen.in_hu()
            for plane in () if slab is None else slab:
                plane[:] = rplhr_to_hu(plane)
        seen.check(name=self.name, check_hu=check_hu)
