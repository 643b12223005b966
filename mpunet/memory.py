"""Memory of the process: kept between steps, limited on demand, and how to tell that it has run out."""

from __future__ import annotations

import ctypes
import sys

import torch

__all__ = ["hold_memory", "is_out_of_memory", "limit_memory"]

# What PyTorch, oneDNN and the C++ library say on a CPU. On other devices it is a torch.OutOfMemoryError.
_CPU_MESSAGES = ("can't allocate memory", "not enough memory", "bad_alloc", "could not create a memory")


def hold_memory() -> bool:
    """Keep the C library (glibc) from handing memory back to the system after every step; True if that was possible.

    A 3D network allocates and frees hundreds of megabytes in every step. By default each such buffer is mapped anew and its pages
    are cleared by the kernel, which can take as long as the arithmetic. Affects the whole process, so the command line calls it, not the library.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    trim_threshold, mmap_max, arena_max = -1, -4, -8  # M_... of malloc.h
    return all(mallopt(*option) for option in ((trim_threshold, 2**31 - 1), (mmap_max, 0), (arena_max, 1)))


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
        raise ValueError(f"A memory limit needs Linux or a CUDA device, got {sys.platform}; choose a tile size instead.")
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = int(gib * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device, or the process, has no memory left.

    >>> is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory")), is_out_of_memory(RuntimeError("size mismatch"))
    (True, False)
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _CPU_MESSAGES)
