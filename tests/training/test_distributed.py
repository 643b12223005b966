"""Two real CPU processes (gloo) against one: the same crops, weights, metrics and files."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from mpunet.phantom.chest import phantom_image
from mpunet.weights import load_network

EXAMPLE = Path(__file__).parents[2] / "examples" / "mpunet_cpu.yaml"


def mpunet(ranks: int, *words: str, status: int = 0) -> str:
    """Run the console command in processes of its own; its standard output."""
    args = [sys.executable, "-m", "mpunet", *words, *common(ranks)]
    done = subprocess.run(args, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == status, done.stderr
    return done.stdout


def common(ranks: int) -> list[str]:
    return [
        "--trainer.accelerator",
        "cpu",
        "--trainer.devices",
        str(ranks),
        "--trainer.enable_progress_bar",
        "false",
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three thin phantoms in `thin`, an odd number for two ranks, and three thick scans of different depth in `scans`."""
    root = tmp_path_factory.mktemp("ddp")
    for folder in ("thin", "scans"):
        (root / folder).mkdir()
    for seed in range(3):
        nib.save(
            phantom_image(seed, shape=(56, 40, 44), spacing=(1.0, 8.0, 8.0)),
            root / "thin" / f"case{seed}.nii.gz",
        )
        image = phantom_image(seed, shape=(3 + 4 * seed, 40, 44), spacing=(5.0, 8.0, 8.0))
        nib.save(image, root / "scans" / f"scan{seed}.nii.gz")
    return root


