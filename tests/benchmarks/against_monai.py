"""Compare the streaming engine with `monai.inferers.SlidingWindowInferer`.

Both use the same network and the same windows.

    python tests/benchmarks/against_monai.py    # about five minutes on two CPU cores

1. Positions. The network interpolates linearly between thick slices, and each voxel of the volume
   contains its position in mm. Each output slice should then contain its own position, 1 mm after
   the previous slice. MONAI scales its grid by the factor 36 / 8 of one window, so it returns 4.5
   slices for each thick slice, and their positions drift.
2. Time and peak memory of a small MPU-Net on a volume in memory, at two depths, each in a separate
   process. The baseline is the same process without the inference. MONAI returns the whole volume;
   mpunet yields slices as they are finished, as in `mpunet predict`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

import torch
from common import SMALL, machine, run_child
from monai.inferers import SlidingWindowInferer
from torch import Tensor

import mpunet
from mpunet.geometry import thin_depth
from mpunet.inference import StreamingEngine
from mpunet.inference.options import autocast_dtype
from mpunet.memory import keep_freed_memory

N_THICK, RATIO = 8, 5
CPU = torch.device("cpu")


def linear(windows: Tensor) -> Tensor:
    """36 slices from 8, the ends aligned."""
    size = (thin_depth(N_THICK, RATIO), *windows.shape[3:])
    return torch.nn.functional.interpolate(windows, size=size, mode="trilinear", align_corners=True)


def ours(network: Any, volume: Tensor, batch_size: int) -> Iterator[Tensor]:
    """(D, H, W) to thin slices, some at a time."""
    engine = StreamingEngine(
        network, n_thick=N_THICK, ratio=RATIO, batch_size=batch_size, autocast=autocast_dtype(CPU)
    )
    return engine.stream(volume)


def monai(network: Any, volume: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Likewise, by MONAI: windows of 8 whole slices at stride 1, means where they overlap."""
    inferer = SlidingWindowInferer(
        (N_THICK, *volume.shape[1:]),
        sw_batch_size=batch_size,
        overlap=((N_THICK - 1) / N_THICK, 0, 0),
        mode="constant",
    )
    dtype = autocast_dtype(CPU)

    def image(windows: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            output = network(windows)
        return getattr(output, "image", output).float()

    with torch.inference_mode():
        yield inferer(volume[None, None], image)[0, 0]


def positions(depth: int) -> None:
    """How far, in mm, slices are from where they are taken to stand."""
    millimetres = 5.0 * torch.arange(depth)[:, None, None].expand(depth, 32, 32)
    for name, infer in (("mpunet", ours), ("MONAI", monai)):
        found = torch.cat(list(infer(linear, millimetres, 1)))[:, 0, 0]
        error = (found - torch.arange(len(found))).abs()
        print(
            f"{name:8s} {len(found):4d} slices (expected {thin_depth(depth, RATIO)}), "
            f"last at {found[-1]:6.1f} mm of {5 * (depth - 1)}, "
            f"largest error {error.max():5.2f} mm"
        )


def child(which: str, depth: int, size: int, batch_size: int) -> None:
    """What a measured process does: prints the seconds of the inference."""
    keep_freed_memory()
    torch.manual_seed(0)
    network = mpunet.MPUNet(widths=SMALL).eval().to(memory_format=torch.channels_last_3d)
    volume = torch.rand(depth, size, size)
    infer = {"mpunet": ours, "MONAI": monai}.get(which)
    start = time.perf_counter()
    if infer is not None:
        for _ in infer(network, volume, batch_size):
            pass
    print(time.perf_counter() - start)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depth", type=int, default=120)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.depth, args.size, args.batch_size)
        return

    print(machine(CPU))
    for depth in (24, 60):
        print(f"\nPositions, {depth} thick slices of 5 mm")
        positions(depth)
    print(
        f"\nSmall MPU-Net (widths {SMALL}), {args.size} x {args.size}, stride 1, "
        f"{args.batch_size} window(s) a batch"
    )
    for depth in (args.depth // 2, args.depth):
        words = [
            "--depth",
            str(depth),
            "--size",
            str(args.size),
            "--batch_size",
            str(args.batch_size),
        ]
        measured = {
            which: run_child(__file__, "--child", which, *words)
            for which in ("nothing", "mpunet", "MONAI")
        }
        for which in ("mpunet", "MONAI"):
            seconds, above = (
                float(measured[which].output.split()[-1]),
                measured[which].peak - measured["nothing"].peak,
            )
            print(
                f"{depth:4d} slices  {which:6s} {seconds:6.1f} s   "
                f"peak {above:5.0f} MB above the same process without inference",
                flush=True,
            )


if __name__ == "__main__":
    main()
