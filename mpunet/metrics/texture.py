"""Texture of a volume: its noise, and its sharpness along the slice normal.

No reference is needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage

from mpunet.intensity import HU_MAX, HU_MIN

__all__ = ["Noise", "Sharpness", "noise", "sharpness"]

Slab = npt.NDArray[Any]
Spectrum = npt.NDArray[np.float64]

# All values here are our choice.
# CT noise is correlated over about 1 mm, and a window misses variations wider than itself.
WINDOW_MM = 7.0
LEAST_WINDOW = 5  # voxels
DARKEST = 0.25  # share of the windows in the lung
AIR_HU = -900.0
# Largest share of air voxels at -1024 HU; at 5 %, the standard deviation is 3 % too small.
CLIPPED_SHARE = 0.05
LEAST_WINDOWS = 50
LOWEST, HIGHEST = 0.1, 1000.0  # HU
BIN, SMOOTHING = 0.02, 0.1  # in the logarithm of standard deviations
MEAN_BIN = 5.0  # HU
# cycles/mm: the Nyquist frequencies of slice spacings of 5 mm and 1.25 mm.
BAND = (0.1, 0.4)
NYQUIST_SHARE = 0.8
FREQUENCIES = 64


class Noise(NamedTuple):
    """Standard deviation of the noise; NaN if there are too few windows.

    Attributes:
        lung: noise in HU in homogeneous lung, including the lung's own texture.
        air: noise in HU in the trachea and around the patient; also NaN if the volume was clipped
            at -1024 HU so that noise was cut off.
        lung_windows: number of windows in the lung that were used.
        air_windows: number of windows in air that were used.
    """

    lung: float
    air: float
    lung_windows: int
    air_windows: int


class Sharpness(NamedTuple):
    """Sharpness along depth relative to sharpness in plane.

    Attributes:
        ratio: power along depth / power in plane; NaN if the axes have no common band.
        low: lower end of the band in cycles/mm.
        high: upper end of the band in cycles/mm.
    """

    ratio: float
    low: float
    high: float


def noise(volume: Slab, lung: Slab, spacing: Sequence[float] | npt.NDArray[np.float64]) -> Noise:
    """Measure noise in homogeneous lung and in air as the most frequent local standard deviation.

    The global noise level of Christianson et al. (2015, doi 10.2214/AJR.14.13613) is the mode of
    the histogram of local standard deviations within slices, measured in soft tissue. In the lung,
    most windows contain vessels, which shift even the mode. The rest of the method is therefore our
    choice. Windows are side by side, about 7 mm wide and at least 5 voxels. Only the darkest
    quarter of the windows counts, and in these only deviations below the median, because all
    vessels are bright. For Gaussian noise this does not change the result: a window's mean and
    standard deviation are independent, and both halves of the deviations are alike. The histogram
    is of the logarithm, whose mode is the standard deviation for windows of any size.

    The result is within 3 % for white noise and 10 to 12 % too small for noise correlated over 0.8 mm
    (standard deviation). Texture of the lung counts as noise.

    Args:
        volume: (D, H, W) in HU.
        lung: lung mask (D, H, W), lung where not 0.
        spacing: spacing along depth, height and width in mm, (3,).

    >>> volume = -850 + np.random.default_rng(0).normal(0, 20, (20, 60, 60))
    >>> round(noise(volume, np.ones(volume.shape), (1, 1, 1)).lung)
    20
    """
    mm = _checked(volume, spacing, lung)
    sides = [
        min(size, max(LEAST_WINDOW, round(WINDOW_MM / step)))
        for size, step in zip(volume.shape[1:], mm[1:], strict=True)
    ]
    in_lung, in_air = _Deviations(), _Deviations()
    air_voxels = clipped = 0
    for plane, mask in zip(volume, lung, strict=True):
        windows = _windows(plane, sides).astype(np.float32)
        mean, masked = windows.mean(axis=1), _windows(mask != 0, sides).mean(axis=1)
        inside = windows[masked == 1]
        below = np.minimum(inside - np.median(inside, axis=1, keepdims=True), 0)
        in_lung.add(mean[masked == 1], np.sqrt(2 * np.square(below).mean(axis=1)))
        # Windows of equal voxels are not air but padding.
        air = (masked == 0) & (mean < AIR_HU) & (np.ptp(windows, axis=1) > 0)
        in_air.add(mean[air], windows[air].std(axis=1))
        air_voxels += windows[air].size
        clipped += int((windows[air] <= HU_MIN).sum())
    lung_noise, lung_windows = in_lung.mode(DARKEST)
    air_noise, air_windows = in_air.mode()
    return Noise(
        lung_noise,
        air_noise if clipped <= CLIPPED_SHARE * air_voxels else math.nan,
        lung_windows,
        air_windows,
    )


def sharpness(
    volume: Slab,
    spacing: Sequence[float] | npt.NDArray[np.float64],
    lung: Slab | None = None,
    *,
    band: tuple[float, float] = BAND,
) -> Sharpness:
    """Measure sharpness along depth as a ratio of power spectra in a band of frequencies.

    The ratio is the mean power spectrum of lines along depth over that of lines in plane. It is 1
    for an isotropic volume. For interpolated thick slices it is almost 0 at frequencies above
    1 / (2 * thick spacing). Anatomy and scanners are not isotropic, so compare only volumes of one
    patient. Lines run through the bounding box of the lungs, or without a mask through the central
    half of the volume along each axis. The mean of each line is subtracted, and a Hann window is
    applied. The measure is our choice.

    Args:
        volume: (D, H, W) in HU.
        spacing: spacing along depth, height and width in mm, (3,).
        lung: lung mask (D, H, W), lung where not 0.
        band: lower and upper end of the band in cycles/mm; the upper end is lowered to 0.8 of the
            Nyquist frequency of the largest spacing.

    >>> volume = np.random.default_rng(0).normal(0, 20, (40, 40, 40))
    >>> round(sharpness(volume, (1, 1, 1)).ratio, 1)
    1.0
    """
    mm = _checked(volume, spacing, *(() if lung is None else (lung,)))
    low, high = band[0], min(band[1], NYQUIST_SHARE / (2 * float(mm.max())))
    box = _box(volume, lung)
    part = volume[box]
    if not 0 < low < high or min(part.shape) < 8:
        return Sharpness(math.nan, low, high)
    wanted = np.linspace(low, high, FREQUENCIES)
    powers = []
    for axis, step in enumerate(mm):
        total = np.zeros(part.shape[axis] // 2 + 1)
        lines = 0
        for plane in _planes(part, axis):
            total += _line_spectrum(plane, float(step))
            lines += plane.shape[1]
        powers.append(
            float(np.interp(wanted, fft.rfftfreq(part.shape[axis], step), total / lines).mean())
        )
    in_plane = (powers[1] + powers[2]) / 2
    return Sharpness(powers[0] / in_plane if in_plane > 0 else math.nan, low, high)


class _Deviations:
    """Histogram of windows by mean HU and by logarithm of the standard deviation."""

    def __init__(self) -> None:
        self._shape = (
            int((HU_MAX - HU_MIN) / MEAN_BIN) + 1,
            math.ceil(math.log(HIGHEST / LOWEST) / BIN) + 1,
        )
        self._counts = np.zeros(self._shape, np.int64)

    def add(self, means: npt.NDArray[np.floating], deviations: npt.NDArray[np.floating]) -> None:
        rows = ((means.clip(HU_MIN, HU_MAX) - HU_MIN) / MEAN_BIN).astype(np.intp)
        columns = (np.log(deviations.clip(LOWEST, HIGHEST) / LOWEST) / BIN).astype(np.intp)
        np.add.at(self._counts, (rows, columns), 1)

    def mode(self, share: float = 1.0) -> tuple[float, int]:
        """Return the mode of the standard deviation over the darkest windows, and their number.

        At least ``share`` of all windows is used.
        """
        darker = np.cumsum(self._counts.sum(axis=1))
        rows = int(np.searchsorted(darker, share * darker[-1])) + 1
        chosen = self._counts[:rows].sum(axis=0)
        if chosen.sum() < LEAST_WINDOWS:
            return math.nan, int(chosen.sum())
        smooth = ndimage.gaussian_filter1d(
            chosen.astype(np.float64), SMOOTHING / BIN, mode="constant"
        )
        return LOWEST * math.exp((int(smooth.argmax()) + 0.5) * BIN), int(chosen.sum())


def _windows(plane: Slab, sides: Sequence[int]) -> Slab:
    """Return the windows side by side in a slice, (windows, voxels).

    Rows and columns at the end that do not fill a window are left out.
    """
    rows, columns = (size // side for size, side in zip(plane.shape, sides, strict=True))
    cut = plane[: rows * sides[0], : columns * sides[1]]
    return cut.reshape(rows, sides[0], columns, sides[1]).swapaxes(1, 2).reshape(rows * columns, -1)


def _planes(part: Slab, axis: int) -> Iterator[Slab]:
    """Yield planes with the axis first and its lines second."""
    if axis == 0:
        for row in range(part.shape[1]):
            yield part[:, row]
    else:
        for plane in part:
            yield plane if axis == 1 else plane.T


def _line_spectrum(plane: Slab, step: float) -> Spectrum:
    """Return the power spectral density in HU² mm along the first axis, summed over lines."""
    lines = plane.astype(np.float32)
    lines -= lines.mean(axis=0)
    window = np.hanning(len(lines) + 2)[1:-1]
    spectrum = fft.rfft(lines * window[:, None].astype(np.float32), axis=0)
    power = np.square(spectrum.real, dtype=np.float64) + np.square(spectrum.imag, dtype=np.float64)
    return np.asarray(power.sum(axis=1) * step / np.square(window).sum())


def _box(volume: Slab, lung: Slab | None) -> tuple[slice, ...]:
    if lung is None or not lung.any():
        return tuple(slice(size // 4, size - size // 4) for size in volume.shape)
    flags = [np.zeros(size, bool) for size in volume.shape]
    for index, mask in enumerate(lung):
        found = mask != 0
        flags[0][index] = found.any()
        flags[1] |= found.any(axis=1)
        flags[2] |= found.any(axis=0)
    places = [np.flatnonzero(flag) for flag in flags]
    return tuple(slice(int(place[0]), int(place[-1]) + 1) for place in places)


def _checked(
    volume: Slab, spacing: Sequence[float] | npt.NDArray[np.float64], *masks: Slab
) -> npt.NDArray[np.float64]:
    mm = np.asarray(spacing, np.float64)
    if volume.ndim != 3 or any(mask.shape != volume.shape for mask in masks):
        shapes = ", ".join(str(array.shape) for array in (volume, *masks))
        raise ValueError(
            f"Expected a volume and a mask of one shape (depth, height, width), got {shapes}."
        )
    if mm.shape != (3,) or not (np.isfinite(mm) & (mm > 0)).all():
        raise ValueError(
            f"Expected three positive spacings in mm (depth, height, width), got {spacing!r}."
        )
    return mm