def test_two_processes_give_what_one_gives(data: Path) -> None:
    metrics: dict[int, dict[str, float]] = {}
    for ranks in (1, 2):
        root = data / f"ranks{ranks}"
        mpunet(
            ranks, "fit", "--config", str(EXAMPLE), "--model.net.widths", "[2,2,2,2,2,2]", "--trainer.default_root_dir", str(root),
            "--data.train_dir", str(data / "thin"), "--data.val_dir", str(data / "thin"), "--data.cache_dir", str(data / "cache"),
            "--data.crop", "[32, 32]", "--data.crops_per_epoch", "8", "--data.batch_size", str(2 // ranks),
            "--trainer.max_steps", "3", "--trainer.val_check_interval", "3", "--trainer.precision", "32-true",
            "--trainer.logger.class_path", "CSVLogger", "--trainer.logger.save_dir", str(root), "--trainer.callbacks", "[]",
            "--checkpoint.dirpath", str(root), "--model.warmup_steps", "1", "--model.muon_lr", "null", "--model.lr", "5e-4", "--model.betas", "[0.9, 0.999]",
        )  # fmt: skip
        with next(root.rglob("metrics.csv")).open() as file:
            metrics[ranks] = {
                k: float(v)
                for row in csv.DictReader(file)
                for k, v in row.items()
                if k.startswith("val/") and v
            }
    assert {"val/mae", "val/psnr", "val/ssim", "val/lung_rmse"} <= metrics[1].keys()
    assert metrics[1] == pytest.approx(metrics[2], rel=1e-4)
    checkpoints = [torch.load(data / f"ranks{r}" / "last.ckpt", weights_only=True) for r in (1, 2)]
    for key, number in checkpoints[0]["consistency"].items():
        assert checkpoints[1]["consistency"][key] == (
            pytest.approx(number, rel=1e-4) if key in ("low", "high") else number
        )
    assert checkpoints[0]["consistency"]["cases"] == 3
    one, two = (checkpoint["state_dict"] for checkpoint in checkpoints)
    assert one.keys() == two.keys()
    # The mean over two ranks is the mean over the batch; only the order of additions differs, which Adam enlarges for gradients near 0:
    # there a weight may miss a step of 5e-4.
    differences = torch.cat([(one[key] - two[key]).abs().flatten() for key in one])
    assert differences.max() < 5e-4
    assert differences.mean() < 2e-5

    outputs = {}
    for ranks in (1, 2):
        thin = data / f"thin{ranks}"
        out = mpunet(
            ranks, "predict", "--ckpt_path", str(data / "ranks1" / "last.ckpt"),
            "--data.predict_dir", str(data / "scans"), "--writer.output_dir", str(thin),
        )  # fmt: skip
        assert "3 volumes written" in out
        assert out.count("volumes written") == 1
        outputs[ranks] = {
            p.name: np.asarray(nib.load(p).dataobj) for p in sorted(thin.glob("*.nii.gz"))
        }
    assert list(outputs[1]) == ["scan0.nii.gz", "scan1.nii.gz", "scan2.nii.gz"]
    assert [v.shape[2] for v in outputs[1].values()] == [11, 31, 51]
    for name, voxels in outputs[1].items():
        np.testing.assert_array_equal(outputs[2][name], voxels)


def test_averaged_weights_go_on_after_a_restart(data: Path) -> None:
    """Muon, EMA and gradient clipping on two processes: four steps at once, or two and then two more from the checkpoint."""
    ema = '[{"class_path": "EMAWeightAveraging", "init_args": {"decay": 0.5}}]'
    words = [
        "fit", "--model.net.widths", "[2,2,2,2,2,2]", "--data.train_dir", str(data / "thin"), "--data.cache_dir", str(data / "cache"),
        "--data.crop", "[32, 32]", "--data.crops_per_epoch", "4", "--trainer.gradient_clip_val", "0.01", "--trainer.callbacks", ema,
        "--trainer.logger", "false", "--trainer.default_root_dir", str(data), "--checkpoint.enable_version_counter", "false",
        "--model.warmup_steps", "1", "--model.muon_lr", "1e-3", "--model.lr_floor", "1",  # a schedule that does not know of the end
    ]  # fmt: skip
    checkpoints = {}
    for name, epochs, more in (
        ("whole", "2", []),
        ("half", "1", []),
        ("resumed", "2", ["--ckpt_path", str(data / "half" / "last.ckpt")]),
    ):
        mpunet(
            2,
            *words,
            "--checkpoint.dirpath",
            str(data / name),
            "--trainer.max_epochs",
            epochs,
            *more,
        )
        checkpoints[name] = torch.load(data / name / "last.ckpt", weights_only=True)
    one, half, two = checkpoints.values()
    assert (one["global_step"], half["global_step"], two["global_step"]) == (4, 2, 4)
    for kind in ("state_dict", "current_model_state"):
        for key, value in one[kind].items():
            torch.testing.assert_close(value, two[kind][key], rtol=0, atol=1e-6)
        assert any(not torch.equal(value, half[kind][key]) for key, value in one[kind].items())
    averaged, current = one["state_dict"], one["current_model_state"]
    assert any(not torch.equal(averaged[key], current[key]) for key in current)
    network = load_network(
        data / "whole" / "last.ckpt"
    ).state_dict()  # what predicts are the averaged weights
    for key, value in network.items():
        torch.testing.assert_close(value, averaged[f"net.{key}"])


def predict(checkpoint: Path, scans: Path, thin: Path) -> list[str]:
    return [
        "predict",
        "--ckpt_path",
        str(checkpoint),
        "--data.predict_dir",
        str(scans),
        "--writer.output_dir",
        str(thin),
    ]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_one_file_on_two_ranks(data: Path, untrained: Path, tmp_path: Path) -> None:
    out = mpunet(2, *predict(untrained, data / "scans" / "scan1.nii.gz", tmp_path))
    assert "1 volumes written" in out
    assert files(tmp_path) == ["manifest.jsonl", "scan1.nii.gz"]
    out = mpunet(2, *predict(untrained, data / "scans" / "scan1.nii.gz", tmp_path))
    assert "1 of 1 volumes are already in" in out
    assert "0 volumes written" in out


@pytest.mark.parametrize("launcher", ["lightning", "torchrun", "slurm"])
def test_launchers(data: Path, untrained: Path, tmp_path: Path, launcher: str) -> None:
    """Two processes, started by Lightning or by others; a broken scan costs only itself."""
    scans, thin = tmp_path / "scans", tmp_path / "thin"
    shutil.copytree(data / "scans", scans)
    (scans / "broken.nii.gz").write_bytes(b"hello")
    words = ["-m", "mpunet", *predict(untrained, scans, thin), *common(2)]
    if launcher != "slurm":
        torchrun = [
            "-m",
            "torch.distributed.run",
            "--nproc_per_node",
            "2",
            "--master_port",
            free_port(),
        ]
        args = [sys.executable, *(torchrun if launcher == "torchrun" else []), *words]
        done = subprocess.run(args, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 1, done.stderr
        out = done.stdout
    else:
        # What srun tells its tasks; `srun` itself only starts them.
        job = {
            "SLURM_JOB_ID": "1",
            "SLURM_JOB_NAME": "predict",
            "SLURM_NTASKS": "2",
            "SLURM_NTASKS_PER_NODE": "2",
        }
        job |= {
            "SLURM_NNODES": "1",
            "SLURM_NODELIST": "127.0.0.1",
            "SLURM_NODEID": "0",
            "MASTER_PORT": free_port(),
        }
        processes = [
            subprocess.Popen(
                [sys.executable, *words],
                env={**os.environ, **job, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for rank in range(2)
        ]  # fmt: skip
        ended = [process.communicate(timeout=300) for process in processes]
        assert [process.returncode for process in processes] == [1, 0], ended
        out = "".join(stdout for stdout, _ in ended)
    assert "3 volumes written" in out
    assert "broken.nii.gz: not a NIfTI file" in out
    assert files(thin) == ["manifest.jsonl", "scan0.nii.gz", "scan1.nii.gz", "scan2.nii.gz"]
    records = [json.loads(line) for line in (thin / "manifest.jsonl").read_text().splitlines()]
    assert sorted(record["file"] for record in records) == [
        "broken.nii.gz",
        "scan0.nii.gz",
        "scan1.nii.gz",
        "scan2.nii.gz",
    ]


def free_port() -> str:
    """A port below those that the system gives to outgoing connections, one of which might otherwise take it."""
    while True:
        port = random.randint(15000, 30000)
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return str(port)
