"""Write and open cache entries: one file per case, written once and then memory-mapped.

The format is safetensors (github.com/huggingface/safetensors): a JSON header followed by the
uncompressed arrays. The library itself is not used: this module writes volumes slice by slice, and
maps arrays that the library would copy.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mpunet.intensity import round_hu
from mpunet.io.file_lock import Lease
from mpunet.lungs.packed import PackedMask

__all__ = ["FORMAT", "CachedCase", "entry_size", "open_entry", "write_entry"]

FORMAT = "3"  # increase it when stored data change, for example the masks of lung_mask()
_MAX_HEADER = 1 << 16
_TYPES: dict[str, npt.DTypeLike] = {"I16": "<i2", "U8": "u1"}


class CachedCase(NamedTuple):
    """A case in the cache, ready to be read.

    Each access to an array maps it again, so no data stay in memory between crops.

    Attributes:
        name: name of the case.
        path: file of the entry.
        lung_box: (3, 2), first voxel of the lungs and one past the last along each axis; the whole
            volume if the mask is empty.
        spacing: (3,), voxel spacing of the thin grid in mm.
        layout: data type, shape and byte offset of each array in the file.
        lease: prevents deletion of the entry while this object exists.
    """

    name: str
    path: Path
    lung_box: npt.NDArray[np.int64]
    spacing: npt.NDArray[np.float64]
    layout: Mapping[str, tuple[str, tuple[int, ...], int]]
    lease: Lease | None = None

    @property
    def thin(self) -> npt.NDArray[np.int16]:
        """Thin slices (M, H, W), int16 HU, memory-mapped."""
        return self._map("thin")

    @property
    def thick(self) -> npt.NDArray[np.int16] | None:
        """Genuine thick slices (D, H, W), int16 HU, memory-mapped, with M = (D - 1) * r + 1.

        None if thick slices are simulated.
        """
        return self._map("thick") if "thick" in self.layout else None

    @property
    def lung(self) -> PackedMask:
        """Lung mask (M, H, W) on the thin grid, memory-mapped; indexing unpacks only that part."""
        return PackedMask(self._map("lung"), self.layout["thin"][1][2])

    def _map(self, key: str) -> npt.NDArray[Any]:
        dtype, shape, offset = self.layout[key]
        try:
            return np.memmap(self.path, dtype, mode="r", offset=offset, shape=shape)
        except (FileNotFoundError, ValueError) as error:
            # Deleted or truncated, by the user or by a machine that does not see our lease.
            raise ValueError(
                f"The cache entry {self.path} of {self.name!r} was deleted while in use; "
                "start again."
            ) from error


def entry_size(arrays: Mapping[str, npt.NDArray[Any]]) -> int:
    """Return the largest number of bytes that :func:`write_entry` writes for these arrays."""
    return (
        8
        + _MAX_HEADER
        + sum(array.size * _stored_type(array).itemsize for array in arrays.values())
    )


def write_entry(
    path: Path, arrays: Mapping[str, npt.NDArray[Any]], *, key: str, **about: Any
) -> None:
    """Write arrays (D, H, W) slice by slice and flush them to disk.

    Arrays of uint8 are stored unchanged, all others as int16 HU.

    Args:
        path: file to write; it is incomplete until this function returns.
        arrays: arrays by name.
        key: name of the entry, which identifies its content.
        about: metadata that can be stored as JSON.
    """
    header: dict[str, Any] = {
        "__metadata__": {"format": FORMAT, "key": key, "about": json.dumps(about)}
    }
    end = 0
    for name, array in arrays.items():
        dtype = _stored_type(array)
        start, end = end, end + array.size * dtype.itemsize
        code = next(code for code, known in _TYPES.items() if np.dtype(known) == dtype)
        header[name] = {"dtype": code, "shape": array.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format requires this alignment
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        # Extend the file to its full size now, so that other processes that add up the size of the
        # cache count all of it.
        os.truncate(file.fileno(), 8 + len(text) + end)
        for array in arrays.values():
            for plane in array:
                stored = plane if array.dtype == np.uint8 else round_hu(plane)
                file.write(np.ascontiguousarray(stored, _stored_type(array)).data)
        file.flush()
        # A full network file system reports its error here. After a power failure, no entry of
        # zeros is left.
        os.fsync(file.fileno())


def open_entry(path: Path, key: str, name: str, lease: Lease | None = None) -> CachedCase | None:
    """Open an entry as the case ``name``.

    Args:
        path: file of the entry.
        key: name that the entry must have.
        name: name of the case.
        lease: lease that the case keeps.

    Returns:
        The case; None if the file is missing, truncated, of another format version, or not an entry
        with this key.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, _MAX_HEADER)))
            size = os.fstat(file.fileno()).st_size
        about = header.pop("__metadata__")
        if (about["format"], about["key"]) != (FORMAT, key):
            return None
        layout = {}
        end = 0
        for array, entry in header.items():
            dtype, shape, start = _TYPES[entry["dtype"]], tuple(entry["shape"]), end
            end += math.prod(shape) * np.dtype(dtype).itemsize
            if entry["data_offsets"] != [start, end]:
                return None
            layout[array] = (str(dtype), shape, 8 + length + start)
        if size != 8 + length + end or not {"thin", "lung"} <= layout.keys():
            return None
        known = json.loads(about["about"])
        return CachedCase(
            name, path, np.asarray(known["lung_box"]), np.asarray(known["spacing"]), layout, lease
        )
    except (FileNotFoundError, struct.error, ValueError, KeyError, TypeError, AttributeError):
        return None


def _stored_type(array: npt.NDArray[Any]) -> np.dtype[Any]:
    return np.dtype("u1") if array.dtype == np.uint8 else np.dtype("<i2")
