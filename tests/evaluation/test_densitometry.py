"""Lung density in `mpunet evaluate`: the thick scan, agreement with the truth, every table."""

import csv
import json
import math

import numpy as np
import pytest
from helpers import save

from mpunet.evaluation.aggregate import agreements
from mpunet.evaluation.densitometry import DENSITIES, density_rows
from mpunet.evaluation.evaluate import Evaluator
from mpunet.evaluation.tables import screen, write_tables
from mpunet.report.report import write_report

SPACING, THICK_SPACING = (1.0, 2.0, 2.0), (2.0, 2.0, 2.0)
LAA950 = DENSITIES["laa950"]
SHARES = {"a": 10, "b": 20, "c": 40, "d": 30}  # % of lung voxels at -960 HU


def lung_of(share, off=0):
    """Eleven slices of 10 x 10 lung voxels in soft tissue; ``share`` + ``off`` % are emphysema."""
    slab = np.full((11, 14, 14), 40, np.int16)
    voxels = np.full(100, -930, np.int16)
    voxels[: share + off] = -960
    slab[:, 2:12, 2:12] = voxels.reshape(10, 10)
    return slab


@pytest.fixture
def folders(tmp_path):
    """Four cases; method "ours" counts 1, 2, 3 and -2 % too much."""
    mask = np.zeros((11, 14, 14), np.uint8)
    mask[:, 2:12, 2:12] = 1
    for (name, share), off in zip(SHARES.items(), (1, 2, 3, -2), strict=True):
        truth = lung_of(share)
        save(tmp_path / "truth" / "thin" / f"{name}.nii.gz", truth, spacing=SPACING)
        save(tmp_path / "truth" / "lung" / f"{name}.nii.gz", mask, spacing=SPACING)
        thick = truth[::2].copy()
        thick[3:, 2:12, 2:12] = -905  # three of six slices are denser
        save(tmp_path / "truth" / "thick" / f"{name}.nii.gz", thick, spacing=THICK_SPACING)
        save(tmp_path / "ours" / f"{name}.nii.gz", lung_of(share, off), spacing=SPACING)
    return tmp_path


def evaluated(folders, cases=4):
    for name in list(SHARES)[cases:]:
        (folders / "ours" / f"{name}.nii.gz").unlink()
        for part in ("thin", "thick", "lung"):
            (folders / "truth" / part / f"{name}.nii.gz").unlink()
    evaluator = Evaluator({"ours": folders / "ours"}, folders / "truth")
    list(evaluator.run())
    return evaluator.result()


def test_means_and_agreement_by_hand(folders):
    evaluation = evaluated(folders)
    assert evaluation.problems == []
    rows = density_rows(evaluation)
    assert list(rows) == list(DENSITIES.values())
    thick, ours, truth = rows[LAA950]
    assert [row.summary.method for row in (thick, ours, truth)] == ["thick", "ours", "truth"]
    assert thick.summary.mean == pytest.approx(12.5)  # half of 25, as half of its slices have none
    assert ours.summary.mean == pytest.approx(26)
    assert truth.summary.mean == pytest.approx(25)
    assert truth.agreement is None
    # Differences 1, 2, 3, -2: mean 1, squared deviations 0 + 1 + 4 + 9 = 14.
    found, reach = ours.agreement, 1.96 * math.sqrt(14 / 3)
    assert found.cases == 4
    assert found[3:6] == pytest.approx((1, 1 - reach, 1 + reach))
    # Values 11, 22, 43, 28: variance 534 / 4; truth 500 / 4; covariance 510 / 4; means 1 apart.
    assert found.concordance == pytest.approx(2 * 127.5 / (133.5 + 125 + 1))
    # The thick scan has half of the truth: covariance 62.5, variances 31.25 and 125.
    assert thick.agreement.concordance == pytest.approx(2 * 62.5 / (31.25 + 125 + 12.5**2))
    # All of the thin lung is below -910 HU: nothing to agree on. Of the thick lung, half is.
    thick, ours, _ = rows[DENSITIES["laa910"]]
    assert thick.summary.mean == 50
    assert math.isnan(ours.agreement.concordance)
    assert ours.agreement[3:6] == (0, 0, 0)
    assert thick.agreement.concordance == 0


