"""Mean and spread of overlapping windows of thin slices, with the memory of a single window."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["OverlapMean", "Overlapped"]


class Overlapped(NamedTuple):
    """Finished thin slices.

    Attributes:
        mean: (k, H, W), mean over the windows.
        spread: (k, H, W), standard deviation over the windows (divided by their number - 1), in the
            unit of the mean; 0 where there is a single window. None if it was not asked for.
        windows: (k,), number of windows of each slice.
    """

    mean: Tensor
    spread: Tensor | None
    windows: Tensor


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
        spread: whether to compute the standard deviation over windows, too. It needs a second ring
            buffer; the mean stays the same, bit by bit.

    Attributes:
        done: number of slices that were returned.
        reached: number of slices that a window has covered.

    >>> overlap = OverlapMean([0, 1], 2, 3, (1, 1), torch.device("cpu"), spread=True)
    >>> overlap.add(0, torch.tensor([1.0, 2.0])[:, None, None])
    >>> overlap.finish(1).mean.flatten()
    tensor([1.])
    >>> overlap.add(1, torch.tensor([4.0, 5.0])[:, None, None])
    >>> rest = overlap.finish(3)
    >>> rest.mean.flatten(), rest.spread.flatten(), rest.windows
    (tensor([3., 5.]), tensor([1.4142, 0.0000]), tensor([2., 1.]))
    """

    def __init__(
        self,
        starts: Sequence[int],
        window: int,
        depth: int,
        plane: tuple[int, int],
        device: torch.device,
        *,
        spread: bool = False,
    ) -> None:
        counts = np.zeros(depth, np.float32)
        for start in starts:
            counts[start : start + window] += 1
        self._windows = torch.from_numpy(counts).to(device)
        self._weights = torch.from_numpy(1 / counts).to(device)[:, None, None]
        self._ring = torch.empty(window, *plane, device=device)
        self._squares = torch.empty_like(self._ring) if spread else None
        self._added = np.zeros(depth, np.int64)  # windows so far
        self.done = self.reached = 0

    def add(self, begin: int, slices: Tensor) -> None:
        """Add a window (window, H, W) that starts at slice ``begin``.

        Earlier slices must have been taken with :meth:`finish`, because the window overwrites them.
        """
        size = len(self._ring)
        end = begin + size
        for a, b in _segments(begin, self.reached, size):
            held, new = self._ring[a % size :][: b - a], slices[a - begin : b - begin]
            if self._squares is not None:
                self._add_squares(a, b, held, new)
            held += new
        for a, b in _segments(max(begin, self.reached), end, size):
            self._ring[a % size :][: b - a] = slices[a - begin : b - begin]
            if self._squares is not None:
                self._squares[a % size :][: b - a] = 0
        self._added[begin:end] += 1
        self.reached = end

    def _add_squares(self, first: int, last: int, sums: Tensor, new: Tensor) -> None:
        """Update the sums of squared deviations from the mean, before ``sums`` is.

        Youngs and Cramer (Technometrics 1971, eq. 1.5): unlike the sum of squares, these sums lose
        no digits where the deviation is small against the mean.
        """
        assert self._squares is not None
        count = torch.from_numpy(self._added[first:last]).to(new)[:, None, None]
        held = self._squares[first % len(self._squares) :][: last - first]
        held.addcdiv_((count * new - sums).square_(), count * (count + 1))

    def finish(self, end: int) -> Overlapped:
        """Return the slices from ``done`` to before ``end`` and advance ``done``."""
        mean = self._held(self._ring, end) * self._weights[self.done : end]
        windows, spread = self._windows[self.done : end], None
        if self._squares is not None:
            freedom = (windows - 1).clamp(min=1)[:, None, None]
            spread = (self._held(self._squares, end) / freedom).sqrt_()
        self.done = end
        return Overlapped(mean, spread, windows)

    def _held(self, ring: Tensor, end: int) -> Tensor:
        size = len(ring)
        return torch.cat([ring[a % size :][: b - a] for a, b in _segments(self.done, end, size)])


def _segments(first: int, last: int, size: int) -> Iterator[tuple[int, int]]:
    """Split slices ``first`` to ``last`` where a ring buffer of ``size`` wraps around."""
    while first < last:
        end = min(last, first - first % size + size)
        yield first, end
        first = end
