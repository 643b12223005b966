"""Consistency of thin slices with the thick slices that they were made from.

Thin slices, thickened again, should equal the thick slices. No reference is needed. The measure
detects an output that invents or loses density. It does not measure sharpness, because an output
that is blurred along the slice normal can be consistent too. Both volumes are first clipped to
[-1024, 3071] HU, the range that networks see. The output covers only half of the first and of the
last thick slice. There the profile is cut off and its weights are scaled up, as in
:func:`mpunet.slices.simulate.thicken`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mpunet.geometry import thin_depth
from mpunet.intensity import HU_MAX, HU_MIN
from mpunet.slices.sampled_profile import SampledProfile
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

TOLERANCE = 1.5  # our choice: cases differ in noise and anatomy, and validation sets are small


class Consistency(NamedTuple):
    """Difference in HU: the output thickened again minus the thick input.

    Attributes:
        mae: mean absolute difference.
        rmse: root mean squared difference.
        bias: mean signed difference.
        worst_slice: index in the slab of the thick slice with the largest mean absolute difference;
            -1 if nothing was compared.
        worst_mae: mean absolute difference of that slice.
        lungs: the same values inside the lungs; None without a lung mask.
    """

    mae: float
    rmse: float
    bias: float
    worst_slice: int
    worst_mae: float
    lungs: Consistency | None = None


class ConsistencyRange(NamedTuple):
    """Range of MAE over the cases of a validation.

    Attributes:
        low: smallest MAE in HU.
        high: largest MAE in HU.
        cases: number of cases.
        profile: slice profile that the MAE was measured with.
        fwhm: its full width at half maximum in thick spacings; None is the default width.

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
        """Largest MAE in HU that is in range: 1.5 times the largest in validation."""
        return TOLERANCE * self.high


