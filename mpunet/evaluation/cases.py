"""Match predictions with references, and check that both show the same slices."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mpunet.data.case import Case
from mpunet.data.layouts import files_by_name, find_cases, is_one_scan
from mpunet.io.volume import VolumeInfo

__all__ = ["ERROR_SUFFIX", "Matched", "common_slices", "is_error_map", "match_cases", "misplaced"]

MAX_SHIFT = 3  # slices
CLEARLY = 0.9  # a position fits clearly better if it reduces the error to less than this share
COARSE = 64  # voxels along each axis in plane
ERROR_SUFFIX = "_error"  # of the error maps that predict writes beside its results


class Matched(NamedTuple):
    """Predictions matched with references.

    Attributes:
        pairs: (reference case, file of its prediction), sorted by name.
        missing: names of references without a prediction.
        extra: names of predictions without a reference.
    """

    pairs: list[tuple[Case, Path]]
    missing: list[str]
    extra: list[str]


def match_cases(predictions: str | Path, references: str | Path) -> Matched:
    """Match the predictions in a folder with the references in another folder by name.

    The name of a file is its path relative to its folder without ``.nii`` or ``.nii.gz``. If both
    arguments are single scans, they are matched whatever their names are.

    Args:
        predictions: folder of thin volumes, or a single NIfTI file or DICOM series.
        references: folder of thin volumes, or a single scan, or a folder with the subfolders
            ``thin`` and optionally ``thick`` and ``lung``, as for training.

    Raises:
        ValueError: if a folder contains no volume, or no name occurs in both.
    """
    cases = {case.name: case for case in find_cases(references)}
    files = files_by_name(predictions)
    thin = [case.thin for case in cases.values()]
    if is_one_scan(predictions, files.values()) and is_one_scan(references, thin):
        return Matched([(next(iter(cases.values())), next(iter(files.values())))], [], [])
    names = [name for name in cases if name in files]
    if not names:
        raise ValueError(
            f"No file in {predictions} has the same name as a file in {references}: predictions "
            f"include {next(iter(files))!r}, references include {next(iter(cases))!r}. "
            "Predictions are matched with references by name."
        )
    pairs = [(cases[name], files[name]) for name in names]
    return Matched(
        pairs,
        [name for name in cases if name not in files],
        [name for name in files if name not in cases and not is_error_map(name, files)],
    )


def is_error_map(name: str, files: Collection[str]) -> bool:
    """Return whether a name is that of the error map of another of ``files``.

    >>> is_error_map("a_error", ["a", "a_error"]), is_error_map("a_error", ["a_error"])
    (True, False)
    """
    return name.endswith(ERROR_SUFFIX) and name.removesuffix(ERROR_SUFFIX) in files


def common_slices(prediction: VolumeInfo, reference: VolumeInfo) -> tuple[slice, slice]:
    """Return the slices of a prediction and of its reference that are at the same positions.

    A prediction may cover less or more than the reference. Voxels may differ in position by at most
    a tenth of a voxel.

    Returns:
        Slices of the prediction, and the corresponding slices of the reference.

    Raises:
        ValueError: if the grids differ in plane, in direction or in spacing, if the prediction is
            shifted by a fraction of a slice, or if no slice is common.
    """
    a, b = prediction.slab_affine, reference.slab_affine
    if prediction.shape[1:] != reference.shape[1:]:
        raise ValueError(
            f"{_size(prediction)} voxels against the reference's {_size(reference)}: "
            "another field of view or size"
        )
    per_voxel = np.linalg.solve(b[:3, :3], a[:3, :3])
    offset = np.linalg.solve(b[:3, :3], a[:3, 3] - b[:3, 3])
    drift = np.abs(per_voxel - np.eye(3)) @ np.subtract(prediction.shape, 1)
    if drift.max() > 0.1:
        ours, theirs = (
            " x ".join(f"{mm:.4g}" for mm in volume.spacing) for volume in (prediction, reference)
        )
        same = " in other directions" if ours == theirs else ""
        raise ValueError(
            f"voxels of {ours} mm against the reference's {theirs} mm{same}: another grid"
        )
    start = round(offset[0])
    if np.abs(offset - (start, 0, 0)).max() > 0.1:
        mm = ", ".join(f"{value:.2f}" for value in np.abs(a[:3, 3] - b[:3, 3]))
        raise ValueError(
            f"its first voxel is ({mm}) mm from the reference's in x, y, z, "
            "which is not a whole number of slices"
        )
    first, last = max(0, start), min(reference.shape[0], start + prediction.shape[0])
    if last <= first:
        raise ValueError("it has no slice in common with the reference")
    return slice(first - start, last - start), slice(first, last)


def misplaced(prediction: npt.NDArray[Any], reference: npt.NDArray[Any]) -> str | None:
    """Check whether a prediction fits its reference clearly better when shifted or flipped.

    The header of a file can be correct although its voxels are in the wrong order. Its metrics are
    then meaningless. Shifts of up to 3 slices and flips along each axis are compared by the mean
    absolute difference of about 64 x 64 voxels of each slice. "Clearly better" means that this
    difference is lower by more than a tenth (our choice).

    Args:
        prediction: (D, H, W) in HU.
        reference: (D, H, W) in HU.

    Returns:
        The shift or flip in words, or None if the prediction is at its place.

    >>> ramp = np.arange(20, dtype=np.float32)[:, None, None] ** 2 * np.ones((1, 4, 4), np.float32)
    >>> misplaced(ramp[2:], ramp[:-2])
    'shifted by 2 slices'
    """
    step = [max(1, size // COARSE) for size in reference.shape[1:]]
    a, b = (np.asarray(v[:, :: step[0], :: step[1]], np.float32) for v in (prediction, reference))

    def difference(x: npt.NDArray[np.float32], y: npt.NDArray[np.float32]) -> float:
        return float(np.abs(x - y).mean())

    # Compare slice k of the prediction with slice k + shift of the reference, for the same slices k
    # at every shift.
    reach = min(MAX_SHIFT, (len(a) - 1) // 2)
    inner = a[reach : len(a) - reach]
    errors = {
        shift: difference(inner, b[reach + shift : len(b) - reach + shift])
        for shift in range(-reach, reach + 1)
    }
    best = min(errors, key=lambda shift: errors[shift])
    turned = {
        name: difference(np.flip(a, axis), b)
        for axis, name in enumerate(("upside down", "front to back", "left to right"))
    }
    closest = min(turned, key=lambda name: turned[name])
    if turned[closest] < CLEARLY * difference(a, b):
        return f"turned {closest}"
    if errors[best] < CLEARLY * errors[0]:
        return f"shifted by {best} slice{'s' if abs(best) > 1 else ''}"
    return None


def _size(volume: VolumeInfo) -> str:
    return " x ".join(map(str, volume.shape))
