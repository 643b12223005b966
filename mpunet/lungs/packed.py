"""Masks packed into bits: eight voxels of a row per byte; only the requested bytes are read."""

from __future__ import annotations

from types import EllipsisType
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["PackedMask"]

Index = int | np.integer[Any] | slice | npt.NDArray[np.intp]


class PackedMask:
    """A boolean volume (D, H, W) packed into bits along the width, with the indexing of an array.

    The first axis supports every index that NumPy supports. The second and the third axis support
    integers and slices of step 1, which is enough for crops.

    Args:
        bits: (D, H, ceil(W / 8)), uint8 as returned by ``np.packbits``; may be memory-mapped.
        width: W, the width of the volume in voxels.

    >>> mask = PackedMask.pack(np.eye(11, dtype=bool)[None])
    >>> mask.bits.shape, mask[:, 8:10, 7:11].astype(int).tolist()
    ((1, 11, 2), [[[0, 1, 0, 0], [0, 0, 1, 0]]])
    """

    dtype: np.dtype[np.bool_] = np.dtype(np.bool_)
    ndim = 3

    def __init__(self, bits: npt.NDArray[np.uint8], width: int) -> None:
        if bits.ndim != 3 or bits.shape[2] != -(-width // 8):
            raise ValueError(
                f"Expected bits (D, H, {-(-width // 8)}) of a mask {width} voxels wide, "
                f"got shape {bits.shape}."
            )
        self.bits = bits
        self.shape = (bits.shape[0], bits.shape[1], width)

    @classmethod
    def pack(cls, mask: npt.NDArray[np.bool_]) -> PackedMask:
        """Pack a mask (D, H, W)."""
        return cls(np.packbits(mask, axis=2), mask.shape[2])

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, index: Index | EllipsisType | tuple[Index, ...]) -> Any:
        given: list[Any] = (
            list(index) if isinstance(index, tuple) else [] if index is Ellipsis else [index]
        )
        if len(given) > 3:
            raise IndexError(f"Expected at most 3 indices, got {len(given)}.")
        depth, height, width = given + [slice(None)] * (3 - len(given))
        if not isinstance(width, slice):
            column = range(self.shape[2])[int(width)]
            return (self.bits[depth, height, column // 8] >> (7 - column % 8)) & 1 == 1
        start, stop, step = width.indices(self.shape[2])
        if step != 1 or isinstance(height, np.ndarray):
            raise ValueError(
                f"Expected slices of step 1 in plane, got {height} and {width}; "
                f"index np.asarray(mask) instead."
            )
        first = start // 8
        voxels = np.unpackbits(self.bits[depth, height, first : max(first, -(-stop // 8))], axis=-1)
        return voxels[..., start - 8 * first : max(start, stop) - 8 * first].view(np.bool_)

    def __array__(
        self, dtype: npt.DTypeLike | None = None, copy: bool | None = None
    ) -> npt.NDArray[Any]:
        return np.asarray(self[:], dtype)
