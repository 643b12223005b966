"""What only a CUDA device shows: copies, delayed chunks, memory running out, precisions, compile."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mpunet import MPUNet
from mpunet.inference.engine import StreamingEngine
from mpunet.inference.reconstruct import Reconstructor
from mpunet.memory import limit_memory

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def network():
    torch.manual_seed(0)
    return MPUNet(widths=(4, 4, 8, 8, 8, 8)).eval()


@pytest.fixture
def scan():
    rng = np.random.default_rng(0)
    return rng.integers(-1000, 400, (20, 64, 96)).astype(np.int16)


def linear(windows):
    return F.interpolate(
        windows, size=(36, *windows.shape[3:]), mode="trilinear", align_corners=True
    )


def test_cuda_gives_what_the_cpu_gives(network, scan):
    ours, theirs = (
        Reconstructor.from_network(network, device=device, precision="float32")(
            scan.astype(np.float32)
        )
        for device in ("cuda", "cpu")
    )
    # TF32 is off by default for products and on for convolutions: 10 bits of mantissa.
    np.testing.assert_allclose(ours, theirs, atol=2.0)


def test_slices_arrive_in_order_however_late_they_are_copied(scan):
    """Each chunk is used while the next is computed; a slow device must not change an earlier one."""

    def slow(windows):
        torch.cuda._sleep(20_000_000)
        return linear(windows)

    options = {"n_thick": 8, "ratio": 5, "multiple": 1, "precision": "float32"}
    slices = Reconstructor(slow, device="cuda", **options)
    expected = Reconstructor(linear, device="cpu", **options)(scan.astype(np.float32))
    for batch_size in (1, 3):
        slices.engine.batch_size = batch_size
        np.testing.assert_allclose(slices(scan.astype(np.float32)), expected, atol=0.01)


def test_pinned_copies_do_not_see_later_changes():
    """The caller may reuse its buffer as soon as the next slice is asked for."""
    buffer = np.zeros((512, 512), np.float32)

    def planes():
        for k in range(24):
            buffer[:] = k
            yield buffer

    engine = StreamingEngine(linear, n_thick=8, ratio=5, multiple=1, device="cuda")
    thin = torch.cat(list(engine.stream(planes(), shape=(24, 512, 512))))
    expected = torch.arange(116) / 5
    torch.testing.assert_close(thin[:, 100, 100].cpu(), expected, atol=1e-4, rtol=0)


def test_real_out_of_memory_gives_smaller_batches_and_tiles(network, scan, caplog):
    expected = Reconstructor.from_network(network, device="cuda", precision="float32")(
        scan.astype(np.float32)
    )
    seen = []

    class Hungry(torch.nn.Module):
        n_thick, ratio, multiple = 8, 5, 32

        def forward(self, windows):
            try:
                # 24 KiB for each voxel of the input.
                torch.empty(windows.numel() * 24 * 1024, dtype=torch.uint8, device="cuda")
            except torch.OutOfMemoryError as error:
                seen.append(error)
                raise
            return network(windows)

    torch.cuda.empty_cache()
    limit_memory(torch.cuda.memory_reserved() / 2**30 + 0.7, "cuda")
    try:
        small = Reconstructor.from_network(
            Hungry(), device="cuda", precision="float32", batch_size=4
        )
        result = small(scan.astype(np.float32))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert seen
    assert small.engine.tile is not None
    assert "Out of memory on cuda" in caplog.text
    inner = np.abs(result - expected)
    assert np.median(inner) < 1.0  # tiles see less around them


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision(network, scan, precision):
    full, half = (
        Reconstructor.from_network(network, device="cuda", precision=p)(scan.astype(np.float32))
        for p in ("float32", precision)
    )
    difference = np.abs(full - half)
    assert difference.mean() < (2.0 if precision == "fp16" else 12.0)
    assert difference.max() > 0


def test_compile(network, scan):
    plain = Reconstructor.from_network(network, device="cuda", precision="float32")
    compiled = Reconstructor.from_network(network, device="cuda", precision="float32", compile=True)
    np.testing.assert_allclose(
        compiled(scan.astype(np.float32)), plain(scan.astype(np.float32)), atol=2.0
    )
