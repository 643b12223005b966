"""`mpunet benchmark`: finding, training, measuring and resuming rows; failures; tables, curves."""

from __future__ import annotations

import csv
import json
import re
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from processes import Command
from torch import nn

from mpunet.__main__ import main
from mpunet.benchmark import Benchmark, Row, find_rows
from mpunet.benchmark.network import flops_per_slice
from mpunet.benchmark.run import Outcome
from mpunet.benchmark.table import draw_curves, learning_curve, markdown, write_csv
from mpunet.phantom.chest import phantom_image

EXAMPLES = Path(__file__).parents[2] / "examples" / "table1"
CHOICES = EXAMPLES.with_name("choices")


class TestRows:
    def test_folder_in_order_without_the_base(self, tmp_path: Path) -> None:
        for name in ("10_b.yaml", "02_a.yaml", "base.yaml", "notes.txt"):
            (tmp_path / name).write_text("model: {net: {class_path: x.Y}}")
        rows = find_rows([tmp_path])
        assert [row.name for row in rows] == ["a", "b"]
        assert rows[0].section("model", "net") == {"class_path": "x.Y"}
        assert rows[0].section("data", "crop") is None

    def test_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"found nothing at .*gone"):
            find_rows([tmp_path / "gone"])
        with pytest.raises(ValueError, match="found none"):
            find_rows([tmp_path])
        for name in ("1_a.yaml", "2_a.yaml"):
            (tmp_path / name).touch()
        with pytest.raises(ValueError, match="a different name for each row, got a twice"):
            find_rows([tmp_path])

    def test_table_1_has_every_combination(self) -> None:
        """Sub-pixel to progressive; feature matching, contrast-aware loss, streams on and off."""
        rows = {row.name: row for row in find_rows([EXAMPLES])}
        assert list(rows)[:4] == ["bicubic", "srcnn", "vnet", "subpixel"]
        switches = set()
        for row in rows.values():
            objective = row.section("model", "objective", "init_args") or {}
            if (
                row.section("model", "net", "class_path") == "mpunet.MPUNet"
                and row.section("model", "critic") is None
            ):
                streams = len(row.section("model", "net", "init_args", "streams")) == 3
                switches.add(
                    (streams, objective["inner_loss"] == "contrast_aware", row.needs_imagenet)
                )
        assert switches == {
            (a, b, c) for a in (False, True) for b in (False, True) for c in (False, True)
        }
        assert {name for name, row in rows.items() if row.section("model", "critic")} == {
            "mpunet_wgan",
            "streams_contrast_wgan",
        }

    def test_each_choice_changes_something_of_the_reference(self) -> None:
        """A row inherits arguments that it does not give from a base with the same class.

        Leaving one out must change nothing.
        """
        base = yaml.safe_load((CHOICES / "base.yaml").read_text())
        runs = {row.name: _merged(base, row.section()) for row in find_rows([CHOICES])}
        assert runs["reference"]["model"]["objective"]["init_args"]["image"] == 1
        for name, run in runs.items():
            assert [other for other in runs if runs[other] == run] == [name]


def _merged(base: dict, row: dict) -> dict:
    return {
        key: _merged(base[key], row[key])
        if isinstance(base.get(key), dict) and isinstance(row.get(key), dict)
        else row.get(key, base.get(key))
        for key in base | row
    }


def test_flops_of_a_convolution() -> None:
    class Conv(nn.Conv3d):
        n_thick, ratio, multiple = 2, 4, 1

    # 2 operations for each of 27 weights, 3 output channels and 2 slices of the window, divided by
    # the 4 slices that a window adds.
    expected = 2 * 27 * 3 * 2 * 512 * 512 / 4 / 1e9
    assert flops_per_slice(Conv(1, 3, 3, padding=1)) == pytest.approx(expected)


