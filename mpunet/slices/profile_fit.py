"""Which slice profile a scanner has: fitted to a genuine pair, thick and thin slices of one scan.

Every thick slice is a weighted sum of the thin slices around it, so that the squared error of any profile, at any offset, is a
quadratic form of its weights. One pass over the pair gathers the form; profiles are then compared without looking at a voxel.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize, nnls

from mpunet.slices.sampled_profile import SampledProfile
from mpunet.slices.simulate import Profile, profile_density

__all__ = ["EDGE", "Moments", "ProfileFit", "fit_free", "fit_profile", "gather"]

EDGE = 50.0  # HU from one thick slice to the next: where profiles differ in what they make of the thin series (our choice)
Array = npt.NDArray[np.float64]


class Moments(NamedTuple):
    """What the thin slices around the thick ones have in common with them and with each other, as means over voxels.

    Attributes:
        taps: (J,) positions of the thin slices in thin slices from ``start`` + k * ratio.
        thin: (J, J) mean products of the thin slices at two taps, HU squared.
        both: (J,) those of the thin slice at a tap and the thick slice.
        thick: that of the thick slice with itself.
        voxels: how many.
        slices: thick slices that have all taps.
    """

    taps: npt.NDArray[np.intp]
    thin: Array
    both: Array
    thick: float
    voxels: int
    slices: int

    def rmse(self, weights: Array) -> float:
        """Root mean square difference in HU of the thin slices weighted so (J,) and the thick ones."""
        square = float(weights @ self.thin @ weights - 2 * weights @ self.both + self.thick)
        return math.sqrt(max(0.0, square))


class ProfileFit(NamedTuple):
    """A profile that was fitted.

    Attributes:
        kind: "gaussian", "box", "triangle", or "free".
        fwhm: full width at half maximum in thick spacings.
        offset: thin slice, with fraction, on which thick slice 0 is centred.
        rmse: in HU, over all voxels; ``edges`` where the thick series changes by 50 HU or more from slice to slice.
        profile: the same as samples.
    """

    kind: str
    fwhm: float
    offset: float
    rmse: float
    edges: float
    profile: SampledProfile


def gather(
    thick: npt.NDArray[Any],
    thin: npt.NDArray[Any],
    ratio: int,
    *,
    start: int,
    step: int = 1,
    reach: int | None = None,
) -> tuple[Moments, Moments]:
    """Moments of all voxels, and of those at edges along the slices' normal (see :class:`ProfileFit`).

    Thick slices that lack a tap, at the ends, are left out: there a profile is cut, by the scanner in another way than by us.

    Args:
        thick: (D, H, W) in HU.
        thin: (M, H, W) in HU, of the same field of view.
        ratio: thick spacing / thin spacing.
        start: thin slice nearest to the centre of thick slice 0.
        step: take every so many voxels in plane, for speed.
        reach: taps on each side; 2 * ratio by default, which holds a triangle of two thick spacings.

    Raises:
        ValueError: if no thick slice has all taps.
    """
    reach = 2 * ratio if reach is None else reach
    taps = np.arange(-reach, reach + 1)
    used = [k for k in range(len(thick)) if reach <= start + ratio * k < len(thin) - reach]
    if not used:
        raise ValueError(
            f"Expected a thick slice with {reach} thin ones on each side to fit a profile, got {len(thick)} thick and {len(thin)} thin "
            f"slices, thick slice 0 on thin slice {start}; take a longer pair."
        )
    size = len(taps) + 1
    sums, counts = np.zeros((2, size, size)), np.zeros(2, np.int64)
    for k in used:
        middle = start + ratio * k
        near = [
            *thin[middle - reach : middle + reach + 1, ::step, ::step],
            thick[k, ::step, ::step],
        ]
        values = np.stack(near).reshape(size, -1).astype(np.float64)
        sides = [
            thick[other, ::step, ::step].astype(np.float32)
            for other in (max(0, k - 1), min(len(thick) - 1, k + 1))
        ]
        edge = np.abs(sides[1] - sides[0]).ravel() >= 2 * EDGE
        for index, part in enumerate((values, values[:, edge])):
            sums[index] += part @ part.T
            counts[index] += part.shape[1]
    found = []
    for products, count in zip(sums, counts, strict=True):
        mean = products / max(1, int(count))
        found.append(
            Moments(taps, mean[:-1, :-1], mean[:-1, -1], float(mean[-1, -1]), int(count), len(used))
        )
    return found[0], found[1]


def fit_profile(
    kind: Profile,
    moments: tuple[Moments, Moments],
    ratio: int,
    spacing: float,
    *,
    start: int,
    fwhm: float | None = None,
) -> ProfileFit:
    """The width (unless ``fwhm`` gives it, in thick spacings) and the offset that make the RMSE over all voxels smallest.

    Args:
        kind: of profile.
        moments: as :func:`gather` gives them.
        ratio: thick spacing / thin spacing.
        spacing: of the thin slices in mm.
        start: as for :func:`gather`.
        fwhm: full width at half maximum in thick spacings.
    """
    everywhere, edges = moments

    def weights(width: float, shift: float) -> Array:
        made = profile_density(everywhere.taps - shift, kind, width * ratio)
        total: float = made.sum()
        return made / max(total, 1e-9)

    widths = [fwhm] if fwhm else list(np.arange(0.3, 1.81, 0.1))
    first = widths[int(np.argmin([everywhere.rmse(weights(width, 0.0)) for width in widths]))]
    # The box's error is not smooth in its width, hence no gradients.
    simplex = [[0.0, first], [0.1, first], [0.0, first + 0.05]]
    best = minimize(
        lambda at: everywhere.rmse(weights(fwhm or at[-1], at[0])),
        [0.0] if fwhm else [0.0, first],
        method="Nelder-Mead",
        bounds=[(-0.75, 0.75)] if fwhm else [(-0.75, 0.75), (0.1, 2.0)],
        options={
            "xatol": 1e-4,
            "fatol": 1e-5,
            "initial_simplex": [[0.0], [0.1]] if fwhm else simplex,
        },
    )
    shift, width = float(best.x[0]), float(fwhm or best.x[-1])
    found = weights(width, shift)
    fine = np.linspace(everywhere.taps[0], everywhere.taps[-1], 4 * len(everywhere.taps) - 3)
    profile = SampledProfile(
        np.asarray(fine * spacing, np.float64), profile_density(fine, kind, width * ratio)
    )
    return ProfileFit(
        kind, width, start + shift, everywhere.rmse(found), edges.rmse(found), profile
    )


def fit_free(
    moments: tuple[Moments, Moments], ratio: int, spacing: float, *, start: int
) -> ProfileFit:
    """The symmetric profile without any other shape that makes the RMSE smallest: non-negative least squares, sum 1.

    Symmetric around thin slice ``start``: where the offset has a fraction, it is smeared by it.
    """
    everywhere, edges = moments
    reach = int(everywhere.taps[-1])
    # Column j of the fold puts one weight on both sides.
    fold = np.array(
        [np.abs(everywhere.taps) == distance for distance in range(reach + 1)]
    ).T.astype(np.float64)
    # Moments become a least-squares problem by their root; a heavy last row asks for the sum.
    eigen = np.linalg.eigh(fold.T @ everywhere.thin @ fold)
    largest = float(eigen.eigenvalues.max())
    scale = np.sqrt(eigen.eigenvalues.clip(1e-9 * largest))
    root = scale[:, None] * eigen.eigenvectors.T
    target = (eigen.eigenvectors.T @ (fold.T @ everywhere.both)) / scale
    heavy = 1e3 * math.sqrt(largest)
    half, _ = nnls(np.vstack([root, heavy * fold.sum(axis=0)]), np.append(target, heavy))
    weights = fold @ half
    weights = np.where(weights < 0.01 * weights.max(), 0.0, weights)  # far taps that fit noise
    weights = weights / weights.sum()
    profile = SampledProfile(np.asarray(everywhere.taps * spacing, np.float64), weights)
    width = _fwhm(everywhere.taps, weights) / ratio
    return ProfileFit(
        "free", width, float(start), everywhere.rmse(weights), edges.rmse(weights), profile
    )


def _fwhm(positions: npt.NDArray[Any], weights: Array) -> float:
    """Width between the outermost crossings of half of the maximum, straight lines between samples."""
    fine = np.linspace(positions[0], positions[-1], 200 * len(positions) + 1)
    above = fine[np.interp(fine, positions, weights) >= weights.max() / 2]
    return float(above[-1] - above[0])
