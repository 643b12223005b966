"""Compare a checkpoint with linear and cubic interpolation, on whole volumes and in the lungs.

    python examples/compare.py --ckpt_path X.ckpt --data_dir $MPUNET_CT/val

The data folder may have any layout that `mpunet fit` supports. Cubic is the interpolating cubic
spline along depth (SciPy). Errors are in HU.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

import mpunet
from mpunet.data.cache.cache import Cache, Preparation
from mpunet.data.layouts import find_cases
from mpunet.data.volumes import WholeVolumes
from mpunet.memory import keep_freed_memory
from mpunet.slices.interpolate import interpolated
from mpunet.training.case_metrics import LUNG_METRICS, WHOLE_METRICS, CaseMetrics, hu_metrics
from mpunet.weights import load_network


def main() -> None:
    """Print the table; with --json, also write it to a file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ckpt_path", type=Path, required=True)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument(
        "--stride",
        type=int,
        nargs="+",
        default=[1],
        help="thick slices between windows; several values give several rows",
    )
    parser.add_argument("--json", type=Path, help="JSON file to write the results to")
    args = parser.parse_args()

    keep_freed_memory()  # as the command line does, for comparable times
    network = load_network(args.ckpt_path)
    methods = {
        name: lambda thick, kind=kind: np.concatenate(
            list(interpolated(thick, network.ratio, kind=kind))
        )
        for name, kind in (("linear", "linear"), ("cubic spline", "cubic"))
    }
    for stride in args.stride:
        reconstruct = mpunet.Reconstructor.from_network(network, stride=stride, check_hu=False)
        methods[f"{type(network).__name__}, stride {stride}"] = reconstruct
    cached = Cache().cases(find_cases(args.data_dir), Preparation(network.ratio))
    volumes = WholeVolumes(cached, network.ratio)
    means = {name: CaseMetrics() for name in methods}
    seconds = dict.fromkeys(methods, 0.0)
    for index in range(len(volumes)):
        case = volumes[index]
        for name, method in methods.items():
            start = time.perf_counter()
            image = method(case["thick"].numpy())
            seconds[name] += time.perf_counter() - start
            means[name].update(
                index, hu_metrics(torch.as_tensor(image), case["thin"], case["lung"])
            )
    table = {
        name: {key: float(value) for key, value in means[name].compute().items()}
        for name in methods
    }
    for name, row in table.items():
        row["seconds_per_volume"] = seconds[name] / len(volumes)

    print(
        f"{len(volumes)} volumes, ratio {network.ratio}; "
        "MAE and RMSE in HU, PSNR in dB (range 4095 HU)"
    )
    for region, keys in (("whole volume", WHOLE_METRICS), ("lungs", LUNG_METRICS)):
        print(
            f"\n| {region} | MAE | RMSE | PSNR | SSIM | MAE / cubic | RMSE / cubic |\n"
            "|---|---|---|---|---|---|---|"
        )
        for name, row in table.items():
            mae, rmse, psnr, ssim = (row[key] for key in keys)
            relative = [row[key] / table["cubic spline"][key] for key in keys[:2]]
            print(
                f"| {name} | {mae:.2f} | {rmse:.2f} | {psnr:.2f} | {ssim:.4f} "
                f"| {relative[0]:.3f} | {relative[1]:.3f} |"
            )
    print(
        "\nseconds per volume: "
        + ", ".join(f"{name} {row['seconds_per_volume']:.1f}" for name, row in table.items())
    )
    if args.json:
        args.json.write_text(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
