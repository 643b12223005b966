"""One row on the test cases: HU metrics, and what the network costs. Runs in a process of its own, so that peak memory is the row's.

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
        checkpoint: of the trained row; None for a network without parameters, which ``net`` then describes.
        net: the network's ``{"class_path": ..., "init_args": ...}``.
        data: arguments of the data module, with ``test_dir``.
        stride: thick slices between windows.
        output: the row's folder, for ``result.json`` and the picture.
    """

    checkpoint: str | None
    net: dict[str, Any] | None
    data: dict[str, Any]
    stride: Stride
    output: str


class Result(TypedDict):
    """What was measured.

    Attributes:
        metrics: means over cases, as :func:`mpunet.training.case_metrics.hu_metrics` names them.
        cases: the same for each case.
        parameters: of the network.
        gflops: per thin slice of 512 x 512 at stride 1 (a multiplication with an addition counts as two).
        seconds: per volume, the mean over cases.
        peak_mb: of the device, or else of the process.
    """

    metrics: dict[str, float]
    cases: dict[str, dict[str, float]]
    parameters: int
    gflops: float
    seconds: float
    peak_mb: float


def measure(task: Task) -> Result:
    """Reconstruct and measure every test case; coronal pictures of the first, ``coronal.npy`` and ``truth.npy``, go to the output folder."""
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
    """GFLOPs for one more thin slice of 512 x 512 at stride 1: a window's, divided by the thin slices that each window adds.

    Counted on windows of about ``size`` x ``size``, as convolutions cost in proportion to it.

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
