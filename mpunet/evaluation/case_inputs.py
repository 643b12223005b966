"""Further inputs of a case: the lung mask of its reference, and interpolated baselines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from mpunet.evaluation.cases import common_slices
from mpunet.io.scan_file import read_like
from mpunet.io.thin_file import write_slices
from mpunet.io.volume import Volume
from mpunet.lungs.threshold import lung_mask
from mpunet.slices.interpolate import Interpolation, interpolated

__all__ = ["reference_lung", "write_baseline"]


def reference_lung(reference: Volume, path: Path | None) -> npt.NDArray[np.bool_]:
    """Read the lung mask of a reference, or compute it by thresholding if ``path`` is None.

    Raises:
        ValueError: if the mask has another grid, does not cover the reference, or is empty.
    """
    if path is None:
        lung = lung_mask(reference.slab, reference.spacing)
    else:
        mask = read_like(path, reference)
        _, covered = common_slices(mask, reference)
        if covered != slice(0, reference.shape[0]) or mask.shape != reference.shape:
            raise ValueError(f"{path} does not cover the reference's slices")
        lung = mask.slab > 0
    if not lung.any():
        raise ValueError("no lung found; pass lung masks (option lungs) if there are lungs")
    return lung


def write_baseline(path: Path, kind: Interpolation, thick: Volume, reference: Volume) -> Path:
    """Interpolate a thick scan to about the slice spacing of the reference; write it to a file."""
    ratio = max(1, round(thick.spacing[0] / reference.spacing[0]))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_slices(path, interpolated(thick.slab, ratio, kind=kind), thick, ratio)
    return path
