"""Each fault added to a phantom pair is found, and nothing else; real CT gives no finding."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest
from helpers import nifti, save, tilted

from mpunet.cli.check import run
from mpunet.data.case import Case
from mpunet.data.checks import Finding, examine, refuse, verdict
from mpunet.phantom.chest import chest_phantom
from mpunet.slices.simulate import thicken, thickening_matrix

RATIO = 5
THIN, THICK = {"spacing": (1.0, 0.7, 0.7)}, {"spacing": (5.0, 0.7, 0.7)}


def chest(seed):
    return chest_phantom(seed, shape=(91, 48, 60), spacing=(1.8, 5.5, 5.5)).thin


def thick_of(thin):
    return np.rint(thicken(thin, RATIO)).astype(np.int16)


@pytest.fixture(scope="module")
def slabs():
    thin = chest(1)
    return thin, thick_of(thin)


@pytest.fixture(scope="module")
def other():
    return thick_of(chest(2))


def look(folder, thin, thick=None, *, thin_header=THIN, thick_header=THICK, **options):
    """What is found in a pair of slabs, or of images or bytes."""
    paths = {}
    for kind, volume, header in (("thin", thin, thin_header), ("thick", thick, thick_header)):
        if volume is None:
            continue
        paths[kind] = folder / f"{kind}.nii.gz"
        if isinstance(volume, bytes):
            paths[kind].write_bytes(volume)
        else:
            nib.save(nifti(volume, **header), paths[kind])
    return examine(Case("c", "c", **paths), **options)


def told(findings):
    """Findings but for those that only tell where the volumes stand."""
    return {(f.volume, f.code, f.verdict) for f in findings if f.verdict != "fine"}


def test_a_right_pair_is_fine(tmp_path, slabs):
    (finding,) = look(tmp_path, *slabs)
    assert (finding.code, finding.verdict) == ("registration", "fine")
    assert finding.text.startswith("thick slice 0 on thin slice ")
    assert "0.00 by the headers" in finding.text
    refuse([finding], name="c")


# What is done to (thin, thick), and what is to be found; each alone.
INTENSITIES = {
    "scale": lambda hu: ((hu + 1024) / 3072).astype(np.float32),
    "8-bit": lambda hu: ((hu.clip(-1000, 600) + 1000) / 1600 * 255).astype(np.uint8),
    "shifted": lambda hu: hu + 1024,
    "clipped": lambda hu: hu.clip(-1024, 150),
}


@pytest.mark.parametrize("volume", ["thin", "thick"])
@pytest.mark.parametrize("fault", INTENSITIES)
def test_intensities(tmp_path, slabs, fault, volume):
    pair = [
        INTENSITIES[fault](slab) if volume == kind else slab
        for kind, slab in zip(("thin", "thick"), slabs, strict=True)
    ]
    found = told(look(tmp_path, *pair))
    assert (volume, fault, "refused") in found
    assert {code for _, code, _ in found} <= {fault, "other scale"}


def test_1024_subtracted_twice(tmp_path, slabs):
    found = look(tmp_path, slabs[0] - 1024)
    assert told(found) == {("thin", "shifted", "refused")}
    assert "below -1100 HU" in found[0].text


def test_clipped_from_below(tmp_path, slabs):
    assert told(look(tmp_path, slabs[0].clip(-160, 3071))) == {("thin", "clipped", "refused")}


@pytest.mark.parametrize("value", [-2000, -3024])
def test_padding_is_repaired(tmp_path, slabs, value):
    padded = [slab.copy() for slab in slabs]
    for slab in padded:
        slab[:, :6, :6] = value
    found = look(tmp_path, *padded)
    assert told(found) == {("thin", "padding", "repaired"), ("thick", "padding", "repaired")}
    assert f"padding of {value} HU" in found[0].text
    # Padding hides no shift.
    assert ("thin", "shifted", "refused") in told(look(tmp_path, padded[0] + 1024, None))


def test_files_that_cannot_be_read(tmp_path, slabs):
    whole = save(tmp_path / "whole.nii.gz", slabs[1], **THICK).read_bytes()
    (finding, *_) = look(tmp_path, slabs[0], whole[: len(whole) // 2])
    assert (finding.volume, finding.code, finding.verdict) == ("thick", "unreadable", "refused")
    assert "thick.nii.gz: voxels cannot be read, damaged or cut short" in finding.text
    broken = slabs[0].astype(np.float32)
    broken[3, 4, 5] = np.nan
    (finding,) = look(tmp_path, broken)
    assert "got 1 NaN or infinite voxels" in finding.text
    assert (
        examine(Case("c", "c", tmp_path / "nowhere.nii"))[0].text
        == f"nowhere.nii: no such file: {tmp_path}/nowhere.nii"
    )


def test_blank_slices(tmp_path, slabs):
    thin = slabs[0].copy()
    thin[40:42] = -1024
    found = [f for f in look(tmp_path, thin) if f.verdict == "refused"]
    assert [(f.code, f.text) for f in found] == [
        ("blank", "slices 40, 41 of 91 are blank; cut off or restore")
    ]


def test_doubled_slices(tmp_path, slabs):
    thin = slabs[0].copy()
    thin[50] = thin[49]
    (finding,) = (f for f in look(tmp_path, thin) if f.verdict == "refused")
    assert (finding.code, finding.text) == ("doubled", "slice 50 of 91 repeats the one before")


def test_missing_slices_of_a_scan_alone(tmp_path, slabs):
    (finding,) = (
        f
        for f in look(tmp_path, np.delete(slabs[0], range(40, 45), axis=0))
        if f.verdict == "refused"
    )
    assert finding.code == "jump"
    assert finding.text.startswith("slices 39 and 40 of 86 differ ")


@pytest.mark.parametrize(
    ("thin_cut", "thick_cut", "words"),
    [
        (47, None, "by -1.0 thin slices: thin slices are missing"),
        (None, 9, "by +5.0 thin slices: thick slices are missing"),
    ],
)
def test_missing_slices_of_a_pair(tmp_path, slabs, thin_cut, thick_cut, words):
    thin, thick = (
        slab if cut is None else np.delete(slab, cut, 0)
        for slab, cut in zip(slabs, (thin_cut, thick_cut), strict=True)
    )
    found = look(tmp_path, thin, thick)
    (step,) = (f for f in found if f.code == "steps")
    assert step.verdict == "refused"
    assert step.text.startswith(("near thick slice 9 ", "near thick slice 10 "))
    sign, what = words.split(".0 thin slices: ")
    assert sign[:4] in step.text
    assert what in step.text


def test_headers_two_slices_apart(tmp_path, slabs):
    (finding,) = (
        f
        for f in look(tmp_path, *slabs, thick_header={**THICK, "start": 2.0})
        if f.verdict == "refused"
    )
    assert finding.code == "registration"
    assert "0.0" in finding.text
    assert "2.00 by the headers: 2.0 thin slices apart" in finding.text


def test_headers_half_a_slice_apart(tmp_path, slabs):
    """The affines do not fit, and the voxels say that they are wrong."""
    found = look(tmp_path, *slabs, thick_header={**THICK, "start": 0.6})
    assert told(found) == {("pair", "grid", "refused"), ("pair", "registration", "refused")}


def test_a_true_offset_is_repaired(tmp_path, slabs):
    thin = slabs[0]
    matrix = thickening_matrix(91, RATIO, np.array([0.1, 0.2, 0.4, 0.2, 0.1]), start=2)
    thick = np.rint(np.tensordot(matrix, thin.astype(np.float32), axes=1)).astype(np.int16)
    found = look(tmp_path, thin, thick, thick_header={**THICK, "start": 2.0})
    assert told(found) == {("pair", "offset", "repaired")}
    assert (
        "thick slice 0 is at thin slice 2; both are cut to the common 18 thick slices"
        in found[0].text
    )


@pytest.mark.parametrize(
    ("axis", "words"), [(0, "upside down"), (1, "front to back"), (2, "left to right")]
)
def test_turned(tmp_path, slabs, axis, words):
    (finding,) = (
        f for f in look(tmp_path, slabs[0], np.flip(slabs[1], axis)) if f.verdict == "refused"
    )
    assert finding.code == "turned"
    assert f"turned {words}: one of the headers is wrong" in finding.text


def test_stored_in_another_orientation(tmp_path, slabs):
    found = look(tmp_path, *slabs, thick_header={**THICK, "codes": "RAI"})
    assert told(found) == {("pair", "orientation", "repaired")}
    assert found[0].text == "stored along RAI and LPS; both are turned to one orientation"


def test_another_patient(tmp_path, slabs, other):
    (finding,) = (f for f in look(tmp_path, slabs[0], other) if f.verdict == "refused")
    assert finding.code == "another patient"


def test_another_scale(tmp_path, slabs):
    (finding,) = (
        f
        for f in look(tmp_path, slabs[0], ((slabs[1] + 1000) * 1.3 - 1000).astype(np.int16))
        if f.verdict == "refused"
    )
    assert finding.code == "other scale"
    assert finding.text.startswith("thick = 1.3")


def test_grids_and_ratios(tmp_path, slabs):
    thin, thick = slabs
    for volumes, options, code, words in (
        ((thin, thick[:, :-2]), {}, "grid", "46 x 60 and 48 x 60 voxels"),
        (
            (thin, thick),
            {"thick_header": {"spacing": (5.0, 0.8, 0.8)}},
            "grid",
            "differ in direction or in-plane spacing",
        ),
        (
            (thin, thick),
            {"thick_header": {"spacing": (4.5, 0.7, 0.7)}},
            "ratio",
            "4.5 and 1 mm apart, a ratio of 4.500; expected 4",
        ),
        ((thin, thick), {"ratio": 4}, "ratio", "a ratio of 5.000; expected 4"),
        ((thin, thin), {"thick_header": THIN}, "ratio", "a ratio of 1.000; expected 2"),
    ):
        found = [f for f in look(tmp_path, *volumes, **options) if f.verdict == "refused"]
        assert found[0].code == code
        assert words in found[0].text


def test_spacing_and_position(tmp_path, slabs):
    found = look(tmp_path, slabs[0], thin_header={"spacing": (0.1, 0.07, 0.07)})
    assert told(found) == {("thin", "spacing", "refused")}
    assert "0.07 x 0.07 x 0.1 mm are not plausible for CT" in found[0].text
    nib.save(nib.Nifti1Image(slabs[0].transpose(2, 1, 0), None), tmp_path / "nowhere.nii")
    (finding,) = examine(Case("c", "c", tmp_path / "nowhere.nii"))
    assert (finding.code, finding.verdict) == ("no position", "fine")


def tilted_pair(folder, slabs, thin_tilt, thick_tilt):
    case = Case("c", "c", folder / "thin.nii", folder / "thick.nii")
    nib.save(tilted(nifti(slabs[0], **THIN), thin_tilt), case.thin)
    nib.save(tilted(nifti(slabs[1], **THICK), thick_tilt), case.thick)
    return examine(case, ratio=RATIO)


def test_a_tilted_gantry_is_reported(tmp_path, slabs):
    found = tilted_pair(tmp_path, slabs, 18, 18)
    assert [(f.volume, f.code, f.verdict) for f in found] == [
        ("thin", "tilt", "fine"),
        ("thick", "tilt", "fine"),
        ("pair", "registration", "fine"),
    ]
    assert found[1].text == "gantry tilt of 18.0 degrees: slices are 5 mm apart along their normal"
    # Below the threshold, and not far above it.
    assert {f.code for f in tilted_pair(tmp_path, slabs, 0.4, 0.4)} == {"registration"}
    assert {f.code for f in tilted_pair(tmp_path, slabs, 0.6, 0.6)} == {"tilt", "registration"}


@pytest.mark.parametrize(("thin_tilt", "thick_tilt"), [(0, 5), (0, 18), (18, 0), (18, -18)])
def test_a_pair_of_two_tilts_is_refused(tmp_path, slabs, thin_tilt, thick_tilt):
    found = tilted_pair(tmp_path, slabs, thin_tilt, thick_tilt)
    assert ("pair", "grid", "refused") in told(found)
    (grid,) = (f for f in found if f.code == "grid")
    assert grid.text == "their voxel axes differ in direction or in-plane spacing."


@pytest.mark.parametrize(
    ("thickness", "words"),
    [(7.0, "7 mm is larger than the slice spacing of 5 mm: the slices overlap"),
     (3.0, "3 mm is smaller than the slice spacing of 5 mm: there are gaps between the slices"),
     (5.9, None), (4.1, None)],
)  # fmt: skip
def test_overlaps_and_gaps(tmp_path, slabs, thickness, words):
    (tmp_path / "thick.json").write_text(json.dumps({"SliceThickness": thickness}))
    found = [f for f in look(tmp_path, *slabs) if f.code == "thickness"]
    assert [(f.volume, f.verdict, f.text) for f in found] == (
        [("thick", "fine", f"the slice thickness of {words}")] if words else []
    )


def test_lung_masks(tmp_path, slabs):
    thin = save(tmp_path / "thin.nii.gz", slabs[0], **THIN)
    for mask, header, words in (
        (np.zeros(slabs[0].shape, np.uint8), THIN, "the mask is empty"),
        (np.ones(slabs[0].shape, np.uint8), {**THIN, "start": 1.0}, "not on the thin grid"),
        (np.ones(slabs[1].shape, np.uint8), THICK, r"mask of (19, 48, 60) voxels"),
    ):
        (finding,) = examine(
            Case("c", "c", thin, lung=save(tmp_path / "lung.nii.gz", mask, **header))
        )
        assert (finding.volume, finding.code, finding.verdict) == ("lung", "lung mask", "refused")
        assert words in finding.text
    assert (
        examine(
            Case(
                "c",
                "c",
                thin,
                lung=save(tmp_path / "lung.nii.gz", np.ones(slabs[0].shape, np.uint8), **THIN),
            )
        )
        == []
    )


def test_refuse_names_the_first_and_counts_the_others():
    findings = [
        Finding("padding", "repaired", "p"),
        Finding("blank", "refused", "b", "thin"),
        Finding("grid", "refused", "g"),
    ]
    assert verdict(findings) == "refused"
    with pytest.raises(
        ValueError, match=r"case 7: thin: b \(and 1 more\)\. `mpunet check` lists all"
    ):
        refuse(findings, name="case 7")


class TestCommand:
    @pytest.fixture
    def pairs(self, tmp_path, slabs):
        for name, thick in (("good", slabs[1]), ("turned", np.flip(slabs[1], 0))):
            save(tmp_path / "data" / "thin" / f"{name}.nii.gz", slabs[0], **THIN)
            save(tmp_path / "data" / "thick" / f"{name}.nii.gz", thick, **THICK)
        return tmp_path / "data"

    def test_problems_first_and_tables(self, pairs, tmp_path, capsys):
        assert (
            run([str(pairs), "--ratio", "5", "--workers", "1", "--output", str(tmp_path / "out")])
            == 1
        )
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "refused   turned"
        assert lines[1].endswith("[turned]")
        assert lines[2] == "fine      good"
        assert lines[-1] == "1 refused, 0 repaired, 1 fine of 2 cases"
        rows = list(csv.DictReader((tmp_path / "out" / "findings.csv").read_text().splitlines()))
        assert [(r["case"], r["verdict"], r["code"]) for r in rows] == [
            ("good", "fine", "registration"),
            ("turned", "refused", "turned"),
        ]
        cases = json.loads((tmp_path / "out" / "findings.json").read_text())
        assert [case["verdict"] for case in cases] == ["fine", "refused"]
        assert cases[1]["files"]["thick"].endswith("thick/turned.nii.gz")
        assert cases[1]["findings"][0]["volume"] == "pair"

    def test_thick_scans_alone_in_two_processes(self, pairs, capsys):
        assert run([str(pairs / "thick"), "--workers", "2"]) == 0
        assert capsys.readouterr().out.splitlines() == [
            "fine      good (scan)",
            "fine      turned (scan)",
            "0 refused, 0 repaired, 2 fine of 2 cases",
        ]

    def test_refused(self, tmp_path):
        with pytest.raises(ValueError, match="at least 1 worker, got 0"):
            run([str(tmp_path), "--workers", "0"])
        with pytest.raises(ValueError, match="found nothing at"):
            run([str(tmp_path / "nothing")])


def test_no_alarm_on_real_ct(shared_ct):
    head = Case(
        "head",
        "head",
        shared_ct / "pair" / "head_thin.nii.gz",
        shared_ct / "pair" / "head_thick.nii.gz",
    )
    assert told(examine(head, ratio=5)) == {("pair", "offset", "repaired")}
    for part in ("train", "val", "thick"):
        for path in sorted((shared_ct / part).glob("*.nii.gz")):
            assert examine(Case(path.name, path.name, path)) == [], path.name
