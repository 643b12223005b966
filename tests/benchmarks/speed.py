"""Cost of `mpunet predict` besides the network: reading, windows, averaging, writing.

    python tests/benchmarks/speed.py        # 60 x 512 x 512, two to three minutes on two CPU cores

Prints the time of a whole command in this process (with Lightning already imported), the time of
the volume as recorded in the manifest, and the sum of the forward passes of the same batches on
prepared tensors. Each is the mean of several rounds in which they alternate.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from common import QUIET, SMALL, machine, save_checkpoint, save_scan

from mpunet.__main__ import main as command
from mpunet.geometry import window_starts
from mpunet.inference.options import autocast_dtype
from mpunet.intensity import from_hu
from mpunet.io.scan_file import read_volume
from mpunet.memory import keep_freed_memory
from mpunet.weights import load_network


def bare(network: torch.nn.Module, windows: list[torch.Tensor], device: torch.device) -> float:
    """Seconds of the forward passes alone."""
    start = time.perf_counter()
    dtype = autocast_dtype(device)
    with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype is not None):
        for window in windows:
            network(window)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depth", type=int, default=60)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--widths", type=int, nargs="+", default=SMALL)
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    keep_freed_memory()

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        save_checkpoint(root / "net.ckpt", args.widths)
        save_scan(root / "scans" / "scan.nii.gz", args.depth, args.size)
        network = load_network(root / "net.ckpt").to(device)
        slab = torch.from_numpy(read_volume(root / "scans" / "scan.nii.gz").slab).float()
        starts = window_starts(args.depth, network.n_thick, args.stride)
        batches = [starts[i : i + args.batch_size] for i in range(0, len(starts), args.batch_size)]
        windows = [
            torch.stack([from_hu(slab[s : s + network.n_thick])[None] for s in batch]).to(device)
            for batch in batches
        ]

        passes, commands, volumes = [], [], []
        bare(network, windows[:2], device)
        for i in range(args.rounds):
            passes.append(bare(network, windows, device))
            start = time.perf_counter()
            status = command(
                [
                    "predict",
                    "--ckpt_path",
                    str(root / "net.ckpt"),
                    "--data.predict_dir",
                    str(root / "scans"),
                ]
                + [
                    "--writer.output_dir",
                    str(root / f"thin{i}"),
                    "--inference.stride",
                    str(args.stride),
                ]
                + ["--inference.batch_size", str(args.batch_size), *QUIET]
            )
            commands.append(time.perf_counter() - start)
            if status != 0:
                raise RuntimeError(f"predict returned {status}")
            volumes.append(
                json.loads((root / f"thin{i}" / "manifest.jsonl").read_text())["seconds"]
            )
        size = (root / "thin0" / "scan.nii.gz").stat().st_size

    print(
        f"\n{args.depth} x {args.size} x {args.size}, MPUNet of widths {args.widths}, "
        f"{len(windows)} batches of {args.batch_size}"
    )
    print(f"{machine(device)}; result {size / 1e6:.0f} MB, times of {args.rounds} rounds")
    for name, seconds in (
        ("forward passes", passes),
        ("volume, file to file", volumes),
        ("whole command", commands),
    ):
        each = ", ".join(f"{t:.2f}" for t in seconds)
        print(
            f"{name:20s}  {sum(seconds) / len(seconds):7.2f} s   "
            f"{sum(seconds) / sum(passes):.3f} x   ({each})"
        )


if __name__ == "__main__":
    main()
