"""Out of memory told from other errors; limits in processes of their own, as they hold for good."""

import subprocess
import sys

import pytest
import torch

from mpunet.memory import is_out_of_memory, keep_freed_memory, limit_memory

linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="glibc and RLIMIT_DATA are Linux's"
)


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] err == 0. "
                "DefaultCPUAllocator: can't allocate memory: ..."
            ),
            True,
        ),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("The size of tensor a (3) must match"), False),
        (OSError("can't allocate memory"), False),
    ],
)
def test_is_out_of_memory(error, expected):
    assert is_out_of_memory(error) is expected


@linux
def test_memory_is_held():
    code = """if True:
        import resource, sys, torch
        from mpunet.memory import keep_freed_memory
        if sys.argv[1:] == ["hold"]:
            assert keep_freed_memory()
        def faults():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            torch.ones(8 << 20)
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        torch.ones(16 << 20)
        print(faults())
    """
    held, not_held = (
        int(
            subprocess.run(
                [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
            ).stdout
        )
        for words in (["hold"], [])
    )
    # 32 MiB are 8192 pages of 4 KiB, or 16 of 2 MiB.
    assert held < 10 < not_held


@linux
def test_limit_becomes_an_error_that_is_known_as_such():
    out = run("""if True:
        import torch
        from mpunet.memory import is_out_of_memory, limit_memory
        limit_memory(1.5)
        torch.ones(1 << 20)
        try:
            torch.ones(1 << 30)
        except RuntimeError as error:
            print(is_out_of_memory(error))
    """)
    assert out == ["True"]


@linux
def test_a_limit_below_what_is_taken_is_refused():
    with pytest.raises(
        ValueError,
        match=r"memory limit of at least \d\.\d\d GiB, got 0.01: "
        r"Python and its libraries alone take",
    ):
        limit_memory(0.01)


def test_limit_is_positive():
    with pytest.raises(ValueError, match="memory limit above 0 GiB, got -1"):
        limit_memory(-1)


def test_hold_memory_elsewhere(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False
    with pytest.raises(
        ValueError, match="needs Linux or a CUDA device, got darwin; choose a tile size"
    ):
        limit_memory(1)
