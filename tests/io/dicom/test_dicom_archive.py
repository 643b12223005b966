"""Guarantees of `mpunet predict` on archives of DICOM series: broken ones, killed processes."""

import json
import random
import sys
import time

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

from made import found, slab_of, voxels, write_series  # noqa: E402
from processes import Command, command  # noqa: E402
from pydicom import uid as uids  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="uses signals of Linux"),
]


def words(checkpoint, scans, output):
    fast = ["--fast", "--device", "cpu", "--quiet"]
    return ["predict", str(scans), str(output), "--checkpoint", str(checkpoint), *fast]


def at(keyword, value, index=1):
    def change(number, dataset):
        if number == index:
            setattr(dataset, keyword, value)

    return change


def every(**values):
    def change(number, dataset):
        for keyword, value in values.items():
            setattr(dataset, keyword, value)

    return change


def video(number, dataset):
    dataset.file_meta.TransferSyntaxUID = uids.MPEG2MPML
    dataset.PixelData = encapsulate([dataset.PixelData])


# What is changed in a series of four slices, and what its reason must say.
KINDS = {
    "gap": ({"positions": [0, 5, 15, 20]}, "a slice is missing between 001.dcm and 002.dcm"),
    "doubled": ({"positions": [0, 5, 5, 10]}, "at the same position"),
    "uneven": ({"positions": [0, 5, 12, 17]}, "unevenly spaced"),
    "shifted": ({"change": at("ImagePositionPatient", [-9, -40, -15])}, "001.dcm is shifted by"),
    "no_place": ({"change": at("ImagePositionPatient", None)}, "has no ImagePositionPatient"),
    "far": ({"change": at("ImagePositionPatient", [0, 0, "1e30"])}, "at an impossible place"),
    "axes": ({"change": every(ImageOrientationPatient=[0] * 6)}, "perpendicular unit vectors"),
    "turned": ({"change": at("ImageOrientationPatient", [0, 1, 0, 1, 0, 0])}, "other orientation"),
    "pixel": ({"change": at("PixelSpacing", [1, 1])}, "another pixel spacing"),
    "matrix": ({"change": at("Rows", 16)}, "001.dcm has 16 x 32 pixels"),
    "patients": ({"change": at("PatientID", "43")}, "of another patient"),
    "single": ({"hu": voxels(shape=(1, 32, 32))}, "expected at least 2 slices, got 1"),
    "raw": ({"change": every(RescaleIntercept=1000)}, "not HU"),
    "huge": ({"change": every(Rows=30000, Columns=30000)}, "cannot hold 30000 x 30000 pixels"),
    "colour": ({"change": every(SamplesPerPixel=3)}, "cannot be read"),
    "frames": ({"change": every(NumberOfFrames=7)}, "several frames without positions"),
    "bits": ({"change": every(HighBit=15)}, "expected 11 as HighBit, got 15"),
    "video": ({"change": video, "encode": False}, "cannot be read"),
}


def break_series(folder):
    """Forty broken series of twenty kinds; the name of each, and what its reason must say."""
    reasons = {}
    for i in range(2):
        for kind, (options, reason) in KINDS.items():
            name = f"sub{len(reasons) % 3}/{kind}{i}"
            hu = voxels(1000 + i, (4, 32, 32))
            write_series(folder / name, uid=f"1.2.{i}.{len(reasons)}", **({"hu": hu} | options))
            reasons[name] = reason
        cut = write_series(folder / f"cut{i}", voxels(i, (4, 32, 32)), uid=f"1.3.{i}")[2]
        cut.write_bytes(cut.read_bytes()[: -200 - i])
        reasons[f"cut{i}"] = "voxels of 002.dcm cannot be read"
        (folder / f"noise{i}").mkdir()
        noise = np.random.default_rng(i).bytes(4000)
        (folder / f"noise{i}" / "x").write_bytes(bytes(128) + b"DICM" + noise)
        reasons[f"noise{i}"] = "x: "
    return reasons


def finished(folder):
    """Every visible series of a folder by name, read to its end."""
    series, rejected = found_visible(folder)
    assert rejected == []
    return {item.folder.relative_to(folder).as_posix(): slab_of(item)[0] for item in series}


def found_visible(folder):
    places = [path for path in folder.iterdir() if not path.name.startswith(".")]
    both = [found(path) for path in places if path.is_dir()]
    return [item for one, _ in both for item in one], [item for _, one in both for item in one]


def hidden(folder):
    return [path.name for path in folder.rglob(".*")]


def test_two_hundred_series_of_which_forty_are_broken(untrained, tmp_path):
    scans, output = tmp_path / "scans", tmp_path / "thin"
    depths = {}
    for i in range(160):
        name = f"case{i // 50}/{i}"
        depths[name] = 2 + i % 5
        hu = voxels(i, (depths[name], 24 + i % 9, 32))
        write_series(scans / name, hu, uid=f"1.2.9.{i}", shuffle=True, suffix="")
    write_series(scans / "scout", uid="1.4", change=every(ImageType=["X", "Y", "LOCALIZER"]))
    reasons = break_series(scans)
    assert len(reasons) == 40
    ended = Command(words(untrained, scans, output)).wait()
    assert ended.status == 1, ended.out + ended.err
    assert "Traceback" not in ended.out + ended.err

    lines = (output / "manifest.jsonl").read_text().splitlines()
    records = {record["file"]: record for record in map(json.loads, lines)}
    assert len(lines) == len(records) == 200
    failed = {name: item["reason"] for name, item in records.items() if item["status"] == "failed"}
    assert failed.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in failed[name], (name, failed[name])
        assert failed[name].isprintable()

    results = finished(output)
    assert {name: len(slab) for name, slab in results.items()} == {
        name: (depth - 1) * 5 + 1 for name, depth in depths.items()
    }
    assert hidden(output) == []


def test_a_killed_run_leaves_no_partial_series(untrained, tmp_path):
    scans, output, undisturbed = tmp_path / "scans", tmp_path / "thin", tmp_path / "undisturbed"
    for i in range(16):
        write_series(scans / f"{i:02d}", voxels(i, (12, 32, 32)), uid=f"1.2.{i}")
    command(*words(untrained, scans, undisturbed))
    expected = finished(undisturbed)
    assert len(expected) == 16
    rng = random.Random(0)
    left = 0
    for _ in range(4):
        process = Command(words(untrained, scans, output))
        before = set(output.rglob(".*.partial"))
        while not set(output.rglob(".*.partial")) - before:
            assert process.process.is_alive(), "the run ended before it could be stopped"
            time.sleep(0.005)
        time.sleep(rng.random() * 0.2)
        process.process.kill()
        process.wait()
        left += len(list(output.rglob(".*.partial")))
        for name, thin in finished(output).items():  # whole at any time
            np.testing.assert_array_equal(thin, expected[name])
    assert left >= 2  # most were hit in the middle of a series
    assert len(finished(output)) < 16
    command(*words(untrained, scans, output))
    results = finished(output)
    assert results.keys() == expected.keys()
    for name, thin in results.items():
        np.testing.assert_array_equal(thin, expected[name])
    assert hidden(output) == []
