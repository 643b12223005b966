"""MONAI transforms that turn a cached case into a training crop: thick and thin stay aligned through each of them.

Keys: ``thin`` and ``lung`` (M, H, W), ``thick`` (D, H, W) where it is genuine. All of ours work on NumPy arrays, so that
memory-mapped volumes are read only where a crop is cut.

MONAI's own serve for flips, transposition, offset and scale; for noise and rotation see :mod:`mpunet.data.augmentation`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.transforms import (
    Compose,
    EnsureTyped,
    MapTransform,
    RandFlipd,
    Randomizable,
    RandRotate90d,
    RandScaleIntensityd,
    RandShiftIntensityd,
)

from mpunet.data.augmentation import (
    NO_AUGMENTATION,
    Augmentation,
    RandCTNoised,
    rotated,
    rotation_borders,
)
from mpunet.geometry import reflect_indices, thin_depth
from mpunet.intensity import HU_MIN, HU_RANGE
from mpunet.slices.profile_range import ProfileRange
from mpunet.slices.simulate import Profile, profile_weights, thickening_matrix

__all__ = [
    "RandRotatedSlabCropd",
    "RandSimulateThickd",
    "RandSlabCropd",
    "ScaleHUd",
    "SimulateThickd",
    "training_transforms",
]

KEYS = ("thick", "thin", "lung")


class RandSlabCropd(Randomizable, MapTransform):  # type: ignore[misc]  # MONAI has no types
    """Cut n thick slices of a random in-plane patch, and the (n - 1) * r + 1 thin ones at the same place.

    Without a ``thick`` volume, ``margin`` thin slices more are kept on each side (as far as there are any) for
    :class:`SimulateThickd`, with their number before the window under ``before``; the window may then begin at any thin slice.
    Volumes that are too small are reflected at the end along depth and repeated at the edge in plane.

    Args:
        n_thick: thick slices of the crop.
        ratio: thick spacing / thin spacing.
        in_plane: height and width of the crop in voxels.
        margin: thin slices to keep on each side for the simulation.
        lung_rate: share of the crops that are centred on a lung voxel; the others are anywhere.
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
        """Case to crop, each array with a channel in front."""
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
        """A span of ``size`` voxels around ``center``, moved at random by up to a quarter of its size, inside the volume if it fits."""
        jitter = int(self.R.randint(-(size // 4), size // 4 + 1))
        start = min(max(0, center - (size - 1) // 2 + jitter), max(0, total - size))
        return slice(start, start + size)

    def _cut(
        self, volume: npt.NDArray[Any], rows: npt.NDArray[np.intp], plane: tuple[slice, ...]
    ) -> npt.NDArray[np.float32]:
        stored = volume[rows.min() : rows.max() + 1, plane[0], plane[1]]
        if (np.diff(rows) != 1).any():  # reflected; else a copy less
            stored = stored[rows - rows.min()]
        block: npt.NDArray[np.float32] = stored.astype(np.float32)
        missing = [s.stop - s.start - got for s, got in zip(plane, block.shape[1:], strict=True)]
        if any(missing):
            block = np.pad(block, ((0, 0), (0, missing[0]), (0, missing[1])), mode="edge")
        return block[None]


class RandRotatedSlabCropd(RandSlabCropd):
    """:class:`RandSlabCropd` whose patch now and then stands at an angle: cut as much larger as it takes to fill its corners.

    Each slice is turned about the patch's centre by bicubic interpolation (linear takes away more than half of the noise's variance,
    cubic a quarter), the mask to the nearest voxel; nothing is mixed along depth. Beyond the volume, its edge is repeated.

    Args:
        prob: share of the patches that are turned.
        degrees: largest angle, either way.
        crop: arguments of :class:`RandSlabCropd`.
    """

    def __init__(self, *args: Any, prob: float, degrees: float, **crop: Any) -> None:
        super().__init__(*args, **crop)
        self.prob = prob
        self.degrees = degrees
        self.angle = 0.0  # in radians

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Case to crop, each array with a channel in front."""
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


class SimulateThickd(MapTransform):  # type: ignore[misc]  # MONAI has no types
    """Where ``thick`` is missing, make it from ``thin`` by a slice profile; then cut ``thin`` and ``lung`` to their window."""

    def __init__(
        self, n_thick: int, ratio: int, *, profile: Profile = "gaussian", fwhm: float | None = None
    ) -> None:
        super().__init__(KEYS, allow_missing_keys=True)
        self.n_thick = n_thick
        self.ratio = ratio
        self.weights = profile_weights(ratio, profile=profile, fwhm=fwhm)

    @property
    def margin(self) -> int:
        """Thin slices that the profile reaches past its centre."""
        return len(self.weights) // 2

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Crop with margins to crop with thick slices; (1, n, h, w) and (1, N, h, w)."""
        out = dict(data)
        thin, before = out["thin"], out.pop("before")
        if "thick" not in out:
            matrix = thickening_matrix(
                thin.shape[1], self.ratio, self.weights, start=before, count=self.n_thick
            )
            out["thick"] = np.tensordot(matrix, thin[0], axes=1)[None]
            for key in ("thin", "lung"):
                out[key] = out[key][:, before : before + thin_depth(self.n_thick, self.ratio)]
        return out


class RandSimulateThickd(Randomizable, SimulateThickd):  # type: ignore[misc]  # MONAI has no types
    """:class:`SimulateThickd` with a slice profile drawn for each crop."""

    def __init__(self, n_thick: int, ratio: int, profiles: ProfileRange) -> None:
        super().__init__(n_thick, ratio)
        self.profiles = profiles

    @property
    def margin(self) -> int:
        """Thin slices that the widest profile reaches past its centre."""
        return self.profiles.reach(self.ratio)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Crop with margins to crop with thick slices; (1, n, h, w) and (1, N, h, w)."""
        self.weights = self.profiles.draw(self.ratio, self.R)
        return super().__call__(data)


class ScaleHUd(MapTransform):  # type: ignore[misc]  # MONAI has no types
    """HU to [0, 1], clipped: what MONAI's ``ScaleIntensityRanged`` gives, to the bit, but in place, as new arrays cost half of a crop."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """float32 arrays or tensors of any shape, which are overwritten, to tensors."""
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = (
                torch.as_tensor(out[key], dtype=torch.float32)
                .sub_(HU_MIN)
                .div_(HU_RANGE)
                .clamp_(0, 1)
            )
        return out


def training_transforms(
    n_thick: int,
    ratio: int,
    in_plane: Sequence[int],
    *,
    lung_rate: float = 0.9,
    flip: bool = True,
    profile: Profile | Sequence[Profile] = "gaussian",
    fwhm: float | Sequence[float] | None = None,
    augmentation: Augmentation = NO_AUGMENTATION,
) -> Compose:
    """Cached case to training sample: crop, simulate if need be, flip and turn in plane, HU to [0, 1].

    Args:
        profile: slice profile of simulated thick slices, or several to draw from.
        fwhm: its width in thick spacings, or the smallest and the largest to draw from.
        augmentation: what else to vary.

    Returns:
        A MONAI ``Compose`` from a dictionary with ``thin``, ``lung``, ``lung_box`` and perhaps ``thick`` to float32 tensors
        ``thick`` (1, n, h, w), ``thin`` (1, N, h, w) and ``lung`` (1, N, h, w).
    """
    vary, profiles = augmentation, ProfileRange.of(profile, fwhm)
    kind, width = profiles.fixed
    simulate = (
        RandSimulateThickd(n_thick, ratio, profiles)
        if profiles.varies
        else SimulateThickd(n_thick, ratio, profile=kind, fwhm=width)
    )
    options: dict[str, Any] = {"margin": simulate.margin, "lung_rate": lung_rate}
    if vary.rotate_prob:
        crop = RandRotatedSlabCropd(
            n_thick, ratio, in_plane, prob=vary.rotate_prob, degrees=vary.rotate_degrees, **options
        )
    else:
        crop = RandSlabCropd(n_thick, ratio, in_plane, **options)
    weights = profile_weights(ratio, profile=kind, fwhm=width)
    noise = (
        [RandCTNoised(n_thick, ratio, weights, prob=vary.noise_prob, max_hu=vary.noise_hu)]
        if vary.noise_prob
        else []
    )
    turns = [RandFlipd(KEYS, prob=0.5, spatial_axis=axis) for axis in range(3)] if flip else []
    if flip and in_plane[0] == in_plane[1]:
        turns.append(RandRotate90d(KEYS, prob=0.5, max_k=1, spatial_axes=(1, 2)))
    images = ("thick", "thin")
    intensities: list[MapTransform] = []
    if vary.scale_prob:
        intensities.append(RandScaleIntensityd(images, factors=vary.scale, prob=vary.scale_prob))
    if vary.shift_prob:
        intensities.append(RandShiftIntensityd(images, offsets=vary.shift_hu, prob=vary.shift_prob))
    return Compose(
        [
            crop,
            *noise,
            simulate,
            *turns,
            *intensities,
            ScaleHUd(images),
            EnsureTyped(KEYS, dtype=torch.float32, track_meta=False),
        ]
    )
