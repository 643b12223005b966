"""DICOM series in folders: put in order, checked, and read as they were written."""

import gc
import json
import subprocess
import sys
import warnings

import nibabel as nib
import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

from made import SERIES, found, slab_of, voxels, write_series  # noqa: E402
from pydicom import uid as uids  # noqa: E402
from pydicom.fileset import FileSet  # noqa: E402

from mpunet.__main__ import main  # noqa: E402
from mpunet.geometry import slice_positions  # noqa: E402
from mpunet.io.scans import PredictLoader, find_scans  # noqa: E402


def test_positions_whatever_the_files_are_called(tmp_path):
    write_series(tmp_path, shuffle=True, suffix="")
    (series,), rejected = found(tmp_path)
    assert rejected == []
    slab, scan = slab_of(series)
    np.testing.assert_array_equal(slab, voxels())
    np.testing.assert_allclose(scan.spacing, (5.0, 0.7, 0.8))
    # First voxel of the slab: most inferior, anterior, right; RAS+.
    np.testing.assert_allclose(scan.slab_affine[:3, 3], (30.0, 40.0, -20.0))
    np.testing.assert_allclose(scan.slab_affine[:3, 0], (0, 0, 5.0), atol=1e-9)


@pytest.mark.parametrize("tilt", [5.0, 18.0, 30.0])
def test_gantry_tilt_is_a_sheared_grid(tmp_path, tilt):
    write_series(tmp_path, tilt=tilt)
    (series,), _ = found(tmp_path)
    slab, scan = slab_of(series)
    np.testing.assert_array_equal(slab, voxels())
    assert scan.tilt == pytest.approx(tilt, abs=1e-3)
    assert scan.spacing[0] == pytest.approx(5.0, abs=1e-6)


def test_a_file_that_is_there_twice_counts_once(tmp_path):
    paths = write_series(tmp_path)
    (tmp_path / "copy").write_bytes(paths[2].read_bytes())
    (series,), _ = found(tmp_path)
    assert len(series.slices) == 6


EVEN = [0, 5, 10, 15, 20, 25]


