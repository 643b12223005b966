"""Get lung masks from a file, by thresholding, or by the network of the package ``lungmask``."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mpunet.data.case import Case
from mpunet.io.scan_file import read_like
from mpunet.io.volume import Volume
from mpunet.lungs.threshold import lung_mask

__all__ = ["LungMasks", "find_lungs", "lung_source"]

LungMasks = Literal["auto", "files", "threshold", "lungmask"]


def lung_source(case: Case, masks: LungMasks) -> Literal["files", "threshold", "lungmask"]:
    """Return the source of a case's lung mask.

    "auto" means the case's mask file if it has one, else "threshold".

    Raises:
        ValueError: if ``masks`` is "files" and the case has no mask file, or ``masks`` is unknown.
    """
    if masks == "auto":
        return "files" if case.lung is not None else "threshold"
    if masks == "files" and case.lung is None:
        raise ValueError(
            f"Expected a lung mask for each case (lung_masks=files), got none for {case.name!r}; "
            "add it, or choose auto, threshold or lungmask to compute masks."
        )
    if masks not in ("files", "threshold", "lungmask"):
        raise ValueError(
            f"Expected lung_masks among 'auto', 'files', 'threshold' and 'lungmask', got {masks!r}."
        )
    return masks


def find_lungs(case: Case, thin: Volume, masks: LungMasks) -> npt.NDArray[np.bool_]:
    """Return the lung mask (D, H, W) of a case on its thin grid.

    Args:
        case: the case.
        thin: its thin volume, from which the mask is computed or with which its file must agree.
        masks: source of the mask, see :func:`lung_source`.

    Raises:
        ValueError: if the mask file cannot be read or is on another grid, or if ``lungmask`` is not
            installed or has no weights.
    """
    source = lung_source(case, masks)
    if source == "files":
        return _from_file(case, thin)
    if source == "lungmask":
        # lungmask expects axes that run towards superior, posterior and left, like those of a slab.
        return np.asarray(_lungmask_network().apply(thin.slab) > 0)
    return lung_mask(thin.slab, thin.spacing)


def _from_file(case: Case, thin: Volume) -> npt.NDArray[np.bool_]:
    if case.lung is None:  # lung_source refuses it
        raise ValueError(f"{case.name}: no lung mask.")
    mask = read_like(case.lung, thin)
    if mask.shape != thin.shape or not np.allclose(mask.slab_affine, thin.slab_affine, atol=0.05):
        raise ValueError(
            f"The lung mask {case.lung} of shape {mask.slab.shape} is not on the grid of "
            f"{case.thin}, {thin.slab.shape}, or has another affine; "
            "resample it (nearest neighbour) onto the thin volume."
        )
    return np.asarray(mask.slab > 0)


@cache
def _lungmask_network() -> Any:
    """Load the package's default network (R231), once per process."""
    try:
        package = import_module("lungmask")
    except ImportError as error:
        raise ValueError(
            f"lung_masks=lungmask needs the package lungmask ({error}): "
            "pip install 'mpunet[lungmask]', or choose threshold."
        ) from error
    try:
        return package.LMInferer(tqdm_disable=True)
    except OSError as error:  # no internet
        raise ValueError(
            f"lungmask could not load its weights ({error}). It downloads them to torch.hub's "
            "folder: run it once with internet access, or copy the weights there from another "
            "machine; or choose lung_masks=threshold."
        ) from error
