"""Peak memory of `mpunet predict` for a short and a long scan, each in a process of its own.

60 and 600 slices of 512 x 512, about two minutes on two CPU cores:

    python tests/benchmarks/memory.py
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from common import QUIET, SMALL, machine, run_child, save_checkpoint, save_scan


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depth", type=int, nargs=2, default=[60, 600])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--widths", type=int, nargs="+", default=SMALL)
    parser.add_argument("--stride", default="fast")
    parser.add_argument("--suffix", choices=[".nii", ".nii.gz"], default=".nii.gz")
    args = parser.parse_args()

    print(
        f"MPUNet of widths {args.widths}, stride {args.stride}, {args.suffix}; "
        f"{machine(torch.device('cpu'))}"
    )
    peaks = []
    for depth in args.depth:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            save_checkpoint(root / "net.ckpt", args.widths)
            save_scan(root / "scans" / f"scan{args.suffix}", depth, args.size)
            child = run_child(
                *[
                    "-m",
                    "mpunet",
                    "predict",
                    "--ckpt_path",
                    str(root / "net.ckpt"),
                    "--data.predict_dir",
                    str(root / "scans"),
                ],
                *[
                    "--writer.output_dir",
                    str(root / "thin"),
                    "--inference.stride",
                    args.stride,
                    "--trainer.accelerator",
                    "cpu",
                    *QUIET,
                ],
            )
        peaks.append(child.peak)
        print(
            f"{depth:4d} x {args.size} x {args.size}   "
            f"peak {child.peak:6.0f} MB   {child.seconds:6.1f} s",
            flush=True,
        )
    print(f"ratio {peaks[1] / peaks[0]:.3f}")


if __name__ == "__main__":
    main()
