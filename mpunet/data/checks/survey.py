"""Summarise a volume in one pass: the data that checks and registration need.

The summary takes a fraction of the volume's memory.
"""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mpunet.intensity import HU_MAX, HU_MIN
from mpunet.io.volume import Volume

__all__ = ["Survey", "block_means", "survey"]

# Approximate number of block means along height and along width. Averaging reduces the noise of
# soft tissue to a few HU and keeps the anatomy.
BLOCKS = 64
_ZERO = 1 << 15  # histogram index of 0 HU


class Survey(NamedTuple):
    """The summary of a volume.

    Attributes:
        low: smallest intensity.
        high: largest intensity.
        counts: (65536,), number of voxels of each HU from -32768 on, after rounding.
        planes: (D, h, w), means of in-plane blocks in HU clipped to [-1024, 3071]; h and w are
            about 64.
        digests: CRC-32 of the voxels of each slice; the same for identical slices.
        blank: indices of the slices in which all voxels are equal.
    """

    low: float
    high: float
    counts: npt.NDArray[np.int64]
    planes: npt.NDArray[np.float32]
    digests: list[int]
    blank: list[int]

    def share(self, low: float, high: float) -> float:
        """Return the fraction of the voxels with low <= HU <= high."""
        first, last = (int(np.clip(hu, -_ZERO, _ZERO - 1)) + _ZERO for hu in (low, high))
        return float(self.counts[first : last + 1].sum() / self.counts.sum())

    def mode(self, low: float, high: float) -> tuple[int, float]:
        """Return the most frequent HU from low to high, and its fraction of all voxels."""
        first, last = (int(np.clip(hu, -_ZERO, _ZERO - 1)) + _ZERO for hu in (low, high))
        peak = first + int(self.counts[first : last + 1].argmax())
        return peak - _ZERO, float(self.counts[peak] / self.counts.sum())


def survey(volume: Volume) -> Survey:
    """Summarise a volume, reading it once, slice by slice.

    >>> from nibabel import Nifti1Image
    >>> from mpunet.io.volume import volume_from_image
    >>> voxels = np.full((4, 6, 3), -1000, np.int16)
    >>> voxels[1:3, 2:4, 1:] = 40
    >>> seen = survey(volume_from_image(Nifti1Image(voxels, np.diag([0.7, 0.7, 5, 1]))))
    >>> seen.low, seen.high, seen.blank, seen.digests[1] == seen.digests[2]
    (-1000.0, 40.0, [0], True)
    """
    counts = np.zeros(2 * _ZERO, np.int64)
    ranges, planes, digests = [], [], []
    for plane in volume.slab:
        hu = (
            plane
            if plane.dtype == np.int16
            else plane.clip(-_ZERO, _ZERO - 1).round().astype(np.int16)
        )
        counts += np.bincount(hu.view(np.uint16).ravel(), minlength=2 * _ZERO)
        ranges.append((float(plane.min()), float(plane.max())))
        planes.append(block_means(plane))
        digests.append(zlib.crc32(np.ascontiguousarray(plane).data))
    low, high = zip(*ranges, strict=True)
    blank = [index for index, (least, most) in enumerate(ranges) if least == most]
    return Survey(min(low), max(high), np.roll(counts, _ZERO), np.stack(planes), digests, blank)


def block_means(plane: npt.NDArray[Any], blocks: int = BLOCKS) -> npt.NDArray[np.float32]:
    """Return the means of the blocks of a slice (H, W) in HU, clipped to [-1024, 3071].

    Rows and columns at the end that do not fill a block are left out.

    >>> block_means(np.arange(130 * 64).reshape(130, 64).clip(0, 100)).shape
    (65, 64)
    """
    size = [max(1, length // blocks) for length in plane.shape]
    number = [length // block for length, block in zip(plane.shape, size, strict=True)]
    cut = (
        plane[: number[0] * size[0], : number[1] * size[1]].astype(np.float32).clip(HU_MIN, HU_MAX)
    )
    return np.asarray(cut.reshape(number[0], size[0], number[1], size[1]).mean(axis=(1, 3)))
