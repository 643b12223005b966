"""Thick slices from thin ones: a weighted mean of thin slices around every r-th one, the weights being the slice profile.

A scanner's 5 mm slice is not the mean of five 1 mm slices: on the one genuine pair at hand a Gaussian whose full width at half
maximum is 0.9 of the thick spacing fits to 6.8 HU RMSE over the whole volume, a triangle to 16.8 and the five-slice mean to 34.9
(tests/data/test_simulate.py). The default is that Gaussian (our choice: the paper has genuine pairs).
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mpunet.geometry import thin_depth

__all__ = ["DEFAULT_FWHM", "Profile", "profile_weights", "thicken", "thickening_matrix"]

Profile = Literal["gaussian", "box", "triangle"]
DEFAULT_FWHM = 0.9


def profile_weights(ratio: int, *, profile: Profile = "gaussian", fwhm: float | None = None) -> npt.NDArray[np.float64]:
    """Weights of the thin slices around a thick slice's centre: odd in number, symmetric, with sum 1.

    Args:
        ratio: thick spacing / thin spacing.
        profile: "gaussian" (cut at 3 sigma), "triangle", or "box" (its outermost slices weighted by the part that the box covers).
        fwhm: full width at half maximum in units of the thick spacing; by default 0.9 for the Gaussian, else 1.

    >>> profile_weights(3, profile="box").round(3).tolist()
    [0.333, 0.333, 0.333]
    """
    width = (fwhm if fwhm is not None else DEFAULT_FWHM if profile == "gaussian" else 1.0) * ratio
    if not width > 0:
        raise ValueError(f"Expected a slice profile of positive width, got fwhm={fwhm} thick spacings.")
    if profile == "gaussian":
        sigma = width / np.sqrt(8 * np.log(2))
        reach = max(1, round(3 * sigma))
        weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    elif profile == "box":
        reach = int(np.ceil(width / 2 - 0.5))
        weights = np.clip(width / 2 + 0.5 - np.abs(np.arange(-reach, reach + 1)), 0, 1)
    elif profile == "triangle":
        reach = int(np.ceil(width)) - 1
        weights = 1 - np.abs(np.arange(-reach, reach + 1)) / width
    else:
        raise ValueError(f"Expected a profile among 'gaussian', 'box' and 'triangle', got {profile!r}.")
    return np.asarray(weights / weights.sum())


def thickening_matrix(
    depth: int, ratio: int, weights: npt.NDArray[np.float64], *, start: int = 0, count: int | None = None
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
    offset = np.arange(depth)[None, :] - (start + ratio * np.arange(count))[:, None] + len(weights) // 2
    matrix = np.where((offset >= 0) & (offset < len(weights)), weights[offset.clip(0, len(weights) - 1)], 0.0)
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
        np.einsum("d,dhw->hw", row[used], thin[used[0] : used[-1] + 1].astype(np.float32, copy=False), out=out)
    return thick
