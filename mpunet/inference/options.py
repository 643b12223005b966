"""How whole volumes are reconstructed: what does not belong to a network but to a run, and so stands in no checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from mpunet.geometry import window_starts

__all__ = ["InferenceOptions", "Precision", "Stride", "autocast_dtype", "window_stride"]

Precision = Literal["auto", "float32", "bf16", "fp16"]
Stride = int | Literal["best", "fast"]


@dataclass
class InferenceOptions:
    """Options of :class:`mpunet.inference.Reconstructor` that a command line or a LightningModule hands on.

    Args:
        stride: thick slices between windows: "best" is 1, the paper's, "fast" is n - 2; see :func:`window_stride`.
        batch_size: windows in one call of the network.
        tile: in-plane size in voxels above which planes are cut into overlapping tiles; whole planes by default.
        precision: "auto" is what the device computes fastest without loss of range, see :func:`autocast_dtype`.
        compile: compile the network by ``torch.compile`` (minutes, once per in-plane size).
        thin_spacing: mm between the slices of the result, whatever those of the scan are, see :class:`Reconstructor`; by default the
            scan's, divided by the network's ratio.
        limit_memory: GiB that a run may allocate, on the device or else in the process; beyond, it halves its batches and then
            cuts planes into tiles. Without it a CPU run that needs too much is killed by the system.
        any_spacing: take scans whose slices stand nearer or further apart than those that the network was trained on, without a
            warning or refusal; see :mod:`mpunet.inference.spacing`.
        flips: mirror every window in another way, which lets the errors of overlapping windows average out, at no cost; by default for
            networks whose record says that they were trained on flipped crops, as those of ``mpunet fit`` are.
    """

    stride: Stride = "best"
    batch_size: int = 1
    tile: int | None = None
    precision: Precision = "auto"
    compile: bool = False
    thin_spacing: float | None = None
    limit_memory: float | None = None
    any_spacing: bool = False
    flips: bool | None = None


def window_stride(stride: Stride, n_thick: int) -> int:
    """Thick slices between windows of a named or given stride.

    "fast" is n - 2. At n - 1 windows only touch: a tenth fewer windows, but no interval is averaged, and the loss in PSNR doubles
    (docs/predict.md).

    >>> window_stride("best", 8), window_stride("fast", 8), window_stride(7, 8)
    (1, 6, 7)
    """
    if isinstance(stride, str) and stride not in ("best", "fast"):
        raise ValueError(
            f"Expected a stride of 1 to {n_thick - 1}, 'best' or 'fast', got {stride!r}."
        )
    number = stride if isinstance(stride, int) else 1 if stride == "best" else max(1, n_thick - 2)
    window_starts(n_thick, n_thick, number)  # raises for a stride that the windows do not bear
    return number


def autocast_dtype(device: torch.device, precision: Precision = "auto") -> torch.dtype | None:
    """Type for automatic mixed precision on a device; None is plain float32.

    "auto" is bfloat16 where the processor has instructions for it, float16 on CUDA devices that do not, float32 otherwise.
    """
    if precision != "auto":
        return {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
    return torch.bfloat16 if device.type == "cpu" and _cpu_has_bf16() else None


def _cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 natively (AVX-512 BF16; processors with AMX have it too).

    ``torch.ops.mkldnn._is_mkldnn_bf16_supported`` is no answer: it says yes to any AVX-512, where bfloat16 is emulated.
    """
    # get_capabilities is public but recent; older releases have only the private function.
    if hasattr(torch.cpu, "get_capabilities"):
        return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())