class ConsistencyMeter:
    """Measures consistency while thin slices arrive, and reads thick slices when it needs them.

    Only those thickened slices are held in memory whose thin slices have not all arrived yet.

    Args:
        thick: D slices (H, W) in HU, for example a :class:`mpunet.io.scan_file.ScanFile`; iterated
            over once.
        shape: shape (D, H, W) of the thick volume.
        ratio: thick spacing / thin spacing.
        profile: slice profile, see :func:`mpunet.slices.simulate.profile_weights`, or the sampled
            one of a scanner.
        fwhm: full width at half maximum of a named profile in thick spacings.
        spacing: thick slice spacing in mm; required for a sampled profile.
        last_first: whether thin and thick slices come in order from last to first.
        lung: lung masks (H, W) of the thick slices, in the order of ``thick``.

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
        profile: Profile | SampledProfile = "gaussian",
        fwhm: float | None = None,
        spacing: float | None = None,
        last_first: bool = False,
        lung: Iterable[Array] | None = None,
    ) -> None:
        self._depth = shape[0]
        self._rows = _thickener(shape[0], ratio, profile, fwhm, spacing, last_first)
        self._thick = iter(thick)
        self._lung = None if lung is None else iter(lung)
        self._last_first = last_first
        self._whole, self._inside = _Sums(), _Sums()

    def add(self, chunk: Array) -> None:
        """Add the next thin slices, (k, H, W) in HU."""
        for plane in chunk:
            for row in self._rows.add(_clipped(plane)):
                difference = _minus(row, next(self._thick))
                self._whole.add(difference)
                if self._lung is not None:
                    self._inside.add(difference[next(self._lung) != 0])

    def watch(self, chunks: Iterable[Array]) -> Iterator[Array]:
        """Yield ``chunks`` unchanged, and add each one before it is yielded."""
        for chunk in chunks:
            self.add(chunk)
            yield chunk

    def result(self) -> Consistency:
        """Return the consistency over all slices.

        Raises:
            ValueError: if thin slices are missing.
        """
        if len(self._whole.slices) < self._depth:
            raise ValueError(
                f"Expected the thin slices of {self._depth} thick ones, got those of "
                f"{len(self._whole.slices)}; add the others first."
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
    profile: Profile | SampledProfile = "gaussian",
    fwhm: float | None = None,
    spacing: float | None = None,
    lung: Array | None = None,
) -> Consistency:
    """Measure the difference between thin slices, thickened by the slice profile, and thick slices.

    Args:
        thin: thin slices, ((D - 1) * r + 1, H, W) in HU.
        thick: thick slices, (D, H, W) in HU; slice k is at the position of thin slice r * k.
        profile: slice profile of the scanner, such as
            :func:`mpunet.slices.sampled_profile.read_profile` reads it, or of the simulation that
            made the thick slices.
        fwhm: full width at half maximum of a named profile in thick spacings.
        spacing: thick slice spacing in mm; required for a sampled profile.
        lung: lung mask on the thin grid.

    Raises:
        ValueError: if the shapes do not match, or a sampled profile comes without a spacing.
    """
    ratio = _ratio(thin, thick, lung)
    inside = None if lung is None else lung[::ratio]
    meter = ConsistencyMeter(
        thick, thick.shape, ratio, profile=profile, fwhm=fwhm, spacing=spacing, lung=inside
    )
    meter.add(thin)
    return meter.result()


def consistency_map(
    thin: Array,
    thick: Array,
    *,
    profile: Profile | SampledProfile = "gaussian",
    fwhm: float | None = None,
    spacing: float | None = None,
) -> Iterator[npt.NDArray[np.float32]]:
    """Yield thin slices, thickened again, minus thick slices: D slices (H, W) in HU.

    Each slice is computed when it is requested. Arguments and errors are those of
    :func:`consistency`.

    >>> thick = np.zeros((3, 4, 4), np.int16)
    >>> np.stack(list(consistency_map(np.full((5, 4, 4), 7), thick))).round(3)[:, 0, 0]
    array([7., 7., 7.], dtype=float32)
    """
    rows = _thickener(len(thick), _ratio(thin, thick), profile, fwhm, spacing, last_first=False)
    return map(_minus, (row for plane in thin for row in rows.add(_clipped(plane))), thick)


def _thickener(
    thick_depth: int,
    ratio: float,
    profile: Profile | SampledProfile,
    fwhm: float | None,
    spacing: float | None,
    last_first: bool,
) -> Thickener:
    """Create the thickener of the profile, for thin slices that arrive in this order."""
    depth = thin_depth(thick_depth, ratio)
    distance = np.arange(depth)[None] - ratio * np.arange(thick_depth)[:, None]
    if isinstance(profile, SampledProfile):
        if spacing is None:
            raise ValueError(
                "Expected the thick slice spacing in mm with a sampled slice profile, got none."
            )
        matrix = profile.at(distance * (spacing / ratio) * (-1 if last_first else 1))
    else:  # symmetric
        matrix = profile_density(distance, profile, profile_width(profile, fwhm) * ratio)
        reach = len(profile_weights(math.ceil(ratio), profile=profile, fwhm=fwhm)) // 2
        matrix[np.abs(distance) > reach] = 0
    # A profile that is narrower than the thin spacing may have no weight at all: keep the nearest.
    nearest = np.abs(distance).argmin(axis=1)
    matrix[np.arange(thick_depth), nearest] = matrix[np.arange(thick_depth), nearest].clip(1e-6)
    return Thickener(np.asarray(matrix / matrix.sum(axis=1, keepdims=True), np.float32))


def _clipped(plane: Array) -> Plane:
    return plane.astype(np.float32).clip(HU_MIN, HU_MAX)


class _Sums:
    """Running sums over slices, in float64."""

    def __init__(self) -> None:
        self.voxels, self.absolute, self.squared, self.signed = 0, 0.0, 0.0, 0.0
        self.slices: list[float] = []  # mean absolute differences

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
    rule = (
        "Expected thin slices ((D - 1) * r + 1, H, W) for thick ones (D, H, W) "
        "and a mask on the thin grid"
    )
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
