"""Coronal pictures: thick, interpolated, reconstructed and true slices side by side, in a CT window and in true proportions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import zoom

__all__ = ["LUNG_WINDOW", "coronal", "side_by_side"]

LUNG_WINDOW = (-600.0, 1500.0)


def coronal(
    slab: npt.NDArray[Any],
    spacing: Sequence[float],
    *,
    row: float = 0.5,
    window: tuple[float, float] = LUNG_WINDOW,
    pixel: float | None = None,
) -> npt.NDArray[np.uint8]:
    """Coronal picture of a slab, head up, the patient's right on the viewer's left.

    Args:
        slab: (D, H, W) in HU; first and last slice are the picture's lower and upper edge.
        spacing: (3,) in mm, depth, height and width.
        row: where along the height (front to back), 0 to 1.
        window: centre and width in HU; black below, white above.
        pixel: size of a square pixel in mm; the spacing along the width by default.

    Returns:
        (rows, columns), slices shown as blocks as thick as they are, pixels by linear interpolation along the width.
    """
    plane = np.asarray(slab[:, round(row * (slab.shape[1] - 1))], np.float32)[::-1]
    size = pixel or spacing[2]
    rows = max(1, round((len(plane) - 1) * spacing[0] / size))
    nearest = np.rint(np.linspace(0, len(plane) - 1, rows)).astype(int)
    columns = max(1, round(plane.shape[1] * spacing[2] / size))
    if columns != plane.shape[1]:
        plane = zoom(plane, (1, columns / plane.shape[1]), order=1)
    centre, width = window
    grey = ((plane[nearest] - centre) / width + 0.5).clip(0, 1)
    return np.asarray(np.rint(grey * 255), dtype=np.uint8)


def side_by_side(pictures: Sequence[npt.NDArray[np.uint8]], *, gap: int = 4) -> npt.NDArray[np.uint8]:
    """Pictures of one size in a row, with white gaps.

    >>> side_by_side([np.zeros((2, 3), np.uint8)] * 2, gap=1).shape
    (2, 7)
    """
    line = np.full((pictures[0].shape[0], gap), 255, np.uint8)
    parts = [part for picture in pictures for part in (line, picture)]
    return np.concatenate(parts[1:], axis=1)
