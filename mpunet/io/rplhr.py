"""Folder layout and intensity scale of the public benchmark RPLHR-CT.

Source: Yu et al., MICCAI 2022 (github.com/smilenaxx/RPLHR-CT). Each of the folders ``train``,
``val`` and ``test`` contains ``1mm`` and ``5mm``; the files of one scan have the same name in both.
Intensities are in [0, 1] and represent [-1024, 2048] HU.
"""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

__all__ = ["Intensity", "in_rplhr_layout", "reads_as_rplhr", "rplhr_to_hu"]

Intensity = Literal["auto", "rplhr"]
LOW, HIGH = np.float32(-1024), np.float32(2048)


def in_rplhr_layout(path: str | Path) -> bool:
    """Check whether a file is in the folder layout of RPLHR-CT.

    The names of the folders above the path are checked, and if it is a link, also of those above
    the file that it links to.

    >>> in_rplhr_layout("/data/RPLHR-CT/test/5mm/0001.nii.gz")
    True
    >>> in_rplhr_layout("/data/5mm/0001.nii.gz")
    False
    """
    for place in (os.path.abspath(path), os.path.realpath(path)):
        folders = Path(place).parent.parts
        if any(
            part in ("train", "val", "test") and kind in ("1mm", "5mm")
            for part, kind in pairwise(folders)
        ):
            return True
    return False


def reads_as_rplhr(path: str | Path | None, intensity: Intensity) -> bool:
    """Check whether intensities in [0, 1] are read as RPLHR-CT intensities.

    With "auto", they are if the file is in the benchmark's folder layout; with "rplhr", always.
    """
    if intensity not in get_args(Intensity):
        raise ValueError(f"Expected an intensity among 'auto' and 'rplhr', got {intensity!r}.")
    return intensity == "rplhr" or (path is not None and in_rplhr_layout(path))


def rplhr_to_hu(unit: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Convert intensities in [0, 1] to HU, float32.

    HU that were whole numbers are recovered to within 0.001.

    >>> rplhr_to_hu(np.array([0, 0.5, 1])).tolist()
    [-1024.0, 512.0, 2048.0]
    """
    return np.asarray(unit, np.float32) * (HIGH - LOW) + LOW
