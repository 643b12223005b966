"""Coronal pictures of volumes in a CT window and in true proportions, and figures of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import zoom

__all__ = ["LUNG_WINDOW", "coronal", "draw_with_details", "pyplot", "side_by_side"]

LUNG_WINDOW = (-600.0, 1500.0)  # centre and width in HU


def coronal(
    slab: npt.NDArray[Any],
    spacing: Sequence[float],
    *,
    row: float = 0.5,
    window: tuple[float, float] = LUNG_WINDOW,
    pixel: float | None = None,
) -> npt.NDArray[np.uint8]:
    """Return a coronal picture of a slab: head up, the patient's right on the left.

    Args:
        slab: (D, H, W) in HU; the first slice is at the lower edge, the last one at the upper edge.
        spacing: spacing along depth, height and width in mm.
        row: position along the height (front to back), from 0 to 1.
        window: centre and width in HU; lower values are black, higher ones white.
        pixel: size of the square pixels in mm; by default the spacing along the width.

    Returns:
        (rows, columns). Slices are shown as blocks of their thickness; pixels are interpolated
        linearly along the width.
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


def side_by_side(
    pictures: Sequence[npt.NDArray[np.uint8]], *, gap: int = 4
) -> npt.NDArray[np.uint8]:
    """Join pictures of the same height in a row, separated by white gaps of ``gap`` pixels.

    >>> side_by_side([np.zeros((2, 3), np.uint8)] * 2, gap=1).shape
    (2, 7)
    """
    line = np.full((pictures[0].shape[0], gap), 255, np.uint8)
    parts = [part for picture in pictures for part in (line, picture)]
    return np.concatenate(parts[1:], axis=1)


def draw_with_details(
    pictures: Mapping[str, npt.NDArray[np.uint8]], path: Path, *, columns: int = 4
) -> None:
    """Write a figure of named pictures with an enlarged detail below each.

    Args:
        pictures: name to picture, all of the same size.
        path: output file.
        columns: largest number of pictures in a row.

    Raises:
        ValueError: if matplotlib is missing.
    """
    plt = pyplot()
    columns = min(columns, len(pictures))
    height, width = next(iter(pictures.values())).shape
    ratios = [height / width, 0.32 * height / (0.38 * width)]
    bands = -(-len(pictures) // columns)
    figure, axes = plt.subplots(
        2 * bands,
        columns,
        figsize=(3 * columns, bands * (3 * sum(ratios) + 0.4)),
        height_ratios=ratios * bands,
        layout="constrained",
        squeeze=False,
    )
    for axis in axes.flat:
        axis.axis("off")
    for place, (name, image) in enumerate(pictures.items()):
        band, column = divmod(place, columns)
        part = image[int(0.30 * height) : int(0.62 * height), int(0.10 * width) : int(0.48 * width)]
        for axis, pixels in zip(axes[2 * band : 2 * band + 2, column], (image, part), strict=True):
            axis.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes[2 * band, column].set_title(name, fontsize="small")
    figure.savefig(path, dpi=130, facecolor="white")
    plt.close(figure)


def pyplot(otherwise: str = "") -> Any:
    """Return ``matplotlib.pyplot`` with a backend that draws to files.

    Args:
        otherwise: alternative to an installation, for the error message.

    Raises:
        ValueError: if matplotlib is missing.
    """
    try:
        import matplotlib
    except ImportError as error:
        way_out = f", or {otherwise}" if otherwise else ""
        raise ValueError(
            f"Pictures need matplotlib: pip install 'mpunet[demo]'{way_out}."
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
