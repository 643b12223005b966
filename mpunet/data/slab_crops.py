"""MONAI transforms that cut a random crop from a cached case; thick and thin slices stay aligned.

They work on NumPy arrays, so only the crop is read from memory-mapped volumes.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from monai.transforms import MapTransform, Randomizable

from mpunet.data.augmentation import rotated, rotation_borders
from mpunet.geometry import reflect_indices, thin_depth

__all__ = ["KEYS", "RandRotatedSlabCropd", "RandSlabCropd"]

KEYS = ("thick", "thin", "lung")


class RandSlabCropd(Randomizable, MapTransform):  # type: ignore[misc]  # MONAI has no types
    """Cut n thick slices and the (n - 1) * r + 1 thin slices at the same place, in a random patch.

    If the case has no ``thick`` volume, the crop may start at any thin slice. Up to ``margin`` more
    thin slices are then kept on each side for
    :class:`~mpunet.data.transforms.SimulateThickd`, and ``before`` is their number before the crop.

    A volume smaller than the crop is extended at its end: by reflection along depth, by repeating
    the edge in plane.

    Args:
        n_thick: number of thick slices in the crop.
        ratio: thick spacing / thin spacing.
        in_plane: height and width of the crop in voxels.
        margin: number of thin slices to keep on each side for the simulation of thick slices.
        lung_rate: fraction of the crops that are centred near a lung voxel; the others are
            centred near any voxel.
    """

    def __init__(
        self,
        n_thick: int,
        ratio: int,
        in_plane: Sequence[int],
        *,
        margin: int = 0,
        lung_rate: float = 0.9,
    ) -> None:
        super().__init__(KEYS, allow_missing_keys=True)
        self.n_thick = n_thick
        self.ratio = ratio
        self.in_plane = tuple(in_plane)
        self.margin = margin
        self.lung_rate = lung_rate

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Cut a crop from a case; each array gets a channel axis in front."""
        out = dict(data)
        thin, lung, thick = data["thin"], data["lung"], data.get("thick")
        center = self._center(lung, data["lung_box"])
        plane = tuple(
            self._span(c, size, total)
            for c, size, total in zip(center[1:], self.in_plane, thin.shape[1:], strict=True)
        )
        n_thin = thin_depth(self.n_thick, self.ratio)
        if thick is not None:
            k = self._span(center[0] // self.ratio, self.n_thick, len(thick)).start
            thick_rows = reflect_indices(len(thick), k + self.n_thick)[k : k + self.n_thick]
            out["thick"] = self._cut(thick, thick_rows, plane)
            first, before, after = k * self.ratio, 0, 0
        else:
            first = self._span(center[0], n_thin, len(thin)).start
            before = min(self.margin, first)
            after = max(0, min(self.margin, len(thin) - first - n_thin))
        rows = reflect_indices(len(thin), first + n_thin + after)[
            first - before : first + n_thin + after
        ]
        out["thin"] = self._cut(thin, rows, plane)
        out["lung"] = self._cut(lung, rows, plane)
        out["before"] = before
        return out

    def _center(self, lung: npt.NDArray[np.bool_], box: npt.NDArray[np.int64]) -> list[int]:
        in_lung = self.R.random() < self.lung_rate
        low, high = (
            (box[:, 0], box[:, 1]) if in_lung else (np.zeros(3, int), np.asarray(lung.shape))
        )
        for _ in range(32):
            center = [int(self.R.randint(a, b)) for a, b in zip(low, high, strict=True)]
            if not in_lung or lung[tuple(center)]:
                break
        return center

    def _span(self, center: int, size: int, total: int) -> slice:
        """Return a span of ``size`` voxels around ``center``, shifted by at most ``size`` / 4.

        The shift is random. The span lies inside the volume if ``size`` is at most ``total``.
        """
        jitter = int(self.R.randint(-(size // 4), size // 4 + 1))
        start = min(max(0, center - (size - 1) // 2 + jitter), max(0, total - size))
        return slice(start, start + size)

    def _cut(
        self, volume: npt.NDArray[Any], rows: npt.NDArray[np.intp], plane: tuple[slice, ...]
    ) -> npt.NDArray[np.float32]:
        stored = volume[rows.min() : rows.max() + 1, plane[0], plane[1]]
        if (np.diff(rows) != 1).any():  # only for reflected rows, because indexing copies
            stored = stored[rows - rows.min()]
        block: npt.NDArray[np.float32] = stored.astype(np.float32)
        missing = [s.stop - s.start - got for s, got in zip(plane, block.shape[1:], strict=True)]
        if any(missing):
            block = np.pad(block, ((0, 0), (0, missing[0]), (0, missing[1])), mode="edge")
        return block[None]


class RandRotatedSlabCropd(RandSlabCropd):
    """Cut a crop like :class:`RandSlabCropd`, and rotate some crops in plane.

    A larger patch is cut so that the corners of the rotated patch are filled. Each slice is rotated
    about the patch's centre with bicubic interpolation: bilinear interpolation would remove more
    than half of the noise variance, bicubic removes a quarter. The mask is interpolated by nearest
    neighbour. Slices are not mixed along depth. Outside the volume, its edge is repeated.

    Args:
        args: positional arguments of :class:`RandSlabCropd`.
        prob: fraction of the crops that are rotated.
        degrees: largest rotation angle in degrees, in both directions.
        crop: keyword arguments of :class:`RandSlabCropd`.
    """

    def __init__(self, *args: Any, prob: float, degrees: float, **crop: Any) -> None:
        super().__init__(*args, **crop)
        self.prob = prob
        self.degrees = degrees
        self.angle = 0.0  # of the current crop, in radians

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Cut a crop from a case; each array gets a channel axis in front."""
        turn = self.R.random() < self.prob
        self.angle = float(np.deg2rad(self.R.uniform(-self.degrees, self.degrees))) if turn else 0.0
        return super().__call__(data)

    def _cut(
        self, volume: npt.NDArray[Any], rows: npt.NDArray[np.intp], plane: tuple[slice, ...]
    ) -> npt.NDArray[np.float32]:
        if not self.angle:
            return super()._cut(volume, rows, plane)
        borders = rotation_borders(self.in_plane, self.angle)
        starts = [max(0, span.start - border) for span, border in zip(plane, borders, strict=True)]
        wide = tuple(
            slice(start, span.stop + border)
            for start, span, border in zip(starts, plane, borders, strict=True)
        )
        block = super()._cut(volume, rows, wide)[0]
        before = [
            start - (span.start - border)
            for start, span, border in zip(starts, plane, borders, strict=True)
        ]
        if any(before):
            block = np.pad(block, ((0, 0), (before[0], 0), (before[1], 0)), mode="edge")
        turned = rotated(block, self.angle, nearest=volume.dtype == np.bool_)
        inner = tuple(
            slice(border, border + size)
            for border, size in zip(borders, self.in_plane, strict=True)
        )
        return turned[None, :, inner[0], inner[1]]
