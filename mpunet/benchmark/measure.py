"""Measure one row on the test cases: HU metrics and the cost of the network.

Runs in a separate process, so that the peak memory is that of the row alone::

    python -m mpunet.benchmark.measure TASK.json
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from mpunet.config import from_config
from mpunet.data.datamodule import ThickThinDataModule
from mpunet.inference import Reconstructor
from mpunet.inference.options import Stride
from mpunet.memory import keep_freed_memory
from mpunet.models.base import geometry_of
from mpunet.report.pictures import coronal
from mpunet.training.case_metrics import CaseMetrics, hu_metrics
from mpunet.weights import read_weights

__all__ = ["Result", "Task", "flops_per_slice", "measure"]


class Task(TypedDict):
    """What to measure.

    Attributes:
        checkpoint: checkpoint of the trained row; None for a network without trained parameters.
        net: the network as ``{"class_path": ..., "init_args": ...}``; used without a checkpoint.
        data: arguments of the data module, including ``test_dir``.
        stride: thick slices between windows.
        output: folder of the row, for ``result.json`` and the pictures.
    """

    checkpoint: str | None
    net: dict[str, Any] | None
    data: dict[str, Any]
    stride: Stride
    output: str


class Result(TypedDict):
    """Metrics and costs of one row.

    Attributes:
        metrics: means over cases, with the keys of
            :func:`mpunet.training.case_metrics.hu_metrics`.
        cases: the same metrics for each case.
        parameters: number of parameters of the network.
        gflops: GFLOPs per thin slice of 512 x 512 at stride 1; a multiply-add counts as two.
        seconds: reconstruction time per volume, mean over cases.
        peak_mb: peak memory in MB, of the GPU if there is one, else of the process.
    """

    metrics: dict[str, float]
    cases: dict[str, dict[str, float]]
    parameters: int
    gflops: float
    seconds: float
    peak_mb: float


def measure(task: Task) -> Result:
    """Reconstruct and measure every test case.

    Coronal slices of the first case are written to ``coronal.npy`` and ``truth.npy`` in the output
    folder.
    """
    network, flips = from_config(task["net"] or {}), False
    if task["checkpoint"]:
        weights = read_weights(task["checkpoint"])
        network, flips = weights.network(), weights.flips
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gflops = flops_per_slice(network)
    reconstruct = Reconstructor.from_network(
        network, stride=task["stride"], device=device, check_hu=False, flips=flips
    )
    n_thick, ratio, _ = geometry_of(network)
    data = ThickThinDataModule(**task["data"], n_thick=n_thick, ratio=ratio)
    data.setup("test")
    means, cases, seconds = CaseMetrics(), {}, []
    for case in data.test_dataloader():
        start = time.perf_counter()
        image = reconstruct(case["thick"].numpy())
        seconds.append(time.perf_counter() - start)
        values = hu_metrics(torch.from_numpy(image), case["thin"], case["lung"])
        means.update(case["index"], values)
        cases[case["name"]] = {key: float(value) for key, value in values.items()}
        if case["index"] == 0:
            for name, slab in (("coronal", image), ("truth", case["thin"].numpy())):
                np.save(Path(task["output"]) / f"{name}.npy", coronal(slab, case["spacing"]))
    return Result(
        metrics={key: float(value) for key, value in means.compute().items()},
        cases=cases,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        gflops=gflops,
        seconds=float(np.mean(seconds)),
        peak_mb=_peak(device),
    )


def flops_per_slice(network: Any, size: int = 128) -> float:
    """Count the GFLOPs for one more thin slice of 512 x 512 at stride 1.

    This is the cost of a window divided by the number of thin slices that each window adds. It is
    counted on windows of about ``size`` x ``size`` and scaled to 512 x 512, because the cost of
    convolutions is proportional to the area.

    >>> from mpunet.models import MPUNet
    >>> round(flops_per_slice(MPUNet(widths=(2, 2, 2, 2, 2, 2))), 1)
    3.5
    """
    n_thick, ratio, multiple = geometry_of(network)
    size -= size % multiple
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 1, n_thick, size, size))
    return float(counter.get_total_flops() / ratio / 1e9 * (512 / size) ** 2)


def _peak(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


if __name__ == "__main__":
    keep_freed_memory()
    given: Task = json.loads(Path(sys.argv[1]).read_text())
    found = measure(given)
    (Path(given["output"]) / "result.json").write_text(json.dumps(found, indent=2))
