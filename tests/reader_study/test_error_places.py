"""Error maps at findings: values by hand, on a grid that is neither isotropic nor upright."""

import csv
import math

import nibabel as nib
import numpy as np
import pytest
from helpers import save

from mpunet.__main__ import main
from mpunet.phantom.chest import chest_phantom
from mpunet.reader_study.error_places import places, places_csv, places_table
from mpunet.reader_study.findings import Finding, Reading

READING = Reading("anna", "thin", "a")
# Slab indices (z, y, x) to RAS+: slices of 2 mm from z = -10 mm, pixels of 1 mm, y and x downwards.
AFFINE = np.array([[0, 0, -1, 20], [0, -1, 0, 15], [2, 0, 0, -10], [0, 0, 0, 1]], float)
SHAPE = (10, 30, 40)


def at(z, y, x, diameter=1.0):
    return Finding(tuple(float(mm) for mm in (AFFINE @ [z, y, x, 1])[:3]), diameter)


@pytest.fixture
def error_map():
    """From 0 to 11999 HU in the order of the voxels."""
    return np.arange(math.prod(SHAPE)).reshape(SHAPE).astype(np.int16)


def test_kinds_values_and_percentiles(error_map):
    lung = np.zeros(SHAPE, bool)
    lung[5] = True  # 6000 to 7199
    true, false, missed = at(5, 15, 0), at(9, 10, 3), at(2, 20, 5)
    found = places(READING, [true, false], [missed, true], error_map, AFFINE, lung)
    assert [(p.kind, p.finding) for p in found] == [
        ("true finding", true), ("false finding", false), ("missed nodule", missed),
    ]  # fmt: skip
    assert [p.error for p in found] == [6600, 11203, 3205]
    assert [p.percentile for p in found] == pytest.approx([100 * 600.5 / 1200, 100, 0])


def test_the_mean_of_a_ball(error_map):
    """Of 4.1 mm: 13 voxels in its slice, and the middle voxel of the slices above and below."""
    marked = np.zeros(SHAPE, np.int16)
    marked[4:7, 15, 20] = 15
    marked[5, 15, 18:23] = 15
    (place,) = places(READING, [at(5, 15, 20, 4.1)], [], marked, AFFINE, marked > 0)
    assert place.error == pytest.approx(15 * 7 / 15)
    # A ball smaller than a voxel, between voxels, has the nearest one; one outside has none.
    small, outside = at(5.2, 15, 20.2, 0.1), at(40, 15, 20)
    found = places(READING, [small, outside], [], error_map, AFFINE, marked > 0)
    assert found[0].error == error_map[5, 15, 20]
    assert math.isnan(found[1].error)
    assert math.isnan(found[1].percentile)
    assert places_csv(found).splitlines()[2].endswith(",1.00,,")


def test_the_table_compares_with_true_findings(error_map):
    lung = np.ones(SHAPE, bool)
    nodules = [at(1, 15, 10), at(3, 15, 10), at(5, 15, 10)]
    found = places(
        READING, [*nodules[:2], at(8, 5, 5), at(2, 5, 35)], nodules, error_map, AFFINE, lung
    )
    lines = [line.split("|")[1:-1] for line in places_table(found).splitlines()[2:]]
    rows = {kind.strip(): [cell.strip() for cell in cells] for _, kind, *cells in lines}
    assert rows["true finding"] == ["2", "3010", "25", "–"]
    # Above both true findings, and between them: 3 of 4 pairs.
    assert rows["false finding"][3] == "0.75"
    assert rows["missed nodule"][3] == "1.00"


def test_the_command(tmp_path, capsys):
    slab = chest_phantom(1, shape=(46, 48, 60), spacing=(3.6, 5.5, 5.5)).thin
    errors = np.zeros(slab.shape, np.int16)
    errors[10, 20, 20] = 50
    for name, voxels in (("a", slab), ("a_error", errors)):
        image = save(tmp_path / "thin" / f"{name}.nii.gz", voxels, spacing=(3.6, 5.5, 5.5))
    affine = nib.load(image).affine
    (x, y, z), other = ((affine @ [*k, 1])[:3] for k in ((20, 20, 10), (30, 30, 30)))
    nodule = ",".join(map(str, other))
    (tmp_path / "standard.csv").write_text(f"case,x,y,z,diameter\na,{nodule},5\n")
    (tmp_path / "findings.csv").write_text(
        f"reader,condition,case,x,y,z,diameter\nanna,thin,a,{x},{y},{z},0.5\n"
    )
    words = ["reader-study", str(tmp_path / "findings.csv"), str(tmp_path / "standard.csv")]
    words += ["--figure", "false", "--output", str(tmp_path / "out")]
    assert main([*words, "--error_maps", f"thin={tmp_path / 'thin'}"]) == 0
    assert "| thin | false finding | 1 | 50 | 100 |" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "out" / "error_places.csv").read_text().splitlines()))
    assert [(row["kind"], row["error"]) for row in rows] == [
        ("false finding", "50.00"), ("missed nodule", "0.00"),
    ]  # fmt: skip
    assert main([*words, "--error_maps", f"thick={tmp_path / 'thin'}"]) == 2
    assert "with a condition among thin, got thick=" in capsys.readouterr().err
