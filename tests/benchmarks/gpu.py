"""All that a GPU is needed for, in one command of at most eight minutes.

    make gpu                                # or: python tests/benchmarks/gpu.py --minutes 8
    python tests/benchmarks/gpu.py --train_dir THIN_OR_PAIRS     # other data to train on

1. tests on CUDA (tests/inference/test_cuda.py);
2. `mpunet predict` of 60 x 512 x 512 at stride 1 against the bare network;
3. peak memory of a scan of 60 and of 600 slices;
4. a training step of examples/mpunet.yaml: time and memory, with and without feature matching;
5. training by examples/mpunet_cpu.yaml for the minutes that are left.

Each part writes what it measured to OUTPUT/gpu.md as soon as it is done. A part that fails does not
stop the others. Without a GPU all parts run small, to show that they run; their figures mean nothing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import lightning as L
import numpy as np
import torch
from common import machine, save_checkpoint, save_scan

from mpunet.inference.reconstruct import Reconstructor

ROOT = Path(__file__).parents[2]
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
PAPER = [16, 32, 64, 128, 256, 256]  # widths of examples/mpunet.yaml
TINY = [2, 2, 2, 2, 2, 2]
RESERVE = 25  # seconds kept for the end of a training


class StepMeter(L.Callback):
    """Prints the time of a training step and the peak memory, after ten steps to warm up."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_start(self, *_: object) -> None:
        """Start the clock."""
        self.start = _now()

    def on_train_batch_end(self, *_: object) -> None:
        """Stop the clock."""
        self.times.append(_now() - self.start)

    def on_train_end(self, *_: object) -> None:
        """Print."""
        steady = self.times[10:] or self.times
        peak = torch.cuda.max_memory_allocated() / 1e9 if CUDA else float("nan")
        print(f"step: {1000 * float(np.median(steady)):.0f} ms, peak memory {peak:.2f} GB")


def _now() -> float:
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter()


