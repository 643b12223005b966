"""An archive of tiny scans on several processes, killed half-way and started again.

The network is cubic interpolation and the scans are tiny, so that what remains is the cost of each
file: to list, open, write and record it. docs/cluster.md has the figures.

    python tests/benchmarks/archive.py --scans 10000 --processes 2
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
from common import machine, save_checkpoint, save_scan

from mpunet.inference.manifest import NAME, read_manifest
from mpunet.models import Bicubic


class Run(NamedTuple):
    """A run: seconds until its first result, until it ended, and its results."""

    first: float
    total: float
    results: int


def main() -> None:
    """Measure, and check that each scan was written once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scans", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_archive(folder / "scans", arguments.scans)
        save_checkpoint(folder / "tiny.ckpt", Bicubic(n_thick=8, ratio=5))
        print(machine(torch.device("cpu")), f"load {os.getloadavg()[0]:.1f}", sep="; ")
        half = run(folder, arguments.processes, until=arguments.scans // 2)
        show("until killed half-way", half)
        rest = run(folder, arguments.processes)
        show("started again", rest)
        show("nothing left to do", run(folder, arguments.processes))
        thin = folder / "thin"
        records = read_manifest(thin)
        assert len(results(thin)) == len(list((folder / "scans").iterdir())) == arguments.scans
        assert not list(thin.glob(".*.partial*"))
        written = sum(record["status"] == "written" for record in records.values())
        size = (thin / NAME).stat().st_size
        print(
            f"manifest: {size / 1e6:.2f} MB, {len(records)} files, {written} of them written, "
            f"{size / max(1, len(records)):.0f} bytes each; load {os.getloadavg()[0]:.1f}"
        )


def make_archive(folder: Path, number: int) -> None:
    """Copies of one scan of 9 x 16 x 16 voxels."""
    save_scan(folder / "0.nii.gz", 9, 16)
    for i in range(1, number):
        shutil.copyfile(folder / "0.nii.gz", folder / f"{i}.nii.gz")


def run(folder: Path, processes: int, until: int | None = None) -> Run:
    """Run `mpunet predict`; kill all of its processes when there are ``until`` results."""
    thin = folder / "thin"
    before = len(results(thin))
    words = [
        "-m",
        "mpunet",
        "predict",
        folder / "scans",
        thin,
        "--checkpoint",
        folder / "tiny.ckpt",
    ]
    words += ["--device", "cpu", "--devices", processes, "--quiet"]
    with (folder / "log").open("w") as log:
        start, first = time.perf_counter(), float("nan")
        started = [
            subprocess.Popen(
                [sys.executable, *map(str, words)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **torchrun(rank, processes), "OMP_NUM_THREADS": "1"},
            )
            for rank in range(processes)
        ]
        while any(process.poll() is None for process in started):
            found = len(results(thin))
            if found > before and first != first:
                first = time.perf_counter() - start
            if until is not None and found >= until:
                for process in started:
                    process.kill()
                    process.wait()
                return Run(first, time.perf_counter() - start, len(results(thin)) - before)
            time.sleep(0.2)
    if any(process.returncode for process in started):
        raise RuntimeError((folder / "log").read_text())
    return Run(first, time.perf_counter() - start, len(results(thin)) - before)


def torchrun(rank: int, processes: int) -> dict[str, str]:
    """What torchrun tells a process. It starts them in sessions of their own, which outlive it."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "MASTER_PORT": 29400}
    numbers |= {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    names = {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "archive"}
    return {key: str(value) for key, value in (numbers | names).items()}


def results(thin: Path) -> list[str]:
    """Names of the finished results."""
    names = os.listdir(thin) if thin.is_dir() else []
    return [name for name in names if name.endswith(".nii.gz") and not name.startswith(".")]


def show(what: str, run: Run) -> None:
    """Print a run."""
    text = f"{what}: {run.results} results in {run.total:.1f} s"
    if run.results:
        rate = run.results / (run.total - run.first)
        text += f", the first after {run.first:.1f} s, then {rate:.1f} a second"
    print(text, flush=True)


if __name__ == "__main__":
    main()
