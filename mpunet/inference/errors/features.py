"""What the error model sees of each voxel, computed slice by slice.

All features are local, in HU, and do not depend on the order of the slices, so a scan may be
streamed in either direction. Their choice is ours; docs/error_map.md has what each one brings.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["NAMES", "REACH", "Slice", "features"]

NAMES = (
    "spread",
    "spread around",
    "change",
    "absolute change",
    "absolute change around",
    "gradient",
    "gradient in plane",
    "gradient along depth",
    "deviation around",
    "texture around",
    "texture of the region",
    "HU",
    "HU around",
    "largest HU around",
    "smallest HU around",
    "distance",
    "windows",
    "spacing",
)
"""Names of the features in their order. "Change" is what the network adds to cubic interpolation,
"texture" the high frequencies of the interpolation in plane, "distance" that to the nearest thick
slice in thick spacings, "around" a cube of 5 voxels, "spacing" the logarithm of the thick one; NaN
if unknown."""

REACH = 2  # slices on each side that a feature sees
_REGION = 32  # pixels


class Slice(NamedTuple):
    """A thin slice and what is known of it.

    Attributes:
        mean: (H, W), the result in HU.
        spread: (H, W), standard deviation over windows in HU.
        interpolated: (H, W), cubic interpolation of the thick slices in HU.
        distance: distance to the nearest thick slice, in thick spacings.
        windows: number of windows that computed the slice.
        spacing: thick spacing in mm; NaN if unknown, as that of an array is.
    """

    mean: Tensor
    spread: Tensor
    interpolated: Tensor
    distance: float
    windows: int
    spacing: float = math.nan


class _Prepared(NamedTuple):
    """A slice with the part of its features that needs no other slice; each (H, W)."""

    slice: Slice
    change: Tensor
    boxes: Tensor  # (3, H, W): spread, |change|, HU
    largest: Tensor
    smallest: Tensor


def features(slices: Iterable[Slice]) -> Iterator[Tensor]:
    """Yield the features of each slice, (len(NAMES), H, W), in order.

    At most ``2 * REACH + 1`` slices are held; at the ends of the volume the missing ones are left
    out.
    """
    held: list[_Prepared] = []
    at = 0  # index in ``held`` of the slice whose features come next
    for item in slices:
        held.append(_prepare(item))
        if len(held) > REACH + at:
            yield _combine(held, at)
            at += 1
        if at > REACH:
            del held[0]
            at -= 1
    for last in range(at, len(held)):
        yield _combine(held[max(0, last - REACH) :], min(last, REACH))


def _prepare(item: Slice) -> _Prepared:
    change = item.mean - item.interpolated
    boxes = _box(torch.stack([item.spread, change.abs(), item.mean]))
    largest, smallest = (
        F.max_pool2d(sign * item.mean[None], 5, stride=1, padding=2)[0] for sign in (1, -1)
    )
    return _Prepared(item, change, boxes, largest, -smallest)


def _combine(held: list[_Prepared], at: int) -> Tensor:
    here = held[at]
    item, mean = here.slice, here.slice.mean
    near = held[max(0, at - REACH) : at + REACH + 1]
    spread, change, level = torch.stack([one.boxes for one in near]).mean(0)
    before, after = held[max(0, at - 1)].slice.mean, held[min(len(held) - 1, at + 1)].slice.mean
    across = (after - before).abs() / (2 if 0 < at < len(held) - 1 else 1)
    down, right = torch.gradient(mean, dim=(0, 1)) if min(mean.shape) > 1 else (mean * 0, mean * 0)
    flat = down.square() + right.square()
    deviation = (_box(mean.square()[None]) - here.boxes[2:].square())[0].clamp(min=0).sqrt()
    texture = _texture(item.interpolated)
    grown = [
        item.spread,
        spread,
        here.change.abs(),
        change,
        (flat + across.square()).sqrt(),
        flat.sqrt(),
        across,
        deviation,
        _box(texture[None])[0],
        _region(texture),
    ]
    large, small, change, absolute, around, *rest = (
        torch.stack(grown).log1p().unbind()[k] for k in (0, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9)
    )
    signed = here.change.sign() * absolute
    scaled = torch.stack(
        [
            mean,
            level,
            torch.stack([one.largest for one in near]).amax(0),
            torch.stack([one.smallest for one in near]).amin(0),
        ]
    )
    constant = torch.tensor(
        [item.distance, 1 / item.windows, math.log(item.spacing)], device=mean.device
    )
    return torch.cat(
        [
            torch.stack([large, small, signed, absolute, around, *rest]),
            scaled / 1000,
            constant[:, None, None].expand(-1, *mean.shape),
        ]
    )


def _box(planes: Tensor) -> Tensor:
    """Return the mean over 5 x 5 pixels of planes (k, H, W); fewer at the border."""
    return F.avg_pool2d(planes, 5, stride=1, padding=2, count_include_pad=False)


def _texture(plane: Tensor) -> Tensor:
    """Return the absolute value of the noise filter of Immerkaer (CVIU 1996), (H, W) in HU.

    It ignores planes and edges that are straight, and passes white noise with its deviation.
    """
    padded = F.pad(plane[None, None], (1, 1, 1, 1), mode="replicate")[0, 0]
    rows = padded[:-2] - 2 * padded[1:-1] + padded[2:]
    return (rows[:, :-2] - 2 * rows[:, 1:-1] + rows[:, 2:]).abs() / 6


def _region(plane: Tensor) -> Tensor:
    """Return the mean over a region of about 32 x 32 pixels, (H, W)."""
    coarse = F.avg_pool2d(
        plane[None, None], _REGION, _REGION // 4, _REGION // 2, count_include_pad=False
    )
    return F.interpolate(coarse, plane.shape, mode="bilinear", align_corners=True)[0, 0]
