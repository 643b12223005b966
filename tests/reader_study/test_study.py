"""Files, matching and counting of a reader study, against hand-made literals and brute force."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest

from mpunet.reader_study.figure import draw_study
from mpunet.reader_study.findings import (
    Finding,
    Reading,
    findings_csv,
    read_findings,
    read_standard,
    standard_csv,
)
from mpunet.reader_study.matching import Tally, match_findings, tally
from mpunet.reader_study.study import reader_study
from mpunet.reader_study.table import markdown, write_study

HEAD = "reader,condition,case,x,y,z,diameter"


def at(x, diameter=5.0, y=0.0, z=0.0):
    return Finding((float(x), float(y), float(z)), float(diameter))


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return path


def brute_force(findings, nodules, radius):
    """The most pairs and their least total distance, by trying all."""
    best = (0, 0.0)
    for size in range(1, min(len(findings), len(nodules)) + 1):
        for some in itertools.combinations(range(len(findings)), size):
            for order in itertools.permutations(range(len(nodules)), size):
                distances = [
                    math.dist(findings[i].position, nodules[j].position)
                    for i, j in zip(some, order, strict=True)
                ]
                reach = [max(radius, nodules[j].diameter / 2) for j in order]
                if all(d <= r for d, r in zip(distances, reach, strict=True)):
                    best = max(best, (size, -sum(distances)))
    return best[0], -best[1]


# Matching


@pytest.mark.parametrize("seed", range(60))
def test_matching_is_what_brute_force_finds(seed):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 5, 2)
    findings, nodules = (
        [
            at(x, rng.uniform(1, 20), y, z)
            for x, y, z in rng.uniform(0, rng.choice([8, 25]), (count, 3))
        ]
        for count in counts
    )
    pairs = match_findings(findings, nodules, radius=5)
    assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)
    distance = sum(math.dist(findings[i].position, nodules[j].position) for i, j in pairs)
    assert (len(pairs), distance) == pytest.approx(brute_force(findings, nodules, 5), abs=1e-9)


def test_two_pairs_beat_one_that_is_nearer():
    # Greedy matching would use the pair at distance 0 and leave nodule 0 unmatched.
    findings, nodules = [at(4), at(8)], [at(0), at(4)]
    assert match_findings(findings, nodules, radius=4) == [(0, 0), (1, 1)]


@pytest.mark.parametrize(
    ("diameter", "distance", "found"),
    [(4, 5.0, True), (4, 5.01, False), (14, 7.0, True), (14, 7.01, False)],
)
def test_reach_is_the_nodules_radius_or_the_floor(diameter, distance, found):
    assert bool(match_findings([at(distance, 30)], [at(0, diameter)], radius=5)) is found


# Counting


def test_counts_at_a_threshold_by_hand():
    nodules = [at(0, 8), at(50, 5), at(100, 3), at(150, 6)]
    findings = [at(1, 2), at(50, 9), at(100, 7), at(1.5, 6), at(200, 4), at(220, 5.9)]
    pairs = match_findings(findings, nodules)
    assert pairs == [(0, 0), (1, 1), (2, 2)]
    # 6 mm: nodules 0 and 3. The 2 mm finding on nodule 0 is a hit. The findings on the 5 and 3 mm
    # nodules are neither true nor false, although they are large. The second finding on nodule 0 is
    # false; the findings of 4 and 5.9 mm do not count.
    assert tally(findings, nodules, pairs, 6) == Tally(
        nodules=2, hits=1, false_positives=1, readings=1
    )
    # 4 mm: nodules 0, 1 and 3; all unmatched findings are false.
    assert tally(findings, nodules, pairs, 4) == Tally(
        nodules=3, hits=2, false_positives=3, readings=1
    )
    assert tally([], [], [], 4) == Tally(readings=1)


STANDARD = {"a": [at(0, 7), at(50, 5)], "b": [at(0, 6)], "c": []}
READINGS = {
    Reading("r1", "thick", "a"): [at(1, 7)],
    Reading("r1", "thick", "b"): [],
    Reading("r1", "thick", "c"): [at(9, 6.5)],
    Reading("r1", "thin", "a"): [at(1, 7), at(50, 5), at(90, 4.5)],
    Reading("r1", "thin", "b"): [at(2, 6)],
    Reading("r2", "thick", "a"): [at(0, 7), at(50, 5)],
    Reading("r2", "thin", "b"): [],
}


@pytest.fixture(scope="module")
def study():
    return reader_study(READINGS, STANDARD, resamples=500)


def rates(study, reader, condition, threshold):
    (row,) = (
        r
        for r in study.rates
        if (r.reader, r.condition, r.threshold) == (reader, condition, threshold)
    )
    return row


def test_rates_by_hand(study):
    row = rates(study, "r1", "thick", 4)
    assert (row.cases, row.counts) == (3, Tally(nodules=3, hits=1, false_positives=1, readings=3))
    assert row.sensitivity.mean == pytest.approx(1 / 3)
    assert row.precision.mean == pytest.approx(1 / 2)
    assert row.f1.mean == pytest.approx(2 / (1 / (1 / 3) + 1 / (1 / 2)))
    assert row.false_positives.mean == pytest.approx(1 / 3)
    assert rates(study, "r1", "thin", 4).counts == Tally(3, 3, 1, 2)
    assert rates(study, "r1", "thin", 6).counts == Tally(2, 2, 0, 2)
    pooled = rates(study, "all readers", "thick", 4)
    assert (pooled.cases, pooled.counts) == (
        3,
        Tally(nodules=5, hits=3, false_positives=1, readings=4),
    )
    assert pooled.sensitivity.mean == pytest.approx(3 / 5)


def test_differences_use_readings_that_both_conditions_have(study):
    found = {(c.reader, c.threshold): c for c in study.contrasts}
    # r1 read a and b in both; r2 no case. Thick 1 of 3, thin 3 of 3; precision 1 of 1, 3 of 4.
    assert set(found) == {("r1", 4), ("r1", 6), ("all readers", 4), ("all readers", 6)}
    for reader in ("r1", "all readers"):
        row = found[reader, 4]
        assert (row.condition, row.reference, row.cases) == ("thin", "thick", 2)
        assert row.sensitivity.mean == pytest.approx(1 - 1 / 3)
        assert row.precision.mean == pytest.approx(3 / 4 - 1)
        assert row.false_positives.mean == pytest.approx(1 / 2)


def test_what_was_not_read_is_told(study):
    assert study.unread == [("r1", "thin", 1), ("r2", "thick", 2), ("r2", "thin", 2)]
    text = markdown(study)
    assert "r2, thick: 2 of 3 cases have no row and are left out." in text
    assert "r1, thick:" not in text


def test_one_condition_in_two_guises_differs_by_nothing():
    twice = {
        r._replace(condition=c): found
        for r, found in READINGS.items()
        if r.condition == "thick"
        for c in ("thick", "again")
    }
    rows = reader_study(twice, STANDARD, resamples=200).contrasts
    assert [row.cases for row in rows] == [3, 1, 3, 3, 1, 3]  # r1, r2 and both, at 4 and at 6 mm
    for row in rows:
        for measure in (row.sensitivity, row.false_positives):
            assert measure.mean == 0
            assert math.isnan(measure.low)  # three cases are too few for an interval


def test_intervals_widen_when_the_readings_of_a_case_agree():
    # Four readers who find the same nodules are no more evidence about other cases than one.
    rng = np.random.default_rng(0)
    cases = {f"c{i}": [at(50 * j) for j in range(2)] for i in range(20)}
    one = {
        Reading("r0", "thick", case): [n for n in nodules if rng.random() < 0.6]
        for case, nodules in cases.items()
    }
    four = {key._replace(reader=f"r{i}"): found for key, found in one.items() for i in range(4)}
    alone, together = (
        rates(
            reader_study(readings, cases, thresholds=[4], resamples=1000), reader, "thick", 4
        ).sensitivity
        for readings, reader in ((one, "r0"), (four, "all readers"))
    )
    assert together == pytest.approx(alone)
    assert together.high - together.low > 0.15


def test_a_shared_reference_can_be_chosen():
    contrasts = reader_study(READINGS, STANDARD, reference="thin", resamples=50).contrasts
    assert {(c.condition, c.reference) for c in contrasts} == {("thick", "thin")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thresholds": []}, "thresholds of 0 mm or more"),
        ({"thresholds": [math.nan]}, "thresholds of 0 mm or more"),
        ({"radius": -1}, "finite radius of 0 mm or more, got -1"),
        ({"radius": math.inf}, "finite radius of 0 mm or more, got inf"),
        ({"reference": "medium"}, "among the conditions thick, thin, got 'medium'"),
    ],
)
def test_settings_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        reader_study(READINGS, STANDARD, **options)


def test_readings_that_make_no_sense():
    with pytest.raises(ValueError, match="at least one reading"):
        reader_study({}, STANDARD)
    with pytest.raises(ValueError, match="got 'z'"):
        reader_study({Reading("r", "thick", "z"): []}, STANDARD)


# Tables


def test_tables_hold_the_numbers(study, tmp_path):
    write_study(study, tmp_path)
    lines = (tmp_path / "rates.csv").read_text().splitlines()
    assert lines[0].startswith(
        "reader,condition,threshold,cases,nodules,hits,false_positive_count,readings,sensitivity,sensitivity_low"
    )
    assert lines[1].startswith("r1,thick,4.0,3,3,1,1,3,0.333")
    content = json.loads((tmp_path / "study.json").read_text())
    assert content["rates"][0]["sensitivity"] == pytest.approx(1 / 3)
    assert content["contrasts"][0]["precision"] == pytest.approx(-1 / 4)
    assert (content["radius"], content["reference"], content["cases"], content["nodules"]) == (
        5,
        "thick",
        3,
        3,
    )
    assert "| thick | r1 | 3 | 3 | 1 | 1 | 33.3 |" in (tmp_path / "study.md").read_text()
    assert not list(tmp_path.glob(".*"))


def test_what_is_not_defined_stays_empty(tmp_path):
    study = reader_study({Reading("r", "thin", "c"): []}, STANDARD, thresholds=[4], resamples=50)
    assert math.isnan(study.rates[0].sensitivity.mean)
    assert math.isnan(study.rates[0].precision.mean)
    assert study.rates[0].false_positives.mean == 0
    write_study(study, tmp_path)
    assert draw_study(study, tmp_path / "study.png").is_file()
    assert (
        (tmp_path / "rates.csv")
        .read_text()
        .splitlines()[1]
        .startswith("r,thin,4,1,0,0,0,1,,,,,,,,,,0.0")
    )
    assert json.loads((tmp_path / "study.json").read_text())["rates"][0]["sensitivity"] is None
    assert "| thin | r | 1 | 0 | 0 | 0 | – | – | – | 0.00" in markdown(study)


# Files


def test_files_are_read_as_written(tmp_path):
    standard = {"a": [at(1.25, 4.5, -2, 3), at(0, 12)], "b": []}
    readings = {Reading("r, 1", "thick", "a"): [at(1, 4)], Reading("r, 1", "thick", "b"): []}
    (tmp_path / "s.csv").write_text(standard_csv(standard))
    (tmp_path / "f.csv").write_text(findings_csv(readings))
    assert read_standard(tmp_path / "s.csv") == standard
    assert read_findings(tmp_path / "f.csv", cases=standard) == readings


def test_files_in_dicom_coordinates_are_read_as_written(tmp_path):
    readings = {Reading("r", "thick", "a"): [at(1, 4, 2, 3)]}
    text = findings_csv(readings, "LPS")
    assert text.splitlines()[1].startswith("r,thick,a,-1.00,-2.00,3.00")
    found = read_findings(write(tmp_path / "f.csv", text.strip()), cases={"a"}, coordinates="LPS")
    assert found == readings


def test_columns_in_any_order_with_others_between(tmp_path):
    path = write(
        tmp_path / "f.csv",
        "\ufeffDiameter , z,y,x,confidence,case,condition,reader",
        "",
        "6,3,2,1,0.9,a,thick,r1",
        ",,,,,b,thick,r1",
    )
    found = read_findings(path, cases={"a", "b"})
    assert found == {Reading("r1", "thick", "a"): [at(1, 6, 2, 3)], Reading("r1", "thick", "b"): []}


def test_coordinates_of_dicom(tmp_path):
    path = write(tmp_path / "f.csv", HEAD, "r1,thick,a,10,-20,30,5")
    found = read_findings(path, cases={"a"}, coordinates="LPS")
    assert found == {Reading("r1", "thick", "a"): [at(-10, 5, 20, 30)]}
    with pytest.raises(ValueError, match="'RAS' or 'LPS', got 'RPI'"):
        read_findings(path, cases={"a"}, coordinates="RPI")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["reader,condition,case,x,y,diameter"], "line 1: .*no z"),
        ([], "line 1: .*no reader, condition"),
        (
            [HEAD.replace(",", ";"), "r;t;a;1;2;3;4"],
            "line 1: expected the columns .*got 'reader;condition",
        ),
        ([HEAD], "at least one row"),
        (
            [HEAD, "r,t,a,1,2,3,4", "r,t,a,1,2,x,4"],
            "line 3: expected a finite number of mm for z, got 'x'",
        ),
        ([HEAD, "r,t,a,1,nan,3,4"], "line 2: expected a finite number of mm for y, got 'nan'"),
        ([HEAD, "r,t,a,inf,2,3,4"], "line 2: expected a finite number of mm for x, got 'inf'"),
        ([HEAD, "r,t,a,1,2,3,-4"], "line 2: expected a diameter above 0 mm, got -4"),
        ([HEAD, "r,t,a,1,2,3,"], "line 2: diameter is empty; fill in"),
        ([HEAD, "r,t,a,,,,4"], "line 2: x, y, z is empty; fill in"),
        ([HEAD, "r,t,z,1,2,3,4"], "line 2: case 'z' is not in the standard; list it there"),
        ([HEAD, "r,,a,1,2,3,4"], "line 2: expected a condition, got an empty field"),
        ([HEAD, "r,t,a,1,2,3,4", "r,t,a,5,2,3,4", "r,t,a,1.0,2,3,9"], "line 4: the same as line 2"),
        ([HEAD, "r,t,a,,,,", "r,t,a,,,,"], "line 3: the same as line 2"),
        ([HEAD, "r,t,a,,,,", "r,t,a,1,2,3,4"], "line 3: contradicts line 2: r, t, a has findings"),
        ([HEAD, "r,t,a,1,2,3,4", "r,t,a,,,,"], "line 3: contradicts line 2"),
        ([HEAD, "r,t,a,1,5,2,3,4"], "line 2: expected 7 fields as in the header, got 8"),
        ([HEAD, "all readers,t,a,1,2,3,4"], "line 2: a reader may not be called 'all readers'"),
    ],
)
def test_errors_name_file_and_line(tmp_path, lines, message):
    path = write(tmp_path / "f.csv", *lines)
    with pytest.raises(ValueError, match=rf"f\.csv.*{message}"):
        read_findings(path, cases={"a"})


def test_errors_of_the_standard(tmp_path):
    with pytest.raises(ValueError, match=r"s\.csv, line 3: the same as line 2"):
        read_standard(write(tmp_path / "s.csv", "case,x,y,z,diameter", "a,1,2,3,4", "a,1,2,3,5"))
    with pytest.raises(ValueError, match="at least one case"):
        read_standard(write(tmp_path / "s.csv", "case,x,y,z,diameter"))
    (tmp_path / "s.csv").write_bytes(b"case,x,y,z,diameter\nM\xfcller,1,2,3,4\n")
    with pytest.raises(ValueError, match="in UTF-8"):
        read_standard(tmp_path / "s.csv")
