"""Fit of a scanner's slice profile to a genuine pair: thick and thin slices of one scan.

Every thick slice is a weighted sum of the thin slices around it. The squared error of any profile,
at any offset, is therefore a quadratic form of its weights. One pass over the pair computes this
form; profiles are then compared without reading the voxels again.
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

# Smallest change in HU from one thick slice to the next that counts as an edge (our choice). The
# choice of profile matters most at edges.
EDGE = 50.0
Array = npt.NDArray[np.float64]


class Moments(NamedTuple):
    """Mean products over voxels of thick slices and the thin slices around them.

    A tap is a position of a thin slice relative to the thick slice.

    Attributes:
        taps: (J,) distances from thin slice ``start`` + k * ratio, in thin slices.
        thin: (J, J) mean products of the thin slices at two taps, in HU squared.
        both: (J,) mean products of the thin slice at a tap and the thick slice, in HU squared.
        thick: mean square of the thick slice, in HU squared.
        voxels: number of voxels.
        slices: number of thick slices that have a thin slice at every tap.
    """

    taps: npt.NDArray[np.intp]
    thin: Array
    both: Array
    thick: float
    voxels: int
    slices: int

    def rmse(self, weights: Array) -> float:
        """Return the root mean square difference in HU of weighted thin slices and thick ones.

        Args:
            weights: (J,), one weight for each tap.
        """
        square = float(weights @ self.thin @ weights - 2 * weights @ self.both + self.thick)
        return math.sqrt(max(0.0, square))


class ProfileFit(NamedTuple):
    """A fitted profile.

    Attributes:
        kind: "gaussian", "box", "triangle", or "free".
        fwhm: full width at half maximum in thick spacings.
        offset: centre of thick slice 0 in thin slices, with a fraction.
        rmse: root mean square error in HU over all voxels.
        edges: root mean square error in HU over the voxels at which the thick series changes by 50
            HU or more from slice to slice.
        profile: the fitted profile as samples.
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
    """Compute the moments of all voxels, and of the voxels at edges along the slice normal.

    Thick slices at the ends that lack a thin slice at a tap are left out: there, the
    scanner cuts the profile in a different way than this package does.

    Args:
        thick: thick slices (D, H, W) in HU.
        thin: thin slices (M, H, W) in HU, of the same field of view.
        ratio: thick spacing / thin spacing.
        start: thin slice nearest to the centre of thick slice 0.
        step: use every ``step``-th voxel along height and width, for speed.
        reach: number of taps on each side; 2 * ratio by default, enough for a triangle whose full
            width at half maximum is two thick spacings.

    Returns:
        The moments of all voxels and those of the voxels at edges, see :class:`ProfileFit`.

    Raises:
        ValueError: if no thick slice has a thin slice at every tap.
    """
    reach = 2 * ratio if reach is None else reach
    taps = np.arange(-reach, reach + 1)
    used = [k for k in range(len(thick)) if reach <= start + ratio * k < len(thin) - reach]
    if not used:
        raise ValueError(
            f"Expected a thick slice with {reach} thin ones on each side to fit a profile, "
            f"got {len(thick)} thick and {len(thin)} thin slices, thick slice 0 on thin slice "
            f"{start}; use a longer pair."
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
    """Fit the width and the offset of a profile: minimize the RMSE over all voxels.

    Args:
        kind: kind of profile, "gaussian", "box" or "triangle".
        moments: moments of all voxels and of voxels at edges, from :func:`gather`.
        ratio: thick spacing / thin spacing.
        spacing: spacing of the thin slices in mm.
        start: thin slice nearest to the centre of thick slice 0, as passed to :func:`gather`.
        fwhm: full width at half maximum in thick spacings; fitted by default.
    """
    everywhere, edges = moments

    def weights(width: float, shift: float) -> Array:
        density = profile_density(everywhere.taps - shift, kind, width * ratio)
        total: float = density.sum()
        return density / max(total, 1e-9)

    widths = [fwhm] if fwhm else list(np.arange(0.3, 1.81, 0.1))
    first = widths[int(np.argmin([everywhere.rmse(weights(width, 0.0)) for width in widths]))]
    # Nelder-Mead needs no gradients: the error of a box is not a smooth function of its width.
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
    """Fit a symmetric profile of any shape: minimize the RMSE over all voxels.

    The method is non-negative least squares. The weights have sum 1 and are symmetric around
    thin slice ``start``. If the true offset has a fraction, the fitted profile is blurred by it.

    Args:
        moments: moments of all voxels and of voxels at edges, from :func:`gather`.
        ratio: thick spacing / thin spacing.
        spacing: spacing of the thin slices in mm.
        start: thin slice nearest to the centre of thick slice 0, as passed to :func:`gather`.
    """
    everywhere, edges = moments
    reach = int(everywhere.taps[-1])
    # Column j gives the taps at distance j, on both sides, the same weight.
    fold = np.array(
        [np.abs(everywhere.taps) == distance for distance in range(reach + 1)]
    ).T.astype(np.float64)
    # The square root of the moments gives a least-squares problem. Its last row, with a large
    # factor, enforces the sum of 1.
    eigen = np.linalg.eigh(fold.T @ everywhere.thin @ fold)
    largest = float(eigen.eigenvalues.max())
    scale = np.sqrt(eigen.eigenvalues.clip(1e-9 * largest))
    root = scale[:, None] * eigen.eigenvectors.T
    target = (eigen.eigenvectors.T @ (fold.T @ everywhere.both)) / scale
    factor = 1e3 * math.sqrt(largest)
    half, _ = nnls(np.vstack([root, factor * fold.sum(axis=0)]), np.append(target, factor))
    weights = fold @ half
    weights = np.where(weights < 0.01 * weights.max(), 0.0, weights)  # far taps only fit noise
    weights = weights / weights.sum()
    profile = SampledProfile(np.asarray(everywhere.taps * spacing, np.float64), weights)
    width = _fwhm(everywhere.taps, weights) / ratio
    return ProfileFit(
        "free", width, float(start), everywhere.rmse(weights), edges.rmse(weights), profile
    )


def _fwhm(positions: npt.NDArray[Any], weights: Array) -> float:
    """Return the width between the outermost crossings of half the maximum.

    The profile is linear between the samples.
    """
    fine = np.linspace(positions[0], positions[-1], 200 * len(positions) + 1)
    above = fine[np.interp(fine, positions, weights) >= weights.max() / 2]
    return float(above[-1] - above[0])
