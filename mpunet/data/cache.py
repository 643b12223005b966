"""Each case once as int16 on disk, memory-mapped: a random crop then costs its own bytes, not the decompression of a scan.

An entry is a folder named after the case and a hash of its files (path, size, time of change) and settings. It is built under a
temporary name and renamed when whole, so that an entry that exists is complete, whoever else builds it at the same time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mpunet.data.lung_mask import lung_mask
from mpunet.data.pairs import Case, align_pair
from mpunet.data.scan_file import read_volume
from mpunet.geometry import grid_spacing, thin_depth
from mpunet.intensity import round_hu

__all__ = ["CachedCase", "cache_case", "default_cache_dir", "open_case"]

FORMAT = 1


class CachedCase(NamedTuple):
    """A case ready to be read; arrays are memory-mapped slabs (depth, height, width).

    Attributes:
        thin: int16 HU.
        lung: bool, the lung mask on the thin grid.
        thick: int16 HU, with (D - 1) * r + 1 thin slices; None if thick slices are to be simulated.
        lung_box: (3, 2), first and one past the last voxel of the lungs along each axis; the whole volume if there are none.
        spacing: (3,), thin grid, in mm.
    """

    name: str
    thin: npt.NDArray[np.int16]
    lung: npt.NDArray[np.bool_]
    thick: npt.NDArray[np.int16] | None
    lung_box: npt.NDArray[np.int64]
    spacing: npt.NDArray[np.float64]


def default_cache_dir() -> Path:
    """``$MPUNET_CACHE``, else ``mpunet`` below ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if own := os.environ.get("MPUNET_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mpunet"


def cache_case(case: Case, cache_dir: Path, *, ratio: int, slice_axis: int | None = None) -> Path:
    """Folder of the case's cache entry, built if it does not exist.

    Raises:
        ValueError: if a file cannot be used or the case's volumes do not match; see ``read_volume`` and ``align_pair``.
    """
    entry = cache_dir / f"{case.name.replace('/', '_')}-{_key(case, ratio, slice_axis)}"
    if entry.is_dir():
        return entry
    cache_dir.mkdir(parents=True, exist_ok=True)
    partial = cache_dir / f".partial-{uuid.uuid4().hex}"
    partial.mkdir()
    try:
        _build(case, partial, ratio, slice_axis)
        try:
            partial.rename(entry)
        except OSError:
            if not entry.is_dir():  # else another process was faster, and its entry is as good
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return entry


def open_case(entry: Path, name: str) -> CachedCase:
    """Open an entry that :func:`cache_case` built."""
    meta = json.loads((entry / "meta.json").read_text())
    thick = entry / "thick.npy"
    return CachedCase(
        name,
        np.load(entry / "thin.npy", mmap_mode="r"),
        np.load(entry / "lung.npy", mmap_mode="r"),
        np.load(thick, mmap_mode="r") if thick.exists() else None,
        np.asarray(meta["lung_box"]),
        np.asarray(meta["spacing"]),
    )


def _build(case: Case, folder: Path, ratio: int, slice_axis: int | None) -> None:
    thin = read_volume(case.thin, slice_axis=slice_axis)
    if len(thin.slab) < (needed := thin_depth(2, ratio)):
        raise ValueError(f"Expected at least {needed} thin slices at ratio {ratio}, got {len(thin.slab)} in {case.thin}.")
    spacing = grid_spacing(thin.slab_affine)
    if case.lung is None:
        lung = lung_mask(thin.slab, spacing)
    else:
        mask = read_volume(case.lung, slice_axis=thin.slice_axis, check_hu=False)
        if mask.slab.shape != thin.slab.shape or not np.allclose(mask.affine, thin.affine, atol=0.05):
            raise ValueError(
                f"The lung mask {case.lung} of shape {mask.slab.shape} is not on the grid of {case.thin}, {thin.slab.shape}, "
                "or has another affine; resample it (nearest neighbour) onto the thin volume."
            )
        lung = mask.slab > 0
    used = slice(None)
    if case.thick is not None:
        thick = read_volume(case.thick, slice_axis=slice_axis)
        thick_used, used = align_pair(thick, thin, ratio)
        np.save(folder / "thick.npy", round_hu(thick.slab[thick_used]))
    lung = lung[used]
    np.save(folder / "thin.npy", round_hu(thin.slab[used]))
    np.save(folder / "lung.npy", lung)
    box = [_extent(np.asarray(lung.any(axis=tuple({0, 1, 2} - {axis})))) for axis in range(3)]
    (folder / "meta.json").write_text(json.dumps({"name": case.name, "lung_box": box, "spacing": spacing.tolist()}))


def _extent(flags: npt.NDArray[np.bool_]) -> tuple[int, int]:
    found = np.flatnonzero(flags)
    return (int(found[0]), int(found[-1]) + 1) if len(found) else (0, len(flags))


def _key(case: Case, ratio: int, slice_axis: int | None) -> str:
    files: list[Any] = []
    for path in (case.thin, case.thick, case.lung):
        if path is not None:
            status = path.stat()
            files.append([str(path.resolve()), status.st_size, status.st_mtime_ns])
        else:
            files.append(None)
    # A thin volume alone is stored whole, whatever the ratio.
    settings = [FORMAT, files, ratio if case.thick is not None else None, slice_axis]
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
