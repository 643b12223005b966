"""A description of the training data, stored in checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mpunet.data.cache import CachedCase
from mpunet.slices.profile_range import ProfileRange

__all__ = ["describe_training_data"]


def describe_training_data(
    cases: Sequence[CachedCase],
    turned: Sequence[CachedCase],
    *,
    ratio: int,
    profiles: ProfileRange,
    flip: bool,
) -> dict[str, Any]:
    """Describe the training data in plain values, which can be stored as JSON.

    Args:
        cases: cases with the slice axis as depth.
        turned: cases with an in-plane axis as depth.
        ratio: thick spacing / thin spacing.
        profiles: slice profiles of simulated thick slices.
        flip: whether crops are flipped.

    Returns:
        The ``number`` of all cases, the names of the first 100 (``cases``), the number with genuine
        thick slices (``pairs``) and with an in-plane axis as depth (``turned``), the ``ratio``, the
        smallest and largest ``thin_spacing`` and ``thick_spacing`` in mm, ``profile`` and ``fwhm``
        of simulated thick slices, and ``flips``.
    """
    every = [*cases, *turned]
    spacings = [float(case.spacing[0]) for case in every]
    low, high = min(spacings), max(spacings)
    return {
        "number": len(every),
        "cases": [case.name for case in every[:100]],
        "pairs": sum("thick" in case.layout for case in every),
        "turned": len(turned),
        "ratio": ratio,
        "thin_spacing": [low, high],
        "thick_spacing": [low * ratio, high * ratio],
        "profile": list(profiles.kinds),
        "fwhm": None if profiles.fwhm is None else list(profiles.fwhm),
        "flips": flip,
    }
