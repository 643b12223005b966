"""examples/downstream.py on a phantom: equal to the truth, interpolated, and thick."""

import re

import nibabel as nib
import numpy as np
import pytest
from helpers import example

from mpunet.io.thick_file import write_thick
from mpunet.phantom.chest import phantom_image
from mpunet.slices.interpolate import interpolated
from mpunet.slices.simulate import thicken


@pytest.fixture(scope="module")
def script():
    return example("downstream")


def test_truth_is_perfect_and_interpolation_loses_thin_vessels(script, tmp_path, capsys):
    for name in ("truth", "thick", "cubic"):
        (tmp_path / name).mkdir()
    image = phantom_image(1, shape=(41, 80, 104), spacing=(1.6, 3.2, 3.2))
    nib.save(image, tmp_path / "truth" / "p.nii.gz")
    write_thick(tmp_path / "thick" / "p.nii.gz", tmp_path / "truth" / "p.nii.gz", 5)
    slab = np.moveaxis(np.asarray(image.dataobj), 2, 0).astype(np.float32)
    cubic = np.concatenate(list(interpolated(thicken(slab, 5), 5)))
    nib.save(
        nib.Nifti1Image(np.moveaxis(np.rint(cubic), 0, 2).astype(np.int16), image.affine),
        tmp_path / "cubic" / "p.nii.gz",
    )
    folders = [f"{name}={tmp_path / name}" for name in ("thick", "cubic", "truth")]
    assert script.main([str(tmp_path / "truth"), *folders]) == 0
    rows = {
        cells[1]: cells[2:]
        for line in capsys.readouterr().out.splitlines()[2:]
        for cells in [[cell.strip() for cell in line.strip("|").split("|")]]
    }
    assert rows["thick"][:5] == ["-"] * 5
    lungs, _, vessels, thin, _ = map(float, rows["cubic"][:5])
    assert 0.9 < lungs < 1
    assert thin < vessels < 0.95
    assert float(rows["truth"][0]) == float(rows["truth"][2]) == 1
    hits, of = map(int, re.fullmatch(r"(\d+) of (\d+)", rows["truth"][5]).groups())
    assert hits == of > 0
    assert rows["truth"][6] == "0"
    assert int(rows["cubic"][5].split()[0]) < of


def test_airways_do_not_leak(script):
    hu = np.full((30, 60, 60), -870.0)  # lung
    hu[:, :3] = hu[:, -3:] = hu[:, :, :3] = hu[:, :, -3:] = 40
    hu[:, 20:40, 20:40] = 40  # the mediastinum
    hu[:, 25:35, 25:35] = -1000  # trachea
    hu[15, 30, 35:50] = -960  # a bronchus, which starts in it
    lungs = hu == -870
    found = script.airways(hu, lungs, np.ones(3))
    assert found.sum() == 30 * 100 + 15
    assert not (found & lungs).any()


def test_folders_are_checked(script, tmp_path, capsys):
    with pytest.raises(SystemExit):
        script.main([str(tmp_path), "cubic=nowhere"])
    assert "expected NAME=FOLDER with an existing folder, got 'cubic=nowhere'" in (
        capsys.readouterr().err
    )
