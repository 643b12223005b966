"""Two real CPU processes (gloo) against one: the same crops, weights, metrics and files."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from mpunet.data.phantom import phantom_image

EXAMPLE = Path(__file__).parents[1] / "examples" / "mpunet_cpu.yaml"


def mpunet(ranks: int, *words: str) -> str:
    """Run the console command in processes of its own; its standard output."""
    args = [sys.executable, "-m", "mpunet", *words, "--trainer.accelerator", "cpu", "--trainer.devices", str(ranks)]
    args += ["--trainer.enable_progress_bar", "false", *(["--trainer.strategy", "ddp"] if ranks > 1 else [])]
    done = subprocess.run(args, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three thin phantoms in `thin`, an odd number for two ranks, and three thick scans of different depth in `scans`."""
    root = tmp_path_factory.mktemp("ddp")
    for folder in ("thin", "scans"):
        (root / folder).mkdir()
    for seed in range(3):
        nib.save(phantom_image(seed, shape=(56, 40, 44), spacing=(1.0, 8.0, 8.0)), root / "thin" / f"case{seed}.nii.gz")
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
            "--checkpoint.dirpath", str(root), "--model.warmup_steps", "1",
        )  # fmt: skip
        with next(root.rglob("metrics.csv")).open() as file:
            metrics[ranks] = {k: float(v) for row in csv.DictReader(file) for k, v in row.items() if k.startswith("val/") and v}
    assert {"val/mae", "val/psnr", "val/ssim", "val/lung_rmse"} <= metrics[1].keys()
    assert metrics[1] == pytest.approx(metrics[2], rel=1e-4)
    one, two = (torch.load(data / f"ranks{r}" / "last.ckpt", weights_only=True)["state_dict"] for r in (1, 2))
    assert one.keys() == two.keys()
    # The mean over two ranks is the mean over the batch; only the order of additions differs, which Adam enlarges for gradients near 0
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=0, atol=2e-4)

    outputs = {}
    for ranks in (1, 2):
        thin = data / f"thin{ranks}"
        out = mpunet(
            ranks, "predict", "--ckpt_path", str(data / "ranks1" / "last.ckpt"),
            "--data.predict_dir", str(data / "scans"), "--writer.output_dir", str(thin),
        )  # fmt: skip
        assert "3 volumes written" in out
        assert out.count("volumes written") == 1
        outputs[ranks] = {p.name: np.asarray(nib.load(p).dataobj) for p in sorted(thin.iterdir())}
    assert list(outputs[1]) == ["scan0.nii.gz", "scan1.nii.gz", "scan2.nii.gz"]
    assert [v.shape[2] for v in outputs[1].values()] == [11, 31, 51]
    for name, voxels in outputs[1].items():
        np.testing.assert_array_equal(outputs[2][name], voxels)
