"""Two real CPU processes (gloo) against one: the same crops, weights, metrics and files."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import processes
import pytest
import torch
from processes import ranks

from mpunet.phantom.chest import phantom_image
from mpunet.weights import load_network

EXAMPLE = Path(__file__).parents[2] / "examples" / "mpunet_cpu.yaml"
WIDTHS = ["--model.net.widths", "[2,2,2,2,2,2]"]
QUIET = ["--trainer.enable_progress_bar", "false"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three thin phantoms in `thin`, an odd number for two ranks; in `scans` three thick ones of
    different depth and a broken one.
    """
    root = tmp_path_factory.mktemp("ddp")
    for folder in ("thin", "val", "scans"):
        (root / folder).mkdir()
    for seed in range(3):
        thin = phantom_image(seed, shape=(56, 30, 32), spacing=(1.0, 10.0, 10.0))
        nib.save(thin, root / "thin" / f"case{seed}.nii.gz")
        other = phantom_image(3 + seed, shape=(56, 30, 32), spacing=(1.0, 10.0, 10.0))
        nib.save(other, root / "val" / f"other{seed}.nii.gz")
        thick = phantom_image(seed, shape=(3 + 4 * seed, 30, 32), spacing=(5.0, 10.0, 10.0))
        nib.save(thick, root / "scans" / f"scan{seed}.nii.gz")
    (root / "scans" / "broken.nii.gz").write_bytes(b"hello")
    return root


def fit(data: Path, number: int, out: Path, *words: str) -> dict:
    """The last checkpoint of `mpunet fit` on this many processes."""
    folders = ["--data.train_dir", data / "thin", "--data.cache_dir", data / "cache"]
    folders += ["--checkpoint.dirpath", out, "--trainer.default_root_dir", out]
    ranks(number, "fit", *words, *WIDTHS, *QUIET, *folders, "--data.crop", "[32, 32]")
    return torch.load(out / "last.ckpt", weights_only=True)


