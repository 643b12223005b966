"""MONAI transforms that turn a cached case into a training crop: simulation, scaling, pipeline.

A case is a dictionary with ``thin`` and ``lung`` (M, H, W), and ``thick`` (D, H, W) if it has a
genuine thick series. Every transform keeps thick and thin aligned.

MONAI's own transforms are used for flips, transposition, offset and scale of HU. Crops are in
:mod:`mpunet.data.slab_crops`, noise and rotation in :mod:`mpunet.data.augmentation`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
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

from mpunet.data.augmentation import NO_AUGMENTATION, Augmentation, RandCTNoised
from mpunet.data.slab_crops import KEYS, RandRotatedSlabCropd, RandSlabCropd
from mpunet.geometry import thin_depth
from mpunet.intensity import HU_MIN, HU_RANGE
from mpunet.slices.profile_range import ProfileRange
from mpunet.slices.simulate import Profile, profile_weights, thickening_matrix

__all__ = [
    "RandSimulateThickd",
    "ScaleHUd",
    "SimulateThickd",
    "training_transforms",
]


class SimulateThickd(MapTransform):  # type: ignore[misc]  # MONAI has no types
    """Simulate ``thick`` from ``thin`` if it is missing, and remove the margins of the crop.

    Args:
        n_thick: number of thick slices in the crop.
        ratio: thick spacing / thin spacing.
        profile: slice profile of the simulated slices.
        fwhm: full width at half maximum of the profile in thick spacings; by default 0.9 for the
            Gaussian, 1 for the others.
    """

    def __init__(
        self, n_thick: int, ratio: int, *, profile: Profile = "gaussian", fwhm: float | None = None
    ) -> None:
        super().__init__(KEYS, allow_missing_keys=True)
        self.n_thick = n_thick
        self.ratio = ratio
        self.weights = profile_weights(ratio, profile=profile, fwhm=fwhm)

    @property
    def margin(self) -> int:
        """Number of thin slices by which the profile extends on each side of its centre."""
        return len(self.weights) // 2

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the crop with ``thick`` (1, n, h, w), ``thin`` and ``lung`` (1, N, h, w)."""
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
    """:class:`SimulateThickd` with a slice profile drawn at random for each crop.

    Args:
        n_thick: number of thick slices in the crop.
        ratio: thick spacing / thin spacing.
        profiles: slice profiles to draw from.
    """

    def __init__(self, n_thick: int, ratio: int, profiles: ProfileRange) -> None:
        super().__init__(n_thick, ratio)
        self.profiles = profiles

    @property
    def margin(self) -> int:
        """Number of thin slices by which the widest profile extends on each side of its centre."""
        return self.profiles.reach(self.ratio)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the crop with ``thick`` (1, n, h, w), ``thin`` and ``lung`` (1, N, h, w)."""
        self.weights = self.profiles.draw(self.ratio, self.R)
        return super().__call__(data)


class ScaleHUd(MapTransform):  # type: ignore[misc]  # MONAI has no types
    """Scale HU to [0, 1] in place, and clip.

    The result is bit-identical to MONAI's ``ScaleIntensityRanged``, which allocates new arrays.
    That would cost half of the time of a crop.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Scale float32 arrays or tensors of any shape, which are overwritten; return tensors."""
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
    """Build the transforms from a cached case to a training sample.

    They cut a crop, simulate thick slices if the case has none, augment the crop, and scale HU to
    [0, 1].

    Args:
        n_thick: number of thick slices in the crop.
        ratio: thick spacing / thin spacing.
        in_plane: height and width of the crop in voxels.
        lung_rate: fraction of the crops that are centred near a lung voxel.
        flip: whether to flip crops at random along the three axes, and to transpose square crops.
        profile: slice profile of simulated thick slices, or several profiles to draw from.
        fwhm: full width at half maximum of the profile in thick spacings, or the smallest and
            largest width to draw from.
        augmentation: further random changes.

    Returns:
        A MONAI ``Compose``. Its input is a dictionary with ``thin``, ``lung``, ``lung_box`` and
        optionally ``thick``. Its output has the float32 tensors ``thick`` (1, n, h, w), ``thin``
        (1, N, h, w) and ``lung`` (1, N, h, w).
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
