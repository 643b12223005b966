"""examples/get_data.py on small series that are made here; what it downloads from is replaced."""

import csv
import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
LESION = "lesion_1.25mm.nii.gz"
SERIES = "1.2.826.0.1.3680043.8.498.7"
OTHER = "1.2.826.0.1.3680043.8.498.8"
# The part [2:7, 1:7, 1:5] along x, y and z of the series that `made` writes.
SHAPE, ORIGIN = (5, 6, 4), (28.4, 39.3, -15.0)
HU = np.random.default_rng(2).integers(-2000, 3500, (6, 8, 10)).astype(np.int16)
CROP = np.clip(HU.transpose(2, 1, 0)[2:7, 1:7, 1:5], -1024, 3071)


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.syspath_prepend(ROOT / "tests" / "io" / "dicom")


@pytest.fixture
def run(tmp_path, capsys):
    """Run the script for one file of a table; its exit status, what it printed, and the file."""
    import get_data

    def run(*words, series=SERIES, source="IDC", voxels=CROP, origin=ORIGIN):
        table = tmp_path / "table.csv"
        with table.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "series", "source", "shape", "origin", "sha256"])
            numbers = [" ".join(map(str, values)) for values in (voxels.shape, origin)]
            writer.writerow(["train/a.nii.gz", series, source, *numbers, sha256(voxels)])
        out = tmp_path / "ct"
        status = get_data.main([str(out), "--table", str(table), *map(str, words)])
        return status, capsys.readouterr().out, out / "train" / "a.nii.gz"

    return run


def sha256(voxels):
    """Of the bytes of a NIfTI file after its header, written out: x fastest, then y, then z."""
    return hashlib.sha256(voxels.transpose(2, 1, 0).astype("<i2").tobytes()).hexdigest()


def write(folder, hu=HU, uid=SERIES):
    """A series with HU of 16 bits, padding included; the folder."""
    from made import write_series

    def sixteen_bits(index, dataset):
        dataset.BitsStored, dataset.HighBit, dataset.RescaleIntercept = 16, 15, -3024
        dataset.PixelData = (hu[index].astype(np.int32) + 3024).astype(np.uint16).tobytes()

    write_series(folder, hu, uid=uid, change=sixteen_bits)
    return folder


def client(monkeypatch, download):
    """Put a client in the place of idc-index that calls ``download(folder, uid)``."""

    def download_from_selection(folder, *, seriesInstanceUID, dirTemplate):  # noqa: N803
        assert dirTemplate is None
        (uid,) = seriesInstanceUID
        download(Path(folder), uid)

    found = SimpleNamespace(download_from_selection=download_from_selection)
    module = SimpleNamespace(IDCClient=SimpleNamespace(client=lambda: found))
    monkeypatch.setitem(sys.modules, "idc_index", module)


def test_a_file_has_the_part_of_the_series_clipped_and_in_its_place(run, tmp_path):
    dicom = write(tmp_path / "dicom" / "deep" / "series")
    write(tmp_path / "dicom" / "another", uid=OTHER)
    status, printed, path = run("--dicom", dicom.parents[1])
    assert (status, "1 of 1 files" in printed) == (0, True)
    assert f"made from series {SERIES}" in printed
    image = nib.load(path)
    assert image.get_data_dtype() == np.int16
    np.testing.assert_array_equal(np.asarray(image.dataobj), CROP)
    expected = np.diag([-0.8, -0.7, 5.0, 1.0])
    expected[:3, 3] = ORIGIN
    for form in (image.affine, image.get_qform()):
        np.testing.assert_allclose(form, expected, atol=1e-5)
    assert [file.name for file in path.parent.iterdir()] == ["a.nii.gz"]


def test_a_second_run_only_checks(run, tmp_path):
    dicom = write(tmp_path / "dicom")
    _, _, path = run("--dicom", dicom)
    before = path.stat().st_mtime_ns
    shutil.rmtree(dicom)
    status, printed, _ = run()
    assert (status, "is there" in printed) == (0, True)
    assert path.stat().st_mtime_ns == before

    kept = path.read_bytes()
    status, printed, _ = run(voxels=CROP + 1)
    assert status == 1
    assert re.search(r"the file that is there has other voxels.*expected", printed)
    assert path.read_bytes() == kept

    path.write_bytes(kept[:100])
    status, printed, _ = run()
    assert (status, "a.nii.gz: not a NIfTI file, damaged or cut short" in printed) == (1, True)


def test_of_two_series_that_fit_the_one_with_the_voxels_is_taken(run, tmp_path):
    write(tmp_path / "dicom" / "a", HU + 1, OTHER)
    write(tmp_path / "dicom" / "b")
    status, printed, path = run("--dicom", tmp_path / "dicom", series=f"{OTHER} {SERIES}")
    assert (status, f"made from series {SERIES}" in printed) == (0, True)
    np.testing.assert_array_equal(np.asarray(nib.load(path).dataobj), CROP)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"voxels": CROP + 1}, rf"series {SERIES} has other voxels than the table says"),
        ({"series": OTHER}, rf"series {OTHER}: not found"),
        (
            {"origin": (28.8, 39.3, -15)},
            rf"{SERIES} has no \(5, 6, 4\) voxels from \(28.8, 39.3, -15.0\) mm on; "
            r"it has \(10, 8, 6\) from \(30.0, 40.0, -20.0\) mm on",
        ),
        ({"origin": (28.4, 39.3, -25)}, r"has no \(5, 6, 4\) voxels"),
        ({"origin": (28.4, 39.3, 0)}, r"has no \(5, 6, 4\) voxels"),
    ],
)
def test_what_is_not_the_tables_is_not_kept(run, tmp_path, options, reason):
    dicom = write(tmp_path / "dicom")
    status, printed, path = run("--dicom", dicom, **options)
    assert status == 1
    assert re.search(rf"train/a.nii.gz: not made: .*{reason}", printed)
    assert "0 of 1 files" in printed
    assert not list(path.parent.iterdir())


