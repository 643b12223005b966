"""Training volumes from scans that are thin only in plane: height or width becomes the depth axis.

Pixels of 0.7 mm show detail that slices 2.5 mm apart do not. With height or width as depth, such a
scan is a stack of thin coronal or sagittal slices. Thick slices are simulated from them as usual
and show how fine structures look in a thick slice. The idea is from SMORE (Zhao et al., IEEE TMI
2021, doi 10.1109/TMI.2020.3037187), which trains a network on the in-plane detail of the scan that
the network then improves.

Limits: one axis of the new slices is the original slice axis, interpolated to square pixels. Along
it, nothing finer than the original slice spacing (2.5 mm) is visible, and noise is smoother than in
a real thin scan. Lungs, gravity and vessels run along other axes. Such volumes therefore complement
real thin scans in training and are not suitable for validation.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.interpolate import make_interp_spline

from mpunet.intensity import round_hu
from mpunet.slices.simulate import DEFAULT_FWHM

__all__ = ["DEPTH_AXES", "DepthAxis", "TurnedVolume", "turned"]

DepthAxis = Literal["height", "width"]
Order = tuple[int, int, int]
# The other two axes keep their order, as in a scan acquired along another axis (see
# mpunet.geometry).
ORDERS: dict[DepthAxis, Order] = {"height": (1, 0, 2), "width": (2, 0, 1)}
DEPTH_AXES = tuple(ORDERS)


class TurnedVolume(NamedTuple):
    """A volume whose depth was an in-plane axis of the scan.

    Attributes:
        slab: (depth, height, width) in HU, int16; height is the original depth of the scan.
        lung: lung mask on the same grid, bool.
        spacing: (3,), in mm; height and width have the same spacing.
    """

    slab: npt.NDArray[np.int16]
    lung: npt.NDArray[np.bool_]
    spacing: npt.NDArray[np.float64]


def turned(
    slab: npt.NDArray[Any],
    spacing: npt.ArrayLike,
    lung: npt.NDArray[np.bool_],
    *,
    axis: DepthAxis,
    thin_spacing: float = 1.0,
) -> TurnedVolume:
    """Make an in-plane axis of a scan the depth axis.

    The new slices are ``thin_spacing`` apart. The original depth becomes height and is resampled to
    square pixels. The first voxel keeps its position along each axis.

    If the new slices are farther apart than the pixels, each is a weighted mean over a Gaussian
    slice profile. It makes them as thick as a scanner's (FWHM of 0.9 of their spacing, the default
    of :mod:`mpunet.slices.simulate`); the width of the pixel is subtracted in quadrature. If the
    new slices are closer together, they are interpolated.

    All interpolation uses cubic splines: linear interpolation would leave stripes of more and less
    noise. The lung mask is sampled at the nearest voxel. One slice at a time is held in float32.

    Args:
        slab: the scan, (depth, height, width) in HU, any real type.
        spacing: (3,), voxel spacing of the scan in mm.
        lung: lung mask on the grid of the scan.
        axis: in-plane axis that becomes depth, "height" or "width".
        thin_spacing: spacing of the new slices in mm.

    Raises:
        ValueError: if the scan, a spacing or the shape of the mask is invalid.

    >>> scan = np.zeros((40, 100, 120), dtype=np.int16)
    >>> turned(scan, (2.5, 0.5, 0.5), scan > 0, axis="height").slab.shape
    (50, 196, 120)
    """
    mm = np.asarray(spacing, dtype=np.float64)
    if (
        slab.ndim != 3
        or min(slab.shape) < 2
        or mm.shape != (3,)
        or not (np.isfinite(mm).all() and (mm > 0).all())
    ):
        raise ValueError(
            f"Expected a volume (depth, height, width) of at least 2 voxels along each axis and "
            f"three spacings in mm, got shape {slab.shape} and spacing {spacing!r}."
        )
    if not thin_spacing > 0:
        raise ValueError(f"Expected a slice spacing above 0 mm, got {thin_spacing}.")
    if lung.shape != slab.shape:
        raise ValueError(
            f"Expected a lung mask of the volume's shape {slab.shape}, got {lung.shape}."
        )
    source, mm = slab.transpose(ORDERS[axis]), mm[list(ORDERS[axis])]
    new_mm = np.array([thin_spacing, mm[2], mm[2]])
    depths, heights = (
        _positions(n, old, new) for n, old, new in zip(source.shape, mm, new_mm[:2], strict=False)
    )
    to_depth = _interpolation(source.shape[0], depths) @ _blur(source.shape[0], mm[0], thin_spacing)
    to_height = _interpolation(source.shape[1], heights)
    out = np.empty((len(depths), len(heights), source.shape[2]), np.int16)
    for row, plane in zip(to_depth, out, strict=True):
        # Spline weights are negligible beyond a dozen slices.
        used = np.flatnonzero(np.abs(row) > 1e-6)
        near = source[used[0] : used[-1] + 1].astype(np.float32)
        plane[:] = round_hu(to_height @ np.tensordot(row[used[0] : used[-1] + 1], near, axes=1))
    mask = lung.transpose(ORDERS[axis])[np.ix_(_nearest(depths), _nearest(heights))]
    return TurnedVolume(out, mask, new_mm)


def _positions(count: int, old: float, new: float) -> npt.NDArray[np.float64]:
    """Return the positions of voxels ``new`` mm apart among ``count`` voxels ``old`` mm apart.

    The unit is ``old``; the first voxels of both coincide.
    """
    return np.asarray(
        np.arange(int((count - 1) * old / new + 1e-6) + 1) * (new / old), dtype=np.float64
    )


def _interpolation(count: int, positions: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Return the matrix (positions, count) of the interpolating cubic spline.

    The degree is lower for fewer than four voxels.
    """
    spline = make_interp_spline(np.arange(count), np.eye(count), k=min(3, count - 1))
    return np.asarray(spline(positions.clip(0, count - 1)), dtype=np.float32)


def _blur(count: int, old: float, new: float) -> npt.NDArray[np.float32]:
    """Return the matrix (count, count) of the Gaussian blur for slices ``new`` mm apart.

    It accounts for the width ``old`` of the voxels in mm. If ``new`` is not larger than ``old``,
    it is the identity.
    """
    if new <= old:
        return np.eye(count, dtype=np.float32)
    sigma = DEFAULT_FWHM * np.sqrt(new**2 - old**2) / old / np.sqrt(8 * np.log(2))
    distance = np.subtract.outer(np.arange(count), np.arange(count))
    weights = np.where(
        np.abs(distance) <= np.ceil(4 * sigma), np.exp(-0.5 * (distance / sigma) ** 2), 0.0
    )
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)


def _nearest(positions: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    return np.floor(positions + 0.5).astype(np.intp)
