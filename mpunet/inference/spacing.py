"""Whether a scan's slices stand as far apart as those that a network was trained on.

A network of ratio 5 cuts any scan's slices into five. Trained on 5 mm, it knows what 5 mm hide; of 3 mm it makes 0.6 mm slices with
detail that it was never shown, of 10 mm it makes 2 mm slices that look sharp and are guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

__all__ = ["SliceSpacing"]

TOLERANCE = 0.1  # our choice: 5 mm networks serve scans of 4.5 to 5.5 mm without a word
REFUSED = 2.0  # our choice: beyond this factor nothing was learnt that could serve


class SliceSpacing(NamedTuple):
    """Smallest and largest spacing in mm of the thick slices that a network was trained on.

    >>> SliceSpacing(5.0, 6.25).warning(5.5) is None
    True
    """

    low: float
    high: float

    @classmethod
    def from_record(cls, training: Mapping[str, Any] | None) -> SliceSpacing | None:
        """From the data's record in a checkpoint, see :meth:`mpunet.ThickThinDataModule.training_record`; None where it tells nothing."""
        found = (training or {}).get("thick_spacing")
        return None if not found else cls(float(found[0]), float(found[1]))

    def __str__(self) -> str:
        low, high = f"{self.low:.3g}", f"{self.high:.3g}"
        return f"{low} mm" if low == high else f"{low} to {high} mm"

    def fits(self, spacing: float) -> bool:
        """Whether ``spacing`` is within a tenth of what was trained on."""
        return self.low * (1 - TOLERANCE) <= spacing <= self.high * (1 + TOLERANCE)

    def warning(self, spacing: float) -> str | None:
        """What to tell of a scan whose slices stand ``spacing`` mm apart; None if it is within a tenth of what was trained on.

        Raises:
            ValueError: if it is less than half or more than twice of that.
        """
        if self.fits(spacing):
            return None
        text = f"slices stand {spacing:.3g} mm apart, and the network was trained on {self}"
        fitting = [name for name, known in _packaged() if known.fits(spacing)]
        better = (
            f"Take --ckpt_path {fitting[0]}, which was trained on such scans"
            if fitting
            else "docs/model_card.md tells how to train for such scans"
        )
        if not self.low / REFUSED <= spacing <= self.high * REFUSED:
            raise ValueError(
                f"{text}: refused. {better}; or have it done nevertheless (--inference.any_spacing true; in Python, spacing=None)."
            )
        return f"{text}: fine structures may be wrong. {better}."


@cache
def _packaged() -> list[tuple[str, SliceSpacing]]:
    """Names and spacings of the networks that come with mpunet."""
    from mpunet.weights import packaged, read_weights

    known = (
        (name, SliceSpacing.from_record(read_weights(path).record.get("training")))
        for name, path in packaged().items()
    )
    return [(name, spacing) for name, spacing in known if spacing is not None]
