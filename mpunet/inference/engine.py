"""Streaming reconstruction of a volume with any network that maps a window of thick slices to thin.

Overlapping windows are averaged and finished thin slices are returned in order. The engine does not
depend on MPU-Net, on files or on HU. Its memory does not grow with the depth of the volume: it
holds the thick slices of one batch of windows and a ring buffer with the thin slices of one window.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from mpunet.geometry import reflect_indices, thin_depth, window_starts
from mpunet.inference.overlap import OverlapMean, Overlapped
from mpunet.inference.tiles import plan_tiles
from mpunet.memory import is_out_of_memory

__all__ = ["StreamingEngine", "reconstruct_slab"]

Planes = Tensor | npt.NDArray[Any] | Iterable[Tensor | npt.NDArray[Any]]
Correction = Callable[[Tensor, Tensor], Tensor]

logger = logging.getLogger(__name__)

# Axes of (B, 1, n, H, W) to flip in window k, by k modulo 8. Neighbouring windows differ in as many
# axes as possible.
FLIPS = ((), (2, 3, 4), (3,), (2, 4), (4,), (2, 3), (3, 4), (2,))


class StreamingEngine:
    """Run a network over volumes, window by window.

    Each thin slice is the mean of all windows that reconstruct it. If the device runs out of
    memory, the engine halves the batch, then cuts planes into tiles, logs a warning and continues.
    It keeps the smaller batch or tile for later volumes.

    Args:
        network: maps windows (B, 1, n_thick, H, W), float32, to (B, 1, N, H, W) with
            N = (n_thick - 1) * ratio + 1. It returns a tensor or an object with a tensor ``image``.
        n_thick: number of thick slices per window.
        ratio: thick spacing / thin spacing.
        stride: distance between windows in thick slices, 1 (as in the paper) to ``n_thick - 1``.
        batch_size: number of windows per call of the network.
        multiple: H and W are padded to multiples of this by repeating the last row and column; the
            padding is cropped from the result.
        tile: height and width in pixels above which a plane is cut into overlapping tiles of this
            size, rounded up to ``multiple``. Tiles are blended with smooth weights. Default: whole
            planes.
        device: device on which the network runs.
        autocast: data type for automatic mixed precision. Default: keep the caller's autocast
            state.
        prepare: function applied to each thick slice (H, W) on the device, for example to convert
            units.
        flips: flip consecutive windows along different axes before the network and flip its output
            back. A network trained on flipped crops makes different errors for each flip, so the
            mean of overlapping windows has a smaller error, at no extra cost (our choice; for the
            gain see docs/predict.md).
    """

    def __init__(
        self,
        network: Callable[[Tensor], Any],
        *,
        n_thick: int,
        ratio: int,
        stride: int = 1,
        batch_size: int = 1,
        multiple: int = 32,
        tile: int | tuple[int, int] | None = None,
        device: torch.device | str = "cpu",
        autocast: torch.dtype | None = None,
        prepare: Callable[[Tensor], Tensor] | None = None,
        flips: bool = False,
    ) -> None:
        # Invalid values raise here, not at the first volume.
        thin_depth(n_thick, ratio)
        window_starts(n_thick, n_thick, stride)
        if batch_size < 1:
            raise ValueError(
                f"Expected at least 1 window in a batch, got batch_size = {batch_size}."
            )
        sides = (tile, tile) if isinstance(tile, int) else tile
        if sides is not None and min(sides) < 1:
            raise ValueError(f"Expected tiles of at least 1 pixel, got tile = {tile}.")
        self.network = network
        self.n_thick = n_thick
        self.ratio = ratio
        self.stride = stride
        self.batch_size = batch_size
        self.multiple = multiple
        self.tile = None if sides is None else (self._round_up(sides[0]), self._round_up(sides[1]))
        self.device = torch.device(device)
        self.autocast = autocast
        self.prepare = prepare
        self.flips = flips

    def stream(
        self,
        thick: Planes,
        *,
        shape: tuple[int, int, int] | None = None,
        last_first: bool = False,
        correct: Correction | None = None,
    ) -> Iterator[Tensor]:
        """Yield the thin slices of a volume in order, each as soon as all its windows are computed.

        Args:
            thick: slices (H, W) in order, in the unit of the network's input: a volume (D, H, W)
                with D >= 2, or, if ``shape`` is given, any iterable, which is read only as far as
                the next windows need. Fewer than ``n_thick`` slices are extended by reflection at
                the last one; the thin slices of the extension are dropped.
            shape: (D, H, W); required if ``thick`` is not an array.
            last_first: whether ``thick`` is in reverse order. The thin slices are then in reverse
                order, too. The windows and the network's input are the same as in forward order.
            correct: function of a batch of windows, applied after the network: maps thin slices
                (B, 1, N, H, W) and thick slices (B, 1, n_thick, H, W), both in forward order, to
                thin slices.

        Yields:
            The next k slices (k, H, W), float32, on the device; (D - 1) * ratio + 1 in total.
        """
        for chunk in self._finished(thick, shape, last_first, correct, spread=False):
            yield chunk.mean

    def stream_with_spread(
        self,
        thick: Planes,
        *,
        shape: tuple[int, int, int] | None = None,
        last_first: bool = False,
        correct: Correction | None = None,
    ) -> Iterator[Overlapped]:
        """Yield thin slices as :meth:`stream` does, with their standard deviation over windows.

        Args:
            thick: as in :meth:`stream`.
            shape: as in :meth:`stream`.
            last_first: as in :meth:`stream`.
            correct: as in :meth:`stream`.
        """
        return self._finished(thick, shape, last_first, correct, spread=True)

    def _finished(
        self,
        thick: Planes,
        shape: tuple[int, int, int] | None,
        last_first: bool,
        correct: Correction | None,
        *,
        spread: bool,
    ) -> Iterator[Overlapped]:
        if shape is None:
            shape = tuple(np.shape(thick))  # type: ignore[arg-type]
        if len(shape) != 3:
            raise ValueError(f"Expected a volume (D, H, W), got shape {tuple(shape)}.")
        depth, height, width = shape
        window = min(depth, self.n_thick)
        size = thin_depth(window, self.ratio)
        starts = window_starts(depth, window, min(self.stride, window - 1))
        flips = [FLIPS[k % len(FLIPS)] if self.flips else () for k in range(len(starts))]
        if last_first:
            starts = [depth - window - start for start in reversed(starts)]
            flips.reverse()
        overlap = OverlapMean(
            [start * self.ratio for start in starts],
            size,
            thin_depth(depth, self.ratio),
            (height, width),
            self.device,
            spread=spread,
        )
        planes = iter(thick)
        held: list[Tensor] = []  # thick slices first, first + 1, ...
        first = 0
        while starts:
            batch = starts[: self.batch_size]
            del held[: batch[0] - first]
            first = batch[0]
            while len(held) < batch[-1] + window - first:
                held.append(self._upload(next(planes)))
            thin = self._run(
                [held[start - first :][:window] for start in batch],
                flips[: len(batch)],
                size,
                last_first,
                correct,
            )
            if thin is None:  # out of memory: try again with a smaller batch or smaller tiles
                continue
            starts, flips = starts[len(batch) :], flips[len(batch) :]
            for start, slices in zip(batch, thin, strict=True):
                begin = start * self.ratio
                if begin > overlap.done:
                    yield overlap.finish(begin)
                overlap.add(begin, slices)
            del thin, slices  # free the memory before the next windows
        yield overlap.finish(overlap.reached)

    def _upload(self, plane: Tensor | npt.NDArray[Any]) -> Tensor:
        """Copy a slice to the device in float32 and apply ``prepare``."""
        if not isinstance(plane, Tensor):
            plane = torch.from_numpy(np.array(plane, np.float32))
            if self.device.type == "cuda":
                plane = plane.pin_memory()  # required for an asynchronous copy
        plane = plane.to(self.device, torch.float32, non_blocking=True)
        return plane if self.prepare is None else self.prepare(plane)

    def _run(
        self,
        windows: Sequence[Sequence[Tensor]],
        flips: Sequence[Sequence[int]],
        size: int,
        last_first: bool,
        correct: Correction | None,
    ) -> Tensor | None:
        """Reconstruct a batch of windows; return None if the device runs out of memory.

        Returns:
            The first ``size`` thin slices of each window, (B, size, H, W), in the order of the
            stream.
        """
        ordered = [window[::-1] if last_first else window for window in windows]
        taken = reflect_indices(len(ordered[0]), self.n_thick)
        stacked = torch.stack([window[i] for window in ordered for i in taken])
        forward = stacked.view(len(windows), 1, self.n_thick, *stacked.shape[1:])
        thick = _flip(forward, flips)
        try:
            thin = _flip(self._forward(thick)[:, None], flips)
            thin = (thin if correct is None else correct(thin, forward))[:, 0, :size]
            return thin.flip(1) if last_first else thin
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            problem = error.with_traceback(None)  # the traceback refers to the tensors in memory
        self._reduce_memory(thick, problem)
        return None

    def _forward(self, thick: Tensor) -> Tensor:
        """Map (B, 1, n, H, W) to (B, N, H, W), one tile at a time."""
        height, width = thick.shape[3:]
        if self.tile is None or (height <= self.tile[0] and width <= self.tile[1]):
            return self._call(thick)
        thin = torch.zeros(
            len(thick), thin_depth(self.n_thick, self.ratio), height, width, device=self.device
        )
        for rows, columns, weight in plan_tiles(height, width, self.tile, self.device):
            thin[:, :, rows, columns] += self._call(thick[..., rows, columns]) * weight
        return thin

    def _call(self, thick: Tensor) -> Tensor:
        """Apply the network to (B, 1, n, h, w), padded in-plane to ``multiple``."""
        height, width = thick.shape[3:]
        down, right = self._round_up(height) - height, self._round_up(width) - width
        padded = (
            F.pad(thick, (0, right, 0, down, 0, 0), mode="replicate") if down or right else thick
        )
        with (
            torch.inference_mode(),
            nullcontext()
            if self.autocast is None
            else torch.autocast(self.device.type, self.autocast),
        ):
            output = self.network(padded)
        thin = getattr(output, "image", output)
        expected = (len(thick), 1, thin_depth(self.n_thick, self.ratio), *padded.shape[3:])
        if not isinstance(thin, Tensor) or tuple(thin.shape) != expected:
            got = tuple(thin.shape) if isinstance(thin, Tensor) else type(thin).__name__
            raise ValueError(
                f"Expected the network to map windows {tuple(padded.shape)} to {expected}, "
                f"got {got}; check that n_thick and ratio are those of the network."
            )
        return thin[:, 0, :, :height, :width]

    def _reduce_memory(self, thick: Tensor, problem: BaseException) -> None:
        """Halve the batch; if it is a single window, use tiles or halve their size.

        Raises:
            MemoryError: if the smallest tile does not fit.
        """
        height, width = thick.shape[3:]
        tile = min(self.tile or (height, width), (height, width))
        before = f"{len(thick)} × {self.n_thick} × {tile[0]} × {tile[1]} voxels"
        if len(thick) > 1:
            self.batch_size = len(thick) // 2
        else:
            side = self._round_up(-(-max(tile) // 2))
            if side >= max(tile):
                raise MemoryError(
                    f"Not enough memory on {self.device} even for a tile of {before}: {problem}"
                ) from problem
            self.tile = (side, side)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        now = (
            f"tiles of {self.tile[0]} × {self.tile[1]}"
            if self.tile
            else f"{self.batch_size} in a batch"
        )
        logger.warning(
            "Out of memory on %s with windows of %s: continuing with %s.", self.device, before, now
        )

    def _round_up(self, size: int) -> int:
        return -(-size // self.multiple) * self.multiple


def reconstruct_slab(
    network: Callable[[Tensor], Any], thick: Tensor | npt.NDArray[Any], **options: Any
) -> Tensor:
    """Reconstruct all thin slices of a volume at once.

    Args:
        network: as in :class:`StreamingEngine`.
        thick: thick volume (D, H, W).
        **options: options of :class:`StreamingEngine`.

    Returns:
        ((D - 1) * ratio + 1, H, W), float32.

    >>> def linear(windows):
    ...     size = (36, *windows.shape[3:])
    ...     return F.interpolate(windows, size=size, mode="trilinear", align_corners=True)
    >>> thick = torch.arange(10.0)[:, None, None].expand(10, 4, 4)
    >>> reconstruct_slab(linear, thick, n_thick=8, ratio=5, multiple=1)[:6, 0, 0]
    tensor([0.0000, 0.2000, 0.4000, 0.6000, 0.8000, 1.0000])
    """
    return torch.cat(list(StreamingEngine(network, **options).stream(thick)))


def _flip(windows: Tensor, flips: Sequence[Sequence[int]]) -> Tensor:
    """Flip each window of (B, 1, D, H, W) along its own axes; a second call restores the input."""
    if not any(flips):
        return windows
    return torch.cat([torch.flip(windows[k : k + 1], tuple(dims)) for k, dims in enumerate(flips)])
