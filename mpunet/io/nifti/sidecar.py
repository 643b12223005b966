"""Slice thickness of a scan, from the JSON file that dcm2niix writes beside it.

NIfTI headers have no slice thickness.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from mpunet.io.volume import VolumeInfo, without_nifti_suffix

__all__ = ["slice_thickness", "thickness_note"]

# Largest relative difference of slice thickness and slice spacing that is not reported. Our choice:
# more than rounding, less than common overlaps (25 % and more) and gaps.
TOLERANCE = 0.2


def slice_thickness(path: Path) -> float | None:
    """Read the slice thickness in mm of a NIfTI file from its sidecar, ``x.json`` for ``x.nii.gz``.

    Returns:
        The value of "SliceThickness"; None if the file is missing, damaged or without a positive
        number of this name.
    """
    sidecar = path.with_name(f"{without_nifti_suffix(path.name)}.json")
    try:
        thickness = json.loads(sidecar.read_bytes())["SliceThickness"]
        known = type(thickness) in (int, float) and 0 < float(thickness) < math.inf
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return None
    return float(thickness) if known else None


def thickness_note(info: VolumeInfo) -> str | None:
    """Describe slices that overlap or have gaps between them.

    Returns:
        One line; None if the slice thickness is unknown or within 20 % of the slice spacing.
    """
    thickness = info.slice_thickness
    if thickness is None and info.path is not None:
        thickness = slice_thickness(info.path)
    spacing = float(info.spacing[0])
    if thickness is None or abs(thickness - spacing) <= TOLERANCE * spacing:
        return None
    relation, meaning = (
        ("larger", "the slices overlap")
        if thickness > spacing
        else ("smaller", "there are gaps between the slices")
    )
    return (
        f"the slice thickness of {thickness:.4g} mm is {relation} than the slice spacing of "
        f"{spacing:.4g} mm: {meaning}"
    )
