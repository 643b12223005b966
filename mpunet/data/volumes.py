"""Whole volumes for validation and test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mpunet.data.cache import CachedCase
from mpunet.geometry import thin_depth
from mpunet.slices.simulate import Profile, thicken

__all__ = ["VolumeCase", "WholeVolumes"]


class VolumeCase(TypedDict):
    """A whole case.

    Attributes:
        thick: thick slices (D, H, W) in HU.
        thin: thin slices ((D - 1) * r + 1, H, W) in HU.
        lung: lung mask on the thin grid.
        name: name of the case.
        index: index of the case in the dataset.
        spacing: voxel spacing of the thin grid (depth, height, width) in mm.
    """

    thick: Tensor
    thin: Tensor
    lung: Tensor
    name: str
    index: int
    spacing: tuple[float, float, float]


class WholeVolumes(Dataset[VolumeCase]):
    """Whole cases; thick slices are simulated for cases without a thick series.

    Args:
        cases: cached cases.
        ratio: thick spacing / thin spacing.
        profile: slice profile of simulated thick slices.
        fwhm: full width at half maximum of the profile in thick spacings; by default 0.9 for the
            Gaussian, 1 for the others.
    """

    def __init__(
        self,
        cases: Sequence[CachedCase],
        ratio: int,
        *,
        profile: Profile = "gaussian",
        fwhm: float | None = None,
    ) -> None:
        self.cases = cases
        self.ratio = ratio
        self.profile: Profile = profile
        self.fwhm = fwhm

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> VolumeCase:
        case = self.cases[index]
        thick: npt.NDArray[Any] = (
            thicken(case.thin, self.ratio, profile=self.profile, fwhm=self.fwhm)
            if case.thick is None
            else case.thick
        )
        depth = thin_depth(len(thick), self.ratio)
        return VolumeCase(
            thick=torch.from_numpy(np.array(thick, np.float32)),
            thin=torch.from_numpy(np.array(case.thin[:depth], np.float32)),
            lung=torch.from_numpy(np.array(case.lung[:depth])),
            name=case.name,
            index=index,
            spacing=(float(case.spacing[0]), float(case.spacing[1]), float(case.spacing[2])),
        )
