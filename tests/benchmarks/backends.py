"""Forward passes of the packaged network by torch, OpenVINO and ONNX Runtime on a CPU, float32.

    pip install openvino onnxruntime onnx onnxscript       # any of them; missing ones are left out
    taskset -c 1 python tests/benchmarks/backends.py       # 8 x 128 x 128 and 8 x 256 x 256 voxels

The backends run the same window in turns, in one process, with as many threads as --threads says.
The process keeps freed memory, as `mpunet predict` does; --return_memory shows what torch costs
without that. Prints the fastest round of each backend, in wall time and in processor time. Processor
time is less affected by other programs on the machine, so it decides. Differences are in HU.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from common import machine
from torch import Tensor, nn

from mpunet.memory import keep_freed_memory
from mpunet.weights import load_network

HU = 4095  # HU per unit of the network's intensity
Array = npt.NDArray[Any]


class Image(nn.Module):
    """A network that returns only its image."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, thick: Tensor) -> Tensor:
        return self.network(thick).image


def torch_backend(network: nn.Module, window: Tensor, threads: int) -> Callable[[], Array]:
    """PyTorch in the memory layout of mpunet.Reconstructor."""
    torch.set_num_threads(threads)
    for parameter in network.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)

    def run() -> Array:
        with torch.inference_mode():
            return network(window).numpy()

    return run


def openvino_backend(network: nn.Module, window: Tensor, threads: int) -> Callable[[], Array]:
    """OpenVINO, from the graph that torch.export makes for this shape."""
    # `import openvino` reports its use to Google Analytics by this package, if it is installed.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    with torch.no_grad():
        program = torch.export.export(network, (window,), strict=False)
    decoder = TorchFXPythonDecoder.from_exported_program(program)  # must live until the conversion
    frontend = FrontEndManager().load_by_framework("pytorch")
    model = frontend.convert(frontend.load(decoder))
    compiled = openvino.Core().compile_model(
        model,
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # the default is bfloat16 on some processors
            "INFERENCE_NUM_THREADS": threads,
        },
    )
    return lambda: compiled([window.numpy()])[0]


def onnxruntime_backend(network: nn.Module, window: Tensor, threads: int) -> Callable[[], Array]:
    """ONNX Runtime, from the same graph."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        torch.onnx.export(
            network, (window,), path, dynamo=True, input_names=["thick"], verbose=False
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"thick": window.numpy()})[0]


BACKENDS = {
    "torch": torch_backend,
    "openvino": openvino_backend,
    "onnxruntime": onnxruntime_backend,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--return_memory", action="store_true")
    args = parser.parse_args()
    if not args.return_memory:
        keep_freed_memory()
    found = [name for name in BACKENDS if importlib.util.find_spec(name)]
    network = Image(load_network()).eval()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"{machine(torch.device('cpu'))}; {cores} usable, {args.threads} threads")
    versions = (f"{name} {__import__(name).__version__}" for name in found if name != "openvino")
    print(", ".join(versions))
    for size in args.sizes:
        window = torch.rand(1, 1, 8, size, size, generator=torch.Generator().manual_seed(0))
        runs, prepare = {}, {}
        for name in found:
            start = time.perf_counter()
            runs[name] = BACKENDS[name](network, window, args.threads)
            prepare[name] = time.perf_counter() - start
        images = {name: run() for name, run in runs.items()}
        wall: dict[str, list[float]] = {name: [] for name in found}
        cpu: dict[str, list[float]] = {name: [] for name in found}
        for _ in range(args.rounds):
            for name, run in runs.items():
                start, spent = time.perf_counter(), time.process_time()
                run()
                wall[name].append(time.perf_counter() - start)
                cpu[name].append(time.process_time() - spent)
        for name in found:
            difference = np.abs(images[name] - images["torch"]).max() * HU
            print(
                f"8 x {size} x {size}  {name:12s} wall {min(wall[name]):6.2f} s "
                f"({min(wall['torch']) / min(wall[name]):.2f} x as fast)   "
                f"processor {min(cpu[name]):6.2f} s "
                f"({min(cpu['torch']) / min(cpu[name]):.2f} x as fast)   "
                f"difference {difference:.4f} HU   prepared in {prepare[name]:.1f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
