"""`mpunet evaluate` on phantoms: every number in its place, and a line for every fault."""

import csv
import json
import math
import re
import shutil

import numpy as np
import pytest
from helpers import nifti, save

from mpunet.__main__ import main
from mpunet.evaluation.evaluate import Evaluator
from mpunet.evaluation.tables import screen, write_tables
from mpunet.lungs.threshold import lung_mask
from mpunet.metrics.quality import PROTOCOLS, quality
from mpunet.phantom.chest import chest_phantom
from mpunet.slices.interpolate import interpolated
from mpunet.slices.simulate import thicken
from mpunet.training.case_metrics import hu_metrics

SPACING = (2.0, 3.5, 3.5)
THICK = (10.0, 3.5, 3.5)
NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def chests():
    return {
        name: chest_phantom(seed, shape=(46, 72, 92), spacing=SPACING).thin
        for seed, name in enumerate(NAMES)
    }


def off(slab, by, seed=0):
    """A prediction that is off by noise of ``by`` HU and a bias of 3."""
    return (
        np.rint(slab + np.random.default_rng(seed).normal(3, by, slab.shape))
        .clip(-1024, 3071)
        .astype(np.int16)
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory, chests):
    folder = tmp_path_factory.mktemp("made")
    for index, (name, slab) in enumerate(chests.items()):
        save(folder / "truth" / f"{name}.nii.gz", slab, spacing=SPACING)
        save(
            folder / "thick" / f"{name}.nii.gz",
            np.rint(thicken(slab, 5)).astype(np.int16),
            spacing=THICK,
        )
        save(folder / "good" / f"{name}.nii.gz", off(slab, 20, index), spacing=SPACING)
        save(folder / "bad" / f"{name}.nii.gz", off(slab, 60, index), spacing=SPACING)
    return folder


@pytest.fixture
def folders(tmp_path, made):
    """Truth, thick scans, and two methods on three cases; the test's own to spoil."""
    return shutil.copytree(made, tmp_path / "folders")


def lines_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def evaluated(predictions, references, **options):
    evaluator = Evaluator(predictions, references, **options)
    list(evaluator.run())
    return evaluator.result()


def value(evaluation, method, case, metric, region="whole"):
    (found,) = (
        s.value
        for s in evaluation.scores
        if (s.method, s.case, s.measure.metric, s.measure.region) == (method, case, metric, region)
    )
    return found


def test_every_number_is_what_the_functions_give(folders, chests):
    evaluation = evaluated(
        {"good": folders / "good", "bad": folders / "bad"},
        folders / "truth",
        inputs=folders / "thick",
    )
    assert evaluation.problems == []
    assert evaluation.methods == ["good", "bad"]
    for index, (name, truth) in enumerate(chests.items()):
        lung = lung_mask(truth, SPACING)
        for method, noise in (("good", 20), ("bad", 60)):
            expected = hu_metrics(off(truth, noise, index), truth, lung)
            for metric in ("mae", "rmse", "psnr", "ssim"):
                assert value(evaluation, method, name, metric) == pytest.approx(
                    expected[metric], rel=1e-6
                )
                assert value(evaluation, method, name, metric, "lungs") == pytest.approx(
                    expected[f"lung_{metric}"], rel=1e-6
                )
        assert value(evaluation, "good", name, "bias", "lungs") == pytest.approx(3, abs=0.5)
        inside = truth[lung]
        assert value(evaluation, "truth", name, "laa950", "lungs") == pytest.approx(
            100 * (inside < -950).mean()
        )
        assert value(evaluation, "truth", name, "perc15", "lungs") == pytest.approx(
            np.percentile(inside, 15), abs=1
        )
        # Noise averages out in the thick slices, the bias stays.
        assert value(evaluation, "good", name, "consistency_bias") == pytest.approx(3, abs=0.5)
        assert value(evaluation, "good", name, "consistency") < value(
            evaluation, "bad", name, "consistency"
        )
    maes = [value(evaluation, "good", name, "mae", "lungs") for name in NAMES]
    (summary,) = (
        s
        for s in evaluation.summaries
        if (s.method, s.measure.metric, s.measure.region) == ("good", "mae", "lungs")
    )
    assert summary.mean == pytest.approx(np.mean(maes))
    assert summary.cases == 3
    assert math.isnan(summary.low)  # three cases are too few for an interval
    (difference,) = (
        d
        for d in evaluation.differences
        if (d.measure.metric, d.measure.region) == ("mae", "lungs")
    )
    assert (difference.method, difference.other, difference.cases) == ("good", "bad", 3)
    assert difference.mean == pytest.approx(
        np.mean(maes) - np.mean([value(evaluation, "bad", n, "mae", "lungs") for n in NAMES])
    )
    assert math.isnan(difference.high)
    assert difference.p == pytest.approx(0.25)  # the least that three pairs can give: 2 / 2 ** 3
    assert evaluation.files["a"].keys() == {"thick", "good", "bad", "truth"}