def test_a_series_that_is_no_volume_says_why(run, tmp_path):
    dicom = write(tmp_path / "dicom")
    (dicom / "002.dcm").unlink()
    status, printed, _ = run("--dicom", dicom)
    assert status == 1
    assert f"series {SERIES}: a slice is missing between 001.dcm and 003.dcm" in printed


def test_download_from_the_imaging_data_commons(run, monkeypatch):
    places = []

    def download(folder, uid):
        places.append(folder)
        write(folder, uid=uid)

    client(monkeypatch, download)
    status, printed, path = run()
    assert (status, f"made from series {SERIES}" in printed) == (0, True)
    np.testing.assert_array_equal(np.asarray(nib.load(path).dataobj), CROP)
    assert len(places) == 1
    assert not places[0].exists()
    run()
    assert len(places) == 1


def test_a_download_that_fails(run, monkeypatch):
    client(monkeypatch, lambda folder, uid: None)
    status, printed, _ = run()
    assert (status, f"series {SERIES} could not be downloaded" in printed) == (1, True)

    monkeypatch.setitem(sys.modules, "idc_index", None)
    status, printed, _ = run()
    assert status == 1
    assert re.search(r"needs the package idc-index.*pip install idc-index.*--dicom", printed)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_download_from_a_repository(run, tmp_path):
    repository = tmp_path / "repository"
    write(repository / "In" / "S2020")
    write(repository / "In" / "S2010", HU + 1, OTHER)

    def git(*words):
        name = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        command = ["git", *name, "-C", str(repository), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    git("config", "uploadpack.allowFilter", "true")
    git("add", ".")
    git("commit", "--quiet", "--message", "data")
    commit = git("rev-parse", "HEAD")
    git("rm", "-r", "--quiet", ".")
    git("commit", "--quiet", "--message", "the newest commit has no data")
    status, printed, path = run(source=f"{repository.as_uri()} {commit} In/S2020")
    assert (status, f"made from series {SERIES}" in printed) == (0, True)
    np.testing.assert_array_equal(np.asarray(nib.load(path).dataobj), CROP)

    path.unlink()
    status, printed, _ = run(source=f"{repository.as_uri()}-none {commit} In/S2020")
    assert (status, "git could not get In/S2020 of file://" in printed) == (1, True)


def test_bad_input_gets_one_line(tmp_path, capsys):
    import get_data

    table = tmp_path / "table.csv"
    table.write_text("file,series\na.nii.gz,1.2\n")
    for words, message in (
        (["--table", str(table)], "table.csv: missing column or wrong value: 'source'"),
        (["--table", str(tmp_path / "none.csv")], "No such file"),
        (["--dicom", str(tmp_path / "none")], "expected a folder of DICOM series, found none at"),
    ):
        with pytest.raises(SystemExit):
            get_data.main([str(tmp_path / "ct"), *words])
        assert message in capsys.readouterr().err


def test_the_table_is_whole():
    import get_data

    with get_data.TABLE.open(newline="") as file:
        lines = list(csv.DictReader(file))
    rows = get_data.read_table(get_data.TABLE)
    assert len({row.file for row in rows}) == len({row.sha256 for row in rows}) == len(rows) == 11
    parts = ["fixture", "pair", "pair", "test", "thick", *["train"] * 5, "val"]
    assert sorted(row.file.parts[0] for row in rows) == parts
    for row, line in zip(rows, lines, strict=True):
        assert re.fullmatch("[0-9a-f]{64}", row.sha256)
        assert all(re.fullmatch(r"[0-9.]{20,64}", uid) for uid in row.series)
        assert line["licence"]
        assert line["identified"]
        assert row.source == "IDC" or re.fullmatch(
            r"https://github\.com/\S+ [0-9a-f]{40} \S+|lesion_1\.25mm\.nii\.gz", row.source
        )
        # Two series are named only where the table says that it is open which one it is.
        assert (len(row.series) == 2) == line["identified"].startswith("one of two")
        # What is public under its patient's name has that name.
        assert row.source != "IDC" or line["patient"].split("-")[-1].split(".")[-1] in str(row.file)


def test_the_crop_of_the_repository_is_copied(tmp_path, capsys):
    import get_data

    with get_data.TABLE.open(newline="") as file:
        lines = [line for line in csv.reader(file) if line[0] in ("file", "fixture/" + LESION)]
    table = tmp_path / "table.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    shutil.copy(get_data.TABLE.parent / LESION, tmp_path)
    assert get_data.main([str(tmp_path / "ct"), "--table", str(table)]) == 0
    assert f"copied from {LESION}" in capsys.readouterr().out
    copy = tmp_path / "ct" / "fixture" / LESION
    assert copy.read_bytes() == (get_data.TABLE.parent / LESION).read_bytes()


@pytest.mark.parametrize("most", [1e7, pytest.param(np.inf, marks=pytest.mark.slow)])
def test_real_ct_is_that_of_the_table(shared_ct, most):
    """The voxels of files of at most so many."""
    import get_data

    for row in get_data.read_table(get_data.TABLE):
        image = nib.load(shared_ct / row.file)
        assert image.shape == row.shape
        np.testing.assert_allclose(image.affine[:3, 3], row.origin, atol=1e-6)
        if np.prod(row.shape) <= most:
            assert sha256(np.asarray(image.dataobj)) == row.sha256, row.file
