"""Random slice profiles for training, so that one network works for different scanners."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mpunet.slices.simulate import Profile, profile_weights

__all__ = ["ProfileRange"]


class Uniform(Protocol):
    """A random number generator: ``numpy.random.RandomState`` (used by MONAI) or ``Generator``."""

    def uniform(self, low: float, high: float) -> float: ...


@dataclass(frozen=True)
class ProfileRange:
    """Kinds of slice profile and a range of widths to draw from.

    Attributes:
        kinds: kinds of profile, drawn equally often.
        fwhm: smallest and largest full width at half maximum in thick spacings; None for the
            default of each kind (0.9 for the Gaussian, else 1).

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
        """Create a range from one or more kinds of profile and one width or a range of widths.

        Args:
            profile: kind or kinds of profile: "gaussian", "box" or "triangle".
            fwhm: full width at half maximum in thick spacings, or the smallest and the largest one;
                by default 0.9 for the Gaussian, else 1.

        Raises:
            ValueError: if there is no kind or an unknown one, or the widths are not above 0 in
                ascending order.
        """
        kinds = (profile,) if isinstance(profile, str) else tuple(profile)
        if not kinds:
            raise ValueError(
                "Expected at least one slice profile among 'gaussian', 'box' and 'triangle', "
                "got none."
            )
        for kind in kinds:
            profile_weights(2, profile=kind)  # raises ValueError for an unknown kind
        if fwhm is None:
            return cls(kinds, None)
        low, high = (fwhm, fwhm) if isinstance(fwhm, int | float) else fwhm
        if not 0 < low <= high:
            raise ValueError(
                f"Expected widths (fwhm) in thick spacings, the smaller first and above 0, "
                f"got {low} and {high}."
            )
        return cls(kinds, (float(low), float(high)))

    @property
    def varies(self) -> bool:
        """Whether :meth:`draw` gives different profiles."""
        return len(self.kinds) > 1 or (self.fwhm is not None and self.fwhm[0] < self.fwhm[1])

    @property
    def fixed(self) -> tuple[Profile, float | None]:
        """Kind and width for validation: the first kind and the middle of the range of widths.

        They are fixed so that the numbers of different epochs can be compared. The width is None if
        ``fwhm`` is None.
        """
        return self.kinds[0], None if self.fwhm is None else sum(self.fwhm) / 2

    def reach(self, ratio: int) -> int:
        """Return the number of thin slices on each side of the centre of the widest profile."""
        widest = None if self.fwhm is None else self.fwhm[1]
        return max(
            len(profile_weights(ratio, profile=kind, fwhm=widest)) // 2 for kind in self.kinds
        )

    def draw(self, ratio: int, random: Uniform) -> npt.NDArray[np.float64]:
        """Draw a profile and return its weights.

        See :func:`mpunet.slices.simulate.profile_weights`.

        Args:
            ratio: thick spacing / thin spacing.
            random: random number generator.
        """
        kind = self.kinds[min(int(random.uniform(0, len(self.kinds))), len(self.kinds) - 1)]
        return profile_weights(
            ratio, profile=kind, fwhm=None if self.fwhm is None else random.uniform(*self.fwhm)
        )