def run(*words: object, limit: float) -> str:
    """Run Python with these arguments; return what it printed, or raise with its last lines."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            [str(ROOT), str(ROOT / "tests/benchmarks"), os.environ.get("PYTHONPATH", "")]
        ),
    }
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=max(limit, 10),
        check=False,
    )
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise RuntimeError(f"exit status {done.returncode}\n{last}")
    return done.stdout


def tests(folder: Path, limit: float) -> Iterator[str]:
    """Part 1."""
    printed = run("-m", "pytest", "-q", "-rs", "-n0", "tests/inference/test_cuda.py", limit=limit)
    yield from printed.strip().splitlines()[-2:]


def speed(folder: Path, limit: float) -> Iterator[str]:
    """Part 2."""
    size = ["--depth", 60, "--size", 512] if CUDA else ["--depth", 9, "--size", 32, "--rounds", 1]
    for widths in ([4, 8, 16, 32, 32, 32], PAPER) if CUDA else (TINY,):
        printed = run(
            "tests/benchmarks/speed.py", *size, "--widths", *widths, "--batch_size", 2, limit=limit
        )
        yield from printed.strip().splitlines()[-5:]


def memory(folder: Path, limit: float) -> Iterator[str]:
    """Part 3."""
    widths, size, depths = (PAPER, 512, (60, 600)) if CUDA else (TINY, 32, (9, 18))
    save_checkpoint(folder / "net.ckpt", widths)
    reconstructor = Reconstructor.from_checkpoint(folder / "net.ckpt", device=DEVICE, stride="fast")
    for depth in depths:
        save_scan(folder / f"{depth}.nii.gz", depth, size)
        if CUDA:
            torch.cuda.reset_peak_memory_stats()
        start = _now()
        reconstructor.file(folder / f"{depth}.nii.gz", folder / f"{depth}_thin.nii.gz")
        peak = torch.cuda.max_memory_allocated() / 1e9 if CUDA else float("nan")
        yield f"{depth} x {size} x {size}: peak {peak:.3f} GB on the device, {_now() - start:.1f} s"


def training_step(folder: Path, limit: float) -> Iterator[str]:
    """Part 4."""
    for index in range(2):
        save_thin(folder / "thin" / f"{index}.nii.gz", 256 if CUDA else 64)
    crop, steps = (256, 60) if CUDA else (32, 2)
    small = [] if CUDA else ["--model.net.init_args.widths", TINY]
    for feature in (0.01, 0):
        # Weights of VGG-16 do not change time and memory: random ones will do.
        vgg = ["--model.objective.feature_weights", vgg_file(folder)] if feature else []
        printed = run(
            *["-m", "mpunet", "fit", "--config", "examples/mpunet.yaml"],
            *["--data.train_dir", folder / "thin", "--data.crop", f"[{crop}, {crop}]"],
            *["--data.crops_per_epoch", steps, "--trainer.max_epochs", 1],
            *["--trainer.callbacks", "gpu.StepMeter", "--trainer.logger", "false"],
            *["--trainer.precision", "bf16-mixed" if CUDA else "32-true"],
            *["--model.objective.feature", feature, *vgg, *small, *QUIET],
            *["--checkpoint.dirpath", folder / f"step{feature}"],
            limit=limit,
        )
        (line,) = (line for line in printed.splitlines() if line.startswith("step: "))
        name = "with" if feature else "without"
        yield f"{line.removeprefix('step: ')}, {name} feature matching, crop {crop} x {crop}"


def train(folder: Path, limit: float, train_dir: Path | None, output: Path) -> Iterator[str]:
    """Part 5."""
    if train_dir is None:
        yield "skipped: give --train_dir, or set MPUNET_CT to the folder of docs/data.md"
        return
    seconds = int(limit - RESERVE) if CUDA else 20
    if seconds < 15:
        yield f"skipped: only {limit:.0f} s are left"
        return
    small = [] if CUDA else ["--model.net.init_args.widths", TINY, "--data.crops_per_epoch", 16]
    run(
        *["-m", "mpunet", "fit", "--config", "examples/mpunet_cpu.yaml"],
        *["--data.train_dir", train_dir, "--data.batch_size", 32 if CUDA else 2],
        *["--trainer.max_steps", -1 if CUDA else 4, "--trainer.val_check_interval", "null"],
        *["--trainer.max_time", f"00:00:{seconds // 60:02d}:{seconds % 60:02d}"],
        *["--trainer.precision", "bf16-mixed" if CUDA else "32-true", *small, *QUIET],
        *["--checkpoint.dirpath", output / "train"],
        limit=limit,
    )
    saved = torch.load(output / "train" / "last.ckpt", map_location="cpu", weights_only=False)
    yield f"{saved['global_step']} steps in {seconds} s: {output / 'train' / 'last.ckpt'}"


QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]


def save_thin(path: Path, size: int) -> None:
    """A thin phantom scan."""
    import nibabel as nib

    from mpunet.phantom.chest import phantom_image

    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(phantom_image(0, shape=(80, size, size), spacing=(1.0, 360 / size, 360 / size)), path)


def vgg_file(folder: Path) -> Path:
    """A file with random weights of the layers that feature matching uses."""
    path = folder / "vgg16.pth"
    if not path.exists():
        from torchvision.models import vgg16

        torch.save(vgg16().state_dict(), path)
    return path


def main() -> None:
    """Run all parts and write what they measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="time for all parts")
    parser.add_argument("--train_dir", type=Path, help="default: train/ of $MPUNET_CT")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "gpu")
    args = parser.parse_args()
    shared = os.environ.get("MPUNET_CT")
    train_dir = args.train_dir or (Path(shared) / "train" if shared else None)
    args.output.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * args.minutes
    report = args.output / "gpu.md"
    report.write_text(f"# {machine(DEVICE)}\n")
    if not CUDA:
        say(report, "No CUDA device: all parts run small, and their figures mean nothing.")
    parts: list[tuple[str, Callable[[Path, float], Iterator[str]]]] = [
        ("tests on CUDA", tests),
        ("predict against the bare network", speed),
        ("peak memory", memory),
        ("training step of examples/mpunet.yaml", training_step),
        ("training", lambda folder, limit: train(folder, limit, train_dir, args.output)),
    ]
    failed = 0
    for name, part in parts:
        folder = args.output / "work" / part.__name__.strip("<>")
        folder.mkdir(parents=True, exist_ok=True)
        say(report, f"\n## {name}\n")
        try:
            for line in part(folder, end - time.monotonic()):
                say(report, line)
        except Exception as error:  # the other parts must run: the device is lent for minutes
            failed += 1
            say(report, f"FAILED: {type(error).__name__}: {error}")
    sys.exit(failed > 0)


def say(report: Path, line: str) -> None:
    """Print a line and add it to the report."""
    print(line, flush=True)
    with report.open("a") as file:
        file.write(f"{line}\n")


if __name__ == "__main__":
    main()
