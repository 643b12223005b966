"""Derived DICOM series: what they hold, what they say of themselves, and that they are whole."""

import json
import shutil

import numpy as np
import pytest
import torch
from made import SERIES, voxels, write_enhanced, write_series

from mpunet.__main__ import main
from mpunet.inference.errors import ErrorModel
from mpunet.inference.output_folder import plan_output
from mpunet.io.dicom.scan import open_series
from mpunet.io.dicom.series import find_series
from mpunet.io.dicom.writer import Origin, series_uid
from mpunet.io.dicom.writer import write_series as write_thin
from mpunet.io.partial_file import remove_partials
from mpunet.io.scans import find_scans
from mpunet.phantom import chest_phantom
from mpunet.weights import read_weights, write_weights

pydicom = pytest.importorskip("pydicom")
ORIGIN = Origin("ab" * 32, "stride 1")
THIN = voxels(1, (26, 8, 10))  # of 6 thick slices at ratio 5


def opened(folder):
    (series,), rejected = find_series(sorted(folder.iterdir()))
    assert rejected == []
    scan = open_series(series)
    planes = list(scan)
    return scan, np.stack(planes[::-1] if scan.last_first else planes)


def datasets(folder):
    return [pydicom.dcmread(path) for path in sorted(folder.iterdir())]


@pytest.mark.parametrize("last_first", [False, True])
@pytest.mark.parametrize("tilt", [0.0, 18.0])
def test_voxels_and_positions_come_back(tmp_path, last_first, tilt):
    write_series(tmp_path / "thick", tilt=tilt, shuffle=True)
    scan, _ = opened(tmp_path / "thick")
    chunks = [THIN[:11], THIN[11:]]
    if last_first:
        chunks = [THIN[::-1][:4], THIN[::-1][4:]]
    write_thin(tmp_path / "thin", chunks, scan, 5, origin=ORIGIN, last_first=last_first)
    thin, slab = opened(tmp_path / "thin")
    np.testing.assert_array_equal(slab, THIN)
    np.testing.assert_allclose(thin.spacing, (1.0, 0.7, 0.8), atol=1e-6)
    np.testing.assert_allclose(thin.slab_affine[:, 3], scan.slab_affine[:, 3], atol=1e-6)
    np.testing.assert_allclose(5 * thin.slab_affine[:, 0], scan.slab_affine[:, 0], atol=1e-6)
    assert thin.tilt == pytest.approx(tilt, abs=1e-3)
    assert thin.slice_thickness == pytest.approx(1.0)


def test_what_the_series_says_of_itself(tmp_path):
    def more(index, dataset):
        dataset.add_new((0x0009, 0x0010), "LO", "SECRET")
        dataset.WindowCenter, dataset.WindowWidth = -600, 1500
        dataset.SeriesDescription, dataset.SeriesNumber = "Thorax 5.0", 3
        dataset.FrameOfReferenceUID = "1.2.9"
        dataset.LossyImageCompression = "00"

    sources = {
        d.SOPInstanceUID for d in map(pydicom.dcmread, write_series(tmp_path / "a", change=more))
    }
    scan, _ = opened(tmp_path / "a")
    uid = write_thin(tmp_path / "thin", [THIN], scan, 5, origin=ORIGIN)
    thin = datasets(tmp_path / "thin")
    assert [d.InstanceNumber for d in thin] == list(range(1, 27))
    assert {d.SeriesInstanceUID for d in thin} == {uid}
    assert uid != SERIES
    assert len({d.SOPInstanceUID for d in thin} - sources) == 26
    for dataset in thin:
        assert (dataset.PatientName, dataset.PatientID) == ("Doe^Jane", "42")
        assert (dataset.StudyInstanceUID, dataset.FrameOfReferenceUID) == ("1.2.3", "1.2.9")
        assert list(dataset.ImageType) == ["DERIVED", "SECONDARY", "AXIAL"]
        assert dataset.SeriesDescription == "Thorax 5.0 mpunet 1 mm (synthetic)"
        assert dataset.SeriesNumber == 301
        assert (dataset.WindowCenter, dataset.WindowWidth) == (-600, 1500)
        assert dataset.BurnedInAnnotation == "NO"
        assert dataset.LossyImageCompression == "00"
        assert not any(element.tag.is_private for element in dataset)
        assert ORIGIN.network in dataset.DerivationDescription
        assert dataset.DerivationCodeSequence[0].CodeValue == "113085"
        assert len(dataset.ContributingEquipmentSequence) == 1
        assert {s.ReferencedSOPInstanceUID for s in dataset.SourceImageSequence} <= sources
    # Slice 7 lies between thick slices 1 and 2, slice 5 on thick slice 1.
    referenced = [[s.ReferencedSOPInstanceUID for s in d.SourceImageSequence] for d in thin]
    assert referenced[7] == [f"{SERIES}.2", f"{SERIES}.3"]
    assert referenced[5] == [f"{SERIES}.2"]


