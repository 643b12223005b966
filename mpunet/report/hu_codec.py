"""Encode slices as text that a browser decodes without loss.

HU are rounded to 256 levels. The difference of each pixel from a prediction is Huffman-coded.

PNG and WebP are not used because a page can read their pixels only from a canvas, and Brave,
Firefox and Safari alter the pixels of a canvas on purpose, to prevent fingerprinting. The browser's
DecompressionStream decodes Deflate exactly. Measured on chest CT (lung crops of public scans, 2
cores at 2.5 GHz): 0.53 bytes per pixel at 160 MB/s; PNG 0.55 at 10 MB/s; lossless WebP 0.52 at
3 MB/s.
"""

from __future__ import annotations

import base64
import zlib
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["HU_LEVELS", "HU_STEPS", "Step", "encode_slice", "to_codes", "uniform_levels"]


class Step(NamedTuple):
    """Levels in HU from ``low`` to below ``high`` at intervals of ``step``.

    Rounding to these levels changes a value by at most step / 2.
    """

    low: float
    high: float
    step: float


# Steps are finest in soft tissue, whose window is 400 HU wide. In the lungs, 8 HU are 1.4 grey
# levels of a window of 1500 HU. Our choice.
HU_STEPS = (Step(-1024, -200, 8), Step(-200, 200, 4), Step(200, 600, 16), Step(600, 3288, 96))
HU_LEVELS = np.concatenate(
    [np.arange(low, high, step, dtype=np.float64) for low, high, step in HU_STEPS]
)


def uniform_levels(low: float, high: float) -> npt.NDArray[np.float64]:
    """Return 256 evenly spaced levels, for volumes that are not in HU.

    >>> uniform_levels(0, 510)[:3].tolist()
    [0.0, 2.0, 4.0]
    """
    return np.linspace(low, high, 256)


def to_codes(
    values: npt.NDArray[Any], levels: npt.NDArray[np.float64] = HU_LEVELS
) -> npt.NDArray[np.uint8]:
    """Return the index of the nearest of 256 ascending levels for each value.

    Values below the first level get index 0, values above the last one index 255.

    >>> HU_LEVELS[to_codes(np.array([-3000, -851, 41, 5000]))].tolist()
    [-1024.0, -848.0, 40.0, 3192.0]
    """
    middles = ((levels[1:] + levels[:-1]) / 2).astype(np.float32)
    return np.searchsorted(middles, values.astype(np.float32, copy=False)).astype(np.uint8)


def encode_slice(codes: npt.NDArray[np.uint8]) -> str:
    """Encode a slice (rows, columns) as Base64 of its deflated prediction errors modulo 256.

    The prediction is that of JPEG-LS (median edge detector; Weinberger et al. 2000): the median of
    left, above, and left + above - above left, with 0 outside the slice. The errors are mostly
    noise, for which Huffman codes alone are better than a search for repeats.
    """
    padded = np.pad(codes.astype(np.int16), ((1, 0), (1, 0)))
    left, above, corner = padded[1:, :-1], padded[:-1, 1:], padded[:-1, :-1]
    predicted = np.clip(left + above - corner, np.minimum(left, above), np.maximum(left, above))
    residual = (padded[1:, 1:] - predicted).astype(np.uint8)
    deflate = zlib.compressobj(
        6, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_HUFFMAN_ONLY
    )
    return base64.b64encode(deflate.compress(residual.tobytes()) + deflate.flush()).decode("ascii")
