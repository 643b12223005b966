"""Slice profiles to draw from in training, so that one network serves scanners whose thick slices differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mpunet.slices.simulate import Profile, profile_weights

__all__ = ["ProfileRange"]


class Uniform(Protocol):
    """What draws: numpy.random.RandomState (MONAI's) and Generator alike."""

    def uniform(self, low: float, high: float) -> float: ...


@dataclass(frozen=True)
class ProfileRange:
    """Kinds of slice profile and a range of widths.

    Attributes:
        kinds: drawn equally often.
        fwhm: smallest and largest full width at half maximum in thick spacings; None for each kind's own (0.9 or 1).

    >>> ProfileRange.of(["gaussian", "box"], (0.7, 1.0)).fixed
    ('gaussian', 0.85)
    """

    kinds: tuple[Profile, ...]
    fwhm: tuple[float, float] | None

    @classmethod
    def of(
        cls,
        profile: Profile | Sequence[Profile] = "gaussian",
        fwhm: float | Sequence[float] | None = None,
    ) -> ProfileRange:
        """From one kind or several, and one width or the smallest and the largest."""
        kinds = (profile,) if isinstance(profile, str) else tuple(profile)
        if not kinds:
            raise ValueError(
                "Expected at least one slice profile among 'gaussian', 'box' and 'triangle', got none."
            )
        for kind in kinds:
            profile_weights(2, profile=kind)  # refuses what it does not know
        if fwhm is None:
            return cls(kinds, None)
        low, high = (fwhm, fwhm) if isinstance(fwhm, int | float) else fwhm
        if not 0 < low <= high:
            raise ValueError(
                f"Expected widths (fwhm) in thick spacings, the smaller first and above 0, got {low} and {high}."
            )
        return cls(kinds, (float(low), float(high)))

    @property
    def varies(self) -> bool:
        """Whether there is anything to draw."""
        return len(self.kinds) > 1 or (self.fwhm is not None and self.fwhm[0] < self.fwhm[1])

    @property
    def fixed(self) -> tuple[Profile, float | None]:
        """What validation uses, so that its numbers compare from epoch to epoch: the first kind, the middle of the range."""
        return self.kinds[0], None if self.fwhm is None else sum(self.fwhm) / 2

    def reach(self, ratio: int) -> int:
        """Thin slices that the widest profile reaches past its centre."""
        widest = None if self.fwhm is None else self.fwhm[1]
        return max(
            len(profile_weights(ratio, profile=kind, fwhm=widest)) // 2 for kind in self.kinds
        )

    def draw(self, ratio: int, random: Uniform) -> npt.NDArray[np.float64]:
        """Weights of one profile, see :func:`mpunet.slices.simulate.profile_weights`."""
        kind = self.kinds[min(int(random.uniform(0, len(self.kinds))), len(self.kinds) - 1)]
        return profile_weights(
            ratio, profile=kind, fwhm=None if self.fwhm is None else random.uniform(*self.fwhm)
        )
