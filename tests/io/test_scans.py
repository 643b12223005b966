"""Finding scans in folders, and reading them without stopping at broken ones."""

import errno
import os
import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mpunet.io.scans import PredictLoader, Scan, find_scans, share_out


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_recursive_sorted_and_without_what_is_hidden(tmp_path):
    touch(
        tmp_path,
        "b.nii",
        "a.nii.gz",
        "sub/deep/c.NII.GZ",
        "notes.txt",
        "d.nii.bak",
        ".hidden/e.nii",
        ".a.1234.partial.nii.gz",
    )
    (tmp_path / "broken.nii").symlink_to(tmp_path / "gone")
    scans = find_scans(tmp_path)
    assert [scan.relative.as_posix() for scan in scans] == [
        "a.nii.gz",
        "b.nii",
        "broken.nii",
        "sub/deep/c.NII.GZ",
    ]
    assert all(scan.path == tmp_path / scan.relative for scan in scans)


def test_links_to_folders_are_followed_once(tmp_path):
    """Also in circles; what has a place in the folder has that name, and others their link's."""
    touch(tmp_path, "scans/z/a.nii", "scans/.kept/b.nii", "away/deep/c.nii", "beside.nii")
    for link, target in {
        "again": "z", "hidden": ".kept", "far": "../away", "twice": "../away/deep", "up": "..",
        "z/circle": "..",
    }.items():  # fmt: skip
        (tmp_path / "scans" / link).symlink_to(target)
    (tmp_path / "away" / "deep" / "back").symlink_to("..")
    scans = find_scans(tmp_path / "scans")
    names = [scan.relative.as_posix() for scan in scans]
    assert names == ["far/deep/c.nii", "hidden/b.nii", "z/a.nii"]


def test_folders_that_cannot_be_read_are_cases_with_a_reason(tmp_path, monkeypatch):
    save(tmp_path / "a.nii.gz")
    touch(tmp_path, "closed/b.nii.gz")
    scandir = os.scandir

    def closed(path):
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    good, bad = PredictLoader(find_scans(tmp_path))
    assert good.error is None
    assert bad.scan.relative == Path("closed")
    assert bad.error == "folder cannot be read: permission denied"
    with pytest.raises(ValueError, match=r"closed: folder cannot be read: permission denied"):
        find_scans(tmp_path / "closed")


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
    with pytest.raises(
        ValueError, match=r"Expected NIfTI files .*or DICOM series in .*, found none"
    ):
        find_scans(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"a folder, a DICOM file or a file ending in .nii or .nii.gz, got .*notes.txt",
    ):
        find_scans(tmp_path / "notes.txt")


def save(path, shape=(4, 5, 3)):
    voxels = np.arange(np.prod(shape)).reshape(shape) % 100 * 20 - 1000
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels.astype(np.int16), np.diag([0.8, 0.8, 5, 1])), path)


def test_broken_files_are_cases_with_a_reason(tmp_path, monkeypatch):
    save(tmp_path / "a.nii.gz")
    touch(tmp_path, "b.nii.gz")
    loader = PredictLoader(find_scans(tmp_path))
    assert len(loader) == 2
    good, bad = loader
    assert good.error is None
    assert good.volume.shape == (3, 5, 4)
    assert bad.volume is None
    assert bad.error.startswith("b.nii.gz: not a NIfTI file")
    assert bad.scan.relative == Path("b.nii.gz")

    def out_of_memory(*args, **options):
        raise MemoryError("12 GiB")

    monkeypatch.setattr("mpunet.io.scans.open_scan", out_of_memory)
    assert next(iter(loader)).error == "a.nii.gz: MemoryError: 12 GiB"


def test_the_next_scan_is_opened_while_one_is_worked_on(tmp_path, monkeypatch):
    for name in ("a.nii", "b.nii", "c.nii"):
        save(tmp_path / name)
    opened = {name: threading.Event() for name in ("a.nii", "b.nii", "c.nii")}

    def note(path, **options):
        opened[path.name].set()

    monkeypatch.setattr("mpunet.io.scans.open_scan", note)
    cases = iter(PredictLoader(find_scans(tmp_path)))
    next(cases)
    assert opened["b.nii"].wait(10)
    assert not opened["c.nii"].wait(0.2)


class TestShareOut:
    def test_longest_first_to_the_least_loaded(self, tmp_path):
        for name, depth in {"a": 2, "b": 9, "c": 5, "d": 4, "e": 3}.items():
            save(tmp_path / f"{name}.nii.gz", (4, 5, depth))
        shares = share_out(find_scans(tmp_path), 2)
        # 9 | 5, 4 | then 3 and 2 to whoever has less: 9 + 2 and 5 + 4 + 3, or the like.
        assert [[scan.path.name[0] for scan in share] for share in shares] == [
            ["b", "e"],
            ["c", "d", "a"],
        ]

    def test_all_once_and_balanced(self, tmp_path):
        rng = np.random.default_rng(0)
        depths = rng.integers(2, 60, 40)
        for i, depth in enumerate(depths):
            save(tmp_path / f"{i}.nii", (4, 5, depth))
        scans = find_scans(tmp_path)
        shares = share_out(scans, 3)
        assert sorted(scan for share in shares for scan in share) == sorted(scans)
        loads = [sum(depths[int(scan.path.stem)] for scan in share) for share in shares]
        assert max(loads) - min(loads) <= 2

    def test_unreadable_scans_and_fewer_than_ranks(self, tmp_path):
        touch(tmp_path, "a.nii", "b.nii")
        assert [len(share) for share in share_out(find_scans(tmp_path), 3)] == [1, 1, 0]
