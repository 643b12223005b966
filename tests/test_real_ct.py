"""The genuine thick scan of ../shared/ct through the whole command."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mpunet.__main__ import main
from mpunet.geometry import slice_positions


def test_a_real_thick_scan_becomes_thin(shared_ct: Path, untrained: Path, tmp_path: Path) -> None:
    # The untrained network adds next to nothing to the cubic interpolation: what counts here are files and positions.
    args = [
        "predict",
        "--ckpt_path",
        str(untrained),
        "--data.predict_dir",
        str(shared_ct / "thick"),
        "--inference.stride",
        "7",
    ]
    assert main([*args, "--writer.output_dir", str(tmp_path / "thin"), "--trainer.accelerator", "cpu"]) == 0

    thick, thin = (nib.load(folder / "Lung_Dx-A0001-B.nii.gz") for folder in (shared_ct / "thick", tmp_path / "thin"))
    assert thin.shape == (512, 512, 316)
    assert thin.header.get_zooms()[2] == pytest.approx(1.0, abs=1e-5)
    before, after = slice_positions(thick.affine, 2, 64), slice_positions(thin.affine, 2, 316)
    np.testing.assert_allclose(after[[0, -1]], before[[0, -1]], atol=1e-3)
    # Thin slice 5k is thick slice k again, but for what the untrained network adds.
    voxels = np.asarray(thick.dataobj[..., 30]).astype(float)
    assert np.abs(np.asarray(thin.dataobj[..., 150]) - voxels.clip(-1024, 3071)).mean() < 50
