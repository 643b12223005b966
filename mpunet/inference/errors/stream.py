"""Error estimates beside thin slices, while these are computed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mpunet.geometry import thin_depth
from mpunet.inference.engine import StreamingEngine
from mpunet.inference.errors.features import Slice, features
from mpunet.inference.errors.model import ErrorModel
from mpunet.inference.regrid import regridded
from mpunet.intensity import HU_MAX, HU_MIN, HU_RANGE, to_hu

__all__ = ["Strangeness", "known_slices", "with_errors"]

Planes = Iterable[npt.NDArray[Any]]


class Strangeness:
    """Counts the voxels of a scan that are unlike the calibration scans.

    Every eighth row and column is looked at.
    """

    def __init__(self, model: ErrorModel) -> None:
        self._model = model
        self._strange = self._seen = 0

    def add(self, found: Tensor) -> None:
        """Add the features of a slice, (len(NAMES), H, W)."""
        strange = self._model.strange(found[:, ::8, ::8].movedim(0, -1))
        self._strange += int(strange.sum())
        self._seen += strange.numel()

    @property
    def share(self) -> float:
        """Their share so far; 0 before the first slice."""
        return self._strange / max(1, self._seen)

    def warning(self) -> str | None:
        """Return the warning if the scan is unlike the calibration scans, else None."""
        if self.share <= self._model.strange_limit:
            return None
        return (
            f"unlike the scans that the error estimate knows: {self.share:.0%} of its voxels are "
            f"unusual, at most {self._model.strange_limit:.0%} are expected; do not rely on its "
            "error map"
        )


def known_slices(
    engine: StreamingEngine,
    planes: Planes,
    shape: tuple[int, int, int],
    *,
    spacing: float = math.nan,
    last_first: bool = False,
    **options: Any,
) -> Iterator[Slice]:
    """Yield what is known of each thin slice.

    Args:
        engine: the engine, for intensities in [0, 1].
        planes: thick slices (H, W) in HU, in the order of the stream.
        shape: (D, H, W) of the thick volume.
        spacing: slice spacing of the thick volume in mm; NaN if unknown.
        last_first: whether the slices come in reverse order.
        **options: of :meth:`StreamingEngine.stream_with_spread`.
    """
    # The engine reads a few slices more than interpolation needs: tee holds these.
    for_network, for_interpolation = itertools.tee(planes)
    interpolated = regridded(
        (np.clip(plane, HU_MIN, HU_MAX) for plane in for_interpolation),
        shape[0],
        1 / engine.ratio,
        thin_depth(shape[0], engine.ratio),
    )
    index = itertools.count()
    for chunk in engine.stream_with_spread(
        for_network, shape=shape, last_first=last_first, **options
    ):
        assert chunk.spread is not None
        counts = chunk.windows.tolist()
        for mean, spread, windows in zip(chunk.mean, chunk.spread, counts, strict=True):
            after = next(index) % engine.ratio
            yield Slice(
                to_hu(mean),
                spread * HU_RANGE,
                torch.from_numpy(next(interpolated)).to(engine.device, non_blocking=True),
                min(after, engine.ratio - after) / engine.ratio,
                int(windows),
                spacing,
            )


def with_errors(
    slices: Iterator[Slice], model: ErrorModel, strangeness: Strangeness | None = None
) -> Iterator[Tensor]:
    """Yield each thin slice with its error estimate, (2, 1, H, W) in HU.

    Args:
        slices: see :func:`known_slices`.
        model: the error model.
        strangeness: measures how far the scan is from the calibration scans.
    """
    # Features come two slices late; tee holds the slices until then.
    images, known = itertools.tee(slices)
    for found, item in zip(features(known), images, strict=True):
        if strangeness is not None:
            strangeness.add(found)
        yield torch.stack([item.mean, model(found)])[:, None]