class TestTable:
    def outcomes(self) -> list[Outcome]:
        keys = ("mae", "rmse", "psnr", "ssim")
        metrics = dict(zip(keys, (1.0, 2.5, 30.25, 0.98764), strict=True))
        metrics |= {f"lung_{key}": value + 1 for key, value in metrics.items()}
        result = {
            "metrics": metrics,
            "cases": {},
            "parameters": 1234,
            "gflops": 5.25,
            "seconds": 2.0,
            "peak_mb": 100.4,
        }
        return [
            Outcome(Row("good", Path()), "done", None, result),  # type: ignore[arg-type]
            Outcome(Row("bad", Path()), "failed", "loss is NaN", None),
            Outcome(Row("vgg", Path()), "not run", "needs weights", None),
        ]

    def test_markdown(self) -> None:
        text = markdown(self.outcomes())
        assert "| good | 1.00 | 2.50 | 30.25 | 0.9876 |" in text
        assert "| good | 2.00 | 3.50 | 31.25 | 1.9876 |" in text
        assert "| good | 1,234 | 5.2 | 2.0 | 100 |" in text
        assert "| bad | failed | | | |" in text
        assert "bad: failed, loss is NaN." in text
        assert "vgg: not run, needs weights." in text

    def test_without_lungs(self, tmp_path: Path) -> None:
        good = self.outcomes()[0]
        assert good.result is not None
        metrics = {k: v for k, v in good.result["metrics"].items() if not k.startswith("lung_")}
        metrics |= {"lung_bias": float("nan"), "perceptual": 0.5}
        good = good._replace(result=good.result | {"metrics": metrics})  # type: ignore[arg-type]
        text = markdown([good])
        assert "| good | - | - | - | - |" in text
        assert "| good | 1.00 | 2.50 | 30.25 | 0.9876 |" in text
        assert "| good | - | - | - | - | 0.500 |" in text
        draw_curves([good], tmp_path, tmp_path / "curves.png")
        assert (tmp_path / "curves.png").is_file()

    def test_csv(self, tmp_path: Path) -> None:
        write_csv(self.outcomes(), tmp_path / "t.csv")
        good, bad, _ = csv.DictReader((tmp_path / "t.csv").read_text().splitlines())
        assert (good["rmse"], good["lung_rmse"], good["parameters"], good["status"]) == (
            "2.5",
            "3.5",
            "1234",
            "done",
        )
        assert (bad["rmse"], bad["reason"]) == ("", "loss is NaN")

    def test_learning_curve_over_restarts(self, tmp_path: Path) -> None:
        for version, lines in {2: ["3,,20.0", "5,,18.0"], 10: ["5,,17.5", "7,0.1,"]}.items():
            (tmp_path / f"version_{version}").mkdir()
            text = "\n".join(["step,train/loss,val/rmse", *lines])
            (tmp_path / f"version_{version}" / "metrics.csv").write_text(text)
        assert learning_curve(tmp_path, "val/rmse") == [(4, 20.0), (6, 17.5)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("benchmark")
    for seed, name in enumerate(("train", "test")):
        (root / name).mkdir()
        nib.save(
            phantom_image(seed, shape=(56, 30, 32), spacing=(1.0, 10.0, 10.0)),
            root / name / f"case{seed}.nii.gz",
        )
    rows = root / "rows"
    rows.mkdir()
    base = yaml.safe_load((EXAMPLES / "base.yaml").read_text())
    base["trainer"] |= {"precision": "32-true", "accelerator": "cpu", "enable_model_summary": False}
    base["data"] |= {"crop": [32, 32], "crops_per_epoch": 100, "cache_dir": str(root / "cache")}
    image = {
        "class_path": "mpunet.losses.Objective",
        "init_args": {"mask": 0, "inner": 0, "outer": 0, "image": 1},
    }
    vgg = {"class_path": "mpunet.losses.Objective", "init_args": {"feature": 1}}
    vnet = {"class_path": "mpunet.models.VNet", "init_args": {"widths": [2, 2]}}
    configs = {
        "1_bicubic": {"net": {"class_path": "mpunet.models.Bicubic"}},
        "2_vnet": {"net": vnet, "objective": image},
        "3_broken": {"net": vnet, "objective": image, "lr": "fast"},
        "5_typo": {"net": {"class_path": "mpunet.models.VNet", "init_args": {"width": 2}}},
        "4_vgg": {"net": {"class_path": "mpunet.MPUNet"}, "objective": vgg},
    }
    (rows / "base.yaml").write_text(yaml.safe_dump(base))
    for name, model in configs.items():
        (rows / f"{name}.yaml").write_text(yaml.safe_dump({"model": model}))
    return root


def forked(words: list[str], log: Path) -> None:
    """Run a row's step in a process that need not import everything anew; its output in the log."""
    ended = Command(words[2:], module=words[1]).wait()
    with log.open("a", encoding="utf-8") as file:
        file.write(ended.out + ended.err)
    if ended.status:
        raise subprocess.CalledProcessError(ended.status, words)


class TestRun:
    def run(self, folder: Path, *extra: str) -> int:
        words = [
            "benchmark",
            "--rows",
            str(folder / "rows"),
            "--train_dir",
            str(folder / "train"),
            "--test_dir",
            str(folder / "test"),
        ]
        return main([*words, "--output_dir", str(folder / "out"), "--validations", "2", *extra])

    def test_table_restart_and_more_steps(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # where nobody has ImageNet weights
        monkeypatch.setattr(torch.hub, "download_url_to_file", no_internet)
        monkeypatch.setattr(Benchmark, "_python", staticmethod(forked))
        assert self.run(folder, "--steps", "5") == 1
        out, printed = folder / "out", capsys.readouterr().out
        assert "broken: failed" in printed
        assert "'fast'" in printed or "fast" in printed.split("broken: failed")[1]
        assert "vgg: not run" in printed
        assert "typo: failed" in printed
        assert "unexpected keyword argument 'width'" in printed
        assert "needs VGG-16's ImageNet weights: give --vgg_weights FILE" in printed
        table = (out / "table.md").read_text()
        assert table.count("| bicubic |") == table.count("| vnet |") == 4
        result = json.loads((out / "vnet" / "result.json").read_text())
        assert result["cases"].keys() == {"case1"}
        assert result["metrics"]["rmse"] == pytest.approx(result["cases"]["case1"]["rmse"])
        assert [step for step, _ in learning_curve(out / "vnet", "val/rmse")] == [2, 4]
        assert (
            torch.load(out / "vnet" / "last.ckpt", weights_only=True)["global_step"] == 5
        )  # not only the last validation
        for picture in ("curves.png", "coronal.png"):
            assert (out / picture).stat().st_size > 5000
        assert (
            np.load(out / "vnet" / "coronal.npy").shape
            == np.load(out / "bicubic" / "truth.npy").shape
        )

        # Again: nothing that is done is done again, and the one that failed is tried.
        before = (out / "vnet" / "result.json").stat().st_mtime_ns
        for name in ("3_broken", "5_typo"):
            (folder / "rows" / f"{name}.yaml").unlink()
        assert self.run(folder, "--steps", "5") == 0
        assert (out / "vnet" / "result.json").stat().st_mtime_ns == before

        # Results of different budgets do not stand in one table.
        assert self.run(folder, "--steps", "6") == 1
        assert (
            "vnet was started with {'steps': 5, 'minutes': None}, not with {'steps': 6"
            in capsys.readouterr().out
        )

    def test_an_interrupted_row_goes_on(self, folder: Path, tmp_path: Path) -> None:
        benchmark = Benchmark(
            str(folder / "rows" / "2_vnet.yaml"),
            str(folder / "train"),
            str(folder / "test"),
            str(tmp_path),
            steps=4,
            validations=2,
        )
        (tmp_path / "vnet").mkdir()
        benchmark._fit(
            benchmark.rows[0], tmp_path / "vnet", tmp_path / "vnet" / "train.log", 2, resume=None
        )
        [outcome] = benchmark.run()
        assert outcome.status == "done"
        assert torch.load(tmp_path / "vnet" / "last.ckpt", weights_only=True)["global_step"] == 4
        assert (
            "Restored all states from the checkpoint"
            in (tmp_path / "vnet" / "train.log").read_text()
        )

    def test_refused(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(folder) == 2
        assert "give either steps or minutes" in capsys.readouterr().err
        assert self.run(folder, "--steps", "-1") == 2
        assert "budget above 0, got -1" in capsys.readouterr().err
        assert self.run(folder, "--steps", "1", "--vgg_weights", str(folder / "no.pth")) == 2
        assert "VGG-16's weights, found none at" in capsys.readouterr().err
        with pytest.raises(
            ValueError, match=r"a folder of volumes or a CSV of pairs, found nothing at .*gone"
        ):
            Benchmark(
                str(folder / "rows"),
                str(folder / "gone"),
                str(folder / "test"),
                str(folder / "x"),
                steps=1,
            )

    def test_measured_on_the_slices_that_options_ask_for(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """What ``options`` say of data overrides the base for the test cases too."""
        rows, scans = str(folder / "rows"), str(folder / "train")
        options = ["--data.profile=box", "--trainer.devices", "1", "--data.cache_dir", "somewhere"]
        options += ["--inference.tile=320", "--data.check_data=false", "--data.intensity", "rplhr"]
        options += ["--data.lung_masks=lungmask", "--data.batch_size=4", "--data.seed", "7"]
        benchmark = Benchmark(rows, scans, scans, str(tmp_path), steps=1, options=options)
        monkeypatch.setattr(Benchmark, "_python", lambda *_: None)
        benchmark._measure(benchmark._task(benchmark.rows[0], tmp_path, trained=False))
        task = json.loads((tmp_path / "task.json").read_text())
        assert task["tile"] == 320
        assert task["data"] == {
            "profile": "box",
            "cache_dir": "somewhere",
            "check_data": False,
            "intensity": "rplhr",
            "lung_masks": "lungmask",
            "test_dir": scans,
        }

    def test_the_network_may_be_in_the_base(self, folder: Path, tmp_path: Path) -> None:
        scans = str(folder / "train")
        net = {"class_path": "mpunet.models.VNet", "init_args": {"widths": [2, 2]}}
        (tmp_path / "a.yaml").write_text("{model: {lr: 0.1}}")
        (tmp_path / "base.yaml").write_text(yaml.safe_dump({"model": {"net": net}}))
        benchmark = Benchmark(str(tmp_path), scans, scans, str(tmp_path / "out"), steps=1)
        assert benchmark._is_trained(benchmark.rows[0])
        assert benchmark._task(benchmark.rows[0], tmp_path, trained=False)["net"] == net
        (tmp_path / "base.yaml").write_text("{}")
        [outcome] = Benchmark(str(tmp_path), scans, scans, str(tmp_path / "out"), steps=1).run()
        assert "a network (model.net) in" in (outcome.reason or "")
        assert outcome.status == "failed"

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({}, None),
            ({"options": ["--data.num_workers=0", "--data.cache_dir", "elsewhere"]}, None),
            ({"options": ["--model.lr", "0.2"]}, r"trained .*\(model.lr was 0.1, is 0.2\).*folder"),
            ({"train_dir": "test"}, r"trained .*train_dir was '.*/train', is '.*/test'"),
            ({"test_dir": "rows"}, r"measured .*test_dir was '.*/test', is '.*/rows'.*result.json"),
            ({"stride": "fast"}, r"measured .*stride was 'best', is 'fast'"),
            ({"vgg_weights": "rows/base.yaml"}, r"measured .*vgg_weights was None, is '.*/base"),
        ],
    )
    def test_results_of_other_settings_are_not_taken(
        self,
        folder: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        change: dict,
        reason: str | None,
    ) -> None:
        monkeypatch.chdir(folder)
        net = {"class_path": "mpunet.models.VNet", "init_args": {"widths": [2, 2]}}
        (tmp_path / "a.yaml").write_text(yaml.safe_dump({"model": {"net": net, "lr": 0.1}}))
        given = {"base": "rows/base.yaml", "train_dir": "train", "test_dir": "test", "steps": 1}
        given |= {"rows": str(tmp_path / "a.yaml"), "output_dir": str(tmp_path)}

        def result(benchmark: Benchmark, *_: object, **__: object) -> None:
            (benchmark.output / "a" / "result.json").write_text("{}")

        monkeypatch.setattr(Benchmark, "_train", lambda *_: None)
        monkeypatch.setattr(Benchmark, "_measure", result)
        assert [outcome.status for outcome in Benchmark(**given).run()] == ["done"]
        [outcome] = Benchmark(**given | change).run()
        if reason is None:
            assert outcome.status == "done"
        else:
            assert re.search(reason, outcome.reason or "")
        # Results of earlier versions do not say how they were made.
        (tmp_path / "a" / "settings.json").unlink()
        assert [outcome.status for outcome in Benchmark(**given | change).run()] == ["done"]

    def test_minutes_become_steps(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        benchmark = Benchmark(
            str(folder / "rows"),
            str(folder / "train"),
            str(folder / "test"),
            str(tmp_path),
            minutes=2,
        )
        clock = iter([0.0, 8.0, 10.0, 21.0])  # ten steps in 8 s, forty in 11 s: 0.1 s each
        monkeypatch.setattr("mpunet.benchmark.run.time.monotonic", lambda: next(clock))
        monkeypatch.setattr(Benchmark, "_fit", lambda *args, **options: None)
        (tmp_path / "vnet").mkdir()
        for _ in range(2):  # the second time from the file
            assert benchmark._steps(benchmark.rows[1], tmp_path / "vnet") == 1200


def no_internet(*args: object, **options: object) -> None:
    raise OSError("no internet")
