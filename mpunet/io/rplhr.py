"""The public benchmark RPLHR-CT: where its files lie and what its intensities stand for.

Yu et al., MICCAI 2022 (github.com/smilenaxx/RPLHR-CT): ``train``, ``val`` and ``test``, each with ``1mm`` and ``5mm``, in which the
files of one scan have the same name. Intensities are in [0, 1] and stand for [-1024, 2048] HU.
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
    """Whether a file lies in RPLHR-CT's layout, by the names of the folders above it, be it itself or what it links to.

    >>> in_rplhr_layout("/data/RPLHR-CT/test/5mm/0001.nii.gz"), in_rplhr_layout("/data/5mm/0001.nii.gz")
    (True, False)
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
    """Whether intensities in [0, 1] are RPLHR-CT's: by the file's place with "auto", wherever it lies with "rplhr"."""
    if intensity not in get_args(Intensity):
        raise ValueError(f"Expected an intensity among 'auto' and 'rplhr', got {intensity!r}.")
    return intensity == "rplhr" or (path is not None and in_rplhr_layout(path))


def rplhr_to_hu(unit: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """HU, float32, of intensities in [0, 1]; HU that were whole numbers come back to a thousandth.

    >>> rplhr_to_hu(np.array([0, 0.5, 1])).tolist()
    [-1024.0, 512.0, 2048.0]
    """
    return np.asarray(unit, np.float32) * (HIGH - LOW) + LOW
