"""Check the range of intensities: whether voxels are finite and can be HU of a CT scan."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mpunet.io.rplhr import rplhr_to_hu

__all__ = ["IntensityRange", "check_voxels"]


class IntensityRange:
    """Range of the intensities of several arrays, which are added one after the other.

    Holds the smallest and the largest intensity, the number of voxels, how many of them are not
    finite, and whether the arrays can be a mask.

    >>> seen = IntensityRange()
    >>> for plane in np.array([[[-1000.0, 40]], [[60, 50]]]):
    ...     seen.add(plane)
    >>> seen.low, seen.high
    (-1000.0, 60.0)
    """

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf
        self.voxels = self.not_finite = 0
        self.between = False  # whether an array in [0, 1] has a voxel that is neither 0 nor 1

    def add(self, voxels: npt.NDArray[Any]) -> None:
        """Add an array of any shape with at least one voxel."""
        low, high = float(voxels.min()), float(voxels.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            self.not_finite += voxels.size - int(np.isfinite(voxels).sum())
        self.voxels += voxels.size
        self.low, self.high = min(self.low, low), max(self.high, high)
        if not self.between and voxels.dtype.kind == "f" and _within_unit(low, high):
            self.between = bool(((voxels != 0) & (voxels != 1)).any())

    @property
    def unit(self) -> bool:
        """Whether all voxels are in [0, 1] but are not a mask of zeros and ones.

        A tolerance of 0.001 allows for rounding and resampling. HU of a scan are never in this
        range: air is -1000 HU, water 0 HU.
        """
        return self.between and _within_unit(self.low, self.high)

    def in_hu(self) -> IntensityRange:
        """Return the range after :func:`mpunet.io.rplhr.rplhr_to_hu` of all voxels."""
        out = IntensityRange()
        out.low, out.high = (float(hu) for hu in rplhr_to_hu(np.array([self.low, self.high])))
        out.voxels, out.not_finite = self.voxels, self.not_finite
        return out

    def check(self, *, name: str, check_hu: bool = True) -> None:
        """Raise the errors of :func:`check_voxels` for the voxels of all arrays."""
        if self.not_finite:
            raise ValueError(
                f"{name}: expected finite intensities, got {self.not_finite} NaN or infinite "
                f"voxels of {self.voxels}."
            )
        if check_hu and (self.low > -200 or self.high - self.low < 100):
            advice = (
                "if they represent [-1024, 2048] HU as in RPLHR-CT, set intensity to 'rplhr' "
                "(--data.intensity rplhr), otherwise rescale them to HU."
                if self.unit
                else "rescale them to HU, or pass check_hu=False if they are HU of an object "
                "without air."
            )
            raise ValueError(
                f"{name}: intensities of {self.low:g} to {self.high:g} are not HU, "
                f"where air is -1000; {advice}"
            )


def check_voxels(voxels: npt.NDArray[Any], *, name: str, check_hu: bool = True) -> None:
    """Raise an error if voxels are not finite or, with ``check_hu``, cannot be HU of a CT scan.

    A CT scan contains air (-1000 HU) around or in the patient. A smallest value above -200 or a
    range below 100 therefore means another scale, such as [0, 1] or raw detector values of
    0 to 4095.

    Raises:
        ValueError: with the name of the volume, the range that was found and what to do.
    """
    seen = IntensityRange()
    seen.add(voxels)
    seen.check(name=name, check_hu=check_hu)


def _within_unit(low: float, high: float) -> bool:
    return low >= -1e-3 and high <= 1 + 1e-3