def test_protocols_say_what_they_are(folders, chests):
    evaluation = evaluated(
        {"good": folders / "good"}, folders / "truth", protocol="rplhr", fidelity=False
    )
    truth = chests["b"]
    expected = quality(off(truth, 20, 1), truth, protocol=PROTOCOLS["rplhr"])["whole"]
    assert value(evaluation, "good", "b", "psnr") == pytest.approx(expected.psnr)
    clipped = np.clip([off(truth, 20, 1)[5:-5], truth[5:-5]], -1024, 2048).astype(float)
    assert value(evaluation, "good", "b", "mae") == pytest.approx(
        np.abs(clipped[0] - clipped[1]).mean(), rel=1e-6
    )
    measures = {s.measure.metric: s.measure for s in evaluation.scores}
    assert measures["psnr"].range == 3072
    assert measures["mae"].window == (-1024, 2048)
    assert all("5 slices left out at each end" in measure.kind for measure in measures.values())
    assert "[-1024, 2048]" in screen(evaluation)


@pytest.mark.parametrize("codes", ["RAS", "SPL", "PRI"])
def test_the_files_orientation_plays_no_part(folders, chests, tmp_path, codes):
    straight = evaluated({"good": folders / "good"}, folders / "truth")
    for index, (name, slab) in enumerate(chests.items()):
        save(
            tmp_path / "turned" / f"{name}.nii.gz",
            off(slab, 20, index),
            spacing=SPACING,
            codes=codes,
        )
    turned = evaluated({"good": tmp_path / "turned"}, folders / "truth")
    assert turned.problems == []
    assert [(s.case, s.measure, s.value) for s in turned.scores] == [
        (s.case, s.measure, s.value) for s in straight.scores
    ]


