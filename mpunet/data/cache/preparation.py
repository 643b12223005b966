"""How the volumes of a case are processed for the cache, and the name of the resulting entry."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mpunet.data.cache.entry import FORMAT
from mpunet.data.case import Case
from mpunet.data.checks import check_mask, examine_volumes, refuse
from mpunet.data.lung_source import LungMasks, find_lungs, lung_source
from mpunet.data.pairs import align_pair
from mpunet.geometry import thin_depth
from mpunet.io.rplhr import reads_as_rplhr
from mpunet.io.scan_file import read_volume
from mpunet.lungs.packed import PackedMask
from mpunet.slices.in_plane import DepthAxis, turned

__all__ = ["Preparation", "check_depth", "entry_key", "prepare"]


class Preparation(NamedTuple):
    """How a case's volumes are processed before they are stored.

    Attributes:
        ratio: thick spacing / thin spacing.
        slice_axis: stored axis along which slices are stacked; detected per file if None.
        lung_masks: source of lung masks, see :func:`mpunet.data.lung_source.lung_source`.
        depth_axis: in-plane axis that becomes the depth axis, see :mod:`mpunet.slices.in_plane`;
            only for cases without a thick series. None keeps the slice axis as depth.
        turned_spacing: slice spacing in mm of volumes with a ``depth_axis``.
        examine: whether to refuse cases that :func:`mpunet.data.checks.examine_volumes` refuses.
    """

    ratio: int
    slice_axis: int | None = None
    lung_masks: LungMasks = "auto"
    depth_axis: DepthAxis | None = None
    turned_spacing: float = 1.0
    examine: bool = True


def prepare(
    case: Case, preparation: Preparation
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """Read and process a case.

    Returns:
        The arrays to store: ``thin``, ``thick`` (if the case has a thick series) and ``lung`` (the
        packed mask), each (D, H, W); and the metadata to store: ``lung_box`` and ``spacing``.
    """
    axis, ratio = preparation.slice_axis, preparation.ratio
    thin = read_volume(case.thin, slice_axis=axis, intensity=case.intensity)
    thick = (
        None
        if case.thick is None
        else read_volume(case.thick, slice_axis=axis, intensity=case.intensity)
    )
    if preparation.examine:
        refuse(examine_volumes(thin, thick, ratio=ratio), name=case.name)
    slab, spacing = thin.slab, thin.spacing
    lung = find_lungs(case, thin, preparation.lung_masks)
    if preparation.examine and lung_source(case, preparation.lung_masks) == "files":
        refuse(check_mask(lung), name=case.name)
    if (depth_axis := preparation.depth_axis) is not None:
        slab, lung, spacing = turned(
            slab, spacing, lung, axis=depth_axis, thin_spacing=preparation.turned_spacing
        )
    check_depth(len(slab), ratio, case.thin)
    arrays: dict[str, npt.NDArray[Any]] = {}
    used = slice(None)
    if thick is not None:
        thick_used, used = align_pair(thick, thin, ratio)
        arrays["thick"] = thick.slab[thick_used]
    lung = lung[used]
    arrays |= {"thin": slab[used], "lung": PackedMask.pack(lung).bits}
    box = [_extent(np.asarray(lung.any(axis=tuple({0, 1, 2} - {axis})))) for axis in range(3)]
    return arrays, {"lung_box": box, "spacing": spacing.tolist()}


def check_depth(depth: int, ratio: int, path: Path) -> None:
    """Check that a thin volume is deep enough for two thick slices.

    Raises:
        ValueError: if it is not.
    """
    if depth < (needed := thin_depth(2, ratio)):
        raise ValueError(
            f"Expected at least {needed} thin slices at ratio {ratio}, got {depth} in {path}; "
            "remove the case, or use a smaller ratio."
        )


def entry_key(case: Case, preparation: Preparation, hash_of: Any) -> str | None:
    """Return the name of the case's entry; None if ``hash_of`` returns None for one of the files.

    The name depends on the content of the files and on the preparation, not on where the files are.
    """
    source = lung_source(case, preparation.lung_masks)
    lung = case.lung if source == "files" else None
    files = [path and hash_of(path) for path in (case.thin, case.thick, lung)]
    if any(
        path is not None and known is None
        for path, known in zip((case.thin, case.thick, lung), files, strict=True)
    ):
        return None
    made_of = {
        "format": FORMAT,
        "files": files,
        # These can change what is stored for the same files. The ratio matters only for pairs: a
        # thin volume without a thick series is stored whole, and checked again when it is opened.
        "rplhr": [
            path and reads_as_rplhr(path, case.intensity) for path in (case.thin, case.thick)
        ],
        "ratio": None if case.thick is None else preparation.ratio,
        "lung": source,
        "slice_axis": preparation.slice_axis,
        "examined": preparation.examine,
        "turned": preparation.depth_axis and [preparation.depth_axis, preparation.turned_spacing],
    }
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:32]


def _extent(flags: npt.NDArray[np.bool_]) -> tuple[int, int]:
    found = np.flatnonzero(flags)
    return (int(found[0]), int(found[-1]) + 1) if len(found) else (0, len(flags))
