"""Finding scans in folders, and reading them without stopping at broken ones."""

import pickle
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mpunet.data.scans import PredictScans, Scan, find_scans


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_recursive_sorted_and_without_what_is_hidden(tmp_path):
    touch(tmp_path, "b.nii", "a.nii.gz", "sub/deep/c.NII.GZ", "notes.txt", "d.nii.bak", ".hidden/e.nii", ".a.1234.partial.nii.gz")
    (tmp_path / "broken.nii").symlink_to(tmp_path / "gone")
    scans = find_scans(tmp_path)
    assert [scan.relative.as_posix() for scan in scans] == ["a.nii.gz", "b.nii", "broken.nii", "sub/deep/c.NII.GZ"]
    assert all(scan.path == tmp_path / scan.relative for scan in scans)


def test_hidden_parents_of_the_folder_do_not_matter(tmp_path):
    touch(tmp_path, ".cache/scans/a.nii")
    assert len(find_scans(tmp_path / ".cache" / "scans")) == 1


def test_a_file_is_a_list_of_one(tmp_path):
    touch(tmp_path, "a.nii.gz", "b.nii.gz")
    assert find_scans(str(tmp_path / "a.nii.gz")) == [Scan(tmp_path / "a.nii.gz", Path("a.nii.gz"))]


def test_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a folder of scans, found nothing at .*gone"):
        find_scans(tmp_path / "gone")
    touch(tmp_path, "notes.txt")
    with pytest.raises(ValueError, match=r"Expected .nii or .nii.gz files in .*, found none"):
        find_scans(tmp_path)
    with pytest.raises(ValueError, match=r"a folder or a file ending in .nii or .nii.gz, got .*notes.txt"):
        find_scans(tmp_path / "notes.txt")


def test_broken_files_are_cases_with_a_reason(tmp_path, monkeypatch):
    voxels = np.arange(60, dtype=np.int16).reshape(4, 5, 3) * 20 - 1000
    nib.save(nib.Nifti1Image(voxels, np.diag([0.8, 0.8, 5, 1])), tmp_path / "a.nii.gz")
    touch(tmp_path, "b.nii.gz")
    cases = PredictScans(find_scans(tmp_path))
    assert len(cases) == 2
    assert cases[0].error is None
    assert cases[0].volume.slab.shape == (3, 5, 4)
    assert cases[1].volume is None
    assert cases[1].error.startswith("b.nii.gz: not a NIfTI file")
    assert cases[1].scan.relative == Path("b.nii.gz")
    # Worker processes send cases back by pickle.
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(cases[0])).volume.slab, cases[0].volume.slab)

    def out_of_memory(*args, **options):
        raise MemoryError("12 GiB")

    monkeypatch.setattr("mpunet.data.scans.read_volume", out_of_memory)
    assert cases[0].error == "a.nii.gz: MemoryError: 12 GiB"
