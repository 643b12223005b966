"""An entry of the cache: one file with a case's volumes, written once and then memory-mapped.

The format is safetensors (github.com/huggingface/safetensors): a header in JSON, then the arrays, none compressed. It is written here
and not by its library so that volumes pass slice by slice, and mapped here because the library copies what it reads.
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

FORMAT = "2"  # raised when what is stored changes, the masks of lung_mask() among it
_MAX_HEADER = 1 << 16
_TYPES: dict[str, npt.DTypeLike] = {"I16": "<i2", "U8": "u1"}


class CachedCase(NamedTuple):
    """A case ready to be read. Arrays are mapped anew each time they are asked for, so that nothing stays in memory between crops.

    Attributes:
        name: the case's.
        path: the entry's file.
        lung_box: (3, 2), first and one past the last voxel of the lungs along each axis; the whole volume if there are none.
        spacing: (3,), thin grid, in mm.
        layout: data type, shape and offset in bytes of each array in the file.
        lease: keeps the entry from being deleted for as long as the case is held.
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
        """Genuine thick slices (D, H, W), int16 HU, memory-mapped, M = (D - 1) * r + 1; None if they are to be simulated."""
        return self._map("thick") if "thick" in self.layout else None

    @property
    def lung(self) -> PackedMask:
        """The lung mask (M, H, W) on the thin grid, memory-mapped, unpacked where it is indexed."""
        return PackedMask(self._map("lung"), self.layout["thin"][1][2])

    def _map(self, key: str) -> npt.NDArray[Any]:
        dtype, shape, offset = self.layout[key]
        try:
            return np.memmap(self.path, dtype, mode="r", offset=offset, shape=shape)
        except (
            FileNotFoundError,
            ValueError,
        ) as error:  # gone or shortened: deleted by hand, or where leases do not reach
            raise ValueError(
                f"The cache entry {self.path} of {self.name!r} was deleted while in use; start again."
            ) from error


def entry_size(arrays: Mapping[str, npt.NDArray[Any]]) -> int:
    """Bytes that :func:`write_entry` writes at most."""
    return (
        8
        + _MAX_HEADER
        + sum(array.size * _stored_type(array).itemsize for array in arrays.values())
    )


def write_entry(
    path: Path, arrays: Mapping[str, npt.NDArray[Any]], *, key: str, **about: Any
) -> None:
    """Write arrays (D, H, W) slice by slice and flush them to the disk: uint8 as it is, all else as int16 HU.

    Args:
        path: where to; it must not be trusted before this returns.
        key: the entry's name, which says what it was made of.
        about: what else is known, as JSON takes it.
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
    text += b" " * (-len(text) % 8)  # as the format asks
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        os.truncate(
            file.fileno(), 8 + len(text) + end
        )  # others that count the cache's bytes see all of them from now on
        for array in arrays.values():
            for plane in array:
                stored = plane if array.dtype == np.uint8 else round_hu(plane)
                file.write(np.ascontiguousarray(stored, _stored_type(array)).data)
        file.flush()
        os.fsync(
            file.fileno()
        )  # where a network file system tells that it was full; and a power cut leaves no entry of zeros


def open_entry(path: Path, key: str, name: str, lease: Lease | None = None) -> CachedCase | None:
    """The case ``name`` from an entry; None where there is none, or one that is cut short, foreign or of another version."""
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