def test_the_same_run_gives_the_same_uids(tmp_path):
    write_series(tmp_path / "a")
    scan, _ = opened(tmp_path / "a")
    uids = []
    for name in ("one", "two"):
        write_thin(tmp_path / name, [THIN], scan, 5, origin=ORIGIN)
        uids.append([(d.SeriesInstanceUID, d.SOPInstanceUID) for d in datasets(tmp_path / name)])
    assert uids[0] == uids[1]
    assert uids[0][0][0] == series_uid(scan, 5, ORIGIN)
    others = {series_uid(scan, 5, Origin("cd" * 32)), series_uid(scan, 4, ORIGIN), uids[0][0][0]}
    assert len(others) == 3


@pytest.mark.parametrize(
    ("slope", "intercept", "signed", "found"),
    [(1, -1024, 0, -1024), (1, -1000, 1, -1000), (1, 0, 1, 0), (1, -8192, 0, -8192), (0.5, -1024, 0, -1024)],
)  # fmt: skip
def test_rescale_as_in_the_source(tmp_path, slope, intercept, signed, found):
    def change(index, dataset):
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
        dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 15, 1
        hu = voxels()[index].astype(np.float64)
        dataset.PixelData = np.rint((hu - intercept) / slope).astype(np.int16).tobytes()

    write_series(tmp_path / "a", change=change)
    scan, slab = opened(tmp_path / "a")
    np.testing.assert_array_equal(slab, voxels())
    extreme = THIN.copy()
    extreme[0, 0, :2] = -1024, 3071
    write_thin(tmp_path / "thin", [extreme], scan, 5, origin=ORIGIN)
    np.testing.assert_array_equal(opened(tmp_path / "thin")[1], extreme)
    dataset = datasets(tmp_path / "thin")[0]
    assert (dataset.RescaleSlope, dataset.RescaleIntercept) == (1, found)
    assert dataset.PixelRepresentation == signed


def test_an_enhanced_file_becomes_classic_images(tmp_path):
    (tmp_path / "a").mkdir()
    write_enhanced(tmp_path / "a" / "one.dcm", voxels())
    scan, _ = opened(tmp_path / "a")
    write_thin(tmp_path / "thin", [THIN], scan, 5, origin=ORIGIN)
    np.testing.assert_array_equal(opened(tmp_path / "thin")[1], THIN)
    dataset = datasets(tmp_path / "thin")[7]
    assert dataset.SOPClassUID == pydicom.uid.CTImageStorage
    assert [s.ReferencedFrameNumber for s in dataset.SourceImageSequence] == [2, 3]


def test_volumes_of_one_enhanced_file_have_uids_of_their_own(tmp_path):
    """Two acquisitions at the same positions: as many frames, of the same instance."""

    def two_acquisitions(dataset):
        frames = dataset.PerFrameFunctionalGroupsSequence
        for index, frame in enumerate(frames):
            content = pydicom.Dataset()
            content.FrameAcquisitionNumber = 1 + index // 6
            frame.FrameContentSequence = [content]
            frame.PlanePositionSequence = frames[index % 6].PlanePositionSequence

    path = write_enhanced(tmp_path / "one.dcm", voxels(shape=(12, 8, 10)), change=two_acquisitions)
    series, _ = find_series([path])
    assert len(series) == 2
    assert len({series_uid(open_series(part), 5, ORIGIN) for part in series}) == 2


def test_only_series_are_replaced(tmp_path):
    """A folder with another result, or with anything else, stays as it is."""
    write_series(tmp_path / "a")
    scan, _ = opened(tmp_path / "a")
    for _ in range(2):
        write_thin(tmp_path / "thin", [THIN], scan, 5, origin=ORIGIN)
    for other in ("b/00001.dcm", "notes.txt"):
        (tmp_path / "thin" / other).parent.mkdir(exist_ok=True)
        (tmp_path / "thin" / other).touch()
        before = sorted(tmp_path.rglob("*"))
        match = (
            rf"nothing but the \.dcm files of one series in .*thin.*, got {other.split('/')[0]};"
        )
        with pytest.raises(ValueError, match=match):
            write_thin(tmp_path / "thin", [THIN], scan, 5, origin=ORIGIN)
        assert sorted(tmp_path.rglob("*")) == before
        if (tmp_path / "thin" / "b").exists():
            shutil.rmtree(tmp_path / "thin" / "b")


