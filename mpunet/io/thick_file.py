"""Simulate thick slices on disk.

A thin scan is read slice by slice while its thick scan is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from mpunet.geometry import thick_affine
from mpunet.io.scan_file import ScanFile, open_scan
from mpunet.io.thin_file import regridded_header, write_planes
from mpunet.io.volume import VolumeInfo
from mpunet.slices.simulate import profile_weights, thick_slices, thickening_matrix

__all__ = ["simulated_slices", "thick_count", "thick_header", "write_thick"]


def thick_count(depth: int, ratio: int, start: int = 0) -> int:
    """Count the thick slices whose centres are the thin slices ``start``, ``start`` + ratio, ...

    Args:
        depth: number of thin slices.
        ratio: thick spacing / thin spacing, at least 2.
        start: thin slice at the centre of the first thick slice, at least 0.

    Raises:
        ValueError: if there are fewer than two thick slices, or the ratio or start is too small.

    >>> thick_count(36, 5), thick_count(140, 5, start=2)
    (8, 28)
    """
    if ratio < 2 or not start >= 0:
        raise ValueError(
            "Expected a ratio of at least 2 and an offset of at least 0 thin slices, "
            f"got {ratio} and {start}."
        )
    count = (depth - 1 - start) // ratio + 1
    if count < 2:
        raise ValueError(
            f"Expected at least {start + ratio + 1} thin slices to make two thick ones at ratio "
            f"{ratio} from slice {start} on, got {depth}; use a smaller ratio."
        )
    return count


def thick_header(like: VolumeInfo, ratio: int, *, start: int = 0) -> nib.Nifti1Header:
    """Create the int16 header of the thick volume made from the thin volume ``like``.

    It is the header of ``like`` with the thick grid and without scaling.
    """
    count, first = thick_count(like.shape[0], ratio, start), _first_stored(like, ratio, start)
    return regridded_header(
        like, count, lambda affine: thick_affine(affine, like.slice_axis, ratio, first)
    )


def write_thick(
    path: str | Path,
    thin: ScanFile | str | Path,
    ratio: int,
    *,
    weights: npt.NDArray[np.float64] | None = None,
    start: int = 0,
) -> None:
    """Simulate the thick series of a thin series and write it in int16 HU, with its position.

    The file appears only when it is complete.

    Args:
        path: file to write, ``.nii`` or ``.nii.gz``, in an existing folder.
        thin: thin series, or the path of its file.
        ratio: thick spacing / thin spacing.
        weights: weights of the thin slices around the centre of a thick slice, see
            :func:`mpunet.slices.simulate.profile_weights`; by default those of the default profile.
        start: thin slice at the centre of the first thick slice, counted from 0 towards superior
            in an axial series.

    Raises:
        ValueError: if the file cannot be used (:func:`mpunet.io.scan_file.open_scan`) or gives
            fewer than two thick slices.
    """
    scan = thin if isinstance(thin, ScanFile) else open_scan(thin)
    header = thick_header(scan, ratio, start=start)
    slices, _ = simulated_slices(
        scan, ratio, profile_weights(ratio) if weights is None else weights, start
    )
    write_planes(path, slices, scan, header, last_first=scan.last_first)


def simulated_slices(
    thin: ScanFile, ratio: int, weights: npt.NDArray[np.float64], start: int = 0
) -> tuple[Iterator[npt.NDArray[Any]], int]:
    """Simulate thick slices while a thin scan is read, in the scan's order.

    Arguments are those of :func:`write_thick`.

    Returns:
        Thick slices (1, H, W) in HU, and the thin slice at the centre of the one that is stored
        first.
    """
    matrix = thickening_matrix(thin.shape[0], ratio, weights, start=start)
    if thin.last_first:
        matrix = matrix[::-1, ::-1]
    slices = (plane[None] for plane in thick_slices(thin, matrix))
    return slices, _first_stored(thin, ratio, start)


def _first_stored(like: VolumeInfo, ratio: int, start: int) -> int:
    """Return the thin slice at the centre of the thick slice that is stored first.

    It is counted from the thin slice that is stored first.
    """
    if not like.frame.flipped[0]:
        return start
    depth = like.shape[0]
    return depth - 1 - start - (thick_count(depth, ratio, start) - 1) * ratio
