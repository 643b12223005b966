"""RPLHR-CT's layout from fit to evaluate with nothing but its path: [0, 1] in, HU everywhere."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mpunet.__main__ import main
from mpunet.geometry import thick_affine
from mpunet.io.volume import volume_from_image
from mpunet.phantom.chest import phantom_image
from mpunet.slices.simulate import thicken

TINY = [
    "--model.net.widths",
    "[2,2,2,2,2,2]",
    "--trainer.accelerator",
    "cpu",
    "--trainer.devices",
    "1",
]
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]


@pytest.fixture(scope="module")
def rplhr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms in the layout and intensities of the benchmark: two train, one val, one test."""
    root = tmp_path_factory.mktemp("rplhr")
    image = phantom_image(0, shape=(41, 36, 40), spacing=(1.0, 8.0, 8.0))
    thin = volume_from_image(image)
    thick = thin.frame.to_stored(np.rint(thicken(thin.slab, 5)))
    for number, part in enumerate(("train", "train", "val", "test")):
        for kind, voxels, affine in (
            ("1mm", np.asarray(image.dataobj), image.affine),
            ("5mm", thick, thick_affine(image.affine, thin.slice_axis, 5)),
        ):
            path = root / part / kind / f"{number}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            hu = voxels.clip(-1024, 2048 - number)  # four files that differ
            nib.save(nib.Nifti1Image(((hu + 1024) / 3072).astype(np.float32), affine), path)
    return root


def test_check_fit_predict_evaluate(rplhr: Path, tmp_path: Path) -> None:
    assert main(["check", str(rplhr), "--workers", "1", "--output", str(tmp_path / "checked")]) == 0
    assert main(["check", str(rplhr / "test"), "--workers", "1", "--ratio", "4"]) == 1

    words = [
        "fit",
        *TINY,
        *QUIET,
        "--data.data_dir",
        str(rplhr),
        "--data.cache_dir",
        str(tmp_path / "cache"),
    ]
    words += ["--data.crop", "[32, 32]", "--data.crops_per_epoch", "2", "--trainer.max_steps", "2"]
    words += [
        "--trainer.log_every_n_steps",
        "1",
        "--trainer.logger",
        "false",
        "--checkpoint.dirpath",
        str(tmp_path),
    ]
    assert main([*words, "--trainer.default_root_dir", str(tmp_path)]) == 0

    thin = tmp_path / "thin"
    words = [
        "predict",
        "--ckpt_path",
        str(tmp_path / "last.ckpt"),
        "--data.predict_dir",
        str(rplhr / "test" / "5mm"),
    ]
    assert (
        main([*words, "--writer.output_dir", str(thin), "--trainer.accelerator", "cpu", *QUIET])
        == 0
    )
    (path,) = thin.glob("*.nii.gz")
    predicted, truth = nib.load(path), nib.load(rplhr / "test" / "1mm" / "3.nii.gz")
    assert predicted.shape == truth.shape
    np.testing.assert_allclose(predicted.affine, truth.affine, atol=1e-4)
    assert predicted.get_data_dtype() == np.int16
    in_hu = np.asarray(truth.dataobj) * 3072.0 - 1024
    # Two steps change the cubic interpolation very little. A wrong scale or window would give
    # errors of hundreds of HU.
    error = float(np.abs(np.asarray(predicted.dataobj) - in_hu).mean())
    assert error < 60

    words = [
        "evaluate",
        str(thin),
        str(rplhr / "test" / "1mm"),
        "--inputs",
        str(rplhr / "test" / "5mm"),
    ]
    assert main([*words, "--output", str(tmp_path / "out"), "--report", "false"]) == 0
    with (tmp_path / "out" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    (found,) = [
        float(row["value"])
        for row in rows
        if row["metric"].lower() == "mae" and row["region"] == "whole"
    ]
    assert found == pytest.approx(error, rel=1e-3)


def test_two_folders_by_their_words(rplhr: Path, tmp_path: Path) -> None:
    """Copied out of the layout, so that both kinds and the intensity have to be told."""
    for kind in ("1mm", "5mm"):
        shutil.copytree(rplhr / "train" / kind, tmp_path / kind)
    words = [
        "fit",
        *TINY,
        *QUIET,
        "--data.train_dir.thin",
        str(tmp_path / "1mm"),
        "--data.train_dir.thick",
        str(tmp_path / "5mm"),
    ]
    words += [
        "--data.intensity",
        "rplhr",
        "--data.cache_dir",
        str(tmp_path / "cache"),
        "--data.crop",
        "[32, 32]",
    ]
    words += [
        "--data.crops_per_epoch",
        "1",
        "--trainer.max_steps",
        "1",
        "--trainer.logger",
        "false",
    ]
    words += ["--trainer.log_every_n_steps", "1", "--checkpoint.dirpath", str(tmp_path)]
    assert main([*words, "--trainer.default_root_dir", str(tmp_path)]) == 0
    assert (tmp_path / "last.ckpt").is_file()
