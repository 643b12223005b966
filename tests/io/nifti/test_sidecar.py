"""The slice thickness in the JSON file that dcm2niix writes beside a scan."""

import json

import numpy as np
import pytest
from helpers import nifti, save, tilted

from mpunet.io.nifti.sidecar import slice_thickness, thickness_note
from mpunet.io.scan_file import read_info
from mpunet.io.volume import volume_info

SLAB = np.zeros((3, 4, 5), np.int16)
THICK = {"spacing": (5.0, 0.7, 0.7)}


@pytest.mark.parametrize(
    ("scan", "sidecar"),
    [("x.nii.gz", "x.json"), ("x.nii", "x.json"), ("x.v2.NII.gz", "x.v2.json")],
)
def test_names(tmp_path, scan, sidecar):
    assert slice_thickness(tmp_path / scan) is None
    (tmp_path / sidecar).write_text(
        json.dumps({"Modality": "CT", "SliceThickness": 1.25, "SpacingBetweenSlices": 1})
    )
    assert slice_thickness(tmp_path / scan) == 1.25
    assert slice_thickness(tmp_path / "other.nii.gz") is None


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe\x00", b"[1, 2]", b"5", b"null", b"{}", b"[" * 100_000]
    + [
        b'{"SliceThickness": %s}' % value
        for value in (b"null", b'"5"', b"true", b"[5]", b"0", b"-5", b"NaN", b"Infinity", b"1e999")
    ]
    + [b'{"SliceThickness": 1%s}' % (b"0" * digits) for digits in (400, 5000)],
    ids=lambda content: content[:30].decode(errors="replace"),
)
def test_a_damaged_sidecar_is_ignored(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    assert slice_thickness(tmp_path / "x.nii.gz") is None


def test_a_folder_is_no_sidecar(tmp_path):
    (tmp_path / "x.json").mkdir()
    assert slice_thickness(tmp_path / "x.nii.gz") is None


@pytest.mark.parametrize(
    ("thickness", "expected"),
    [
        (10, "the slice thickness of 10 mm is larger than the slice spacing of 5 mm: "
             "the slices overlap"),
        (2.5, "the slice thickness of 2.5 mm is smaller than the slice spacing of 5 mm: "
              "there are gaps between the slices"),
        (6.01, "the slice thickness of 6.01 mm is larger than the slice spacing of 5 mm: "
               "the slices overlap"),
        (5, None),
        (6, None),
        (4, None),
    ],
)  # fmt: skip
def test_overlaps_and_gaps(tmp_path, thickness, expected):
    path = save(tmp_path / "x.nii.gz", SLAB, **THICK)
    assert thickness_note(read_info(path)) is None
    (tmp_path / "x.json").write_text(json.dumps({"SliceThickness": thickness}))
    assert thickness_note(read_info(path)) == expected


def test_thickness_is_compared_with_the_spacing_along_the_normal(tmp_path):
    """At 40 degrees, voxels are 6.5 mm apart along the slice axis, but slices only 5 mm."""
    (tmp_path / "x.json").write_text('{"SliceThickness": 5}')
    image = tilted(nifti(SLAB, **THICK), 40)
    assert thickness_note(volume_info(image, path=tmp_path / "x.nii.gz")) is None


def test_an_image_without_a_file_has_no_sidecar():
    assert thickness_note(volume_info(nifti(SLAB, **THICK))) is None
