"""Train and measure the rows of a benchmark, one after the other, and resume after interruptions.

Each row runs in separate processes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import yaml

from mpunet.benchmark.measure import Result, Task
from mpunet.benchmark.program import last_line, unset_variables
from mpunet.benchmark.rows import Row, find_rows
from mpunet.benchmark.settings import OF_TEST_CASES, check_same, flat, merged_net
from mpunet.config import from_config
from mpunet.inference.options import Stride
from mpunet.losses import VGG16Features
from mpunet.weights import read_checkpoint

__all__ = ["Benchmark", "Outcome"]


class Outcome(NamedTuple):
    """Outcome of a row.

    Attributes:
        row: the method.
        status: "done", "not run" (a file, package or environment variable that the row needs is
            missing) or "failed".
        reason: why the row is not done; None if it is.
        result: metrics and costs; None if the row is not done.
    """

    row: Row
    status: Literal["done", "not run", "failed"]
    reason: str | None
    result: Result | None


class Benchmark:
    """Train methods (rows) under the same conditions and measure them on the same cases.

    A row is a network, or the command line of an external program, which is only measured; see
    :class:`mpunet.benchmark.program.Program`. All networks train on the same crops in the same
    order, for the same number of steps or minutes. Each row has a folder with its name, with
    ``train.log``, ``last.ckpt``, ``version_*/metrics.csv`` (learning curves), ``settings.json`` and
    ``result.json``. A row with a result is skipped, a row with a checkpoint is resumed, both only
    with the same settings, and a row that fails does not stop the others.

    Args:
        rows: folder of YAML files, one for each row, or a list of files and folders; see
            :func:`mpunet.benchmark.find_rows`.
        base: YAML file with the options that all rows share; default ``base.yaml`` in the folder of
            the first row.
        train_dir: training data, as for ``mpunet fit``.
        test_dir: test data. Learning curves are measured on it too, but no checkpoint is selected
            by them: the last checkpoint is measured.
        output_dir: folder for the results.
        steps: training steps of each row. Give either steps or minutes.
        minutes: training time of each row in minutes. It is converted to steps by timing 30 steps
            first.
        stride: thick slices between windows in the reconstruction of test cases: a number, "best"
            (1) or "fast" (n_thick - 2).
        validations: number of points of each learning curve; 0 for no curves.
        vgg_weights: file with VGG-16's ImageNet weights, for rows with feature matching and for the
            perceptual distance of all. Without it and without torchvision's copy, these rows are
            not run; without it the distance is not measured.
        options: further options of ``mpunet fit`` for all rows, such as
            ``["--trainer.devices", "2"]``.

    Raises:
        ValueError: if not exactly one of steps and minutes is given, it is not above 0, or a file
            or folder is missing.
    """

    def __init__(
        self,
        rows: str | list[str],
        train_dir: str,
        test_dir: str,
        output_dir: str,
        *,
        base: str | None = None,
        steps: int | None = None,
        minutes: float | None = None,
        stride: Stride = "best",
        validations: int = 8,
        vgg_weights: str | None = None,
        options: Sequence[str] = (),
    ) -> None:
        if (steps is None) == (minutes is None):
            raise ValueError("Expected a budget for each row: give either steps or minutes.")
        if not (steps or minutes or 0) > 0:
            raise ValueError(
                f"Expected a budget above 0, got {steps if minutes is None else minutes}."
            )
        self.rows = find_rows([Path(row) for row in ([rows] if isinstance(rows, str) else rows)])
        self.base = Path(base) if base else self.rows[0].config.with_name("base.yaml")
        if not self.base.is_file():
            raise ValueError(
                f"Expected a YAML file with the options of all rows at {self.base}: give base."
            )
        for source in (train_dir, test_dir):
            if not Path(source).exists():
                raise ValueError(
                    f"Expected a folder of volumes or a CSV of pairs, found nothing at {source}."
                )
        if vgg_weights is not None and not Path(vgg_weights).is_file():
            raise ValueError(f"Expected a file with VGG-16's weights, found none at {vgg_weights}.")
        self.train_dir = str(Path(train_dir).absolute())
        self.test_dir = str(Path(test_dir).absolute())
        self.output = Path(output_dir)
        self.steps = steps
        self.minutes = minutes
        self.stride = stride
        self.validations = validations
        self.vgg_weights = vgg_weights and str(Path(vgg_weights).absolute())
        self.options = list(options)

    def run(self) -> list[Outcome]:
        """Train and measure every row without a result.

        Returns:
            The outcome of every row, in order.
        """
        outcomes = []
        for row in self.rows:
            start = time.monotonic()
            outcome = self._row(row)
            took = f"{(time.monotonic() - start) / 60:.1f} min"
            reason = f": {outcome.reason}" if outcome.reason else ""
            print(f"{row.name}: {outcome.status}, {took}{reason}", flush=True)
            outcomes.append(outcome)
        return outcomes

    def _row(self, row: Row) -> Outcome:
        folder = self.output / row.name
        folder.mkdir(parents=True, exist_ok=True)
        finished = folder / "result.json"
        try:
            trained = self._is_trained(row)
            if not finished.is_file() and row.needs_imagenet and not self._has_imagenet:
                return Outcome(
                    row, "not run", "needs VGG-16's ImageNet weights: give --vgg_weights FILE", None
                )
            unset = unset_variables(row.command or "")
            if not finished.is_file() and unset:
                variables = ", ".join(f"${name}" for name in unset)
                reason = f"needs {variables}, see {row.config}"
                return Outcome(row, "not run", reason, None)
            task = self._task(row, folder, trained=trained)
            # These raise if the row was started with other settings or another budget, even if it
            # has a result.
            settings = self._check_settings(row, folder, task)
            steps = self._steps(row, folder) if trained else 0
            if not finished.is_file():
                (folder / "settings.json").write_text(json.dumps(settings, indent=2))
                if trained:
                    self._train(row, folder, steps)
                self._measure(task)
            return Outcome(row, "done", None, cast(Result, json.loads(finished.read_text())))
        except subprocess.CalledProcessError:
            return Outcome(row, "failed", last_line(folder / "train.log"), None)
        except (FileNotFoundError, ModuleNotFoundError) as error:
            return Outcome(row, "not run", str(error), None)
        except Exception as error:  # an error in one row must not stop the others
            return Outcome(row, "failed", f"{type(error).__name__}: {error}", None)

    @cached_property
    def _has_imagenet(self) -> bool:
        try:
            VGG16Features(weights=self.vgg_weights)
        except (ValueError, OSError):
            if self.vgg_weights is not None:
                raise
            return False
        return True

    def _is_trained(self, row: Row) -> bool:
        if row.command:
            return False
        network: Any = from_config(self._net(row))
        return any(parameter.requires_grad for parameter in network.parameters())

    def _net(self, row: Row) -> dict[str, Any]:
        net = merged_net((self._base.get("model") or {}).get("net"), row.section("model", "net"))
        if "class_path" not in net:
            raise ValueError(
                f"Expected a network (model.net) in {row.config} or {self.base}, got none."
            )
        return net

    def _check_settings(self, row: Row, folder: Path, task: Task) -> dict[str, dict[str, Any]]:
        """Return the settings that determine the result of the row.

        Raises:
            ValueError: if the folder has a checkpoint or a result of other settings. Folders of
                earlier versions do not say of which; they are accepted.
        """
        training: dict[str, Any] = {}
        if task["checkpoint"]:
            training = flat(self._base) | flat(row.section() or {}) | flat(self._given)
            training["data.train_dir"] = self.train_dir
            if row.needs_imagenet:
                training["vgg_weights"] = self.vgg_weights
        settings: dict[str, dict[str, Any]] = {"training": training, "measuring": flat(task)}
        settings = json.loads(json.dumps(settings, default=str))  # as they come from the file
        finished = (folder / "result.json").is_file()
        if (file := folder / "settings.json").is_file():
            was = json.loads(file.read_text())
            if finished or (folder / "last.ckpt").is_file():
                check_same(
                    was["training"],
                    settings["training"],
                    what=f"{folder} was trained",
                    way_out="give another output_dir, or remove the folder",
                )
            if finished:
                check_same(
                    was["measuring"],
                    settings["measuring"],
                    what=f"{folder} was measured",
                    way_out="give another output_dir, or remove result.json there to measure again",
                )
        return settings

    def _train(self, row: Row, folder: Path, steps: int) -> None:
        checkpoint = folder / "last.ckpt"
        done = read_checkpoint(checkpoint)["global_step"] if checkpoint.is_file() else 0
        if done < steps:
            self._fit(row, folder, folder / "train.log", steps, resume=checkpoint if done else None)

    def _steps(self, row: Row, folder: Path) -> int:
        """Return the training steps of the row.

        They are set once and stored in ``steps.json``, because a restart must not change the
        learning rate schedule.
        """
        budget = {"steps": self.steps, "minutes": self.minutes}
        file = folder / "steps.json"
        if file.is_file():
            stored = json.loads(file.read_text())
            if stored["budget"] != budget:
                raise ValueError(
                    f"{folder} was started with {stored['budget']}, not with {budget}: "
                    "give another output_dir, or remove the folder"
                )
            return int(stored["steps"])
        steps = self.steps
        if steps is None:
            seconds = []
            for trial in (10, 40):
                with tempfile.TemporaryDirectory() as temporary:
                    start, log = time.monotonic(), folder / "train.log"
                    self._fit(row, Path(temporary), log, trial, resume=None, validate=False)
                    seconds.append(time.monotonic() - start)
            each = max(1e-3, (seconds[1] - seconds[0]) / 30)
            steps = max(1, round(60 * cast(float, self.minutes) / each))
        file.write_text(json.dumps({"steps": steps, "budget": budget}))
        return steps

    def _fit(
        self,
        row: Row,
        folder: Path,
        log: Path,
        steps: int,
        *,
        resume: Path | None,
        validate: bool = True,
    ) -> None:
        every = max(1, steps // max(1, self.validations))
        curves = validate and self.validations > 0
        options = {
            "--data.train_dir": self.train_dir,
            "--trainer.max_steps": str(steps),
            "--trainer.max_epochs": "-1",
            "--trainer.default_root_dir": str(folder),
            "--trainer.logger": "CSVLogger",
            "--trainer.logger.save_dir": str(folder),
            "--trainer.logger.name": "",
            "--trainer.enable_progress_bar": "false",
            "--trainer.num_sanity_val_steps": "0",
            "--checkpoint.dirpath": str(folder),
            "--checkpoint.monitor": "null",
            "--checkpoint.save_top_k": "0",
            "--checkpoint.save_last": "true",
            "--checkpoint.every_n_train_steps": str(max(1, min(every, 500))),
            "--checkpoint.enable_version_counter": "false",
            "--inference.stride": "fast",
        }
        if curves:
            options["--data.val_dir"] = self.test_dir
            options["--trainer.check_val_every_n_epoch"] = "null"
            options["--trainer.val_check_interval"] = str(every)
        else:
            options["--data.test_dir"] = self.test_dir  # only compared with train_dir
            options["--trainer.limit_val_batches"] = "0"
        if row.needs_imagenet and self.vgg_weights:
            options["--model.objective.init_args.feature_weights"] = self.vgg_weights
        if resume:
            options["--ckpt_path"] = str(resume)
        words = ["fit", "--config", str(self.base), "--config", str(row.config)]
        words += [word for option in options.items() for word in option]
        self._python(["-m", "mpunet", *words, *self.options], log)

    def _task(self, row: Row, folder: Path, *, trained: bool) -> Task:
        data = {key: value for key, value in self._shared("data").items() if key in OF_TEST_CASES}
        return Task(
            checkpoint=str(folder / "last.ckpt") if trained else None,
            net=None if row.command else self._net(row),
            command=row.command,
            ratio=row.section("ratio") or 5,
            data={**data, "test_dir": self.test_dir},
            stride=self.stride,
            tile=row.section("inference", "tile") or self._shared("inference").get("tile"),
            vgg_weights=self.vgg_weights,
            output=str(folder),
        )

    def _measure(self, task: Task) -> None:
        folder = Path(task["output"])
        (folder / "task.json").write_text(json.dumps(task, indent=2))
        self._python(
            ["-m", "mpunet.benchmark.measure", str(folder / "task.json")], folder / "train.log"
        )

    @cached_property
    def _base(self) -> dict[str, Any]:
        """The options that all rows share, but for ``options``."""
        return yaml.safe_load(self.base.read_text(encoding="utf-8")) or {}

    @cached_property
    def _given(self) -> dict[str, Any]:
        """The values of ``options`` by name, such as ``data.profile``."""
        words = iter(
            part
            for word in self.options
            for part in (word.split("=", 1) if word.startswith("--") else [word])
        )
        return {
            word.removeprefix("--"): yaml.safe_load(next(words, ""))
            for word in words
            if word.startswith("--")
        }

    def _shared(self, section: str) -> dict[str, Any]:
        """Return a section that all rows share: the base's, changed by ``options``."""
        given = {
            name.removeprefix(f"{section}."): value
            for name, value in self._given.items()
            if name.startswith(f"{section}.")
        }
        return (self._base.get(section) or {}) | given

    @staticmethod
    def _python(words: list[str], log: Path) -> None:
        with log.open("a", encoding="utf-8") as file:
            subprocess.run(
                [sys.executable, *words], stdout=file, stderr=subprocess.STDOUT, check=True
            )
