"""Forward passes of the packaged network by torch, OpenVINO and ONNX Runtime on a CPU, float32.

    pip install openvino onnxruntime onnx onnxscript     # missing ones are left out
    taskset -c 1 python tests/benchmarks/backends.py     # planes of 128 to 512 pixels, 15 minutes

Every measurement is a process of its own that runs one backend, because memory that one library
leaves fragmented slows down the next. The backends alternate. Each process keeps freed memory, as
`mpunet predict` does, and runs the network once before it is measured.

Prints the fastest pass of each backend in wall time and in processor time, and the peak memory of
its process, conversion included. Other programs on the machine change the processor time less, so
judge by that. Differences from torch are in HU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from common import machine, run_child
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
    logging.disable()  # it logs, with tracebacks, which names of operators torch does not have
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


def measure(name: str, size: int, threads: int, passes: int, image: str) -> None:
    """Run one backend in this process; save its image and print its times as JSON."""
    keep_freed_memory()
    window = torch.rand(1, 1, 8, size, size, generator=torch.Generator().manual_seed(0))
    run = BACKENDS[name](Image(load_network()).eval(), window, threads)
    np.save(image, run())
    wall, processor = [], []
    for _ in range(passes):
        start, spent = time.perf_counter(), time.process_time()
        run()
        wall.append(time.perf_counter() - start)
        processor.append(time.process_time() - spent)
    print("\n" + json.dumps([min(wall), min(processor)]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2, help="processes for each backend")
    parser.add_argument("--passes", type=int, default=2, help="measured passes of each process")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        measure(args.backends[0], args.sizes[0], args.threads, args.passes, args.child)
        return

    found = [name for name in args.backends if importlib.util.find_spec(name)]
    print(machine(torch.device("cpu")))
    versions = ", ".join(f"{name} {version(name)}" for name in found)
    print(f"{versions}; threads: {args.threads}; packaged network")
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        for size in args.sizes:
            times: dict[str, list[list[float]]] = {name: [] for name in found}
            words = f"--sizes {size} --threads {args.threads} --passes {args.passes}".split()
            for _ in range(args.rounds):
                for name in found:
                    image = f"{folder}/{name}.npy"
                    child = run_child(__file__, *words, "--backends", name, "--child", image)
                    times[name].append([*json.loads(child.output.splitlines()[-1]), child.peak])
            wall, processor, peak = (
                {name: min(each[i] for each in measured) for name, measured in times.items()}
                for i in range(3)
            )
            reference = np.load(f"{folder}/{found[0]}.npy")
            for name in found:
                difference = np.abs(np.load(f"{folder}/{name}.npy") - reference).max() * HU
                print(
                    f"8 x {size} x {size}  {name:12s}"
                    f"wall {wall[name]:6.2f} s ({wall[found[0]] / wall[name]:.2f} x as fast)   "
                    f"processor {processor[name]:6.2f} s "
                    f"({processor[found[0]] / processor[name]:.2f} x as fast)   "
                    f"peak {peak[name]:6.0f} MB   difference {difference:.4f} HU",
                    flush=True,
                )


if __name__ == "__main__":
    main()
