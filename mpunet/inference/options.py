"""Options for the reconstruction of whole volumes.

They belong to a run, not to a network, so checkpoints do not store them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from mpunet.geometry import window_starts

__all__ = [
    "InferenceOptions",
    "Precision",
    "Stride",
    "autocast_dtype",
    "first_device",
    "window_stride",
]

Precision = Literal["auto", "float32", "bf16", "fp16"]
Stride = int | Literal["best", "fast"]


@dataclass
class InferenceOptions:
    """Options of :class:`mpunet.inference.Reconstructor` that the command line and the module pass.

    Args:
        stride: distance between windows in thick slices: a number from 1 to n - 1 for windows of n
            slices, "best" for 1 (as in the paper) or "fast" for n - 2, which is faster and slightly
            less accurate.
        batch_size: number of windows per call of the network.
        tile: in-plane size in pixels above which planes are cut into overlapping tiles. Default:
            whole planes.
        precision: number format of the network's computations: float32, bf16 or fp16. "auto"
            selects bf16 if the processor supports it, else fp16 on CUDA devices and float32 on
            others.
        compile: compile the network with ``torch.compile``. This takes minutes, once per in-plane
            size.
        thin_spacing: slice spacing of the result in mm, for all scans. Default: the slice spacing
            of the scan divided by the network's ratio.
        limit_memory: largest amount of memory in GiB that the run may allocate, on the GPU or,
            without a GPU, in the process. Above it, the run halves its batches and then cuts planes
            into tiles. Default: no limit; the system may then kill a CPU run that needs too much
            memory.
        any_spacing: accept scans of any slice spacing, without the warning or error for a spacing
            that differs from the one the network was trained on.
        profile: CSV file with the slice profile of the scanner, as `mpunet fit-profile` writes it.
            The result of each window is corrected so that it reproduces the scan, thickened by this
            profile; see :class:`mpunet.models.DepthConsistency`. Default: no correction beside the
            network's own.
        flips: flip overlapping windows along different axes so that their errors average out, at no
            extra cost. Default: true for networks that were trained on flipped crops according to
            their record, such as those of ``mpunet fit``.
        error_map: write the expected absolute error of each voxel beside each result, as
            NAME_error.nii.gz or a DICOM series NAME_error. The weights file must have an error
            model (docs/error_map.md).
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
    profile: str | None = None
    error_map: bool = False


def window_stride(stride: Stride, n_thick: int) -> int:
    """Return the distance between windows in thick slices for a named or numeric stride.

    "fast" is n - 2 for windows of n slices. At n - 1, consecutive windows share only one slice: a
    tenth fewer windows, but no interval is averaged and the loss in PSNR doubles (docs/predict.md).

    Raises:
        ValueError: if the stride is unknown or not in 1 to n - 1.

    >>> window_stride("best", 8), window_stride("fast", 8), window_stride(7, 8)
    (1, 6, 7)
    """
    if isinstance(stride, str) and stride not in ("best", "fast"):
        raise ValueError(
            f"Expected a stride of 1 to {n_thick - 1}, 'best' or 'fast', got {stride!r}."
        )
    number = stride if isinstance(stride, int) else 1 if stride == "best" else max(1, n_thick - 2)
    window_starts(n_thick, n_thick, number)  # raises if the stride is out of range
    return number


def autocast_dtype(device: torch.device, precision: Precision = "auto") -> torch.dtype | None:
    """Return the data type for automatic mixed precision on a device; None for float32.

    "auto" is bfloat16 if the processor has instructions for it, float16 on CUDA devices without
    them, and float32 otherwise.
    """
    if precision != "auto":
        return {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
    return torch.bfloat16 if device.type == "cpu" and _cpu_has_bf16() else None


def first_device() -> str:
    """Return the first kind of device that exists of cuda, mps (Apple) and cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _cpu_has_bf16() -> bool:
    """Return whether the CPU multiplies bfloat16 natively (AVX-512 BF16, which AMX implies).

    ``torch.ops.mkldnn._is_mkldnn_bf16_supported`` cannot be used: it is true for any AVX-512
    processor, where bfloat16 may be emulated.
    """
    # get_capabilities is public but recent; older releases have only the private function.
    if hasattr(torch.cpu, "get_capabilities"):
        return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())
