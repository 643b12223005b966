"""Wrong order of the thick slices is told: by `mpunet predict`, by the manifest, and in Python."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import nifti
from torch import Tensor, nn

from mpunet.__main__ import main
from mpunet.inference import Reconstructor
from mpunet.inference.manifest import read_manifest
from mpunet.phantom.chest import chest_phantom

TOLD = "slices 4 and 6 of 12 seem to be exchanged"


@pytest.fixture(scope="module")
def right() -> np.ndarray:
    return np.asarray(chest_phantom(0, shape=(12, 64, 64), spacing=(5.0, 5.0, 5.0)).thin)


@pytest.fixture
def wrong(right: np.ndarray) -> np.ndarray:
    slab = right.copy()
    slab[[4, 6]] = slab[[6, 4]]
    return slab


def test_predict(untrained: Path, right: np.ndarray, wrong: np.ndarray, tmp_path, capsys) -> None:
    scans, thin = tmp_path / "scans", tmp_path / "thin"
    scans.mkdir()
    # The second is read from its last slice to its first.
    for name, slab, codes in (("a", right, "LPS"), ("b", wrong, "LPI"), ("c", wrong, "SRP")):
        nib.save(nifti(slab, spacing=(5.0, 0.8, 0.8), codes=codes), scans / f"{name}.nii.gz")
    words = ["--ckpt_path", str(untrained), "--trainer.accelerator", "cpu"]
    words += ["--data.predict_dir", str(scans), "--writer.output_dir", str(thin)]
    assert main(["predict", *words, "--inference.stride", "fast"]) == 0
    assert f"2 with a warning:\n  b.nii.gz: {TOLD}: in each other" in capsys.readouterr().out
    records = read_manifest(thin)
    assert records["a.nii.gz"]["order"] == []
    for name in ("b.nii.gz", "c.nii.gz"):
        assert records[name]["order"] == [{"code": "exchanged", "slices": [4, 6]}]
        assert str(records[name]["warning"]).startswith(TOLD)


def linear(windows: Tensor) -> Tensor:
    size = (36, *windows.shape[3:])
    return nn.functional.interpolate(windows, size, mode="trilinear", align_corners=True)


def test_in_python(right: np.ndarray, wrong: np.ndarray, tmp_path: Path) -> None:
    reconstruct = Reconstructor(linear, n_thick=8, ratio=5, multiple=4, device="cpu")
    reconstruct(right)  # no warning, which would be an error here
    with pytest.warns(UserWarning, match=f"The image: {TOLD}"):
        reconstruct(wrong)
    with pytest.warns(UserWarning, match=f"The image: {TOLD}"):
        reconstruct(nifti(wrong, spacing=(5.0, 0.8, 0.8)))
    nib.save(nifti(wrong, spacing=(5.0, 0.8, 0.8)), tmp_path / "thick.nii")
    with pytest.warns(UserWarning, match=f"thick.nii: {TOLD}"):
        reconstruct.file(tmp_path / "thick.nii", tmp_path / "thin.nii")
