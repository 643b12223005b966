"""The scripts under examples/ that draw pictures, run to their end on small volumes."""

import hashlib
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from mpunet.phantom.chest import phantom_image

ROOT = Path(__file__).parents[2]
CROP = ROOT / "examples" / "data" / "lesion_1.25mm.nii.gz"


@pytest.fixture(autouse=True)
def example_scripts(monkeypatch):
    """Make the scripts importable, as their folder is when Python runs one of them."""
    monkeypatch.syspath_prepend(ROOT / "examples")


def small_chest(seed=3):
    """A part of the chest of 31 slices, which become 7 thick ones at ratio 5; 4 mm in plane."""
    return phantom_image(seed, shape=(31, 64, 84), spacing=(1.0, 4.0, 4.0))


def test_the_crop_is_the_one_described_with_its_licence():
    note = (CROP.parent / "README.md").read_text()
    assert CROP.name in note
    assert hashlib.sha256(CROP.read_bytes()).hexdigest() in note
    assert re.search(r"LesionSizingToolkit.*InsightSoftwareConsortium", note)
    assert re.search(r"licence \| Apache-2\.0", note)
    crop = nib.load(CROP)
    assert " × ".join(map(str, crop.shape)) in note
    assert crop.get_data_dtype() == np.int16
    assert " × ".join(f"{mm:.3g}" for mm in crop.header.get_zooms()) in note


def test_the_demo_runs_on_parts_of_the_phantom_and_of_the_crop(monkeypatch, tmp_path, capsys):
    import demo

    part = tmp_path / CROP.name
    nib.save(nib.load(CROP).slicer[16:80, 16:80, :44], part)
    monkeypatch.setattr(demo, "phantom_image", small_chest)
    monkeypatch.setattr(demo, "CROP", part)
    assert demo.main(["--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "Not a clinical result" in printed
    # One table of the lungs for each volume: a mean of the two would mean nothing.
    assert len(re.findall(r"^lungs +MAE", printed, re.MULTILINE)) == 2
    for name, depth in (("phantom", 31), ("lesion_1.25mm", 41)):
        assert nib.load(tmp_path / "thin" / f"{name}.nii.gz").shape[2] == depth
        assert (tmp_path / "evaluation" / name / "report.html").is_file()
    picture = np.asarray(Image.open(tmp_path / "coronal.png").convert("L"))
    assert picture.shape[1] == 12 * 130
    assert picture.std() > 40


def test_the_picture_of_the_readme_from_any_thin_scan(tmp_path, capsys):
    import readme_picture

    scan, picture = tmp_path / "chest.nii.gz", tmp_path / "docs" / "chest.png"
    nib.save(small_chest(), scan)
    words = [str(scan), "--work", str(tmp_path), "--output", str(picture), "--ratio", "6"]
    assert readme_picture.main(words) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^cubic( +\d+\.\d+)+$", printed, re.MULTILINE)
    assert nib.load(tmp_path / "thin" / "chest.nii.gz").header.get_zooms()[2] == pytest.approx(1)
    assert np.asarray(Image.open(picture).convert("L")).std() > 40


def test_the_picture_of_the_readme_is_there_and_credited():
    readme = (ROOT / "README.md").read_text()
    assert "(docs/images/coronal_ct.png)" in readme
    assert (ROOT / "docs" / "images" / "coronal_ct.png").is_file()
    assert re.search(r"RIDER\s+Pilot,\s+The\s+Cancer\s+Imaging\s+Archive,\s+CC\s+BY\s+4\.0", readme)


def test_coronals_have_the_same_part_of_each_volume(tmp_path):
    """The true slices above the last thick slice are left out."""
    import demo

    volume = np.tile(np.linspace(-1000, 100, 20, dtype=np.int16), (8, 6, 1))  # (x, y, z)
    files = {}
    for name, step, count in (("thick", 5, 4), ("mpunet", 1, 16), ("truth", 1, 20)):
        files[name] = tmp_path / f"{name}.nii.gz"
        affine = np.diag([-1.0, -1.0, step, 1])
        nib.save(nib.Nifti1Image(volume[:, :, ::step][:, :, :count], affine), files[name])
    thick, ours, true = demo.coronals(files, columns=slice(2, 7)).values()
    assert ours.shape == true.shape == thick.shape == (15, 5)
    np.testing.assert_array_equal(ours, true)
    assert list(demo.coronals(files)) == ["thick, 5 mm", "mpunet, 1 mm", "truth, 1 mm"]