def test_two_processes_train_and_measure_as_one(data: Path, tmp_path: Path) -> None:
    metrics, checkpoints = {}, {}
    for number in (1, 2):
        words = ["--config", EXAMPLE, "--data.val_dir", data / "val", "--trainer.callbacks", "[]"]
        words += ["--trainer.max_steps", 3, "--trainer.val_check_interval", 3]
        words += ["--data.crops_per_epoch", 8, "--data.batch_size", 2 // number]
        words += ["--trainer.logger.class_path", "CSVLogger"]
        words += ["--trainer.logger.save_dir", tmp_path / str(number)]
        # AdamW alone, in float32: the order of additions differs, and AdamW enlarges differences of
        # gradients near 0.
        words += ["--trainer.precision", "32-true", "--model.muon_lr", "null"]
        words += ["--model.warmup_steps", 1, "--model.lr", 5e-4, "--model.betas", "[0.9, 0.999]"]
        checkpoints[number] = fit(data, number, tmp_path / str(number), *words)
        with next((tmp_path / str(number)).rglob("metrics.csv")).open() as file:
            rows = [row.items() for row in csv.DictReader(file)]
        metrics[number] = {
            key: float(value)
            for row in rows
            for key, value in row
            if key.startswith("val/") and value
        }
    assert {"val/mae", "val/psnr", "val/ssim", "val/lung_rmse"} <= metrics[1].keys()
    assert metrics[1] == pytest.approx(metrics[2], rel=1e-4)
    one, two = checkpoints.values()
    assert one["consistency"]["cases"] == 3
    for key, value in one["consistency"].items():
        expected = pytest.approx(value, rel=1e-4) if key in ("low", "high") else value
        assert two["consistency"][key] == expected
    assert one["state_dict"].keys() == two["state_dict"].keys()
    # The mean over two ranks is the mean over the batch. In 3 steps of 5e-4 a weight may miss two.
    pairs = ((one["state_dict"][key], two["state_dict"][key]) for key in one["state_dict"])
    differences = torch.cat([(a - b).abs().flatten() for a, b in pairs])
    assert differences.max() < 1e-3
    assert differences.mean() < 2e-5


def test_averaged_weights_go_on_after_a_restart(data: Path, tmp_path: Path) -> None:
    """Muon, EMA and gradient clipping on two processes: four steps at once, or two and two more."""
    ema = '[{"class_path": "EMAWeightAveraging", "init_args": {"decay": 0.5}}]'
    words = ["--trainer.callbacks", ema, "--trainer.gradient_clip_val", 0.01, "--trainer.logger"]
    words += ["false", "--checkpoint.enable_version_counter", "false", "--data.crops_per_epoch", 4]
    # A schedule that does not know of the end.
    words += ["--model.warmup_steps", 1, "--model.muon_lr", 1e-3, "--model.lr_floor", 1]

    def checkpoint(name: str, epochs: int, *more: object) -> dict:
        return fit(data, 2, tmp_path / name, *words, "--trainer.max_epochs", epochs, *more)

    one, half = checkpoint("whole", 2), checkpoint("half", 1)
    two = checkpoint("resumed", 2, "--ckpt_path", tmp_path / "half" / "last.ckpt")
    assert (one["global_step"], half["global_step"], two["global_step"]) == (4, 2, 4)
    for kind in ("state_dict", "current_model_state"):
        for key, value in one[kind].items():
            torch.testing.assert_close(value, two[kind][key], rtol=0, atol=1e-6)
        assert any(not torch.equal(value, half[kind][key]) for key, value in one[kind].items())
    averaged, current = one["state_dict"], one["current_model_state"]
    assert any(not torch.equal(averaged[key], current[key]) for key in current)
    # What predicts are the averaged weights.
    for key, value in load_network(tmp_path / "whole" / "last.ckpt").state_dict().items():
        torch.testing.assert_close(value, averaged[f"net.{key}"])


def predict(checkpoint: Path, scans: Path, thin: Path) -> list:
    folders = ["--data.predict_dir", scans, "--writer.output_dir", thin]
    return ["predict", "--ckpt_path", checkpoint, *folders, *QUIET]


def volumes(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(nib.load(path).dataobj) for path in folder.glob("*.nii.gz")}


@pytest.fixture(scope="module")
def of_one(data: Path, untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What one process makes of the scans."""
    thin = tmp_path_factory.mktemp("one")
    out = ranks(1, *predict(untrained, data / "scans", thin), status=1)
    assert "3 volumes written" in out
    assert {name: v.shape[2] for name, v in volumes(thin).items()} == {
        "scan0.nii.gz": 11,
        "scan1.nii.gz": 31,
        "scan2.nii.gz": 51,
    }
    return volumes(thin)


@pytest.mark.parametrize("launcher", ["lightning", "torchrun", "slurm"])
def test_launchers(
    data: Path, untrained: Path, of_one: dict, tmp_path: Path, launcher: str
) -> None:
    """Two processes, started by Lightning or by others; a broken scan costs only itself."""
    words = predict(untrained, data / "scans", tmp_path)
    if launcher == "slurm":  # `srun` itself only starts the tasks
        out = ranks(2, *words, environment=processes.slurm, status=1)
    else:
        start = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port"]
        start = [*start, processes.free_port()] if launcher == "torchrun" else []
        args = [sys.executable, *start, "-m", "mpunet", *map(str, words)]
        args += ["--trainer.accelerator", "cpu", "--trainer.devices", "2"]
        done = subprocess.run(args, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 1, done.stderr
        out = done.stdout
    assert out.count("volumes written") == out.count("3 volumes written") == 1
    assert "broken.nii.gz: not a NIfTI file" in out
    found = volumes(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.jsonl", *sorted(found)]
    assert found.keys() == of_one.keys()
    for name, voxels in of_one.items():
        np.testing.assert_array_equal(found[name], voxels)
    records = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert sorted(record["file"] for record in records) == ["broken.nii.gz", *sorted(of_one)]


def test_one_file_on_two_ranks(data: Path, untrained: Path, tmp_path: Path) -> None:
    words = predict(untrained, data / "scans" / "scan1.nii.gz", tmp_path)
    assert "1 volumes written" in ranks(2, *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.jsonl", "scan1.nii.gz"]
    out = ranks(2, *words)
    assert "1 of 1 volumes are already in" in out
    assert "0 volumes written" in out