def set_to(keyword, value, at=None):
    def change(index, dataset):
        if at is None or index == at:
            setattr(dataset, keyword, value)

    return change


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"positions": [0, 5, 10, 20, 25, 30]}, "a slice is missing between 002.dcm and 003.dcm: they are 10 mm"),
        ({"positions": [0, 5, 10, 30, 35, 40]}, "3 slices are missing between 002.dcm and 003.dcm"),
        ({"positions": [0, 5, 10, 17, 22, 27]}, "slices are unevenly spaced: 002.dcm and 003.dcm are 7 mm apart"),
        ({"positions": [0, 5, 10, 10, 15, 20]}, "002.dcm and 003.dcm are at the same position"),
        ({"change": set_to("PixelSpacing", [0.9, 0.9], 3)}, "003.dcm has another pixel spacing than 000.dcm: 0.9, 0.9"),
        ({"change": set_to("ImageOrientationPatient", [0, 1, 0, 0, 0, -1], 2)}, "002.dcm has another orientation"),
        ({"change": set_to("ImagePositionPatient", None, 1)}, "001.dcm has no ImagePositionPatient"),
        ({"change": set_to("ImagePositionPatient", [-20, -40, -5], 3)}, "003.dcm is shifted by 10.00 mm"),
        ({"change": set_to("PatientID", "43", 3)}, "003.dcm is of another patient than 000.dcm"),
        ({"change": set_to("Rows", 5, 3)}, "003.dcm has 5 x 10 pixels, 000.dcm has 8 x 10"),
        ({"change": set_to("ImageOrientationPatient", [1, 0, 0, 1, 0, 0])}, "expected two perpendicular unit vectors"),
        ({"change": set_to("ImagePositionPatient", [1e9, 0, 0])}, "000.dcm is at an impossible place: 1e+09, 0, 0"),
        ({"hu": voxels(shape=(1, 8, 10))}, "expected at least 2 slices, got 1, 000.dcm"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_the_slice(tmp_path, options, reason):
    write_series(tmp_path, **options)
    series, (rejected,) = found(tmp_path)
    assert series == []
    assert rejected.failed
    assert rejected.uid == SERIES
    assert reason in rejected.reason
    assert "Doe" not in rejected.reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (set_to("ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]), "left out: a localizer"),
        (set_to("ImageType", ["DERIVED", "SECONDARY", "MPR"]), "left out: a reformatted series"),
        (set_to("SOPClassUID", uids.MRImageStorage), "left out: MR Image Storage, not a CT image"),
        (set_to("SOPClassUID", uids.SecondaryCaptureImageStorage), "left out: Secondary Capture"),
        (set_to("SOPClassUID", uids.PositronEmissionTomographyImageStorage), "left out: Positron"),
        (set_to("SOPClassUID", uids.XRayRadiationDoseSRStorage), "left out: X-Ray Radiation Dose"),
        (set_to("Modality", "PT"), "left out: a series of modality PT"),
        (set_to("ImageType", ["DERIVED", "SECONDARY", "DOSE_INFO"]), "left out: a dose report"),
        (set_to("ImageType", ["DERIVED", "SECONDARY", "MIP"]), "left out: a projection"),
    ],
)
def test_other_series_are_left_out(tmp_path, change, reason):
    write_series(tmp_path / "a", uid="1.2.3.4")
    write_series(tmp_path / "b", change=change)
    (series,), (rejected,) = found(tmp_path)
    assert series.uid == "1.2.3.4"
    assert not rejected.failed
    assert rejected.reason.startswith(reason)


def test_two_acquisitions_at_the_same_positions_are_two_scans(tmp_path):
    def acquisition(index, dataset):
        dataset.AcquisitionNumber = 1 + index % 2

    hu = np.repeat(voxels(), 2, axis=0)
    write_series(tmp_path, hu, positions=np.repeat(EVEN, 2), change=acquisition)
    series, rejected = found(tmp_path)
    assert rejected == []
    for part in series:
        np.testing.assert_array_equal(slab_of(part)[0], voxels())


def test_a_localizer_among_the_slices_is_left_out(tmp_path):
    def localizer(index, dataset):
        if index == 0:
            dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
            dataset.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]

    write_series(tmp_path, change=localizer)
    (series,), (rejected,) = found(tmp_path)
    assert [header.path.name for header in series.slices] == [f"00{i}.dcm" for i in range(1, 6)]
    assert rejected == (SERIES, tmp_path, "left out: a localizer", False)


def test_two_orientations_in_a_series_are_two_scans(tmp_path):
    """As of a head, whose lower part is scanned with another tilt of the gantry."""
    write_series(tmp_path / "a")
    write_series(tmp_path / "b", tilt=15.0, start=30.0, change=own_instances)
    series, rejected = found(tmp_path)
    assert rejected == []
    assert sorted(slab_of(part)[1].tilt for part in series) == pytest.approx([0, 15.0], abs=1e-3)


def own_instances(index, dataset):
    dataset.SOPInstanceUID += ".9"


def test_slices_whose_uids_are_alike(tmp_path):
    write_series(tmp_path, change=set_to("SOPInstanceUID", "1.2.3"))
    (series,), rejected = found(tmp_path)
    assert rejected == []
    np.testing.assert_array_equal(slab_of(series)[0], voxels())


def test_two_patients_in_a_folder(tmp_path):
    write_series(tmp_path, uid="1.2.1")
    write_series(tmp_path, uid="1.2.2", suffix=".ima", change=set_to("PatientID", "43"))
    series, rejected = found(tmp_path)
    assert rejected == []
    assert [item.uid for item in series] == ["1.2.1", "1.2.2"]


