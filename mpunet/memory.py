"""Memory and cores of the process: limits, peaks and out-of-memory errors."""

from __future__ import annotations

import ctypes
import os
import sys

import torch
from torch import nn

__all__ = [
    "available_cores",
    "channels_last",
    "is_out_of_memory",
    "keep_freed_memory",
    "limit_memory",
    "peak_memory",
]

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8  # M_... of malloc.h
# Minimum free memory in bytes for threads and generated code; with less, computations fail.
_HEADROOM = 256 << 20
# Out-of-memory messages of PyTorch, oneDNN and the C++ library on CPUs and Apple GPUs. CUDA raises
# torch.OutOfMemoryError.
_MESSAGES = (
    "can't allocate memory",
    "MPS backend out of memory",
    "not enough memory",
    "bad_alloc",
    "could not create a memory",
    "could not create a primitive",
)


def keep_freed_memory() -> bool:
    """Stop the C library (glibc) from returning freed memory to the system after every step.

    A 3D network allocates and frees hundreds of megabytes in every step. By default the system maps
    each such buffer again and clears its pages, which can take as long as the computation. The kept
    memory is fragmented, so peak memory grows by some tens of per cent. The setting affects the
    whole process; therefore the command line calls this function and the library does not.

    Returns:
        True if the setting was applied.
    """
    return _mallopt((_TRIM_THRESHOLD, -1), (_MMAP_MAX, 0), (_ARENA_MAX, 1))


def limit_memory(gib: float, device: torch.device | str = "cpu") -> None:
    """Limit memory to ``gib`` GiB, so that larger allocations raise an error.

    A caller can handle the error. Without a limit the system may kill the process.

    Args:
        gib: limit in GiB; above 0.
        device: for a CUDA device, its memory is limited; for any other device, the data of this
            process (``RLIMIT_DATA``), which requires Linux.

    Raises:
        ValueError: if the limit is not above 0, is smaller than the memory in use plus a reserve,
            or is not supported by the system.
    """
    device = torch.device(device)
    if gib <= 0:
        raise ValueError(f"Expected a memory limit above 0 GiB, got {gib}.")
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gib * 2**30 / total), device)
        return
    if not sys.platform.startswith("linux"):
        raise ValueError(
            f"A memory limit needs Linux or a CUDA device, got {sys.platform}; choose a tile size "
            "instead."
        )
    import resource

    # Return freed memory to the system: kept memory counts against the limit, and its fragments may
    # be too small to be used again.
    _mallopt((_MMAP_THRESHOLD, 1 << 20), (_ARENA_MAX, 1))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = int(gib * 2**30)
    taken = _data_size()
    if wanted < taken + _HEADROOM:
        raise ValueError(
            f"Expected a memory limit of at least {(taken + _HEADROOM) / 2**30:.2f} GiB, got "
            f"{gib}: Python and its libraries alone take {taken / 2**30:.2f} GiB of data."
        )
    resource.setrlimit(
        resource.RLIMIT_DATA,
        (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard),
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the device or the process is out of memory.

    >>> is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    True
    >>> is_out_of_memory(RuntimeError("size mismatch"))
    False
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _MESSAGES)


def peak_memory(device: torch.device | str = "cpu") -> float:
    """Return the peak memory in bytes: of a CUDA device, else of this process.

    NaN on Windows without CUDA, where Python cannot tell.

    >>> peak_memory() > 1e6
    True
    """
    device = torch.device(device)
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return float("nan")
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def channels_last(network: nn.Module) -> nn.Module:
    """Lay out the kernels of 3D convolutions in memory so that they are fastest on CPUs and GPUs.

    ``network.to(memory_format=torch.channels_last_3d)`` fails for networks that also have 2D
    convolutions.

    Returns:
        The network itself.

    >>> convs = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv3d(2, 2, 3))
    >>> channels_last(convs)[1].weight.is_contiguous(memory_format=torch.channels_last_3d)
    True
    """
    for parameter in network.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
    return network


def available_cores() -> int:
    """Return the number of cores that this process may use.

    Schedulers such as SLURM give a process fewer cores than the machine has. Only Linux tells.

    >>> 1 <= available_cores() <= os.cpu_count()
    True
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _data_size() -> int:
    """Return the number of bytes that count against ``RLIMIT_DATA``."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmData:"))


def _mallopt(*options: tuple[int, int]) -> bool:
    mallopt = (
        getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    )
    return mallopt is not None and all(mallopt(*option) for option in options)