class TestFaults:
    """Each a clear line; the other cases are measured as if nothing were."""

    @pytest.mark.parametrize(
        ("slab", "options", "measured", "reason"),
        [
            (
                lambda s: s,
                {"start": 2.0},
                True,
                "slice offset of 1 from the reference: 45 of 46 slices compared",
            ),
            (lambda s: s, {"start": 1.0}, False, r"\(0.00, 0.00, 1.00\) mm from the reference's"),
            (
                lambda s: s[:, :-1],
                {},
                False,
                "46 x 71 x 92 voxels against the reference's 46 x 72 x 92",
            ),
            (
                lambda s: s,
                {"spacing": (2.5, 3.5, 3.5)},
                False,
                "voxels of 2.5 x 3.5 x 3.5 mm against the reference's 2 x 3.5 x 3.5 mm",
            ),
            (
                lambda s: np.roll(s, -1, 0),
                {},
                True,
                "agrees clearly better with the reference when shifted by 1 slice",
            ),
            (
                lambda s: s[::-1],
                {},
                True,
                "agrees clearly better with the reference when turned upside down",
            ),
            (
                lambda s: s[:, :, ::-1],
                {},
                True,
                "agrees clearly better with the reference when turned left to right",
            ),
        ],
    )
    def test_wrong_place(self, folders, chests, slab, options, measured, reason):
        save(folders / "good" / "b.nii.gz", slab(chests["b"]), **{"spacing": SPACING, **options})
        evaluation = evaluated({"good": folders / "good"}, folders / "truth", fidelity=False)
        assert [(p.method, p.case, p.measured) for p in evaluation.problems][:1] == [
            ("good", "b", measured)
        ]
        assert any(re.search(reason, problem.reason) for problem in evaluation.problems)
        assert {s.case for s in evaluation.scores} == (set(NAMES) if measured else {"a", "c"})

    def test_missing_extra_and_broken(self, folders, chests, capsys):
        (folders / "good" / "a.nii.gz").rename(folders / "good" / "d.nii.gz")
        (folders / "good" / "b.nii.gz").write_bytes(b"no volume")
        assert (
            main(
                [
                    "evaluate",
                    str(folders / "good"),
                    str(folders / "truth"),
                    "--output",
                    str(folders / "out"),
                    "--report",
                    "false",
                ]
            )
            == 1
        )
        lines = [
            (line["case"], line["reason"], line["measured"])
            for line in lines_of(folders / "out" / "problems.csv")
        ]
        assert lines[:2] == [
            ("a", "no prediction of this name", "False"),
            ("d", "no reference of this name", "False"),
        ]
        assert lines[2][0] == "b"
        assert "b.nii.gz: not a NIfTI file" in lines[2][1]
        assert len(lines) == 3
        out = capsys.readouterr().out
        assert "3 problems:" in out
        assert "good, a: no prediction of this name (not measured)" in out
        summary = lines_of(folders / "out" / "summary.csv")
        assert {
            line["cases"]
            for line in summary
            if line["method"] == "good" and line["metric"] == "mae"
        } == {"1"}

    def test_thick_scan_of_something_else(self, folders, chests):
        save(folders / "thick" / "b.nii.gz", chests["b"][::4], spacing=(8.5, 3.5, 3.5))
        evaluation = evaluated(
            {"good": folders / "good"}, folders / "truth", inputs=folders / "thick"
        )
        assert [(p.method, p.case, p.measured) for p in evaluation.problems] == [
            ("good", "b", True),
            ("thick", "b", True),
        ]
        reasons = [p.reason.split(": ")[0] for p in evaluation.problems]
        assert reasons == ["no consistency", "no lung density"]
        assert value(evaluation, "good", "b", "mae") > 0

    def test_a_broken_reference(self, folders):
        (folders / "truth" / "c.nii.gz").write_bytes(b"")
        evaluation = evaluated({"good": folders / "good"}, folders / "truth", fidelity=False)
        assert [(p.method, p.case, p.measured) for p in evaluation.problems] == [
            ("truth", "c", False)
        ]
        assert {s.case for s in evaluation.scores} == {"a", "b"}

    def test_a_prediction_that_is_not_in_hu(self, folders, chests):
        """It is refused, or converted to HU on request; it is never measured as if it were HU."""
        save(
            folders / "good" / "b.nii.gz",
            (chests["b"].clip(-1024, 2048) + 1024) / np.float32(3072),
            spacing=SPACING,
        )
        evaluation = evaluated({"good": folders / "good"}, folders / "truth", fidelity=False)
        (problem,) = evaluation.problems
        assert (problem.case, problem.measured) == ("b", False)
        assert "HU" in problem.reason
        evaluation = evaluated(
            {"good": folders / "good"},
            folders / "truth",
            fidelity=False,
            intensity="rplhr",
            protocol="rplhr",
        )
        assert evaluation.problems == []
        assert value(evaluation, "good", "b", "mae") < 0.01


def test_methods_are_compared_on_the_slices_that_all_have(folders, chests):
    """Also the thick scan and the truth, or a difference would be one of places."""
    save(folders / "bad" / "b.nii.gz", off(chests["b"], 20, 1)[10:31], spacing=SPACING, start=20.0)
    evaluation = evaluated(
        {"good": folders / "good", "bad": folders / "bad"},
        folders / "truth",
        inputs=folders / "thick",
    )
    note = (
        "methods cover different slices of the reference (good has 0 to 45, bad has 10 to 30): all "
        "are compared on 10 to 30"
    )
    assert note in [p.reason for p in evaluation.problems if p.case == "b"]
    assert value(evaluation, "good", "b", "mae") == value(evaluation, "bad", "b", "mae")
    lung = lung_mask(chests["b"], SPACING)[10:31]
    inside = chests["b"][10:31][lung]
    assert value(evaluation, "truth", "b", "laa950", "lungs") == 100 * (inside < -950).mean()
    thick = np.rint(thicken(chests["b"], 5))[2:7][lung[::5]]
    assert value(evaluation, "thick", "b", "perc15", "lungs") == np.percentile(thick, 15)


