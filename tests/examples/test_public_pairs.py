"""docs/public_pairs.md: its commands, on phantoms in the layouts of the two data sets."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mpunet.__main__ import main
from mpunet.benchmark import Benchmark
from mpunet.benchmark.measure import measure
from mpunet.geometry import thick_affine
from mpunet.io.volume import volume_from_image
from mpunet.phantom.chest import phantom_image
from mpunet.slices.simulate import thicken

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "public_pairs.md").read_text(encoding="utf-8")
# What makes the commands of the page fast; the last of an option counts.
FAST = {
    "check": ["--workers", "1"],
    "fit": shlex.split(
        "--model.net.widths '[2,2,2,2,2,2]' --model.net.stem_width 2 --model.net.head_width 1 "
        "--trainer.max_steps 2 --trainer.val_check_interval 2 --trainer.accelerator cpu "
        "--trainer.precision 32-true --trainer.log_every_n_steps 1 --trainer.logger false "
        "--trainer.callbacks null --trainer.enable_progress_bar false --data.crop '[32, 32]' "
        "--trainer.enable_model_summary false --data.batch_size 1 --data.crops_per_epoch 4 "
        "--data.num_workers 0 --inference.stride fast"
    ),
    "predict": ["--inference.stride", "fast"],
    "evaluate": ["--report", "false"],
    "benchmark": ["--rows", str(ROOT / "examples" / "table1" / "01_bicubic.yaml")],
}


def commands(data_set: str) -> list[list[str]]:
    """Words of the commands in the section of a data set."""
    block = re.search(rf"## {data_set}\n.*?```bash\n(.*?)```", PAGE, re.DOTALL)
    assert block, data_set
    return [shlex.split(line)[1:] for line in block[1].splitlines()]


def pairs(root: Path, *, thin: str, thick: str, unit: bool) -> None:
    """Phantoms with genuine pairs: two train, one val, one test."""
    image = phantom_image(0, shape=(41, 36, 40), spacing=(1.0, 8.0, 8.0))
    volume = volume_from_image(image)
    thickened = volume.frame.to_stored(np.rint(thicken(volume.slab, 5)))
    for number, part in enumerate(("train", "train", "val", "test")):
        for kind, voxels, affine in (
            (thin, np.asarray(image.dataobj), image.affine),
            (thick, thickened, thick_affine(image.affine, volume.slice_axis, 5)),
        ):
            path = root / part / kind / f"{number}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            hu = voxels.clip(-1024, 2048 - number)  # files that differ
            stored = ((hu + 1024) / 3072).astype(np.float32) if unit else hu.astype(np.int16)
            nib.save(nib.Nifti1Image(stored, affine), path)


def in_process(words: list[str], log: Path) -> None:
    task = json.loads(Path(words[-1]).read_text())
    (Path(task["output"]) / "result.json").write_text(json.dumps(measure(task)))


@pytest.mark.parametrize(
    ("data_set", "protocol", "kinds"),
    [
        ("RPLHR-CT", "rplhr", {"thin": "1mm", "thick": "5mm", "unit": True}),
        ("MSS-CT", "mss-ct", {"thin": "thin", "thick": "thick", "unit": False}),
    ],
)
def test_five_commands_from_data_to_table(
    data_set: str, protocol: str, kinds: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPUNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Benchmark, "_python", staticmethod(in_process))
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    pairs(tmp_path / data_set, **kinds)
    run = commands(data_set)
    assert [words[0] for words in run] == ["check", "fit", "predict", "evaluate", "benchmark"]
    for words in run:
        assert main([*words, *FAST[words[0]]]) == 0, words

    found = json.loads((tmp_path / "results" / "table" / "evaluation.json").read_text())
    assert found["protocol"]["name"] == protocol
    with (tmp_path / "results" / "table" / "summary.csv").open() as file:
        rows = {
            line["method"]: float(line["mean"])
            for line in csv.DictReader(file)
            if (line["metric"], line["region"]) == ("psnr", "whole")
        }
    # Two steps: near the cubic interpolation to which the network adds. Wrong intensities or places
    # would be far below.
    assert rows["thin"] == pytest.approx(rows["cubic"], abs=1)
    assert rows["cubic"] > 25
    output = run[4][run[4].index("--output_dir") + 1]
    assert "| bicubic |" in (tmp_path / output / "table.md").read_text()
