"""Warnings about a scan's slice spacing, gantry tilt and slice thickness.

A network of ratio 5 divides every slice spacing by five. If it was trained on scans of 5 mm, then
scans of 3 mm become slices of 0.6 mm with details that the training never showed, and scans of
10 mm become slices of 2 mm that look sharp but are guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from mpunet.io.nifti.sidecar import thickness_note
from mpunet.io.volume import TILTED, VolumeInfo

__all__ = ["SliceSpacing", "grid_warnings"]

TOLERANCE = 0.1  # relative difference without a warning: 4.5 to 5.5 mm for 5 mm; our choice
REFUSED = 2.0  # factor above which the network has learned nothing useful; our choice


class SliceSpacing(NamedTuple):
    """Smallest and largest slice spacing in mm of the thick scans that a network was trained on.

    >>> SliceSpacing(5.0, 6.25).warning(5.5) is None
    True
    """

    low: float
    high: float

    @classmethod
    def from_record(cls, training: Mapping[str, Any] | None) -> SliceSpacing | None:
        """Read the range from the training record of a checkpoint; None if it is not recorded.

        The record is written by :meth:`mpunet.ThickThinDataModule.training_record`.
        """
        found = (training or {}).get("thick_spacing")
        return None if not found else cls(float(found[0]), float(found[1]))

    def __str__(self) -> str:
        low, high = f"{self.low:.3g}", f"{self.high:.3g}"
        return f"{low} mm" if low == high else f"{low} to {high} mm"

    def fits(self, spacing: float) -> bool:
        """Return whether ``spacing`` (mm) is in the range, extended by 10 %."""
        return self.low * (1 - TOLERANCE) <= spacing <= self.high * (1 + TOLERANCE)

    def warning(self, spacing: float) -> str | None:
        """Return the warning for a scan with this slice spacing in mm; None if the spacing fits.

        Raises:
            ValueError: if the spacing is below half or above twice the range.
        """
        if self.fits(spacing):
            return None
        text = f"the slice spacing is {spacing:.3g} mm, but the network was trained on {self}"
        fitting = [name for name, known in _packaged() if known.fits(spacing)]
        better = (
            f"Use --ckpt_path {fitting[0]}, which was trained on such scans"
            if fitting
            else "docs/model_card.md describes how to train for such scans"
        )
        if not self.low / REFUSED <= spacing <= self.high * REFUSED:
            raise ValueError(
                f"{text}: refused. {better}, or turn off this check (--inference.any_spacing true; "
                "in Python, spacing=None)."
            )
        return f"{text}: fine structures may be wrong. {better}."


def grid_warnings(volume: VolumeInfo, thin_spacing: float) -> list[str]:
    """Return the warnings about a scan's gantry tilt and slice thickness.

    Args:
        volume: the scan.
        thin_spacing: slice spacing of the result in mm.
    """
    found = []
    if volume.tilt > TILTED:
        found.append(
            f"gantry tilt of {volume.tilt:.1f} degrees: the result is on the same tilted grid; "
            f"slice spacing {thin_spacing:.4g} mm is measured along the normal"
        )
    if (note := thickness_note(volume)) is not None:
        found.append(note)
    return found


@cache
def _packaged() -> list[tuple[str, SliceSpacing]]:
    """Return the names and spacings of the networks that are included in mpunet."""
    from mpunet.weights import packaged, read_weights

    known = (
        (name, SliceSpacing.from_record(read_weights(path).record.get("training")))
        for name, path in packaged().items()
    )
    return [(name, spacing) for name, spacing in known if spacing is not None]