def test_a_method_that_shares_no_slice_with_the_first_is_not_measured(folders, chests):
    save(folders / "good" / "b.nii.gz", chests["b"][:20], spacing=SPACING)
    save(folders / "bad" / "b.nii.gz", chests["b"][30:], spacing=SPACING, start=60.0)
    evaluation = evaluated(
        {"good": folders / "good", "bad": folders / "bad"}, folders / "truth", fidelity=False
    )
    assert [(p.method, p.case, p.reason) for p in evaluation.problems] == [
        ("bad", "b", "it has no slice in common with the other methods")
    ]


def test_cases_without_a_thick_scan_are_told(folders):
    (folders / "thick" / "b.nii.gz").unlink()
    evaluation = evaluated({"good": folders / "good"}, folders / "truth", inputs=folders / "thick")
    assert [(p.method, p.case, p.reason.split(": ")[1]) for p in evaluation.problems] == [
        ("thick", "b", "no thick scan of this name")
    ]


class TestLungs:
    @pytest.mark.parametrize("codes", ["SLP", "PRI"])
    def test_masks_stored_in_another_orientation(self, folders, chests, codes):
        for name, slab in chests.items():
            mask = lung_mask(slab, SPACING).astype(np.uint8)
            save(folders / "masks" / f"{name}.nii.gz", mask, spacing=SPACING, codes=codes)
        turned = evaluated(
            {"good": folders / "good"}, folders / "truth", lungs=folders / "masks", fidelity=False
        )
        plain = evaluated({"good": folders / "good"}, folders / "truth", fidelity=False)
        assert turned.problems == []
        assert [s.value for s in turned.scores] == [s.value for s in plain.scores]

    def test_masks_from_a_folder(self, folders, chests):
        mask = np.zeros((46, 72, 92), np.uint8)
        mask[10:20, 30:40, 20:50] = 1
        for name in NAMES:
            save(folders / "masks" / f"{name}.nii.gz", mask, spacing=SPACING, codes="RAS")
        evaluation = evaluated(
            {"good": folders / "good"}, folders / "truth", lungs=folders / "masks", fidelity=False
        )
        expected = np.abs(off(chests["a"], 20, 0).astype(float) - chests["a"])[mask > 0].mean()
        assert value(evaluation, "good", "a", "mae", "lungs") == pytest.approx(expected, rel=1e-6)

    def test_none(self, folders):
        evaluation = evaluated({"good": folders / "good"}, folders / "truth", lungs="none")
        assert {s.measure.region for s in evaluation.scores if s.measure.metric == "mae"} == {
            "whole"
        }

    def test_no_lung_and_no_mask_are_told(self, folders, chests):
        save(folders / "masks" / "a.nii.gz", np.zeros((46, 72, 92), np.uint8), spacing=SPACING)
        save(folders / "masks" / "b.nii.gz", np.ones((40, 72, 92), np.uint8), spacing=SPACING)
        evaluation = evaluated(
            {"good": folders / "good"}, folders / "truth", lungs=folders / "masks", fidelity=False
        )
        reasons = [(p.case, p.reason.split(": ", 1)) for p in evaluation.problems]
        assert [case for case, _ in reasons] == ["a", "b", "c"]
        assert all(start == "whole volume only" for _, (start, _) in reasons)
        for (_, (_, reason)), part in zip(
            reasons, ("no lung found", "does not cover", "no lung mask of this name"), strict=True
        ):
            assert part in reason
        assert {s.measure.region for s in evaluation.scores} == {"whole"}


def test_baselines_are_the_interpolations(folders, chests):
    evaluation = evaluated(
        {"good": folders / "good"},
        folders / "truth",
        inputs=folders / "thick",
        baselines=["linear", "cubic"],
        baselines_dir=folders / "lines",
    )
    assert evaluation.methods == ["good", "linear", "cubic"]
    for kind in ("linear", "cubic"):
        thick = np.rint(thicken(chests["c"], 5))
        thin = np.rint(np.concatenate(list(interpolated(thick, 5, kind=kind)))).clip(-1024, 3071)
        expected = hu_metrics(thin, chests["c"])
        assert value(evaluation, kind, "c", "rmse") == pytest.approx(expected["rmse"], rel=1e-6)
        assert evaluation.files["c"][kind] == folders / "lines" / kind / "c.nii.gz"
    # Interpolation takes the slices that are there as they are, and blurs what is between.
    assert value(evaluation, "linear", "c", "sharpness", "lungs") < 0.5 * value(
        evaluation, "truth", "c", "sharpness", "lungs"
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"protocol": "mine"}, "Expected a protocol among paper, rplhr, mss-ct, got 'mine'"),
        ({"baselines": ["spline"]}, "Expected baselines among linear, cubic, got spline"),
        ({"baselines": ["cubic"]}, "thick scans that baselines interpolate"),
        ({"baselines": ["cubic"], "inputs": "thick"}, "a folder to write baselines to"),
        ({"inputs": "nowhere"}, "found nothing at .*nowhere"),
        ({"inputs": "other"}, "thick scans include 'x', references include 'a'"),
        ({"lungs": "nowhere"}, "found nothing at .*nowhere"),
    ],
)
def test_refused(folders, options, reason):
    for name in "xy":
        save(folders / "other" / f"{name}.nii.gz", np.zeros((3, 4, 4), np.int16))
    given = {key: folders / v if key in ("inputs", "lungs") else v for key, v in options.items()}
    with pytest.raises(ValueError, match=reason):
        Evaluator({"good": folders / "good"}, folders / "truth", **given)