def plan(scans, output):
    return plan_output(str(output), find_scans(scans), "skip")


def test_folders_with_input_are_not_replaced(tmp_path):
    """A result's folder may be that of a scan, or hold it, itself or by a link."""
    data = tmp_path / "data" / "CT"
    write_series(data / "CT", uid="1.2.1")
    write_series(data / "other", uid="1.2.2")
    (tmp_path / "links" / "data").mkdir(parents=True)
    (tmp_path / "links" / "data" / "other").symlink_to(data / "other")
    for scans, output in (
        (data, tmp_path / "data"),
        (data, data),
        (tmp_path / "links" / "data", data),
    ):
        todo, problem = plan(scans, output)
        assert todo == []
        assert "would overwrite the scan" in problem
    words = ["simulate", str(data), str(data.parent), "--ratio", "2", "--existing", "overwrite"]
    assert main(words) == 2
    assert len(list(data.rglob("*.dcm"))) == 12


def test_a_file_of_the_input_is_not_replaced(tmp_path):
    """A multi-frame file may have the name of its series, which is that of the result's folder."""
    path = write_enhanced(tmp_path / "one", voxels())
    path = path.rename(tmp_path / pydicom.dcmread(path).SeriesInstanceUID)
    assert "would overwrite the scan" in plan(path, tmp_path)[1]


def test_a_folder_with_a_result_below_is_no_result(tmp_path):
    write_series(tmp_path / "scans" / "a")
    write_series(tmp_path / "thin" / "a" / "b")
    assert plan(tmp_path / "scans", tmp_path / "thin")[0] == find_scans(tmp_path / "scans")
    write_series(tmp_path / "thin" / "a")
    assert plan(tmp_path / "scans", tmp_path / "thin") == ([], None)


def test_all_or_nothing(tmp_path):
    write_series(tmp_path / "a")
    scan, _ = opened(tmp_path / "a")

    def broken():
        yield THIN[:9]
        assert not (tmp_path / "thin").exists()
        raise ValueError("the network returned NaN")

    with pytest.raises(ValueError, match="NaN"):
        write_thin(tmp_path / "thin", broken(), scan, 5, origin=ORIGIN)
    with pytest.raises(ValueError, match="slices"):
        write_thin(tmp_path / "thin", [THIN[:9]], scan, 5, origin=ORIGIN)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    write_thin(tmp_path / "thin", [THIN], scan, 5, origin=ORIGIN)
    write_thin(tmp_path / "thin", [THIN + 1], scan, 5, origin=ORIGIN)  # replaces it
    np.testing.assert_array_equal(opened(tmp_path / "thin")[1], THIN + 1)
    left = tmp_path / ".thin.0123abcd.partial"
    left.mkdir()
    (left / "lock").touch()
    (left / "00001.dcm").touch()
    assert remove_partials(tmp_path) == [left]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "thin"]


def test_predict_writes_series(tmp_path, untrained, capsys):
    thick = chest_phantom(0, shape=(9, 30, 32), spacing=(5, 10, 10)).thin
    write_series(tmp_path / "scans" / "chest", thick, pixel=(10, 10))
    words = ["predict", str(tmp_path / "scans"), str(tmp_path / "thin"), "--device", "cpu"]
    words += ["--checkpoint", str(untrained), "--fast"]
    assert main(words) == 0
    thin, slab = opened(tmp_path / "thin" / "chest")
    assert slab.shape == (41, 30, 32)
    record = json.loads((tmp_path / "thin" / "manifest.jsonl").read_text())
    assert (record["file"], record["series"]) == ("chest", thin.series.uid)
    assert main(words) == 0
    assert "1 of 1 volumes are already in" in capsys.readouterr().out
    nifti = [*words[:2], str(tmp_path / "nifti"), *words[3:]]
    assert main([*nifti, "--format", "nifti"]) == 0
    assert (tmp_path / "nifti" / "chest.nii.gz").exists()
    again = ["predict", str(tmp_path / "nifti"), str(tmp_path / "x"), *words[3:]]
    assert main([*again, "--format", "dicom"]) == 2
    assert "Expected DICOM series for results in DICOM, got" in capsys.readouterr().err


