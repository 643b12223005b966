"""Memory of the process: kept between steps, limited on demand, and how to tell that it has run out."""

from __future__ import annotations

import ctypes
import sys

import torch

__all__ = ["is_out_of_memory", "keep_freed_memory", "limit_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8  # M_... of malloc.h
_HEADROOM = (
    256 << 20
)  # bytes for threads and code that is made at run time, below which nothing can be computed
# What PyTorch, oneDNN and the C++ library say on a CPU. On other devices it is a torch.OutOfMemoryError.
_CPU_MESSAGES = (
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "could not create a memory",
    "could not create a primitive",
)


def keep_freed_memory() -> bool:
    """Keep the C library (glibc) from handing memory back to the system after every step; True if that was possible.

    A 3D network allocates and frees hundreds of megabytes in every step. By default each such buffer is mapped anew and its pages
    are cleared by the kernel, which can take as long as the arithmetic. What is kept comes in pieces, so peak memory grows by some
    tens of per cent. Affects the whole process, so the command line calls it, not the library.
    """
    return _mallopt((_TRIM_THRESHOLD, 2**31 - 1), (_MMAP_MAX, 0), (_ARENA_MAX, 1))


def limit_memory(gib: float, device: torch.device | str = "cpu") -> None:
    """Let allocations beyond ``gib`` GiB fail, so that they can be answered, instead of the system killing the process.

    On a CUDA device this is its memory, elsewhere the data of this process (``RLIMIT_DATA``; Linux).
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
            f"A memory limit needs Linux or a CUDA device, got {sys.platform}; choose a tile size instead."
        )
    import resource

    # What is freed must go back, or it counts against the limit in pieces too small for what comes.
    _mallopt((_MMAP_THRESHOLD, 1 << 20), (_ARENA_MAX, 1))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = int(gib * 2**30)
    taken = _data_size()
    if wanted < taken + _HEADROOM:
        raise ValueError(
            f"Expected a memory limit of at least {(taken + _HEADROOM) / 2**30:.2f} GiB, got {gib}: Python and its libraries alone take "
            f"{taken / 2**30:.2f} GiB of data."
        )
    resource.setrlimit(
        resource.RLIMIT_DATA,
        (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard),
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device, or the process, has no memory left.

    >>> is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory")), is_out_of_memory(RuntimeError("size mismatch"))
    (True, False)
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        message in str(error) for message in _CPU_MESSAGES
    )


def _data_size() -> int:
    """Bytes that count against ``RLIMIT_DATA``."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmData:"))


def _mallopt(*options: tuple[int, int]) -> bool:
    mallopt = (
        getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    )
    return mallopt is not None and all(mallopt(*option) for option in options)
