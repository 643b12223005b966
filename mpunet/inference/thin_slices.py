"""Thin slices in HU that are computed while they are read."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mpunet.data.checks.order import OrderFault, SliceOrder
from mpunet.geometry import thin_depth
from mpunet.inference.regrid import regridded
from mpunet.intensity import round_hu
from mpunet.io.thin_file import Dtype

__all__ = ["Estimated", "ThinSlices"]


class Estimated(NamedTuple):
    """An image and the error estimate of its voxels, of one type and shape.

    Attributes:
        image: thin slices in HU.
        error: expected absolute error of each voxel in HU.
    """

    image: Any
    error: Any


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
        estimated: whether ``finished`` has chunks (2, k, H, W): slices and their error estimates.
        strangeness: gives the warning if the scan is unlike those that the error estimate knows;
            asked when all slices are read.
        order: has seen the thick slices, when all thin slices are read.

    Attributes:
        shape: ((D - 1) * ratio + 1, H, W), the first rounded down.
        ratio: thick spacing / thin spacing.
        last_first: whether chunks run from the last slice to the first; arrays are always in order.
        estimated: whether there are error estimates.
    """

    def __init__(
        self,
        finished: Iterator[Tensor],
        shape: tuple[int, int, int],
        ratio: float,
        *,
        last_first: bool,
        native: int | None = None,
        estimated: bool = False,
        strangeness: Callable[[], str | None] | None = None,
        order: SliceOrder | None = None,
    ) -> None:
        depth, *plane = shape
        self.shape = (thin_depth(depth, ratio), *plane)
        self.ratio = ratio
        self.last_first = last_first
        self.estimated = estimated
        self._strangeness = strangeness
        self._order = order
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
        for chunk in self._chunks(dtype):
            yield chunk[:, 0]

    def chunks_with_error(
        self, dtype: Dtype = "float32"
    ) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
        """Yield consecutive slices and their expected absolute errors in HU, each (k, H, W).

        Args:
            dtype: as in :meth:`chunks`, for both.

        Raises:
            ValueError: if there are no error estimates, or the network returned NaN.
        """
        if not self.estimated:
            raise ValueError("These slices have no error estimates; use Reconstructor(error=...).")
        for chunk in self._chunks(dtype):
            # Cubic interpolation may overshoot below 0.
            yield chunk[:, 0], chunk[:, 1].clip(min=0)

    def _chunks(self, dtype: Dtype) -> Iterator[npt.NDArray[Any]]:
        """Yield (k, 1, H, W), or (k, 2, H, W) with error estimates."""
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
            yield (chunk.transpose(0, 1) if self.estimated else chunk[:, None]).numpy()

    def slab(self, dtype: Dtype = "float32") -> npt.NDArray[Any]:
        """Return all slices in order, as one array; for ``dtype`` see :meth:`chunks`."""
        return self._gathered(([chunk] for chunk in self.chunks(dtype)), 1, dtype)[0]

    def slab_with_error(self, dtype: Dtype = "float32") -> Estimated:
        """Return all slices and their error estimates, as two arrays; see :meth:`slab`."""
        return Estimated(*self._gathered(self.chunks_with_error(dtype), 2, dtype))

    def _gathered(
        self, parts: Iterable[Sequence[npt.NDArray[Any]]], number: int, dtype: Dtype
    ) -> list[npt.NDArray[Any]]:
        """Return ``number`` arrays of all slices in order; each part has a chunk of each."""
        slabs = [np.empty(self.shape, dtype) for _ in range(number)]
        done = 0
        for chunks in parts:
            for slab, chunk in zip(slabs, chunks, strict=True):
                (slab[::-1] if self.last_first else slab)[done : done + len(chunk)] = chunk
            done += len(chunks[0])
        return slabs

    def strangeness(self) -> str | None:
        """Return the warning that the scan is unlike those the error estimate knows, else None."""
        return None if self._strangeness is None else self._strangeness()

    def order_faults(self) -> list[OrderFault]:
        """Return the faults in the order of the thick slices, when all slices are read."""
        return [] if self._order is None else self._order.faults()

    def warnings(self) -> list[str]:
        """Return what to tell the user about the scan, when all slices are read."""
        found = [fault.text for fault in self.order_faults()]
        strange = self.strangeness()
        return found if strange is None else [*found, strange]

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