@pytest.mark.parametrize("name", ["truth", "thick"])
def test_names_must_differ(folders, name):
    with pytest.raises(ValueError, match=f"other than 'truth' and 'thick', got {name}"):
        Evaluator({name: folders / "good"}, folders / "truth")


class TestCommand:
    def test_two_methods(self, folders, capsys):
        words = [
            "evaluate",
            str(folders / "good"),
            str(folders / "truth"),
            "--output",
            str(folders / "out"),
        ]
        words += [
            "--against",
            f"bad={folders / 'bad'}",
            "--inputs",
            str(folders / "thick"),
            "--baselines",
            "cubic",
        ]
        assert main(words) == 0
        found = capsys.readouterr()
        assert "good - cubic" in found.out
        lines = [line.split(":")[0] for line in found.err.splitlines()]
        assert lines[-1] == "3/3 c"
        scores = lines_of(folders / "out" / "scores.csv")
        rmse = [
            s
            for s in scores
            if (s["method"], s["metric"], s["region"], s["case"]) == ("bad", "rmse", "lungs", "a")
        ]
        assert len(rmse) == 1
        assert (rmse[0]["unit"], rmse[0]["window_low"], rmse[0]["window_high"]) == (
            "HU",
            "-1024.0",
            "3071.0",
        )
        content = json.loads((folders / "out" / "evaluation.json").read_text())
        assert content["methods"] == ["good", "bad", "cubic"]
        (same,) = (
            s["value"]
            for s in content["scores"]
            if (s["method"], s["measure"]["metric"], s["measure"]["region"], s["case"])
            == ("bad", "rmse", "lungs", "a")
        )
        assert same == pytest.approx(float(rmse[0]["value"]))
        assert (folders / "out" / "baselines" / "cubic" / "a.nii.gz").is_file()
        page = (folders / "out" / "report.html").read_text()
        assert "good" in page
        assert not [path for path in (folders / "out").iterdir() if path.name.startswith(".")]

    def test_bad_input_is_exit_status_two(self, folders, capsys):
        assert (
            main(
                [
                    "evaluate",
                    str(folders / "good"),
                    str(folders / "truth"),
                    "--against",
                    str(folders / "bad"),
                ]
            )
            == 2
        )
        assert "as NAME=DIR,NAME=DIR" in capsys.readouterr().err
        assert main(["evaluate", str(folders / "good"), str(folders / "nowhere")]) == 2
        assert "nowhere" in capsys.readouterr().err

    def test_a_problem_is_told_by_the_exit_status(self, folders, chests, capsys):
        """Also one that is measured, such as a shifted affine."""
        prediction = off(chests["b"], 20)
        save(folders / "good" / "b.nii.gz", prediction, spacing=SPACING, start=2.0)
        words = ["evaluate", str(folders / "good"), str(folders / "truth"), "--lungs", "none"]
        words += ["--fidelity", "false", "--report", "false", "--output", str(folders / "out")]
        assert main(words) == 1
        assert "slice offset of 1 from the reference" in capsys.readouterr().out

    def test_help_names_the_options(self, capsys):
        assert main(["evaluate", "--help"]) == 0
        out = capsys.readouterr().out
        assert all(
            word in out
            for word in ("PREDICTIONS", "REFERENCES", "--protocol", "--baselines", "--against")
        )


