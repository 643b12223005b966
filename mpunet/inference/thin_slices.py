"""Thin slices in HU that are computed while they are read."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mpunet.geometry import thin_depth
from mpunet.inference.regrid import regridded
from mpunet.intensity import round_hu
from mpunet.io.thin_file import Dtype

__all__ = ["ThinSlices"]


class ThinSlices:
    """Thin slices of a scan in HU, computed while they are read.

    They can be read only once: in parts with :meth:`chunks`, or as a whole with :meth:`slab` or
    ``numpy.asarray``.

    Args:
        finished: chunks (k, H, W) of thin slices in HU, as the network computes them.
        shape: (D, H, W) of the thick scan.
        ratio: thick spacing / thin spacing of the result.
        last_first: whether ``finished`` runs from the last slice to the first.
        native: ratio of the network. If it differs from ``ratio``, slices are interpolated.
            Default: ``ratio``.

    Attributes:
        shape: ((D - 1) * ratio + 1, H, W), the first rounded down.
        ratio: thick spacing / thin spacing.
        last_first: whether chunks run from the last slice to the first; arrays are always in order.
    """

    def __init__(
        self,
        finished: Iterator[Tensor],
        shape: tuple[int, int, int],
        ratio: float,
        *,
        last_first: bool,
        native: int | None = None,
    ) -> None:
        depth, *plane = shape
        self.shape = (thin_depth(depth, ratio), *plane)
        self.ratio = ratio
        self.last_first = last_first
        self._finished = finished
        self._depth = depth
        self._native = native or ratio

    def __len__(self) -> int:
        return self.shape[0]

    def chunks(self, dtype: Dtype = "float32") -> Iterator[npt.NDArray[Any]]:
        """Yield consecutive slices, (k, H, W) at a time.

        Args:
            dtype: "int16" rounds and clips to [-1024, 3071] HU; "float32" keeps the values.

        Raises:
            ValueError: if the network returned NaN.
        """
        if self._native == self.ratio:
            yield from self._computed(dtype)
            return
        planes = itertools.chain.from_iterable(self._computed("float32"))
        for plane in regridded(
            planes, thin_depth(self._depth, self._native), self._native / self.ratio, len(self)
        ):
            yield (round_hu(plane) if dtype == "int16" else plane)[None]

    def _computed(self, dtype: Dtype) -> Iterator[npt.NDArray[Any]]:
        """Yield the slices of the network, without interpolation to another spacing."""
        for chunk, nan in _to_host(
            (round_hu(hu) if dtype == "int16" else hu, hu.isnan().any()) for hu in self._finished
        ):
            if nan:
                raise ValueError(
                    "The network returned NaN; with precision fp16 or bf16, try float32."
                )
            yield chunk.numpy()

    def slab(self, dtype: Dtype = "float32") -> npt.NDArray[Any]:
        """Return all slices in order, as one array; for ``dtype`` see :meth:`chunks`."""
        slab = np.empty(self.shape, dtype)
        ordered = slab[::-1] if self.last_first else slab
        done = 0
        for chunk in self.chunks(dtype):
            ordered[done : done + len(chunk)] = chunk
            done += len(chunk)
        return slab

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return self.slab() if dtype is None else self.slab().astype(dtype, copy=False)


def _to_host(results: Iterator[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    """Copy tensors to the CPU.

    Results of a CUDA device are returned one step late, so that the device computes the next result
    while the last one is copied and used.
    """
    waiting: tuple[tuple[Tensor, ...], torch.cuda.Event] | None = None
    for result in results:
        if result[0].device.type != "cuda":
            yield tuple(tensor.cpu() for tensor in result)
            continue
        copies = tuple(tensor.to("cpu", non_blocking=True) for tensor in result)  # pinned memory
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(result[0].device))
        if waiting is not None:
            waiting[1].synchronize()
            yield waiting[0]
        waiting = copies, event
    if waiting is not None:
        waiting[1].synchronize()
        yield waiting[0]
