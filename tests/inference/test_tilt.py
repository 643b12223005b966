"""Scans of a tilted gantry through `mpunet predict`, `mpunet check` and the reconstructor."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pytest
from helpers import nifti, tilted
from torch import Tensor, nn

from mpunet.__main__ import main
from mpunet.cli.check import run as check
from mpunet.geometry import slice_positions
from mpunet.inference import Reconstructor
from mpunet.inference.manifest import read_manifest
from mpunet.phantom.chest import chest_phantom

MM = 6.25  # slice spacing of the scans along the normal
# Name, tilt in degrees, stored axes, rotation about x in degrees.
SCANS = [
    ("tilt5", 5, "LPS", 0),
    ("tilt18", 18, "RAI", 0),
    ("tilt30", -30, "SRP", 0),
    ("turned18", 18, "LPS", 25),
    ("turned", 0, "LPS", 25),
    ("straight", 0, "LPI", 0),
]


class Predicted(NamedTuple):
    """Folders of the scans and results of a run, its manifest, and what it printed."""

    scans: Path
    thin: Path
    records: dict[str, Any]
    summary: str


def rotation(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[1, 0, 0, 0], [0, c, -s, 0], [0, s, c, 0], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def predicted(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Predicted:
    root = tmp_path_factory.mktemp("tilt")
    scans, thin = root / "scans", root / "thin"
    scans.mkdir()
    slab = chest_phantom(0, shape=(9, 32, 32), spacing=(25.0, 10.0, 10.0)).thin
    for name, degrees, codes, turned in SCANS:
        image = tilted(nifti(slab, spacing=(MM, 0.8, 0.8), start=-170.0, codes=codes), degrees)
        affine = rotation(turned) @ image.affine
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), scans / f"{name}.nii.gz")
    (scans / "straight.json").write_text(json.dumps({"SliceThickness": 5.0}))
    (scans / "tilt5.json").write_text(json.dumps({"SliceThickness": 12.5}))
    words = ["--ckpt_path", str(untrained), "--trainer.accelerator", "cpu"]
    words += ["--data.predict_dir", str(scans), "--writer.output_dir", str(thin)]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["predict", *words, "--inference.stride", "fast"]) == 0
    return Predicted(scans, thin, dict(read_manifest(thin)), out.getvalue())


@pytest.mark.parametrize("name", [name for name, *_ in SCANS])
def test_spacing_is_along_the_normal_and_ends_stay(predicted: Predicted, name: str) -> None:
    thick, thin = (nib.load(f / f"{name}.nii.gz") for f in (predicted.scans, predicted.thin))
    record = predicted.records[f"{name}.nii.gz"]
    axis = thick.shape.index(9)
    assert thin.shape[axis] == 41
    expected = np.full(3, 0.8)
    expected[axis] = 1.25
    np.testing.assert_allclose(record["spacing"], expected, rtol=0, atol=1e-6)
    ends = [slice_positions(i.affine, axis, i.shape[axis])[[0, -1]] for i in (thick, thin)]
    np.testing.assert_allclose(ends[0], ends[1], rtol=0, atol=1e-3)
    np.testing.assert_allclose(
        np.delete(thick.affine, axis, axis=1)[:, :2], np.delete(thin.affine, axis, axis=1)[:, :2]
    )


def tilt_warning(degrees: int) -> str:
    return (
        f"gantry tilt of {degrees}.0 degrees: the result is on the same tilted grid; "
        "slice spacing 1.25 mm is measured along the normal"
    )


def test_warnings_in_the_manifest_and_in_the_summary(predicted: Predicted) -> None:
    found = {name: record["warning"] for name, record in predicted.records.items()}
    assert found == {
        "tilt5.nii.gz": f"{tilt_warning(5)}; the slice thickness of 12.5 mm is larger than the "
        "slice spacing of 6.25 mm: the slices overlap",
        "tilt18.nii.gz": tilt_warning(18),
        "tilt30.nii.gz": tilt_warning(30),
        "turned18.nii.gz": tilt_warning(18),
        "turned.nii.gz": None,
        "straight.nii.gz": None,
    }
    assert "4 with a warning:\n" in predicted.summary
    assert f"  turned18.nii.gz: {tilt_warning(18)}\n" in predicted.summary


@pytest.mark.parametrize(("kind", "mm"), [("scans", "6.25"), ("thin", "1.25")])
def test_check_reports_the_same(
    predicted: Predicted, tmp_path: Path, kind: str, mm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    check([str(getattr(predicted, kind)), "--workers", "1", "--output", str(tmp_path)])
    capsys.readouterr()
    found = {
        case["case"]: [f["text"] for f in case["findings"] if f["code"] == "tilt"]
        for case in json.loads((tmp_path / "findings.json").read_text())
    }
    for name, degrees, *_ in SCANS:
        text = (
            f"gantry tilt of {abs(degrees)}.0 degrees: slices are {mm} mm apart along their normal"
        )
        assert found[name] == ([text] if degrees else [])


def linear(windows: Tensor) -> Tensor:
    return nn.functional.interpolate(
        windows, size=(36, *windows.shape[3:]), mode="trilinear", align_corners=True
    )


def scan(degrees: float, mm: float = 5.0) -> nib.Nifti1Image:
    slab = np.array([-1000, -800, 0] * 3, np.int16).repeat(16).reshape(9, 4, 4)
    return tilted(nifti(slab, spacing=(mm, 0.7, 0.7)), degrees)


class TestReconstructor:
    def test_warns_of_a_tilted_image_and_file(self, tmp_path: Path) -> None:
        reconstruct = Reconstructor(linear, n_thick=8, ratio=5, multiple=4)
        with pytest.warns(
            UserWarning, match=r"The image: gantry tilt of 18.0 degrees.*spacing 1 mm"
        ):
            thin = reconstruct(scan(18))
        assert np.linalg.norm(thin.affine[:3, 2]) == pytest.approx(1 / np.cos(np.radians(18)))
        nib.save(scan(18), tmp_path / "a.nii")
        (tmp_path / "a.json").write_text('{"SliceThickness": 2.5}')
        with pytest.warns(UserWarning, match=r"a.nii: gantry tilt .*; the slice thickness of 2.5"):
            reconstruct.file(tmp_path / "a.nii", tmp_path / "b.nii")

    def test_warnings_are_joined(self) -> None:
        reconstruct = Reconstructor(linear, n_thick=8, ratio=5, multiple=4, spacing=(5.0, 5.0))
        with pytest.warns(
            UserWarning, match=r"gantry tilt of 18.0.*spacing 0.6 mm.*; the slice spacing is 3 mm"
        ):
            reconstruct(scan(18, mm=3.0))

    @pytest.mark.parametrize(("degrees", "mm"), [(0, 5.0), (0.4, 5.0), (0, 4.6)])
    def test_no_warning(self, degrees: float, mm: float) -> None:
        reconstruct = Reconstructor(linear, n_thick=8, ratio=5, multiple=4, spacing=(5.0, 5.0))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            reconstruct(scan(degrees, mm))

    def test_training_range_is_compared_along_the_normal(self) -> None:
        """At 30 degrees, voxels are 5.77 mm apart along the slice axis, out of the range."""
        reconstruct = Reconstructor(linear, n_thick=8, ratio=5, multiple=4, spacing=(5.0, 5.0))
        with pytest.warns(UserWarning, match="gantry tilt") as found:
            reconstruct(scan(30))
        assert "trained on" not in str(found[0].message)

    def test_thin_spacing_is_along_the_normal(self) -> None:
        reconstruct = Reconstructor(linear, n_thick=8, ratio=5, multiple=4, thin_spacing=1.25)
        with pytest.warns(UserWarning, match="slice spacing 1.25 mm is measured along the normal"):
            thin = reconstruct(scan(18))
        assert thin.shape[2] == 33
        np.testing.assert_allclose(
            slice_positions(thin.affine, 2, 33)[::4], slice_positions(scan(18).affine, 2, 9)
        )
