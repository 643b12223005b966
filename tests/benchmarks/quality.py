"""Time to evaluate one case, compared with the time to read its two files.

    python tests/benchmarks/quality.py      # 300 x 512 x 512, about two minutes on two CPU cores

Writes a pair of .nii.gz files: repeated phantom slabs with new noise of 15 HU. Prints the time to
read both files, of the metrics with and without lung mask for each protocol, and of whole
evaluations (which read the files themselves), with ratios and the memory used above the volumes.
Each time is the shortest of several rounds in which the tasks alternate.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from common import machine

from mpunet.evaluation import Evaluator
from mpunet.io.scan_file import read_volume
from mpunet.metrics.quality import PROTOCOLS, quality
from mpunet.phantom.chest import phantom_image


def save_pair(folder: Path, depth: int, size: int) -> tuple[Path, Path]:
    """A reference and a prediction of it, both as compressible as scans are."""
    image = phantom_image(
        0, shape=(min(depth, 20), size, size), spacing=(1.0, 360 / size, 360 / size)
    )
    phantom = np.asarray(image.dataobj)
    voxels = np.concatenate([phantom] * (-(-depth // phantom.shape[2])), axis=2)[..., :depth]
    paths = folder / "reference.nii.gz", folder / "prediction.nii.gz"
    for seed, path in enumerate(paths):
        rng = np.random.default_rng(seed)
        noisy = np.empty_like(voxels)
        for index in range(depth):
            noise = 15 * rng.standard_normal(voxels.shape[:2], np.float32)
            noisy[..., index] = (voxels[..., index] + noise).clip(-1024, 3071)
        nib.save(nib.Nifti1Image(noisy, image.affine), path)
    return paths


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depth", type=int, default=300)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(
        f"{args.depth} x {args.size} x {args.size}; {machine(torch.device('cpu'))}, "
        f"{torch.get_num_threads()} threads"
    )

    with tempfile.TemporaryDirectory() as folder:
        paths = save_pair(Path(folder), args.depth, args.size)
        print(f"files of {', '.join(f'{path.stat().st_size / 1e6:.0f}' for path in paths)} MB")
        reference, prediction = (read_volume(path).slab for path in paths)
        lung = np.empty(reference.shape, np.uint8)
        for plane, mask in zip(
            reference, lung, strict=True
        ):  # not quite the lungs, but as many voxels or more
            mask[:] = (plane > -950) & (plane < -600)
        mask_file = Path(folder) / "lung.nii.gz"
        nib.save(
            nib.Nifti1Image(read_volume(paths[0]).frame.to_stored(lung), nib.load(paths[0]).affine),
            mask_file,
        )

        def evaluate(**options: Any) -> None:
            evaluator = Evaluator({"prediction": paths[1]}, paths[0], **options)
            assert list(evaluator.run())
            assert evaluator.result().problems == []

        tasks: dict[str, Callable[[], object]] = {
            f"metrics, {name}, {'with' if mask is not None else 'no'} lung mask": (
                lambda mask=mask, protocol=protocol: quality(
                    prediction, reference, mask, protocol=protocol
                )
            )
            for name, protocol in PROTOCOLS.items()
            for mask in (None, lung)
        }
        tasks["evaluate, no lungs, no fidelity"] = lambda: evaluate(lungs="none", fidelity=False)
        tasks["evaluate, lung mask, no fidelity"] = lambda: evaluate(
            lungs=mask_file, fidelity=False
        )
        tasks["evaluate, lung mask, fidelity"] = lambda: evaluate(lungs=mask_file)
        tasks["evaluate, lungs found, fidelity"] = lambda: evaluate()
        times, above = {}, {}
        for name, task in tasks.items():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            times[name] = [seconds(task)]
            above[name] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        tasks["reading both files"] = lambda: [read_volume(path) for path in paths]
        times["reading both files"] = []
        for _ in range(args.rounds):
            for name, task in tasks.items():
                times[name].append(seconds(task))
    reading = min(times["reading both files"])
    for name, each in times.items():
        print(f"{name:34s} {min(each):6.2f} s   {min(each) / reading:5.2f} x reading")
    print(
        f"sum of memory above what was held before: {sum(above.values()) / 1024:.0f} MB "
        "(an evaluation reads its own volumes)"
    )


if __name__ == "__main__":
    main()
