"""Write a network as an ONNX file, and check it by ONNX Runtime.

The file is made by the exporter of torch that is based on ``torch.export``. It contains all of the
network, data consistency included, in float32.
"""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mpunet import __version__
from mpunet.export.image_network import ImageNetwork
from mpunet.export.onnx_network import OnnxNetwork, require
from mpunet.intensity import HU_MAX, HU_MIN, HU_RANGE
from mpunet.io.partial_file import whole_file
from mpunet.weights import Weights

__all__ = ["CT_PLANE", "LIMIT", "OnnxExport", "write_onnx"]

LIMIT = 0.01  # largest difference in HU between ONNX Runtime and torch
CT_PLANE = 512  # pixels
LARGEST = 2**20  # pixels or windows; more than anyone has
SIDE = 16  # smallest in-plane size to export and check with; smaller ones have only borders


class OnnxExport(NamedTuple):
    """What an ONNX file accepts, and how well it agrees with the network.

    Attributes:
        size: the only in-plane size that it accepts; None if it accepts any multiple of the
            network's and any batch.
        difference: largest difference in HU between ONNX Runtime and torch in the check.
        reason: why the size is fixed although none was asked for.
    """

    size: int | None
    difference: float
    reason: str | None = None


def write_onnx(path: str | Path, weights: Weights, *, size: int | None = None) -> OnnxExport:
    """Write the image output of a network as an ONNX file.

    The input ``thick`` is (B, 1, n, H, W), intensity in [0, 1]; the output ``thin`` is (B, 1, N, H,
    W). The file has metadata: n_thick, ratio, multiple, hu_window, network, record (with licence
    and notes), weights_sha256 and mpunet_version. It is written only if ONNX Runtime computes the
    same image as torch, to 0.01 HU.

    Args:
        path: file to write, ``.onnx``. An existing file is replaced.
        weights: the network.
        size: accept only planes of this height and width in pixels, one window at a time. Default:
            any batch and any multiple of the network's, or 512 if the network's graph depends on
            the size.

    Raises:
        ValueError: if a package is missing, ``size`` does not fit the network, torch cannot export
            it, or ONNX Runtime computes another image.
    """
    if Path(path).suffix != ".onnx":
        raise ValueError(f"Expected an ONNX file ending in .onnx, got {path}.")
    for name in ("onnx", "onnxscript", "onnxruntime"):
        require(name)
    network = ImageNetwork(weights.network()).eval()
    multiple = network.multiple
    if size is not None and (size < 1 or size % multiple):
        raise ValueError(
            f"Expected a size that is a multiple of {multiple}, as the network requires, got "
            f"{size}; {-(-max(size, 1) // multiple) * multiple} is one."
        )
    reason = None
    tried = [None, -(-CT_PLANE // multiple) * multiple] if size is None else [size]
    for size in tried:
        try:
            program = _export(network, size)
        except torch.onnx.OnnxExporterError as error:
            reason = _first_line(error.__cause__ or error)
            continue
        if size is not None or (limits := _limits(program, multiple)) is None:
            break
        reason = limits
    else:
        raise ValueError(
            f"{weights.net['class_path']} cannot be exported to ONNX by torch "
            f"{torch.__version__}: {reason}."
        )
    program.model.metadata_props.update(_metadata(weights, network, size))
    with whole_file(path) as unfinished:
        program.save(unfinished)
        difference = _difference(network, OnnxNetwork(unfinished), size)
        if not difference <= LIMIT:  # also if it is NaN
            raise ValueError(
                f"ONNX Runtime computes another image than torch, by up to {difference:.3g} HU "
                f"(allowed: {LIMIT} HU): {path} is not written."
            )
    return OnnxExport(size, difference, reason)


def _export(network: ImageNetwork, size: int | None) -> Any:
    """Export for one in-plane size, or for all sizes and batches."""
    side = -(-SIDE // network.multiple) * network.multiple
    shape = (2, 2 * side, 3 * side) if size is None else (1, size, size)
    dynamic = None
    if size is None:
        # torch.export treats a length of 1 as fixed.
        least = 2 if network.multiple == 1 else 1
        height, width = (torch.export.Dim(name, min=least) for name in ("height", "width"))
        dynamic = {
            "thick": {
                0: torch.export.Dim("batch"),
                3: network.multiple * height if network.multiple > 1 else height,
                4: network.multiple * width if network.multiple > 1 else width,
            }
        }
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the internals of torch and onnxscript
        program: Any = torch.onnx.export(
            network,
            (_windows(network, *shape),),
            dynamo=True,
            input_names=["thick"],
            output_names=["thin"],
            dynamic_shapes=dynamic,
            verbose=False,
        )
        # The exporter adds stack traces with the paths of this machine.
        require("onnx_ir.passes.common").ClearMetadataAndDocStringPass()(program.model)
    return program


def _limits(program: Any, multiple: int) -> str | None:
    """Return why a graph holds for some sizes only; None if it holds for all.

    torch.export follows one branch of a condition on the size and notes where that branch ends.
    """
    for bound in program.exported_program.range_constraints.values():
        if bound.lower > 2 * multiple or bound.upper < LARGEST:
            return (
                f"the network computes sizes of {bound.lower} to {bound.upper} in a way of its own"
            )
    return None


def _metadata(weights: Weights, network: ImageNetwork, size: int | None) -> dict[str, str]:
    """Return the metadata of the file; all values are text."""
    return {
        "n_thick": str(network.n_thick),
        "ratio": str(network.ratio),
        "multiple": str(size or network.multiple),
        "hu_window": f"{HU_MIN:g} {HU_MAX:g}",
        "network": json.dumps(weights.net),
        "record": json.dumps(weights.record),
        "weights_sha256": weights.sha256,
        "mpunet_version": __version__,
    }


def _difference(network: ImageNetwork, exported: OnnxNetwork, size: int | None) -> float:
    """Return the largest difference in HU on windows of other shapes than those of the export."""
    side = -(-SIDE // network.multiple) * network.multiple
    shapes = [(1, side, 4 * side), (3, side, side)] if size is None else [(1, size, size)]
    differences = []
    for shape in shapes:
        thick = _windows(network, *shape)
        with torch.inference_mode():
            expected = network(thick)
        differences.append(float((exported(thick) - expected).abs().max()) * HU_RANGE)
    return math.nan if any(map(math.isnan, differences)) else max(differences)


def _windows(network: ImageNetwork, batch: int, height: int, width: int) -> Tensor:
    """Return random windows (B, 1, n, H, W) in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, 1, network.n_thick, height, width, generator=generator)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__
