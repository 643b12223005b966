"""The streaming engine: windows of thick slices through any network, overlaps averaged, finished thin slices out in order.

It knows nothing of MPU-Net, files or HU. What it holds does not depend on the depth of the volume: the thick slices of a batch of
windows, and a ring of the thin slices that are still open, about as many as one window has.
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
from mpunet.inference.tiles import plan_tiles
from mpunet.memory import is_out_of_memory

__all__ = ["StreamingEngine", "reconstruct_slab"]

Planes = Tensor | npt.NDArray[Any] | Iterable[Tensor | npt.NDArray[Any]]

logger = logging.getLogger(__name__)

# Which of depth, height and width (B, 1, n, H, W) are mirrored in window k, by k modulo 8; neighbours differ as much as they can.
FLIPS = ((), (2, 3, 4), (3,), (2, 4), (4,), (2, 3), (3, 4), (2,))


class StreamingEngine:
    """Runs a network over volumes window by window; each thin slice is the mean of all windows that reconstruct it.

    Where the device runs out of memory it halves the batch, then cuts planes into tiles, says so in the log, and goes on; it stays
    with what it found for the volumes that follow.

    Args:
        network: maps windows (B, 1, n_thick, H, W), float32, to (B, 1, N, H, W) with N = (n_thick - 1) * ratio + 1, as a tensor
            or as an output with an attribute ``image``.
        n_thick: thick slices in a window.
        ratio: thick spacing / thin spacing.
        stride: thick slices between windows, 1 (the paper's) to ``n_thick - 1``.
        batch_size: windows in one call of the network.
        multiple: H and W are extended to multiples of this by repeating the last row and column; cropped from the result.
        tile: height and width above which a plane is cut into overlapping tiles of this size, rounded up to ``multiple``, whose
            results are blended with smooth weights; whole planes by default.
        device: where the network runs.
        autocast: type for automatic mixed precision; by default the surrounding state stays as it is.
        prepare: applied to each thick slice (H, W) on the device, such as a change of unit.
        flips: mirror the windows, each in another of the eight ways, before the network, and what it makes of them back. A network
            that was trained on flipped crops errs differently in each, so that the mean of overlapping windows errs less, at no more
            cost (ours; docs/predict.md has what it gains).
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
        thin_depth(n_thick, ratio)
        window_starts(
            n_thick, n_thick, stride
        )  # raises here for a bad stride, not at the first volume
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
        self, thick: Planes, *, shape: tuple[int, int, int] | None = None, last_first: bool = False
    ) -> Iterator[Tensor]:
        """Yield the thin slices of a volume in order, as soon as no window that reaches them is missing.

        Args:
            thick: the slices (H, W) in order, in the unit that the network takes: a volume (D, H, W), D at least 2, or with
                ``shape`` any iterable, which is read only as far as the next windows need. Fewer than ``n_thick`` slices are
                extended by reflection at the last one, and what the extension reconstructs is dropped.
            shape: (D, H, W), where ``thick`` is not an array.
            last_first: the slices come from the last to the first, and so do the thin ones. The windows, and what the network
                sees, are the same as if they came in order.

        Yields:
            (k, H, W) float32 on the device, the next k slices; (D - 1) * ratio + 1 in all.
        """
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
        counts = np.zeros(thin_depth(depth, self.ratio), np.float32)
        for start in starts:
            counts[start * self.ratio :][:size] += 1
        weights = torch.from_numpy(1 / counts).to(self.device)[:, None, None]

        planes = iter(thick)
        held: list[Tensor] = []  # thick slices first, first + 1, ...
        first = 0
        ring = torch.empty(
            size, height, width, device=self.device
        )  # sums of thin slice t at t % size
        done = reached = 0  # thin slices handed over, and thin slices that a window has reached
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
            )
            if thin is None:  # out of memory: the same again, in less at once
                continue
            starts, flips = starts[len(batch) :], flips[len(batch) :]
            for start, slices in zip(batch, thin, strict=True):
                begin, end = start * self.ratio, start * self.ratio + size
                if begin > done:
                    yield _take(ring, done, begin) * weights[done:begin]
                    done = begin
                for a, b in _pieces(begin, reached, size):
                    ring[a % size :][: b - a] += slices[a - begin : b - begin]
                for a, b in _pieces(max(begin, reached), end, size):
                    ring[a % size :][: b - a] = slices[a - begin : b - begin]
                reached = end
            del thin, slices  # before the next windows need the room
        yield _take(ring, done, reached) * weights[done:]

    def _upload(self, plane: Tensor | npt.NDArray[Any]) -> Tensor:
        """A slice on the device, in float32 and prepared."""
        if not isinstance(plane, Tensor):
            plane = torch.from_numpy(np.array(plane, np.float32))
            if self.device.type == "cuda":
                plane = plane.pin_memory()  # only then is the copy asynchronous
        plane = plane.to(self.device, torch.float32, non_blocking=True)
        return plane if self.prepare is None else self.prepare(plane)

    def _run(
        self,
        windows: Sequence[Sequence[Tensor]],
        flips: Sequence[Sequence[int]],
        size: int,
        last_first: bool,
    ) -> Tensor | None:
        """The first ``size`` thin slices (B, size, H, W) of each window, both in the order in which slices come; None for lack of memory."""
        ordered = [window[::-1] if last_first else window for window in windows]
        taken = reflect_indices(len(ordered[0]), self.n_thick)
        stacked = torch.stack([window[i] for window in ordered for i in taken])
        thick = _flip(stacked.view(len(windows), 1, self.n_thick, *stacked.shape[1:]), flips)
        try:
            thin = _flip(self._forward(thick)[:, None], flips)[:, 0, :size]
            return thin.flip(1) if last_first else thin
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            problem = error.with_traceback(None)  # the traceback would keep what filled the memory
        self._retreat(thick, problem)
        return None

    def _forward(self, thick: Tensor) -> Tensor:
        """(B, 1, n, H, W) to (B, N, H, W), one tile at a time."""
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
        """The network on (B, 1, n, h, w), padded in-plane as it needs."""
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
                f"Expected the network to map windows {tuple(padded.shape)} to {expected}, got {got}; "
                "check that n_thick and ratio are those of the network."
            )
        return thin[:, 0, :, :height, :width]

    def _retreat(self, thick: Tensor, problem: BaseException) -> None:
        """Ask for less at once: half the windows, then tiles, then smaller ones."""
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
            "Out of memory on %s with windows of %s: going on with %s.", self.device, before, now
        )

    def _round_up(self, size: int) -> int:
        return -(-size // self.multiple) * self.multiple


def reconstruct_slab(
    network: Callable[[Tensor], Any], thick: Tensor | npt.NDArray[Any], **options: Any
) -> Tensor:
    """All thin slices of a volume (D, H, W) at once: ((D - 1) * ratio + 1, H, W) float32. Options as for :class:`StreamingEngine`.

    >>> def linear(windows):
    ...     return F.interpolate(windows, size=(36, *windows.shape[3:]), mode="trilinear", align_corners=True)
    >>> thick = torch.arange(10.0)[:, None, None].expand(10, 4, 4)
    >>> reconstruct_slab(linear, thick, n_thick=8, ratio=5, multiple=1)[:6, 0, 0]
    tensor([0.0000, 0.2000, 0.4000, 0.6000, 0.8000, 1.0000])
    """
    return torch.cat(list(StreamingEngine(network, **options).stream(thick)))


def _flip(windows: Tensor, flips: Sequence[Sequence[int]]) -> Tensor:
    """Each window of (B, 1, D, H, W) mirrored along its dimensions; doing it twice undoes it."""
    if not any(flips):
        return windows
    return torch.cat([torch.flip(windows[k : k + 1], tuple(dims)) for k, dims in enumerate(flips)])


def _pieces(first: int, last: int, size: int) -> Iterator[tuple[int, int]]:
    """The stretches of thin slices ``first`` to ``last`` that lie in one piece on a ring of ``size``."""
    while first < last:
        end = min(last, first - first % size + size)
        yield first, end
        first = end


def _take(ring: Tensor, first: int, last: int) -> Tensor:
    size = len(ring)
    return torch.cat([ring[a % size :][: b - a] for a, b in _pieces(first, last, size)])
