"""Commands read DICOM series as they read NIfTI files, and give the same results."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from made import write_series

from mpunet.__main__ import main
from mpunet.data.cache import Cache
from mpunet.data.cache.preparation import Preparation
from mpunet.data.layouts import find_cases
from mpunet.io.scan_file import open_scan, read_info, read_volume
from mpunet.io.thin_file import write_volume
from mpunet.phantom import chest_phantom

pydicom = pytest.importorskip("pydicom")
UIDS = ("1.2.1", "1.2.2")


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Two thin chests, each as a DICOM series (``dicom``) and as a NIfTI file (``nifti``)."""
    root = tmp_path_factory.mktemp("scans")
    (root / "nifti").mkdir()
    for seed, uid in enumerate(UIDS):
        hu = chest_phantom(seed=seed, shape=(41, 32, 32), spacing=(1.0, 8.0, 9.0)).thin
        write_series(root / "dicom" / f"p{seed}", hu, uid=uid, spacing=1.0, pixel=(8.0, 9.0))
        volume = read_volume(root / "dicom" / f"p{seed}")
        write_volume(root / "nifti" / f"p{seed}.nii.gz", volume.slab, volume, 1)
    return root


def same_scan(a, b):
    a, b = read_volume(a), read_volume(b)
    np.testing.assert_array_equal(a.slab, b.slab)
    np.testing.assert_allclose(a.slab_affine, b.slab_affine, atol=1e-5)


def test_a_series_is_opened_by_its_folder_or_uid(tmp_path):
    write_series(tmp_path / "a", uid="1.2.1")
    same_scan(tmp_path / "a", tmp_path / "a" / "1.2.1")
    write_series(tmp_path / "a", uid="1.2.2", suffix=".ima")
    assert len(open_scan(tmp_path / "a" / "1.2.2")) == 6
    assert read_info(tmp_path / "a" / "1.2.2").slice_thickness == 5.0
    with pytest.raises(ValueError, match=r"^a: expected one DICOM series, found 2; .*a/1\.2\.1"):
        open_scan(tmp_path / "a")
    with pytest.raises(ValueError, match=r"^1\.2\.3: no such file"):
        open_scan(tmp_path / "a" / "1.2.3")
    next((tmp_path / "a").glob("003*.ima")).unlink()
    with pytest.raises(ValueError, match=r"^series 1\.2\.2: a slice is missing between"):
        open_scan(tmp_path / "a" / "1.2.2")
    with pytest.raises(ValueError, match=r"^000\.dcm: .*expected at least 2 slices, got 1"):
        read_info(tmp_path / "a" / "000.dcm")
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"^none: .* a folder"):
        read_volume(tmp_path / "none")


@pytest.mark.parametrize("offset", ["0", "2"])
def test_simulate(scans, tmp_path, offset, capsys):
    for kind in ("dicom", "nifti"):
        words = ["simulate", scans / kind, tmp_path / kind, "--ratio", 5, "--offset", offset]
        assert main([str(word) for word in words]) == 0
    capsys.readouterr()
    for seed in (0, 1):
        same_scan(tmp_path / "dicom" / f"p{seed}", tmp_path / "nifti" / f"p{seed}.nii.gz")
    files = sorted((tmp_path / "dicom" / "p0").iterdir())
    dataset = pydicom.dcmread(files[1])
    assert dataset.ImageType == ["DERIVED", "SECONDARY", "AXIAL"]
    assert dataset.SeriesDescription == "mpunet 5 mm (simulated)"
    assert dataset.SpacingBetweenSlices == 5
    used = [item.ReferencedSOPInstanceUID for item in dataset.SourceImageSequence]
    centre = 5 + int(offset)  # a Gaussian reaches further than to the next thick slice
    assert used == [f"1.2.1.{i + 1}" for i in range(max(centre - 6, 0), centre + 7)]
    words = ["simulate", scans / "dicom", tmp_path / "dicom", "--ratio", 5]
    assert main([str(word) for word in words]) == 0
    assert "2 skipped" in capsys.readouterr().out