def test_error_estimates_are_another_series(tmp_path):
    def more(index, dataset):
        dataset.WindowCenter, dataset.WindowWidth = -600, 1500
        dataset.WindowCenterWidthExplanation = "Lung"
        dataset.SeriesDescription, dataset.SeriesNumber = "Thorax 5.0 " * 5, 3
        dataset.FrameOfReferenceUID = "1.2.9"
        dataset.DerivationCodeSequence = [pydicom.Dataset()]

    write_series(tmp_path / "a", change=more)
    scan, _ = opened(tmp_path / "a")
    image = write_thin(tmp_path / "thin", [THIN], scan, 5, origin=ORIGIN)
    errors = np.abs(THIN)
    errors[0, 0, :2] = 0, 3071
    uid = write_thin(tmp_path / "thin_error", [errors], scan, 5, origin=ORIGIN, errors=True)
    assert uid not in (image, SERIES)
    (series,), _ = find_series(sorted((tmp_path / "thin_error").iterdir()))
    series = open_series(series, check_hu=False)
    found = np.stack(list(series)[:: -1 if series.last_first else 1])
    np.testing.assert_array_equal(found, errors)
    np.testing.assert_allclose(series.slab_affine, opened(tmp_path / "thin")[0].slab_affine)
    pairs = zip(datasets(tmp_path / "thin"), datasets(tmp_path / "thin_error"), strict=True)
    for thin, dataset in pairs:
        assert dataset.SeriesInstanceUID == uid
        assert dataset.SOPInstanceUID != thin.SOPInstanceUID
        assert dataset.SeriesNumber == thin.SeriesNumber + 1
        for same in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID", "ImageType"):
            assert dataset[same] == thin[same]
        assert dataset.SeriesDescription.endswith(" mpunet error estimate")
        assert len(dataset.SeriesDescription) <= 64
        assert dataset.DerivationDescription.startswith("Expected absolute error in HU")
        assert ORIGIN.network in dataset.DerivationDescription
        assert "DerivationCodeSequence" not in dataset
        assert "WindowCenterWidthExplanation" not in dataset
        assert (dataset.WindowCenter, dataset.WindowWidth) == (100, 200)
        (meaning,) = dataset.RealWorldValueMappingSequence
        first, last = (
            meaning.RealWorldValueFirstValueMapped, meaning.RealWorldValueLastValueMapped,
        )  # fmt: skip
        assert (first, last) == (0, 3071)
        assert (meaning.RealWorldValueSlope, meaning.RealWorldValueIntercept) == (1, 0)
        assert meaning.MeasurementUnitsCodeSequence[0].CodeValue == "[hnsf'U]"
        assert "RealWorldValueMappingSequence" not in thin
    assert (dataset.pixel_array == errors[-1]).all()  # stored values are HU


def test_predict_writes_error_series_and_both_or_none(tmp_path, untrained, capsys):
    thick = chest_phantom(0, shape=(9, 30, 32), spacing=(5, 10, 10)).thin
    write_series(tmp_path / "scans" / "chest", thick, pixel=(10, 10))
    weights = read_weights(untrained)
    torch.manual_seed(0)
    weights.record["error"] = ErrorModel().to_record()
    write_weights(tmp_path / "net.safetensors", weights)
    folder = tmp_path / "thin"
    words = ["predict", str(tmp_path / "scans"), str(folder), "--device", "cpu", "--fast"]
    words += ["--checkpoint", str(tmp_path / "net.safetensors")]
    assert main(words) == 0
    assert main([*words, "--error_map"]) == 0  # a result without its map is not finished
    assert "already in" not in capsys.readouterr().out
    assert sorted(p.name for p in folder.iterdir()) == ["chest", "chest_error", "manifest.jsonl"]
    record = json.loads((folder / "manifest.jsonl").read_text().splitlines()[-1])
    errors = np.stack([d.pixel_array for d in datasets(folder / "chest_error")])
    assert errors.shape == (41, 30, 32)
    assert record["error"]["mean"] == pytest.approx(errors.mean(), abs=0.01)
    assert record["series"] == datasets(folder / "chest")[0].SeriesInstanceUID
    assert main([*words, "--error_map"]) == 0
    assert "1 of 1 volumes are already in" in capsys.readouterr().out
    shutil.rmtree(folder / "chest")
    assert main([*words, "--error_map"]) == 0
    assert (folder / "chest").is_dir()
    truth = tmp_path / "truth"
    shutil.copytree(folder / "chest", truth / "chest")
    evaluate = ["evaluate", str(folder), str(truth), "--error_maps", str(folder)]
    evaluate += ["--lungs", "none", "--fidelity", "false", "--report", "false"]
    assert main([*evaluate, "--output", str(tmp_path / "scores")]) == 0
    assert "error_map_bias, whole, HU" in capsys.readouterr().out
    write_series(tmp_path / "scans" / "chest_error", thick, uid="1.2.77", pixel=(10, 10))
    assert main([*words, "--error_map"]) == 2
    assert "which is that of another scan or result" in capsys.readouterr().err
