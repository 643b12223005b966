"""The page of an evaluation: which cases it shows, what its tables say, what clicking does."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from helpers import save

from mpunet.evaluation.aggregate import scores_by_case, summaries
from mpunet.evaluation.error_maps import against_error_map
from mpunet.evaluation.scores import Evaluation, Measure, PairedDifference, Problem, Score, Summary
from mpunet.report.error_map_section import error_map_section
from mpunet.report.report import choose_cases, write_report
from mpunet.report.report_plot import Line, line_plot, strip_plot
from mpunet.training.case_metrics import PROTOCOLS

WINDOW = (-1024.0, 3071.0)
RMSE = Measure("rmse", "lungs", "HU", WINDOW, None, "root of the mean squared error")
PSNR = Measure("psnr", "lungs", "dB", WINDOW, 4095.0, "20 log10(range / RMSE)")
NOISE = Measure("noise", "air", "HU", None, None, "standard deviation in air")


def evaluation(cases, files=None, problems=()):
    """Two methods; case i has an RMSE of 40 + i HU, and 5 HU more by the other method."""
    scores = []
    for i in range(cases):
        for method, rmse in (("ours", 40.0 + i), ("cubic", 45.0 + i)):
            scores.append(Score(method, f"case{i}", RMSE, rmse))
            scores.append(Score(method, f"case{i}", PSNR, 20 * math.log10(4095 / rmse)))
        scores.append(Score("truth", f"case{i}", NOISE, 11.0))
    low, high = (math.nan, math.nan) if cases == 1 else (41.0, 43.5)
    summaries = [Summary(method, RMSE, cases, 42.0, low, high) for method in ("ours", "cubic")]
    summaries += [
        Summary("ours", PSNR, cases, 39.5, low, high),
        Summary("truth", NOISE, cases, 11.0, math.nan, math.nan),
    ]
    differences = (
        [PairedDifference("ours", "cubic", RMSE, cases, -5.0, -6.0, -4.0, 0.0004)]
        if cases > 1
        else []
    )
    differences += (
        [PairedDifference("ours", "cubic", PSNR, cases, 0.5, -0.1, 1.1, 0.3)] if cases > 1 else []
    )
    files = {f"case{i}": files or {} for i in range(cases)}
    protocol = PROTOCOLS["paper"]
    titles = ["ours", "cubic"]
    return Evaluation(
        "A & B",
        protocol,
        titles,
        scores,
        summaries,
        [],
        differences,
        list(problems),
        files,
        "0.1",
        "2026-11-23T12:00Z",
    )


@pytest.fixture
def files(tmp_path):
    truth = np.random.default_rng(0).integers(-1000, 200, (6, 12, 14), dtype=np.int16)
    names = {"thick": truth[::5], "ours": truth + 10, "cubic": truth - 10, "truth": truth}
    spacing = {"thick": (5.0, 1.0, 1.0)}
    return {
        name: save(tmp_path / name / "a.nii.gz", slab, spacing=spacing.get(name, (1.0, 1.0, 1.0)))
        for name, slab in names.items()
    }


def by_case(found):
    values = {}
    for score in found.scores:
        values.setdefault((score.method, score.measure), {})[score.case] = score.value
    return values


@pytest.mark.parametrize(
    ("count", "wanted"),
    [
        (7, {"Best": "case0", "Median": "case3", "Worst": "case6"}),
        (2, {"Best": "case0", "Worst": "case1"}),
        (1, {"The case": "case0"}),
    ],
)
def test_best_median_and_worst(count, wanted):
    found = evaluation(count)
    chosen = choose_cases(found, by_case(found))
    assert {label.split(":")[0]: case for label, case in chosen.items()} == wanted
    assert "RMSE in the lungs 40.0 HU" in next(iter(chosen))


def test_the_page(browser, files, tmp_path):
    problems = [
        Problem("ours", "case9", "no prediction <of> this name", False),
        Problem("cubic", "case1", "shifted", True),
    ]
    path = tmp_path / "report.html"
    write_report(path, evaluation(7, files, problems))
    browser.open(path)
    assert browser.problems == []
    assert browser.requests == [path.resolve().as_uri()]
    text = browser.run("document.body.innerText")
    assert text.index("2 problems, 1 not in the means") < text.index("Summary")
    assert "no prediction <of> this name" in text
    for part in (
        "HU clipped to [−1024, 3071]",
        "range 4095 HU",
        "[41.00, 43.50]",
        "n = 7",
        "not a medical device",
        "2026-11-23",
    ):
        assert part in text
    rows = browser.run(
        "[...document.querySelectorAll('table')].map("
        "t => [...t.tBodies].flatMap(b => [...b.rows].map(r => r.innerText)))"
    )
    differences = next(table for table in rows if any("ours − cubic" in row for row in table))
    assert re.search(
        r"RMSE.*−5\.00 \[−6\.00, −4\.00\].*< 0\.001\s+better", differences[0], re.DOTALL
    )
    assert "better" not in differences[1]  # its interval holds 0
    # A dot leads to its case.
    assert browser.run("viewer.case.name") == "case0"
    assert browser.run("document.querySelectorAll('.strip circle').length") == 4 * 7
    browser.run(
        "document.querySelector('a[data-case=case6]')"
        ".dispatchEvent(new MouseEvent('click', {bubbles: true, cancelable: true}))"
    )
    browser.idle()
    assert browser.run("viewer.case.name") == "case6"
    assert browser.run("[...viewer.field('case').options].map(o => o.text.split(':')[0])") == [
        "Best",
        "Median",
        "Worst",
    ]
    assert browser.run("viewer.panels.map(p => p.name.textContent)") == [
        "thick",
        "ours",
        "cubic",
        "truth",
    ]
    # Outside of the viewer, keys are the page's.
    before = browser.run("viewer.index.coronal")
    browser.run("document.activeElement.blur()")
    browser.press("ArrowDown")
    assert browser.run("viewer.index.coronal") == before
    browser.run("viewer.root.focus()")
    browser.press("ArrowDown")
    assert browser.run("viewer.index.coronal") == before + 1


def test_the_table_of_every_case_sorts_and_filters(browser, files, tmp_path):
    path = tmp_path / "report.html"
    write_report(path, evaluation(12, files))
    browser.open(path, width=375, height=812, mobile=True)
    assert browser.run("document.documentElement.scrollWidth") == 375
    cells = (
        "[...everyCase.table.tBodies[0].rows].map("
        "row => [...row.cells].map(cell => cell.textContent))"
    )
    assert browser.run(cells)[0] == ["case0", "ours", "40.00", "40.20"]
    assert len(browser.run(cells)) == 24  # the truth has no errors, so no rows
    browser.run("everyCase.sort(2)")
    browser.run("everyCase.sort(2)")
    assert [row[:3] for row in browser.run(cells)[:2]] == [
        ["case11", "cubic", "56.00"],
        ["case10", "cubic", "55.00"],
    ]
    assert (
        browser.run("everyCase.table.querySelector('[aria-sort]').getAttribute('aria-sort')")
        == "descending"
    )
    browser.run("(f => { f.value = 'ASE11'; f.oninput(); })(everyCase.field('find'))")
    assert [row[0] for row in browser.run(cells)] == ["case11", "case11"]
    browser.run("everyCase.field('all').click()")
    assert browser.run(cells)[2] == ["case11", "truth", "–", "–", "11.00"]
    assert browser.problems == []


def test_a_single_case(browser, files, tmp_path):
    path = tmp_path / "report.html"
    write_report(path, evaluation(1, files))
    browser.open(path)
    text = browser.run("document.body.innerText")
    assert "; 1 case." in text
    assert "42.00" in text
    assert "n = 1" not in text
    assert "nan" not in text.lower()
    assert "Distribution" not in text
    assert "Paired differences" not in text
    assert browser.run("viewer.root.querySelector('.cases').hidden") is True
    assert browser.problems == []


def test_thousands_of_cases_stay_small(files, tmp_path):
    path = tmp_path / "report.html"
    write_report(path, evaluation(3000, files))
    assert path.stat().st_size < 1e6
    text = path.read_text()
    rows = json.loads(re.search(r'id="rows">(.*?)</script>', text, re.DOTALL).group(1))["rows"]
    assert len(rows) == 9000
    assert text.count("<circle") < 150
    assert text.count('class="case"') == 3


def test_a_file_that_has_gone_is_a_line_of_the_report(files, tmp_path):
    files["cubic"].unlink()
    path = tmp_path / "report.html"
    write_report(path, evaluation(1, files))
    assert "case0 cannot be shown: a.nii.gz: no such file" in path.read_text()
    assert 'class="case"' not in path.read_text()


def test_what_cannot_be_drawn_is_left_out():
    assert strip_plot("PSNR", {"ours": {"a": math.inf, "b": math.nan}}, [], 2) == ""
    drawn = strip_plot("PSNR", {"ours": {"a": 40.0, "b": math.inf}, "<x>": {"a": 41.0}}, ["a"], 2)
    assert drawn.count("<circle") == 2
    assert "<x>" not in drawn
    assert drawn.count("ours, a: 40.00") == 1


def with_error_maps(found, path, cases=2):
    """Cases of errors from 0 to 100 HU; the map is 10 HU too large, in case 1 it is right."""
    error = np.linspace(0, 100, 5000, dtype=np.float32).reshape(5, 20, 50)
    zero = np.zeros_like(error)
    scores = [
        Score("ours", f"case{i}", *pair)
        for i in range(cases)
        for pair in against_error_map(error + 10 * (i != 1), error, zero, None)
    ]
    return replace(
        found,
        scores=found.scores + scores,
        summaries=found.summaries + summaries(scores_by_case(scores)),
        error_maps={"case0": path},
    )


def test_error_maps_are_painted_over_their_images_and_their_curves_drawn(browser, files, tmp_path):
    map_ = save(tmp_path / "map.nii.gz", np.full((6, 12, 14), 40, np.int16), spacing=(1, 1, 1))
    path = tmp_path / "report.html"
    write_report(path, with_error_maps(evaluation(2, files), map_))
    browser.open(path)
    assert browser.problems == []
    assert browser.run("[...viewer.errors.keys()]") == ["ours"]
    browser.run("document.querySelector('[data-map=expected]').click()")
    browser.idle()
    assert browser.run("viewer.map") == "expected"
    lines = "document.querySelectorAll('.line.{}').length"
    assert [browser.run(lines.format(kind)) for kind in ("main", "case", "ideal")] == [2, 4, 2]
    text = browser.run("document.body.innerText")
    assert "Error maps of ours" in text
    assert "Voxels: whole." in text
    # The points of the curves are in no table.
    assert "removed, oracle" not in path.read_text()
    assert "error map auc 100" in text


def test_curves_of_one_case_and_of_none(tmp_path):
    assert error_map_section(evaluation(2)) == ""
    drawn = error_map_section(with_error_maps(evaluation(1), tmp_path / "map.nii.gz", 1))
    assert 'class="line case"' not in drawn
    assert drawn.count('class="line main"') == 2


def test_a_curve():
    assert line_plot("a", [Line("b", "main", [])], "x", "y") == ""
    drawn = line_plot("a", [Line("<b>", "main", [(0, 0), (5, 1), (10, 2)])], "x, mm", "y")
    # From the left edge, 70, to the right one, 620; from the x axis, 328, up to 2 / 2.1 of 318.
    assert 'd="M70.0 328.0L345.0 176.6L620.0 25.1"' in drawn
    assert "<title>&lt;b&gt;</title>" in drawn
    assert "x, mm" in drawn