def test_perfect_predictions(folders, tmp_path):
    """PSNR is infinite, which JSON does not know."""
    evaluation = evaluated({"truth itself": folders / "truth"}, folders / "truth", fidelity=False)
    assert value(evaluation, "truth itself", "a", "psnr") == np.inf
    assert value(evaluation, "truth itself", "a", "ssim", "lungs") == pytest.approx(1)
    write_tables(evaluation, tmp_path / "tables")
    content = json.loads((tmp_path / "tables" / "evaluation.json").read_text())
    assert [s["mean"] for s in content["summaries"] if s["measure"]["metric"] == "psnr"] == [
        None
    ] * 3
    assert "inf" in screen(evaluation)


def test_single_files(tmp_path, chests):
    image = nifti(chests["a"], spacing=SPACING)
    for name in ("mine", "its_truth"):
        image.to_filename(tmp_path / f"{name}.nii.gz")
    save(tmp_path / "scan.nii.gz", np.rint(thicken(chests["a"], 5)).astype(np.int16), spacing=THICK)
    save(tmp_path / "mask.nii.gz", (chests["a"] < -600).astype(np.uint8), spacing=SPACING)
    evaluation = evaluated(
        {"mine": tmp_path / "mine.nii.gz"},
        tmp_path / "its_truth.nii.gz",
        inputs=tmp_path / "scan.nii.gz",
        lungs=tmp_path / "mask.nii.gz",
    )
    assert evaluation.problems == []
    assert {s.case for s in evaluation.scores} == {"its_truth"}
    assert value(evaluation, "mine", "its_truth", "consistency", "lungs") < 1


def test_error_maps(folders, chests, tmp_path, capsys):
    """A perfect map, one of chance, and a missing one; maps beside predictions are no volumes."""
    good = folders / "good"
    for index, (name, slab) in enumerate(list(chests.items())[:2]):
        error = np.abs(off(slab, 20, index).astype(np.int32) - slab)
        shuffled = np.random.default_rng(0).permutation(error.ravel()).reshape(error.shape)
        save(
            good / f"{name}_error.nii.gz",
            (error, shuffled)[index].astype(np.int16),
            spacing=SPACING,
        )
    args = ["evaluate", str(good), str(folders / "truth"), "--error_maps", str(good)]
    assert main([*args, "--fidelity", "false", "--report", "false", "--output", str(tmp_path)]) == 1
    found = {
        (line["case"], line["metric"].removeprefix("error_map_"), line["region"]): line["value"]
        for line in lines_of(tmp_path / "scores.csv")
    }
    assert float(found["a", "rank_correlation", "lungs"]) == pytest.approx(1)
    assert float(found["a", "auc_50", "lungs"]) == pytest.approx(1)
    assert float(found["a", "calibration_error", "whole"]) == pytest.approx(0)
    assert float(found["a", "sparsification", "lungs"]) == pytest.approx(0)
    assert float(found["a", "reliability", "10 to 15 HU"]) == pytest.approx(12, abs=0.2)
    assert float(found["a", "sparsified", "0% removed, oracle"]) == pytest.approx(1)
    assert float(found["b", "rank_correlation", "whole"]) == pytest.approx(0, abs=0.02)
    assert float(found["b", "auc_50", "whole"]) == pytest.approx(0.5, abs=0.1)
    assert float(found["b", "bias", "whole"]) == pytest.approx(0, abs=0.01)
    assert ("c", "rank_correlation", "whole") not in found
    measured = json.loads((tmp_path / "evaluation.json").read_text())["error_maps"]
    assert measured == {name: str(good / f"{name}_error.nii.gz") for name in "ab"}
    problems = lines_of(tmp_path / "problems.csv")
    assert [(line["case"], line["reason"]) for line in problems] == [
        ("c", "no error map: none of the name c_error or c")
    ]


def test_error_map_of_another_grid(folders, chests):
    save(folders / "maps" / "a.nii.gz", np.abs(chests["a"][:-1]), spacing=SPACING)
    save(folders / "maps" / "b.nii.gz", chests["b"], spacing=SPACING)
    found = evaluated(
        {"good": folders / "good"}, folders / "truth", fidelity=False, error_maps=folders / "maps"
    )
    reasons = {problem.case: problem.reason for problem in found.problems}
    assert "a.nii.gz has 45 slices, its prediction 46" in reasons["a"]
    assert "b.nii.gz has values down to -1" in reasons["b"]
