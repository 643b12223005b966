"""In-plane as depth: a scan that is thin only in plane lends its height or width as the axis along which slices are stacked.

Pixels of 0.7 mm hold the detail that slices 2.5 mm apart do not. Turned, such a scan is a stack of sagittal or coronal thin slices
from which thick ones are simulated as ever: a sample of how fine structures look through a thick slice. The idea is SMORE's (Zhao et
al., IEEE TMI 2021, doi 10.1109/TMI.2020.3037187), which trains a network on the in-plane detail of the very scan it then improves.

What is lost: one axis of the turned slices is the old slice axis, interpolated to square pixels, so that along it nothing finer than
the old slices (2.5 mm) is to be seen and noise is smoother than in a real thin scan; and lungs, gravity and vessels run along other
axes. So such samples complement real thin scans in training and are of no use for validation.
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
# The remaining two axes keep their order, as those of a scan acquired along another axis do (see mpunet.geometry).
ORDERS: dict[DepthAxis, Order] = {"height": (1, 0, 2), "width": (2, 0, 1)}
DEPTH_AXES = tuple(ORDERS)


class TurnedVolume(NamedTuple):
    """A volume whose depth was in plane.

    Attributes:
        slab: (depth, height, width), int16 HU; height is the scan's old depth.
        lung: bool, on the same grid.
        spacing: (3,), in mm; height and width are alike.
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
    """The scan with ``axis`` as depth in steps of ``thin_spacing``, and its old depth resampled to square pixels.

    Where slices come to stand further apart than pixels did, each is a mean over a Gaussian slice profile that makes it as thick as
    a scanner's (FWHM 0.9 of its spacing, like :mod:`mpunet.slices.simulate`'s), the pixel's own width taken off in quadrature; where
    nearer, they are interpolated. All interpolation is by cubic splines: linear would leave stripes of more and less noise. The lung
    mask goes to the nearest voxel. The first voxel stays where it is along each axis. One slice at a time is held in float32.

    Args:
        slab: (depth, height, width) in HU, any real type.
        spacing: (3,), in mm.
        lung: mask on the same grid.
        thin_spacing: of the slices to come, in mm.

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
            f"Expected a volume (depth, height, width) of at least 2 voxels along each axis and three spacings in mm, "
            f"got shape {slab.shape} and spacing {spacing!r}."
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
        used = np.flatnonzero(np.abs(row) > 1e-6)  # a spline's weights fade within a dozen slices
        near = source[used[0] : used[-1] + 1].astype(np.float32)
        plane[:] = round_hu(to_height @ np.tensordot(row[used[0] : used[-1] + 1], near, axes=1))
    mask = lung.transpose(ORDERS[axis])[np.ix_(_nearest(depths), _nearest(heights))]
    return TurnedVolume(out, mask, new_mm)


def _positions(count: int, old: float, new: float) -> npt.NDArray[np.float64]:
    """Where voxels ``new`` mm apart stand among ``count`` voxels ``old`` mm apart, the first on the first."""
    return np.asarray(
        np.arange(int((count - 1) * old / new + 1e-6) + 1) * (new / old), dtype=np.float64
    )


def _interpolation(count: int, positions: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Matrix (positions, count) of the interpolating cubic spline (of lower degree through fewer than four voxels)."""
    spline = make_interp_spline(np.arange(count), np.eye(count), k=min(3, count - 1))
    return np.asarray(spline(positions.clip(0, count - 1)), dtype=np.float32)


def _blur(count: int, old: float, new: float) -> npt.NDArray[np.float32]:
    """Matrix (count, count) of the Gaussian that turns voxels ``old`` mm wide into slices ``new`` mm thick; identity if not thicker."""
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
