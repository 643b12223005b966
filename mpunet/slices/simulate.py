"""Thick slices from thin ones: a weighted mean of thin slices around every r-th one, the weights being the slice profile.

A scanner's 5 mm slice is not the mean of five 1 mm slices: on the one genuine pair at hand a Gaussian whose full width at half
maximum is 0.9 of the thick spacing fits to 6.8 HU RMSE over the whole volume, a triangle to 16.8 and the five-slice mean to 34.9
(tests/data/test_simulate.py). The default is that Gaussian (our choice: the paper has genuine pairs).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mpunet.geometry import thin_depth

__all__ = [
    "DEFAULT_FWHM",
    "Profile",
    "Thickener",
    "profile_density",
    "profile_weights",
    "profile_width",
    "thick_slices",
    "thicken",
    "thickening_matrix",
]

Profile = Literal["gaussian", "box", "triangle"]
DEFAULT_FWHM = 0.9
_SIGMAS = np.sqrt(8 * np.log(2))  # standard deviations in a Gaussian's full width at half maximum


def profile_weights(
    ratio: int, *, profile: Profile = "gaussian", fwhm: float | None = None
) -> npt.NDArray[np.float64]:
    """Weights of the thin slices around a thick slice's centre: odd in number, symmetric, with sum 1.

    Args:
        ratio: thick spacing / thin spacing.
        profile: "gaussian" (cut at 3 sigma), "triangle", or "box" (its outermost slices weighted by the part that the box covers).
        fwhm: full width at half maximum in units of the thick spacing; by default 0.9 for the Gaussian, else 1.

    >>> profile_weights(3, profile="box").round(3).tolist()
    [0.333, 0.333, 0.333]
    """
    width = profile_width(profile, fwhm) * ratio
    if not width > 0:
        raise ValueError(
            f"Expected a slice profile of positive width, got fwhm={fwhm} thick spacings."
        )
    if profile == "gaussian":
        reach = max(1, round(3 * width / _SIGMAS))
    elif profile == "box":
        reach = int(np.ceil(width / 2 - 0.5))
    else:
        reach = max(0, int(np.ceil(width)) - 1)
    weights = profile_density(np.arange(-reach, reach + 1), profile, width)
    return np.asarray(weights / weights.sum())


def profile_width(profile: Profile, fwhm: float | None) -> float:
    """``fwhm``, or its default: full width at half maximum in units of the thick spacing."""
    return fwhm if fwhm is not None else DEFAULT_FWHM if profile == "gaussian" else 1.0


def profile_density(
    position: npt.NDArray[Any], profile: Profile, width: float
) -> npt.NDArray[np.float64]:
    """Weights at any positions from the profile's centre, largest 1; positions and full width at half maximum in one unit.

    Of the box, the part of a thin slice of width 1 around the position that it covers.

    >>> profile_density(np.array([-2, -1, 0, 1, 2]), "box", 4.0).tolist()
    [0.5, 1.0, 1.0, 1.0, 0.5]
    """
    if profile == "gaussian":
        return np.asarray(np.exp(-0.5 * (position * _SIGMAS / width) ** 2))
    if profile == "box":
        return np.asarray(np.clip(width / 2 + 0.5 - np.abs(position), 0, 1))
    if profile == "triangle":
        return np.asarray(np.clip(1 - np.abs(position) / width, 0, None))
    raise ValueError(f"Expected a profile among 'gaussian', 'box' and 'triangle', got {profile!r}.")


def thickening_matrix(
    depth: int,
    ratio: int,
    weights: npt.NDArray[np.float64],
    *,
    start: int = 0,
    count: int | None = None,
) -> npt.NDArray[np.float32]:
    """Matrix (count, depth) that thickens ``depth`` thin slices; thick slice k is centred on thin slice ``start`` + k * ratio.

    Where the profile reaches past the first or last thin slice, the rest of its weights is scaled up to sum 1.

    Args:
        weights: as :func:`profile_weights` gives them.
        start: thin slice that the first thick slice is centred on.
        count: thick slices; as many as have their centre on a thin slice by default.
    """
    if count is None:
        count = (depth - 1 - start) // ratio + 1
    offset = (
        np.arange(depth)[None, :] - (start + ratio * np.arange(count))[:, None] + len(weights) // 2
    )
    matrix = np.where(
        (offset >= 0) & (offset < len(weights)), weights[offset.clip(0, len(weights) - 1)], 0.0
    )
    return np.asarray(matrix / matrix.sum(axis=1, keepdims=True), dtype=np.float32)


def thicken(
    thin: npt.NDArray[Any], ratio: int, *, profile: Profile = "gaussian", fwhm: float | None = None
) -> npt.NDArray[np.float32]:
    """Thick slices (D, H, W) in HU centred on every ``ratio``-th of the thin slices (M, H, W), D = (M - 1) // ratio + 1.

    The thick volume stands for the first (D - 1) * ratio + 1 thin slices.
    """
    if thin.ndim != 3 or len(thin) < thin_depth(2, ratio):
        raise ValueError(
            f"Expected at least {thin_depth(2, ratio)} thin slices (depth, height, width) to make two thick ones at ratio {ratio}, "
            f"got shape {thin.shape}."
        )
    matrix = thickening_matrix(len(thin), ratio, profile_weights(ratio, profile=profile, fwhm=fwhm))
    thick = np.empty((len(matrix), *thin.shape[1:]), np.float32)
    for row, out in zip(matrix, thick, strict=True):
        used = np.flatnonzero(row)
        np.einsum(
            "d,dhw->hw",
            row[used],
            thin[used[0] : used[-1] + 1].astype(np.float32, copy=False),
            out=out,
        )
    return thick


class Thickener:
    """Thick slices (H, W) in HU from thin ones that come one by one, each when the last of its thin slices has come.

    Holds the thick slices that are begun.

    Args:
        matrix: (thick, thin), as :func:`thickening_matrix` gives it; reversed along both axes for slices that come last first.
    """

    def __init__(self, matrix: npt.NDArray[np.float32]) -> None:
        self._matrix = matrix
        self._last = [
            int(np.flatnonzero(row)[-1]) for row in matrix
        ]  # thin slice that completes a thick one
        self._begun: dict[int, npt.NDArray[np.float32]] = {}
        self._done = self._come = 0  # thick and thin slices so far

    def add(self, plane: npt.NDArray[Any]) -> Iterator[npt.NDArray[np.float32]]:
        """Take the next thin slice (H, W) in HU; the thick slices that it completes."""
        hu = plane.astype(np.float32, copy=False)
        weights = self._matrix[
            :, self._come : self._come + 1
        ].ravel()  # none past the end: slices too many are others' to refuse
        for k in map(int, np.flatnonzero(weights)):
            if k in self._begun:
                self._begun[k] += weights[k] * hu
            else:
                self._begun[k] = weights[k] * hu
        while self._done < len(self._last) and self._last[self._done] <= self._come:
            yield self._begun.pop(self._done)
            self._done += 1
        self._come += 1


def thick_slices(
    planes: Iterable[npt.NDArray[Any]], matrix: npt.NDArray[np.float32]
) -> Iterator[npt.NDArray[np.float32]]:
    """The thick slices (H, W) in HU of thin slices (H, W) in HU, see :class:`Thickener`.

    >>> next(thick_slices(np.array([[[0]], [[10]], [[20]]]), thickening_matrix(3, 2, np.array([0.25, 0.5, 0.25]))))
    array([[3.3333335]], dtype=float32)
    """
    thickener = Thickener(matrix)
    return (thick for plane in planes for thick in thickener.add(plane))