def test_simulate_to_nifti(scans, tmp_path):
    words = ["simulate", scans / "dicom", tmp_path, "--ratio", 5, "--format", "nifti"]
    assert main([str(word) for word in words]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p0.nii.gz", "p1.nii.gz"]


def test_from_thin_to_thick_to_thin_to_scores(scans, untrained, tmp_path, capsys):
    """``simulate``, ``predict``, ``evaluate`` on DICOM give what they give on NIfTI."""
    scores = {}
    for kind in ("dicom", "nifti"):
        thick, thin, out = (tmp_path / kind / name for name in ("thick", "thin", "out"))
        run = [
            ["simulate", scans / kind, thick, "--ratio", 5],
            ["predict", thick, thin, "--ckpt_path", untrained, "--trainer.accelerator", "cpu"],
            ["evaluate", thin, scans / kind, "--inputs", thick, "--baselines", "linear"],
        ]
        run[-1] += ["--output", out, "--lungs", "none"]
        for words in run:
            assert main([str(word) for word in words]) == 0, capsys.readouterr().err
        scores[kind] = json.loads((out / "evaluation.json").read_text())["summaries"]
    assert scores["dicom"] == scores["nifti"]


def test_single_series_are_matched_whatever_their_uids(scans, tmp_path, capsys):
    shutil.copytree(scans / "dicom" / "p0", tmp_path / "a")
    write_series(tmp_path / "b", read_volume(tmp_path / "a").slab, uid="1.2.9", spacing=1.0)
    for path in (tmp_path / "b").iterdir():
        dataset = pydicom.dcmread(path)
        dataset.PixelSpacing = [8.0, 9.0]
        dataset.save_as(path)
    words = ["evaluate", tmp_path / "b", tmp_path / "a", "--output", tmp_path / "out"]
    assert main([str(word) for word in [*words, "--lungs", "none"]]) == 0
    assert "MAE" in capsys.readouterr().out


def test_check_and_view(scans, tmp_path, capsys):
    assert main(["check", str(scans / "dicom"), "--workers", "1"]) == 0
    assert "of 2 cases" in capsys.readouterr().out
    page = tmp_path / "view.html"
    files = [str(scans / "dicom" / "p0"), str(scans / "nifti" / "p0.nii.gz")]
    names = ["--names", "dicom,nifti", "--reference", "nifti", "--slices", "3"]
    assert main(["view", *files, "--output", str(page), *names]) == 0
    assert page.stat().st_size > 10_000


def test_training_data(scans, tmp_path):
    """Pairs of DICOM series give the crops that NIfTI files give; a changed slice is noticed."""
    data = tmp_path / "data"
    shutil.copytree(scans / "dicom", data / "thin")
    assert main(["simulate", str(data / "thin"), str(data / "thick"), "--ratio", "5"]) == 0
    nifti = {"thin": str(scans / "nifti"), "thick": str(tmp_path / "thick")}
    assert main(["simulate", nifti["thin"], nifti["thick"], "--ratio", "5"]) == 0
    preparation = Preparation(5, examine=False)
    cache = Cache(tmp_path / "cache")
    cases = find_cases(data)
    assert [case.name for case in cases] == ["p0", "p1"]
    ours, theirs = (cache.cases(found, preparation) for found in (cases, find_cases(nifti)))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a.thin, b.thin)
        np.testing.assert_array_equal(a.thick, b.thick)
    path = data / "thin" / "p0" / "020.dcm"
    dataset = pydicom.dcmread(path)
    pixels = dataset.pixel_array.copy()
    pixels[4, 4] += 1
    dataset.PixelData = pixels.tobytes()
    dataset.save_as(path)
    changed = cache.cases(cases, preparation)[0]
    assert np.count_nonzero(changed.thin != theirs[0].thin) == 1


def test_a_list_of_pairs_names_series(tmp_path):
    hu = chest_phantom(seed=0, shape=(21, 16, 16), spacing=(1.0, 16.0, 18.0)).thin
    for uid, suffix in zip(UIDS, (".dcm", ".ima"), strict=True):
        write_series(tmp_path / "study", hu, uid=uid, spacing=1.0, suffix=suffix)
    (tmp_path / "pairs.csv").write_text("thin\nstudy/1.2.1\nstudy/1.2.2\n")
    cases = find_cases(tmp_path / "pairs.csv")
    assert [read_info(case.thin).shape for case in cases] == [(21, 16, 16)] * 2
    assert nib.aff2axcodes(read_info(cases[0].thin).affine)[2] == "S"
