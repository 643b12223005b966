"""The streaming engine: windows of thick slices through any network, overlaps averaged, finished thin slices out in order.

It knows nothing of MPU-Net, files or HU. Memory on the device is one batch of windows and the thin slices that are still open,
whatever the depth of the volume.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from mpunet.geometry import reflect_indices, thin_depth, thin_window, window_starts

__all__ = ["reconstruct_slab", "stream_thin"]


def stream_thin(
    network: Callable[[Tensor], Any],
    thick: Tensor | npt.NDArray[Any],
    *,
    n_thick: int,
    ratio: int,
    stride: int = 1,
    batch_size: int = 1,
    multiple: int = 32,
    device: torch.device | str | None = None,
    autocast: torch.dtype | None = None,
) -> Iterator[Tensor]:
    """Yield the thin slices of a volume in order, each the mean of all windows that reconstruct it.

    Args:
        network: maps windows (B, 1, n_thick, H, W), float32, to (B, 1, N, H, W) with N = (n_thick - 1) * ratio + 1, as a tensor
            or as an output with an attribute ``image``.
        thick: (D, H, W), D at least 2, in the unit that the network takes. Fewer than ``n_thick`` slices are extended by
            reflection at the last one, and what the extension reconstructs is dropped.
        n_thick: thick slices in a window.
        ratio: thick spacing / thin spacing.
        stride: thick slices between windows, 1 (the paper's) to ``n_thick - 1``.
        batch_size: windows in one call of the network.
        multiple: H and W are extended to multiples of this by repeating the last row and column; cropped from the result.
        device: where the network runs; by default where ``thick`` is.
        autocast: type for automatic mixed precision; by default the surrounding state stays as it is.

    Yields:
        (k, H, W) float32 on ``device``, the next k finished slices; (D - 1) * ratio + 1 slices in all.
    """
    if thick.ndim != 3:
        raise ValueError(f"Expected a volume (D, H, W), got shape {tuple(thick.shape)}.")
    if batch_size < 1:
        raise ValueError(f"Expected at least 1 window in a batch, got batch_size = {batch_size}.")
    if device is None:
        device = thick.device if isinstance(thick, Tensor) else "cpu"
    device = torch.device(device)
    depth, height, width = thick.shape
    indices = reflect_indices(depth, n_thick)
    starts = window_starts(len(indices), n_thick, stride)
    size = thin_depth(n_thick, ratio)

    counts = torch.zeros(thin_depth(len(indices), ratio), 1, 1)
    for start in starts:
        counts[thin_window(start, n_thick, ratio)] += 1
    counts = counts.to(device)

    sums = torch.zeros(size, height, width, device=device)  # of the open slices: done, done + 1, ...
    done = 0
    for first in range(0, len(starts), batch_size):
        batch = starts[first : first + batch_size]
        slices = np.stack([indices[start : start + n_thick] for start in batch])
        windows = _take(thick, slices, device)
        with torch.inference_mode(), nullcontext() if autocast is None else torch.autocast(device.type, autocast):
            thin = _apply(network, windows, size, multiple)
        for start, window in zip(batch, thin, strict=True):
            finished = start * ratio - done
            if finished:
                yield sums[:finished] / counts[done : done + finished]
            sums = torch.cat([sums[finished:] + window[: size - finished], window[size - finished :]])
            done += finished
    yield (sums / counts[done:])[: thin_depth(depth, ratio) - done]


def reconstruct_slab(network: Callable[[Tensor], Any], thick: Tensor | npt.NDArray[Any], **options: Any) -> Tensor:
    """All thin slices of a volume at once: ((D - 1) * ratio + 1, H, W) float32. Arguments as for :func:`stream_thin`.

    >>> def linear(windows):
    ...     return F.interpolate(windows, size=(36, *windows.shape[3:]), mode="trilinear", align_corners=True)
    >>> thick = torch.arange(10.0)[:, None, None].expand(10, 4, 4)
    >>> reconstruct_slab(linear, thick, n_thick=8, ratio=5, multiple=1)[:6, 0, 0]
    tensor([0.0000, 0.2000, 0.4000, 0.6000, 0.8000, 1.0000])
    """
    return torch.cat(list(stream_thin(network, thick, **options)))


def _take(thick: Tensor | npt.NDArray[Any], slices: npt.NDArray[np.intp], device: torch.device) -> Tensor:
    """Windows (B, 1, n, H, W) of the slices (B, n)."""
    if isinstance(thick, Tensor):
        windows = thick[torch.from_numpy(slices)]
    else:
        windows = torch.from_numpy(thick[slices].astype(np.float32, copy=False))
    return windows[:, None].to(device, torch.float32)


def _apply(network: Callable[[Tensor], Any], windows: Tensor, size: int, multiple: int) -> Tensor:
    """Thin windows (B, N, H, W), float32, of thick ones (B, 1, n, H, W)."""
    height, width = windows.shape[3:]
    padded = F.pad(windows, (0, -width % multiple, 0, -height % multiple, 0, 0), mode="replicate")
    output = network(padded)
    thin = getattr(output, "image", output)
    expected = (len(windows), 1, size, *padded.shape[3:])
    if not isinstance(thin, Tensor) or tuple(thin.shape) != expected:
        got = tuple(thin.shape) if isinstance(thin, Tensor) else type(thin).__name__
        raise ValueError(
            f"Expected the network to map windows {tuple(padded.shape)} to {expected}, got {got}; "
            "check that n_thick and ratio are those of the network."
        )
    return thin[:, 0, :, :height, :width].float()
