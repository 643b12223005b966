"""Conversion between HU and intensities in [0, 1].

The window is [-1024, 3071] HU, the range of 12-bit CT, as in the paper (Section 4.1).
"""

from __future__ import annotations

from typing import Any, TypeVar, overload

import numpy as np
import numpy.typing as npt
from torch import Tensor

__all__ = ["HU_MAX", "HU_MIN", "HU_RANGE", "from_hu", "round_hu", "to_hu"]

HU_MIN = -1024.0
HU_MAX = 3071.0
HU_RANGE = HU_MAX - HU_MIN

Array = TypeVar("Array", Tensor, npt.NDArray[np.floating])


def from_hu(hu: Array) -> Array:
    """Convert HU to intensities in [0, 1]; values outside [-1024, 3071] HU are clipped."""
    return (hu.clip(HU_MIN, HU_MAX) - HU_MIN) / HU_RANGE


def to_hu(intensity: Array) -> Array:
    """Convert intensities in [0, 1] to HU, without clipping."""
    return intensity * HU_RANGE + HU_MIN


@overload
def round_hu(hu: Tensor) -> Tensor: ...
@overload
def round_hu(hu: npt.NDArray[np.floating]) -> npt.NDArray[np.int16]: ...
def round_hu(hu: Any) -> Any:
    """Clip HU to [-1024, 3071] and round to int16, the data type of files."""
    rounded = hu.clip(HU_MIN, HU_MAX).round()
    return rounded.short() if isinstance(rounded, Tensor) else rounded.astype(np.int16)