def export(folder, paths):
    """Write files as CDs have them: a DICOMDIR, and names without an ending in its folders."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # FileSet leaves a temporary folder
        files = FileSet()
        for path in paths:
            dataset = pydicom.dcmread(path)
            dataset.StudyDate, dataset.StudyTime, dataset.StudyID = "20260101", "120000", "1"
            dataset.SeriesNumber = int(dataset.SeriesInstanceUID[-1])
            files.add(dataset)
        files.write(folder)
        del files
        gc.collect()


def test_an_export_with_a_dicomdir(tmp_path):
    for index in range(2):
        write_series(tmp_path / str(index), voxels(index), uid=f"1.2.{index}")
    export(tmp_path / "export", list(tmp_path.rglob("*.dcm")))
    files = [path for path in (tmp_path / "export").rglob("*") if path.is_file()]
    assert len(files) == 13
    assert {path.suffix for path in files} == {""}
    scans = find_scans(tmp_path / "export")
    assert scans == find_scans(tmp_path / "export" / "DICOMDIR")
    assert [scan.relative.parts[:2] for scan in scans] == [("PT000000", "ST000000")] * 2
    for index, scan in enumerate(scans):
        np.testing.assert_array_equal(slab_of(scan.series)[0], voxels(index))


def test_a_file_without_the_prefix_is_no_dicom_file(tmp_path):
    for path in write_series(tmp_path):
        path.write_bytes(path.read_bytes()[132:])
    with pytest.raises(ValueError, match=r"or DICOM series in .*, found none"):
        find_scans(tmp_path)


def test_damaged_files(tmp_path):
    paths = write_series(tmp_path / "cut")
    paths[3].write_bytes(paths[3].read_bytes()[:-40])
    write_series(tmp_path / "good", uid="1.2.3.4")
    (tmp_path / "noise.dcm").write_bytes(bytes(128) + b"DICM" + bytes(range(256)) * 4)
    cases = {case.scan.relative.as_posix(): case for case in PredictLoader(find_scans(tmp_path))}
    assert cases["good"].error is None
    assert "voxels of 003.dcm cannot be read" in cases["cut"].error
    assert all("\n" not in case.error for case in cases.values() if case.error)


@pytest.mark.parametrize(
    ("name", "spoil", "reason"),
    [
        ("005.dcm", lambda path: path.write_bytes(b""), "it is empty"),
        ("005.dcm", lambda path: path.write_bytes(bytes(500)), "DICM"),
        ("005.dcm", lambda path: path.symlink_to("gone"), "No such file"),
        ("1.2.35", lambda path: path.write_bytes(b""), "it is empty"),
        ("005", lambda path: path.write_bytes(b""), "it is empty"),
    ],
)
def test_a_broken_end_slice_does_not_shorten_the_scan(tmp_path, name, spoil, reason):
    folder, suffix = tmp_path / "a", name.removeprefix("005")
    paths = write_series(folder, suffix=".dcm" if suffix == ".dcm" else "")
    paths[-1].unlink()
    spoil(folder / name)
    (folder / "notes.txt").touch()
    (folder / "thumb.jpg").touch()
    write_series(tmp_path / "b", uid="1.2.3.4")
    broken, whole = find_scans(tmp_path)
    assert broken.relative.as_posix() == "a"
    assert broken.problem.startswith(f"{name}: not a readable DICOM file: ")
    assert reason in broken.problem
    assert broken.problem.endswith("; it may be a slice: copy or remove it")
    assert len(whole.series.slices) == 6
    (folder / name).unlink()
    assert [scan.problem for scan in find_scans(tmp_path)] == [None, None]


def test_a_broken_file_does_not_cost_all_series_of_its_folder(tmp_path):
    for number in (1, 2):
        for path in write_series(tmp_path / str(number), uid=f"1.2.{number}"):
            path.rename(tmp_path / f"{number}_{path.name}")
    (tmp_path / "3_000.dcm").touch()
    *whole, broken = find_scans(tmp_path)
    assert [scan.relative.as_posix() for scan in whole] == ["1.2.1", "1.2.2"]
    assert [scan.problem for scan in whole] == [None, None]
    assert broken.problem == "3_000.dcm: not a readable DICOM file: it is empty"


def test_names_are_not_those_of_folders_with_other_series(tmp_path):
    write_series(tmp_path / "a", uid="1.2.1")
    write_series(tmp_path / "a" / "b" / "c", uid="1.2.2")
    assert [scan.relative.as_posix() for scan in find_scans(tmp_path)] == ["a/1.2.1", "a/b/c"]


def test_names_of_scans(tmp_path, caplog):
    write_series(tmp_path / "p1" / "chest", uid="1.2.1")
    write_series(tmp_path / "p2", uid="1.2.2")
    write_series(tmp_path / "p2", uid="1.2.3", suffix=".ima")
    write_series(tmp_path / "p3", uid="1.2.4", change=set_to("ImageType", ["X", "Y", "LOCALIZER"]))
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (tmp_path / ".hidden").write_bytes(bytes(128) + b"DICM")
    names = [scan.relative.as_posix() for scan in find_scans(tmp_path)]
    assert names == ["p1/chest", "p2/1.2.2", "p2/1.2.3"]
    assert "1 DICOM series are left out: 1.2.4 (left out: a localizer)" in caplog.text
    (scan,) = find_scans(tmp_path / "p1" / "chest")
    assert scan.relative.as_posix() == "1.2.1"


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_a_damaged_uid_stays_in_the_folder(tmp_path):
    write_series(tmp_path / "s", change=set_to("SeriesInstanceUID", "../../1.2"))
    (scan,) = find_scans(tmp_path / "s")
    assert scan.relative.as_posix() == "_.._1.2"


def test_without_pydicom(tmp_path):
    write_series(tmp_path)
    code = f"import sys; sys.modules['pydicom'] = None; from mpunet.io.scans import find_scans; find_scans({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'mpunet[dicom]'" in done.stderr


def test_predict_reads_series(tmp_path, untrained, caplog):
    """A tilted series and a broken one beside it; no name of a patient leaves the headers."""
    hu = voxels(shape=(9, 30, 32))
    write_series(tmp_path / "scans" / "chest", hu, tilt=10.0)
    write_series(tmp_path / "scans" / "gap", uid="1.2.3", positions=[0, 5, 10, 20, 25, 30])
    thin = tmp_path / "thin"
    words = ["predict", str(tmp_path / "scans"), str(thin), "--checkpoint", str(untrained)]
    words += ["--fast", "--device", "cpu", "--format", "nifti"]
    assert main([*words, "--check"]) == 1
    image = nib.load(thin / "chest.nii.gz")
    assert image.shape == (32, 30, 41)
    after = slice_positions(image.affine, 2, 41)
    before = [(30.0, 40.0, -20.0), (30.0, 40.0, -20.0 + 40 / np.cos(np.deg2rad(10)))]
    np.testing.assert_allclose(after[[0, -1]], before, atol=1e-3)
    text = (thin / "manifest.jsonl").read_text()
    records = {record["file"]: record for record in map(json.loads, text.splitlines())}
    assert records["chest"]["spacing"] == [0.8, 0.7, 1.0]
    assert "gantry tilt of 10.0 degrees" in records["chest"]["warning"]
    assert "a slice is missing between 002.dcm and 003.dcm" in records["gap"]["reason"]
    assert "Doe" not in text + caplog.text
    again = ["predict", str(tmp_path / "scans" / "chest"), str(tmp_path / "one"), *words[3:]]
    assert main(again) == 0
    one = nib.load(tmp_path / "one" / f"{SERIES}.nii.gz")
    np.testing.assert_array_equal(np.asarray(one.dataobj), np.asarray(image.dataobj))
