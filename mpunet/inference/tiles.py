"""Overlapping in-plane tiles with smooth weights that sum to one."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["OVERLAP", "Tile", "plan_tiles", "tile_starts", "tile_weights"]

OVERLAP = 0.25  # smallest part of a tile that it shares with its neighbour; our choice


class Tile(NamedTuple):
    """A part of a plane.

    Attributes:
        rows: rows of the plane.
        columns: columns of the plane.
        weight: (h, w), float32. The weights of each pixel sum to one over all tiles of a plane.
    """

    rows: slice
    columns: slice
    weight: Tensor


def tile_starts(size: int, tile: int) -> list[int]:
    """Return the first pixel of each tile along an axis of ``size`` pixels.

    Tiles are evenly spaced from one end to the other. Neighbours share at least ``OVERLAP`` of a
    tile.

    >>> tile_starts(512, 256)
    [0, 128, 256]
    >>> tile_starts(200, 256)
    [0]
    """
    if size <= tile:
        return [0]
    shared = int(OVERLAP * tile)
    count = math.ceil((size - shared) / (tile - shared))
    return [round(i * (size - tile) / (count - 1)) for i in range(count)]


def tile_weights(size: int, tile: int) -> list[np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """Return the weights along an axis for each tile of :func:`tile_starts`.

    Weights are squared sines that decrease towards the ends of the tile, divided by their sum over
    all tiles. Pixels at a tile border have the smallest weight, because a convolution sees their
    neighbours on one side only. At the ends of the axis, where no other tile covers them, pixels
    have the weight one.
    """
    starts, length = tile_starts(size, tile), min(size, tile)
    to_end = np.minimum(np.arange(length) + 0.5, np.arange(length)[::-1] + 0.5)
    raw = np.sin(0.5 * np.pi * np.minimum(1.0, to_end / max(1.0, OVERLAP * tile))) ** 2
    total = np.zeros(size)
    for start in starts:
        total[start : start + length] += raw
    return [raw / total[start : start + length] for start in starts]


@lru_cache(maxsize=8)
def plan_tiles(
    height: int, width: int, tile: tuple[int, int], device: torch.device
) -> tuple[Tile, ...]:
    """Return the tiles of a plane (height, width), each at most ``tile`` pixels large, by rows."""
    axes = [
        [
            (slice(start, start + min(size, side)), weight)
            for start, weight in zip(tile_starts(size, side), tile_weights(size, side), strict=True)
        ]
        for size, side in zip((height, width), tile, strict=True)
    ]
    return tuple(
        Tile(rows, columns, torch.from_numpy(np.outer(down, across)).to(device, torch.float32))
        for rows, down in axes[0]
        for columns, across in axes[1]
    )
