"""Shared by the benchmarks: untrained network, scan, machine name, peak memory of a process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import lightning as L
import nibabel as nib
import numpy as np
import torch

import mpunet
from mpunet.inference.options import autocast_dtype
from mpunet.phantom.chest import phantom_image

QUIET = [
    "--trainer.enable_progress_bar",
    "false",
    "--trainer.enable_model_summary",
    "false",
    "--trainer.devices",
    "1",
]
SMALL = [
    4,
    8,
    16,
    32,
    32,
    32,
]  # widths of the small MPU-Net, so that what is beside the network shows


class Child(NamedTuple):
    """A finished process: seconds, peak resident memory in MB, and what it printed."""

    seconds: float
    peak: float
    output: str


def save_checkpoint(path: Path, net: list[int] | torch.nn.Module) -> None:
    """A checkpoint of a network, or of an untrained MPU-Net of these widths."""
    if isinstance(net, list):
        net = mpunet.MPUNet(widths=net)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False
    )
    trainer.strategy.connect(mpunet.MPUNetModule(net))
    trainer.save_checkpoint(path, weights_only=True)


def save_scan(path: Path, depth: int, size: int) -> None:
    """A thick phantom scan of `depth` slices, 5 mm apart; beyond 60 slices it repeats itself."""
    image = phantom_image(
        0, shape=(min(depth, 60), size, size), spacing=(5.0, 360 / size, 360 / size)
    )
    voxels = np.asarray(image.dataobj)
    repeated = np.concatenate([voxels] * (-(-depth // voxels.shape[2])), axis=2)[..., :depth]
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(repeated, image.affine), path)


def machine(device: torch.device) -> str:
    """One line on what the figures were measured with."""
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{os.cpu_count()} CPU cores, {_cpu()}"
    )
    return f"{name}; torch {torch.__version__}, autocast {autocast_dtype(device)}"


def run_child(*words: str) -> Child:
    """Run Python with these arguments and measure it; raises if it fails."""
    start = time.perf_counter()
    child = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    output = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise RuntimeError(f"{words} ended with status {status}:\n{output}")
    return Child(time.perf_counter() - start, usage.ru_maxrss * 1024 / 1e6, output)


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown"
    )
