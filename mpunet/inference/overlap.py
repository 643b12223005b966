"""The mean of overlapping windows of thin slices, with the memory of a single window."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["OverlapMean"]


class OverlapMean:
    """Average overlapping windows that are added in order.

    A slice is finished when a window is added that starts after it. A ring buffer holds the sums of
    the unfinished slices: slice t is at index t modulo the window size.

    Args:
        starts: first slice of each window, in increasing order.
        window: number of slices per window.
        depth: number of slices of the volume.
        plane: (H, W) of a slice.
        device: device of the windows and of the result.

    Attributes:
        done: number of slices that were returned.
        reached: number of slices that a window has covered.

    >>> mean = OverlapMean([0, 1], 2, 3, (1, 1), torch.device("cpu"))
    >>> mean.add(0, torch.tensor([1.0, 2.0])[:, None, None])
    >>> mean.finish(1).flatten()
    tensor([1.])
    >>> mean.add(1, torch.tensor([4.0, 5.0])[:, None, None])
    >>> mean.finish(3).flatten()
    tensor([3., 5.])
    """

    def __init__(
        self,
        starts: Sequence[int],
        window: int,
        depth: int,
        plane: tuple[int, int],
        device: torch.device,
    ) -> None:
        counts = np.zeros(depth, np.float32)
        for start in starts:
            counts[start : start + window] += 1
        self._weights = torch.from_numpy(1 / counts).to(device)[:, None, None]
        self._ring = torch.empty(window, *plane, device=device)
        self.done = self.reached = 0

    def add(self, begin: int, slices: Tensor) -> None:
        """Add a window (window, H, W) that starts at slice ``begin``.

        Earlier slices must have been taken with :meth:`finish`, because the window overwrites them.
        """
        size = len(self._ring)
        end = begin + size
        for a, b in _segments(begin, self.reached, size):
            self._ring[a % size :][: b - a] += slices[a - begin : b - begin]
        for a, b in _segments(max(begin, self.reached), end, size):
            self._ring[a % size :][: b - a] = slices[a - begin : b - begin]
        self.reached = end

    def finish(self, end: int) -> Tensor:
        """Return the means of the slices from ``done`` to before ``end`` and advance ``done``."""
        size = len(self._ring)
        sums = [self._ring[a % size :][: b - a] for a, b in _segments(self.done, end, size)]
        mean = torch.cat(sums) * self._weights[self.done : end]
        self.done = end
        return mean


def _segments(first: int, last: int, size: int) -> Iterator[tuple[int, int]]:
    """Split slices ``first`` to ``last`` where a ring buffer of ``size`` wraps around."""
    while first < last:
        end = min(last, first - first % size + size)
        yield first, end
        first = end
