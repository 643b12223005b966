"""Whether thin slices agree with the thick ones that they were made from: thickened again, they should give them back. Needs no truth.

It tells of an output that invents or loses density; it does not tell of sharpness, as blur along the slices' normal can be
consistent too. Both volumes are clipped to [-1024, 3071] HU first, outside of which networks see nothing. Of the first and the last
thick slice the output holds one half only: there the profile is cut and scaled up, as :func:`mpunet.slices.simulate.thicken` does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mpunet.geometry import thin_depth
from mpunet.intensity import HU_MAX, HU_MIN
from mpunet.slices.simulate import (
    Profile,
    Thickener,
    profile_density,
    profile_weights,
    profile_width,
)

__all__ = ["Consistency", "ConsistencyMeter", "ConsistencyRange", "consistency", "consistency_map"]

Array = npt.NDArray[Any]
Plane = npt.NDArray[np.float32]

TOLERANCE = 1.5  # our choice: cases differ in noise and anatomy, and validation has seen few


class Consistency(NamedTuple):
    """The output thickened again minus the thick input, in HU.

    Attributes:
        mae: mean absolute difference; rmse its root mean square, bias its signed mean.
        worst_slice: thick slice of the slab with the largest mean absolute difference, ``worst_mae``; -1 where nothing was compared.
        lungs: the same inside the lungs, where a mask was given.
    """

    mae: float
    rmse: float
    bias: float
    worst_slice: int
    worst_mae: float
    lungs: Consistency | None = None


class ConsistencyRange(NamedTuple):
    """Smallest and largest MAE in HU over the cases of a validation, and the slice profile that they were measured with.

    >>> ConsistencyRange(2.0, 4.0, cases=3).limit
    6.0
    """

    low: float
    high: float
    cases: int
    profile: Profile = "gaussian"
    fwhm: float | None = None

    @property
    def limit(self) -> float:
        """Largest MAE that is not out of range: 1.5 times the largest in validation."""
        return TOLERANCE * self.high


class ConsistencyMeter:
    """Takes thin slices as they come and thick slices when it needs them; holds only the thick rows that the profile still reaches.

    Args:
        thick: slices (H, W) in HU, D of them, such as a :class:`mpunet.io.scan_file.ScanFile`; iterated over once.
        shape: (D, H, W).
        ratio: thick spacing / thin spacing.
        profile: slice profile, see :func:`mpunet.slices.simulate.profile_weights`.
        fwhm: its full width at half maximum in thick spacings.
        last_first: thin and thick slices both come from the last to the first.
        lung: masks (H, W) of the thick slices, in their order.

    >>> thick = np.full((3, 4, 4), -850.0)
    >>> meter = ConsistencyMeter(thick, thick.shape, 5)
    >>> meter.add(np.full((11, 4, 4), -840, np.int16))
    >>> round(meter.result().bias, 3)
    10.0
    """

    def __init__(
        self,
        thick: Iterable[Array],
        shape: tuple[int, ...],
        ratio: float,
        *,
        profile: Profile = "gaussian",
        fwhm: float | None = None,
        last_first: bool = False,
        lung: Iterable[Array] | None = None,
    ) -> None:
        self._depth = shape[0]
        self._rows = _thickener(shape[0], ratio, profile, fwhm)
        self._thick = iter(thick)
        self._lung = None if lung is None else iter(lung)
        self._last_first = last_first
        self._whole, self._inside = _Sums(), _Sums()

    def add(self, chunk: Array) -> None:
        """Take (k, H, W), the next thin slices in HU."""
        for plane in chunk:
            for row in self._rows.add(_clipped(plane)):
                difference = _minus(row, next(self._thick))
                self._whole.add(difference)
                if self._lung is not None:
                    self._inside.add(difference[next(self._lung) != 0])

    def watch(self, chunks: Iterable[Array]) -> Iterator[Array]:
        """Hand chunks on, each when it has been taken."""
        for chunk in chunks:
            self.add(chunk)
            yield chunk

    def result(self) -> Consistency:
        """Over all slices.

        Raises:
            ValueError: if thin slices are missing.
        """
        if len(self._whole.slices) < self._depth:
            raise ValueError(
                f"Expected the thin slices of {self._depth} thick ones, got those of {len(self._whole.slices)}; add the others first."
            )
        whole = self._whole.consistency(self._last_first)
        return (
            whole
            if self._lung is None
            else whole._replace(lungs=self._inside.consistency(self._last_first))
        )


def consistency(
    thin: Array,
    thick: Array,
    *,
    profile: Profile = "gaussian",
    fwhm: float | None = None,
    lung: Array | None = None,
) -> Consistency:
    """How far the thin slices, thickened by the slice profile, are from the thick ones.

    Args:
        thin: ((D - 1) * r + 1, H, W) in HU.
        thick: (D, H, W) in HU, thick slice k at the position of thin slice r * k.
        profile: of the scanner, or of the simulation that made the thick slices.
        fwhm: its full width at half maximum in thick spacings.
        lung: mask on the thin grid.

    Raises:
        ValueError: if the shapes do not belong together.
    """
    ratio = _ratio(thin, thick, lung)
    inside = None if lung is None else lung[::ratio]
    meter = ConsistencyMeter(thick, thick.shape, ratio, profile=profile, fwhm=fwhm, lung=inside)
    meter.add(thin)
    return meter.result()


def consistency_map(
    thin: Array, thick: Array, *, profile: Profile = "gaussian", fwhm: float | None = None
) -> Iterator[npt.NDArray[np.float32]]:
    """The thin slices thickened again minus the thick ones: D slices (H, W) in HU, computed while they are taken.

    Arguments and errors as for :func:`consistency`.

    >>> thick = np.zeros((3, 4, 4), np.int16)
    >>> np.stack(list(consistency_map(np.full((5, 4, 4), 7), thick))).round(3)[:, 0, 0]
    array([7., 7., 7.], dtype=float32)
    """
    rows = _thickener(len(thick), _ratio(thin, thick), profile, fwhm)
    return map(_minus, (row for plane in thin for row in rows.add(_clipped(plane))), thick)


def _thickener(thick_depth: int, ratio: float, profile: Profile, fwhm: float | None) -> Thickener:
    """For slices from first to last and from last to first, as profiles are symmetric."""
    depth = thin_depth(thick_depth, ratio)
    distance = np.arange(depth)[None] - ratio * np.arange(thick_depth)[:, None]
    matrix = profile_density(distance, profile, profile_width(profile, fwhm) * ratio)
    matrix[
        np.abs(distance) > len(profile_weights(math.ceil(ratio), profile=profile, fwhm=fwhm)) // 2
    ] = 0
    nearest = np.abs(distance).argmin(
        axis=1
    )  # all there is of a profile that is narrower than the slices' distance
    matrix[np.arange(thick_depth), nearest] = matrix[np.arange(thick_depth), nearest].clip(1e-6)
    return Thickener(np.asarray(matrix / matrix.sum(axis=1, keepdims=True), np.float32))


def _clipped(plane: Array) -> Plane:
    return plane.astype(np.float32).clip(HU_MIN, HU_MAX)


class _Sums:
    """Running sums over slices, in float64."""

    def __init__(self) -> None:
        self.voxels, self.absolute, self.squared, self.signed = 0, 0.0, 0.0, 0.0
        self.slices: list[float] = []  # their mean absolute differences

    def add(self, difference: Plane) -> None:
        values = difference.astype(np.float64)
        absolute = float(np.abs(values).sum())
        self.slices.append(absolute / values.size if values.size else -1.0)
        self.voxels += values.size
        self.absolute += absolute
        self.squared += float(np.square(values).sum())
        self.signed += float(values.sum())

    def consistency(self, last_first: bool) -> Consistency:
        if self.voxels == 0:
            return Consistency(math.nan, math.nan, math.nan, -1, math.nan)
        slices = self.slices[::-1] if last_first else self.slices
        worst = int(np.argmax(slices))
        mean = self.absolute / self.voxels
        return Consistency(
            mean,
            math.sqrt(self.squared / self.voxels),
            self.signed / self.voxels,
            worst,
            slices[worst],
        )


def _minus(row: Plane, thick: Array) -> Plane:
    return row - _clipped(thick)


def _ratio(thin: Array, thick: Array, lung: Array | None = None) -> int:
    shapes = f"{thin.shape} thin and {thick.shape} thick" + (
        f", {lung.shape} lung" if lung is not None else ""
    )
    rule = "Expected thin slices ((D - 1) * r + 1, H, W) for thick ones (D, H, W) and a mask on the thin grid"
    if (
        thin.ndim != 3
        or thick.ndim != 3
        or min(len(thin), len(thick)) < 2
        or thin.shape[1:] != thick.shape[1:]
    ):
        raise ValueError(f"{rule}, got {shapes}.")
    ratio, rest = divmod(len(thin) - 1, len(thick) - 1)
    if rest or ratio < 1 or (lung is not None and lung.shape != thin.shape):
        raise ValueError(
            f"{rule}, got {shapes}; cut both to the range of positions that they share."
        )
    return ratio
