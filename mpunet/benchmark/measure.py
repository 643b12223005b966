"""Measure one row on the test cases: HU metrics and costs.

Runs in a separate process, so that the peak memory is that of the row alone::

    python -m mpunet.benchmark.measure TASK.json
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch

from mpunet.benchmark.network import Network
from mpunet.benchmark.program import Program
from mpunet.data.datamodule import ThickThinDataModule
from mpunet.data.volumes import VolumeCase
from mpunet.inference.options import Stride
from mpunet.losses import VGG16Features, VGGLayer
from mpunet.memory import keep_freed_memory
from mpunet.metrics.fidelity import hu_bias, lung_density
from mpunet.metrics.perceptual import perceptual_distance
from mpunet.metrics.texture import noise, sharpness
from mpunet.report.pictures import coronal
from mpunet.training.case_metrics import CaseMetrics, hu_metrics

__all__ = ["FIDELITY", "TEXTURE", "Result", "Task", "measure"]

TEXTURE = ("laa950", "sharpness", "noise")
FIDELITY = (
    "lung_bias",
    "perceptual",
    *(f"{of}_{name}" for of in ("lung", "truth") for name in TEXTURE),
)
# No row is trained on these: feature matching uses relu2_2 and relu3_3.
PERCEPTUAL_LAYERS: tuple[VGGLayer, ...] = ("relu1_2", "relu2_1", "relu3_1")


class Task(TypedDict):
    """What to measure.

    Attributes:
        checkpoint: checkpoint of the trained row; None for a network without trained parameters.
        net: the network as ``{"class_path": ..., "init_args": ...}``; used without a checkpoint.
        command: command line of an external program, measured instead of a network; see
            :class:`mpunet.benchmark.program.Program`.
        ratio: thick spacing / thin spacing, used with a command.
        data: arguments of the data module, including ``test_dir``.
        stride: thick slices between windows.
        tile: in-plane size in pixels above which planes are cut into tiles; None for whole planes.
        vgg_weights: file with VGG-16's ImageNet weights for the perceptual distance; None: it is
            not measured.
        output: folder of the row, for ``result.json`` and the pictures.
    """

    checkpoint: str | None
    net: dict[str, Any] | None
    command: str | None
    ratio: int
    data: dict[str, Any]
    stride: Stride
    tile: int | None
    vgg_weights: str | None
    output: str


class Result(TypedDict):
    """Metrics and costs of one row.

    Attributes:
        metrics: means over cases, with the keys of
            :func:`mpunet.training.case_metrics.hu_metrics` and :data:`FIDELITY`.
        cases: the same metrics for each case.
        parameters: number of parameters of the network; None for a program.
        gflops: GFLOPs per thin slice of 512 x 512 at stride 1; a multiply-add counts as two. None
            for a program.
        seconds: reconstruction time per volume, mean over cases; of a program with its start,
            reading and writing.
        peak_mb: peak memory in MB, of the GPU if a network runs on one, else of the process.
    """

    metrics: dict[str, float]
    cases: dict[str, dict[str, float]]
    parameters: int | None
    gflops: float | None
    seconds: float
    peak_mb: float


def measure(task: Task) -> Result:
    """Reconstruct and measure every test case.

    Coronal slices of the first case are written to ``coronal.npy`` and ``truth.npy`` in the output
    folder.
    """
    output = Path(task["output"])
    method = (
        Program(task["command"], task["ratio"], output)
        if task["command"]
        else Network(task["net"], task["checkpoint"], stride=task["stride"], tile=task["tile"])
    )
    data = ThickThinDataModule(**task["data"], n_thick=method.n_thick, ratio=method.ratio)
    data.setup("test")
    vgg = VGG16Features(PERCEPTUAL_LAYERS, task["vgg_weights"]) if task["vgg_weights"] else None
    means, cases, seconds = CaseMetrics(), {}, []
    for case, image, took in method.reconstruct(data.test_dataloader()):
        seconds.append(took)
        values = hu_metrics(torch.from_numpy(image), case["thin"], case["lung"])
        means.update(case["index"], values)
        cases[case["name"]] = {key: float(value) for key, value in values.items()}
        cases[case["name"]] |= _fidelity(image, case, vgg)
        if case["index"] == 0:
            for name, slab in (("coronal", image), ("truth", case["thin"].numpy())):
                np.save(output / f"{name}.npy", coronal(slab, case["spacing"]))
    fidelity = {key: [values[key] for values in cases.values()] for key in FIDELITY}
    return Result(
        metrics={key: float(value) for key, value in means.compute().items()}
        | {key: _mean(values) for key, values in fidelity.items()},
        cases=cases,
        parameters=method.parameters,
        gflops=method.gflops,
        seconds=float(np.mean(seconds)),
        peak_mb=method.peak_bytes / 1e6,
    )


def _fidelity(
    image: npt.NDArray[Any], case: VolumeCase, vgg: VGG16Features | None
) -> dict[str, float]:
    """Return the measures of FIDELITY: HU, % and ratios, in the lungs; distance, in the volume."""
    truth, lung, spacing = case["thin"].numpy(), case["lung"].numpy(), case["spacing"]
    values = [
        hu_bias(image, truth, lung).lungs,
        math.nan if vgg is None else perceptual_distance(image, truth, vgg),
    ]
    for volume in (image, truth):
        values += [
            lung_density(volume, lung).laa950,
            sharpness(volume, spacing, lung).ratio,
            noise(volume, lung, spacing).lung,
        ]
    return dict(zip(FIDELITY, values, strict=True))


def _mean(values: list[float]) -> float:
    """Return the mean of the values that are not NaN; NaN if all are."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


if __name__ == "__main__":
    keep_freed_memory()
    given: Task = json.loads(Path(sys.argv[1]).read_text())
    found = measure(given)
    (Path(given["output"]) / "result.json").write_text(json.dumps(found, indent=2))
