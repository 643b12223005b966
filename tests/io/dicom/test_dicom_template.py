"""NIfTI scans whose results become DICOM: on which grid, from which series, and as what."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from made import SERIES, voxels, write_enhanced, write_series

from mpunet.__main__ import main
from mpunet.inference.output_folder import plan_output
from mpunet.io.dicom.folder import series_at
from mpunet.io.dicom.scan import DicomScan
from mpunet.io.dicom.template import TemplatedScan, find_templates
from mpunet.io.scan_file import open_scan
from mpunet.io.scans import find_scans
from mpunet.phantom import chest_phantom

pydicom = pytest.importorskip("pydicom")
OTHER = f"{SERIES}.7"
# Voxel axes of converters: dcm2niix flips the rows, others the slices or all axes.
CODES = {"as stored": "LPS", "dcm2niix": "LAS", "slices": "LPI", "all": "RAI", "axes": "SAL"}


def convert(folder, path, codes="LAS", move=None):
    """Write the series of a folder as a converter does, moved by a transform in mm; the path."""
    scan = DicomScan(series_at(folder))
    stored = np.stack(list(scan.stored_planes()), axis=-1)
    image = nib.Nifti1Image(stored, scan.affine if move is None else move @ scan.affine)
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image.as_reoriented(turn), path)
    return path


class TestGrid:
    @pytest.mark.parametrize("codes", CODES.values(), ids=CODES)
    @pytest.mark.parametrize("tilt", [0.0, 18.0])
    def test_flipped_axes_do_not_matter(self, tmp_path, codes, tilt):
        write_series(tmp_path / "a", tilt=tilt)
        file = open_scan(convert(tmp_path / "a", tmp_path / "a.nii.gz", codes), slice_axis=None)
        series = DicomScan(series_at(tmp_path / "a"))
        scan = TemplatedScan(file, series.series)
        for ours, theirs in zip(scan, series, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(scan.read().slab, file.read().slab)
        np.testing.assert_array_equal(scan.slab_affine, series.slab_affine)
        assert scan.last_first == series.last_first
        assert (scan.name, scan.dtype) == ("a.nii.gz", np.int16)

    @pytest.mark.parametrize(
        ("move", "what"),
        [
            (((0, 3), 2.5), "it is shifted by 2.5, 0, 0 mm to the right, front and head"),
            (((2, 3), -0.011), "it is shifted by 0, 0, -0.011 mm"),
            (((2, 2), 0.8), "its voxels have 4 x 0.7 x 0.8 mm .*, the template's 5 x 0.7 x 0.8"),
            (((2, 1), 0.02), "it is turned or tilted: voxels are up to .* mm from the template's"),
            (((2, 3), 0.009), None),
        ],
    )
    def test_another_grid_is_refused(self, tmp_path, move, what):
        write_series(tmp_path / "a")
        matrix = np.eye(4)
        matrix[move[0]] = move[1]
        file = open_scan(convert(tmp_path / "a", tmp_path / "a.nii.gz", move=matrix))
        template = series_at(tmp_path / "a")
        if what is None:
            assert len(TemplatedScan(file, template)) == 6
            return
        rule = f"a.nii.gz: expected the grid of its template, series {SERIES}, but {what}"
        with pytest.raises(ValueError, match=rule):
            TemplatedScan(file, template)

    def test_another_size_is_refused(self, tmp_path):
        write_series(tmp_path / "a")
        write_series(tmp_path / "b", voxels(1, (5, 8, 10)))
        file = open_scan(convert(tmp_path / "b", tmp_path / "b.nii.gz"))
        with pytest.raises(ValueError, match=r"has 5 x 8 x 10 slices, rows .* template 6 x 8 x 10"):
            TemplatedScan(file, series_at(tmp_path / "a"))


class TestFind:
    def test_by_name(self, tmp_path):
        write_series(tmp_path / "a")
        write_series(tmp_path / "sub" / "b", uid=OTHER)
        write_series(tmp_path / "c" / "thorax", uid=f"{SERIES}.8")
        write_series(tmp_path / "two", uid=f"{SERIES}.9", suffix=".x")
        write_series(tmp_path / "two", uid=f"{SERIES}.10", suffix=".y")
        write_series(tmp_path / "broken", uid=f"{SERIES}.11", positions=[0, 5, 5, 10, 15, 20])
        names = [Path(name) for name in ("sub/b", "a", "b", "c", "two", "broken")]
        found = find_templates(tmp_path, names)
        uids = [item.series and item.series.uid for item in found]
        assert uids == [OTHER, SERIES, None, f"{SERIES}.8", None, None]
        problems = [item.problem or "" for item in found]
        assert problems[2] == f"expected a DICOM series as template in {tmp_path}/b, found none"
        assert (
            f"one DICOM series as template in {tmp_path}/two, found 2: two/{SERIES}" in problems[4]
        )
        assert "are at the same position" in problems[5]

    def test_a_single_scan_takes_the_only_series(self, tmp_path):
        write_series(tmp_path / "a" / "b")
        (tmp_path / "a.nii.gz").touch()  # no reason for another name
        for folder in (tmp_path, tmp_path / "a", tmp_path / "a" / "b"):
            (found,) = find_templates(folder, [Path("x")])
            assert found.series.uid == SERIES
        write_enhanced(tmp_path / "one.dcm", voxels())
        assert find_templates(tmp_path / "one.dcm", [Path("x")])[0].series is not None
        assert find_templates(tmp_path / "a", [Path("b"), Path("x")])[1].series is None

    def test_none_at_all(self, tmp_path):
        for folder in (tmp_path, tmp_path / "missing"):
            with pytest.raises(
                ValueError, match=r"Expected DICOM series as templates in .*, found"
            ):
                find_templates(folder, [Path("x")])


def chest(folder, **options):
    hu = chest_phantom(0, shape=(9, 30, 32), spacing=(5, 10, 10)).thin
    return write_series(folder, hu, pixel=(10, 10), **options)


def elements(folder):
    """All elements of a series but its UIDs and times."""
    datasets = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    for dataset in datasets:
        del dataset.SOPInstanceUID, dataset.SeriesInstanceUID
        del dataset.InstanceCreationDate, dataset.InstanceCreationTime
        del dataset.ContributingEquipmentSequence[0].ContributionDateTime
    return datasets


def records(folder):
    lines = (folder / "manifest.jsonl").read_text().splitlines()
    return {record["file"]: record for record in map(json.loads, lines)}


class TestPredict:
    @pytest.fixture
    def words(self, untrained):
        # Windows of a stride of 6 depend on which end of the scan they begin at.
        return ["--device", "cpu", "--checkpoint", str(untrained), "--fast", "--quiet"]

    @pytest.mark.parametrize(
        ("codes", "options"), [("LAS", []), ("RAI", ["--thin_spacing", "1.7", "--check"])]
    )
    def test_as_from_the_series_itself(self, tmp_path, words, codes, options):
        chest(tmp_path / "dicom" / "sub" / "a")
        convert(tmp_path / "dicom" / "sub" / "a", tmp_path / "nifti" / "sub" / "a.nii.gz", codes)
        words = [*words, *options]
        assert main(["predict", str(tmp_path / "dicom"), str(tmp_path / "x"), *words]) == 0
        words += ["--dicom_from", str(tmp_path / "dicom")]
        assert main(["predict", str(tmp_path / "nifti"), str(tmp_path / "y"), *words]) == 0
        expected, found = (elements(tmp_path / name / "sub" / "a") for name in "xy")
        assert found == expected
        assert len(found) == (24 if options else 41)
        ours, theirs = records(tmp_path / "y")["sub/a.nii.gz"], records(tmp_path / "x")["sub/a"]
        for key in ("shape", "spacing", "consistency"):
            assert ours[key] == theirs[key]
        series = pydicom.dcmread(tmp_path / "y" / "sub" / "a" / "00001.dcm").SeriesInstanceUID
        assert ours["series"] == series != theirs["series"]

    def test_one_scan_again_and_another_of_the_same_template(self, tmp_path, words, capsys):
        chest(tmp_path / "a")
        first = convert(tmp_path / "a", tmp_path / "first.nii.gz")
        second = tmp_path / "second.nii.gz"
        image = nib.load(first)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj) + 1, image.affine), second)
        words = [*words[:-1], "--dicom_from", str(tmp_path / "a")]
        uids = []
        for scan, folder in ((first, "x"), (first, "y"), (second, "z")):
            assert main(["predict", str(scan), str(tmp_path / folder), *words]) == 0
            (record,) = records(tmp_path / folder).values()
            uids.append(record["series"])
        assert uids[0] == uids[1] != uids[2]
        assert main(["predict", str(first), str(tmp_path / "x"), *words]) == 0
        assert "1 of 1 volumes are already in" in capsys.readouterr().out

    def test_scans_without_a_template_fail_alone(self, tmp_path, words):
        chest(tmp_path / "dicom" / "a")
        convert(tmp_path / "dicom" / "a", tmp_path / "nifti" / "a.nii.gz")
        chest(tmp_path / "dicom" / "b", uid=OTHER, start=7.0)
        for name in ("b", "c"):
            convert(tmp_path / "dicom" / "a", tmp_path / "nifti" / f"{name}.nii")
        words += ["--dicom_from", str(tmp_path / "dicom")]
        assert main(["predict", str(tmp_path / "nifti"), str(tmp_path / "x"), *words]) == 1
        reasons = {name: record["reason"] for name, record in records(tmp_path / "x").items()}
        assert reasons["a.nii.gz"] is None
        assert reasons["b.nii"] == (
            f"expected the grid of its template, series {OTHER}, but it is shifted by 0, 0, -27 mm "
            "to the right, front and head"
        )
        assert reasons["c.nii"].startswith("expected a DICOM series as template in")
        assert sorted(path.name for path in (tmp_path / "x").iterdir()) == ["a", "manifest.jsonl"]


def test_what_cannot_begin(tmp_path):
    """What would replace a result or a template, or make the next run read results as templates."""
    write_series(tmp_path / "dicom" / "a")
    convert(tmp_path / "dicom" / "a", tmp_path / "nifti" / "a.nii.gz")

    def refused(output, templates="dicom", file_format="auto"):
        before = sorted(tmp_path.rglob("*"))
        todo, problem = plan_output(
            str(tmp_path / output),
            find_scans(tmp_path / "nifti"),
            "overwrite",
            file_format,
            str(tmp_path / templates),
        )
        assert todo == []
        assert sorted(tmp_path.rglob("*")) == before
        return problem

    assert refused("x", file_format="nifti").endswith("--dicom_from, got --format nifti.")
    assert "Expected DICOM series as templates in" in refused("x", templates="none")
    assert "is in the folder of templates" in refused("dicom/x")
    assert "would replace the templates" in refused("dicom", templates="dicom/a")
    beside = convert(tmp_path / "dicom" / "a", tmp_path / "nifti" / "a.nii")
    assert "as that of another scan" in refused("x")
    beside.unlink()
    convert(tmp_path / "dicom" / "a", tmp_path / "nifti" / "a" / "b.nii")
    assert "as that of another scan" in refused("x")