def test_the_mask_of_a_thick_slice_is_that_of_the_thin_slice_at_its_position(folders):
    """Lung only in the first four thin slices, so in the first two thick ones."""
    for name in SHARES:
        mask = np.zeros((11, 14, 14), np.uint8)
        mask[:4, 2:12, 2:12] = 1
        save(folders / "truth" / "lung" / f"{name}.nii.gz", mask, spacing=SPACING)
    thick, _, truth = density_rows(evaluated(folders))[LAA950]
    assert thick.summary.mean == truth.summary.mean == pytest.approx(25)


@pytest.mark.parametrize("cases", [1, 2])
def test_few_cases_have_neither_limits_nor_concordance(folders, cases):
    evaluation = evaluated(folders, cases)
    (ours,) = (a for a in evaluation.agreements if (a.method, a.measure) == ("ours", LAA950))
    assert ours.mean == pytest.approx((1 + cases) / 2)
    assert all(map(math.isnan, ours[4:]))
    text = screen(evaluation)
    line = next(line for line in text.splitlines() if line.startswith("ours") and "+" in line)
    assert line.split()[-4:] == [f"{ours.mean:+.2f}", "-", "-", str(cases)]
    assert '"-": undefined, for fewer than 3 cases' in text


def test_screen(folders):
    text = screen(evaluated(folders))
    table = text[text.index("LAA-950") : text.index("LAA-910")].splitlines()
    head = "LAA-950, % mean - truth limits of agreement Lin cases"
    assert " ".join(table[0].split()) == head
    assert [line.split()[0] for line in table[1:4]] == ["thick", "ours", "truth"]
    assert "+1.00" in table[2]
    assert "-3.23 to 5.23" in table[2]
    assert table[2].split()[-2:] == ["0.983", "4"]
    assert "laa950" not in text  # not once more among the other measures of fidelity
    assert "thick" not in text[text.index("fidelity") :].splitlines()[0]


def test_files(folders):
    evaluation = evaluated(folders)
    write_tables(evaluation, folders / "out")
    with (folders / "out" / "agreement.csv").open(newline="") as file:
        lines = {(line["method"], line["metric"]): line for line in csv.DictReader(file)}
    assert len(lines) == 6
    line = lines["ours", "laa950"]
    assert (line["unit"], line["region"], line["cases"]) == ("%", "lungs", "4")
    assert float(line["mean"]) == pytest.approx(1)
    assert float(line["concordance"]) == pytest.approx(255 / 259.5)
    assert lines["ours", "laa910"]["concordance"] == ""  # NaN
    content = json.loads((folders / "out" / "evaluation.json").read_text())["agreements"]
    (found,) = (a for a in content if (a["method"], a["measure"]["metric"]) == ("ours", "laa950"))
    assert found["high"] == pytest.approx(float(line["high"]))


def test_report(folders):
    write_report(folders / "report.html", evaluated(folders))
    page = (folders / "report.html").read_text()
    section = page[page.index("<h2>Lung density") :]
    section = section[: section.index("</section>")]
    assert section.index('scope="row">thick<') < section.index(">ours<") < section.index(">truth<")
    assert "<td>+1.00</td><td>−3.23 to +5.23</td><td>0.983</td><td>4</td>" in section
    assert "<td>–</td>" in section  # the concordance of equal numbers
    assert "LAA-950" not in page[page.index("<h2>Fidelity") : page.index("<h2>Every case")]


def test_without_fidelity_there_is_none(folders):
    evaluator = Evaluator({"ours": folders / "ours"}, folders / "truth", fidelity=False)
    list(evaluator.run())
    evaluation = evaluator.result()
    assert evaluation.agreements == []
    assert density_rows(evaluation) == {}
    assert "Lin" not in screen(evaluation)


def test_cases_without_a_value_are_left_out():
    values = {
        ("ours", LAA950): {"a": 1.0, "b": 2.0, "c": math.nan, "d": 4.0, "e": 9.0},
        ("truth", LAA950): {"a": 0.0, "b": 0.0, "c": 0.0, "d": 1.0},
        ("alone", LAA950): {"x": 1.0},
    }
    ours, alone = agreements(values, DENSITIES, "truth")
    assert (ours.cases, ours.mean) == (3, 2)
    assert alone.cases == 0
    assert math.isnan(alone.mean)
