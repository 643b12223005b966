"""A genuine thick scan through the whole command."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mpunet import Reconstructor
from mpunet.__main__ import main
from mpunet.geometry import grid_spacing, slice_positions
from mpunet.io.scan_file import read_volume
from mpunet.lungs.threshold import lung_mask
from mpunet.metrics.consistency import consistency
from mpunet.models import interpolation_matrix
from mpunet.slices.simulate import thicken
from mpunet.training.case_metrics import hu_metrics
from mpunet.weights import read_weights


def test_a_real_thick_scan_becomes_thin(shared_ct: Path, untrained: Path, tmp_path: Path) -> None:
    """The untrained network adds next to nothing to the cubic interpolation: what counts here are
    files, positions, and the consistency of the two.
    """
    name = "Lung_Dx-A0001-B.nii.gz"
    scan = nib.load(shared_ct / "thick" / name).slicer[192:320, 192:320]
    (tmp_path / "scans").mkdir()
    nib.save(scan, tmp_path / "scans" / name)
    words = ["predict", "--ckpt_path", str(untrained), "--inference.stride", "7", "--check"]
    words += ["--data.predict_dir", str(tmp_path / "scans"), "--writer.output_dir", str(tmp_path)]
    assert main([*words, "--trainer.accelerator", "cpu"]) == 0

    thick, thin = (nib.load(folder / name) for folder in (tmp_path / "scans", tmp_path))
    assert thin.shape == (128, 128, 316)
    assert thin.header.get_zooms()[2] == pytest.approx(1.0, abs=1e-5)
    before, after = slice_positions(thick.affine, 2, 64), slice_positions(thin.affine, 2, 316)
    np.testing.assert_allclose(after[[0, -1]], before[[0, -1]], atol=1e-3)
    # Thin slice 5k is thick slice k again, but for what the untrained network adds.
    voxels = np.asarray(thick.dataobj[..., 30]).astype(float)
    assert np.abs(np.asarray(thin.dataobj[..., 150]) - voxels.clip(-1024, 3071)).mean() < 50

    found = json.loads((tmp_path / "manifest.jsonl").read_text())["consistency"]
    slabs = [read_volume(folder / name).slab for folder in (tmp_path, tmp_path / "scans")]
    assert found["mae"] == pytest.approx(consistency(*slabs).mae, abs=1e-3)
    assert found["out_of_range"] is None


@pytest.mark.parametrize(
    ("name", "ratio"), [("packaged", 5), ("packaged_r3", 3), ("packaged_r5_wide", 5)]
)
def test_packaged_networks_beat_interpolation_on_a_patient_they_were_not_trained_on(
    shared_ct: Path, name: str, ratio: int
) -> None:
    """Part of a case in docs/model_card.md, with the limits that were set for the whole case."""
    volume = read_volume(shared_ct / "val" / "MIDRC-RICORD-1A-001012.nii.gz")
    lung = lung_mask(volume.slab, grid_spacing(volume.slab_affine))
    part = (slice(60, 121), slice(110, 174), slice(80, 144))
    thin, lung = volume.slab[part].astype(np.float32), lung[part]
    thick = thicken(thin, ratio)
    assert lung.mean() > 0.2
    cubic = np.einsum("Nn,nhw->Nhw", interpolation_matrix(len(thick), ratio, "cubic"), thick)
    network = Reconstructor.from_checkpoint(name, stride="best", device="cpu")(thick)
    ours, theirs = (hu_metrics(image, thin, lung) for image in (network, cubic))
    assert ours["lung_rmse"] < 0.74 * theirs["lung_rmse"]
    assert ours["lung_mae"] < 0.78 * theirs["lung_mae"]
    assert ours["rmse"] < 0.78 * theirs["rmse"]
    assert ours["mae"] < 0.82 * theirs["mae"]
    assert ours["lung_ssim"] > theirs["lung_ssim"]


def test_the_wide_network_takes_wide_profiles(shared_ct: Path) -> None:
    """A tenth less error than the default where slices are 1.3 times as thick as their spacing."""
    volume = read_volume(shared_ct / "val" / "MIDRC-RICORD-1A-001012.nii.gz")
    thin = volume.slab[60:121, 110:174, 80:144].astype(np.float32)
    thick = thicken(thin, 5, fwhm=1.3)
    networks = (
        Reconstructor.from_checkpoint(name, device="cpu")
        for name in ("packaged_r5_wide", "packaged")
    )
    wide, default = (np.sqrt(((network(thick) - thin) ** 2).mean()) for network in networks)
    assert wide < 0.9 * default


@pytest.mark.parametrize(
    ("name", "spacing", "cases"),
    [
        ("packaged", [5.0, 6.25], ["LIDC-IDRI-0002", "LIDC-IDRI-0314", "LungFCP-01-0001"]),
        ("packaged_r3", [3.0, 3.75], ["LIDC-IDRI-0002", "LungFCP-01-0001"]),
        (
            "packaged_r5_wide",
            [5.0, 6.25],
            ["LIDC-IDRI-0002", "LIDC-IDRI-0314", "LungFCP-01-0001"],
        ),
    ],
)
def test_packaged_networks_say_what_they_are(
    name: str, spacing: list[float], cases: list[str]
) -> None:
    weights = read_weights(name)
    assert weights.source.stat().st_size < 20e6
    assert weights.record["training"]["cases"] == cases
    assert weights.record["training"]["thick_spacing"] == spacing
    assert "CC BY 3.0" in weights.record["notes"]["licence"]
    assert "mask" in weights.net["init_args"]["streams"]
