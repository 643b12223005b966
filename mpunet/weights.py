"""Networks at rest: Lightning's checkpoints, read safely, and weights files, which are what mpunet ships and what to hand on to others.

A weights file is safetensors: tensors and a table of text, which no reader can be made to run as code. Its table has the network's
class and arguments, the SHA-256 of the tensors, and the record of how they came to be (:class:`Record`).
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from mpunet import __version__
from mpunet.config import from_config
from mpunet.io.whole_file import whole_file
from mpunet.models.base import geometry_of

__all__ = [
    "PACKAGED",
    "Record",
    "Weights",
    "file_sha256",
    "load_network",
    "packaged",
    "read_checkpoint",
    "read_weights",
    "write_weights",
]

FORMAT = "mpunet-weights-1"
SUFFIX = ".safetensors"

PACKAGED = Path(__file__).with_name("packaged") / "mpunet_r5.safetensors"
"""What "packaged" means, and what is taken where no checkpoint is given: the network of ratio 5 that comes with mpunet."""


class Record(TypedDict, total=False):
    """What is known of how weights came to be; all plain values.

    Attributes:
        version: of mpunet that wrote the file.
        steps: training steps.
        training: the data, as :meth:`mpunet.data.ThickThinDataModule.state_dict` tells.
        objective: the losses, as ``{"class_path": ..., "init_args": ...}``.
        consistency: range over the cases of the last validation, see :class:`mpunet.metrics.consistency.ConsistencyRange`.
        notes: what people add: title, sources with their licences, commands, figures, limits.
    """

    version: str
    steps: int
    training: dict[str, Any]
    objective: dict[str, Any]
    consistency: dict[str, Any]
    notes: dict[str, Any]


@dataclass(frozen=True)
class Weights:
    """A network's class, arguments and tensors, and what is known of them.

    Attributes:
        source: the file.
        net: ``{"class_path": ..., "init_args": {...}}``.
        tensors: the network's ``state_dict``.
        record: how they came to be.
    """

    source: Path
    net: dict[str, Any]
    tensors: dict[str, Tensor]
    record: Record

    def network(self) -> nn.Module:
        """The network with its weights in float32, on the CPU and in evaluation mode.

        Raises:
            ValueError: if its class cannot be imported, or is no such network, or the weights do not fit.
        """
        network = from_config(self.net)
        geometry_of(network)  # raises for a module that is no such network
        try:
            network.load_state_dict(self.tensors)
        except RuntimeError as error:
            raise ValueError(
                f"The weights in {self.source} do not fit the network that it describes: {error}"
            ) from error
        return network.eval().to(memory_format=torch.channels_last_3d)

    @property
    def flips(self) -> bool:
        """Whether the network is known to have been trained on flipped crops."""
        return bool(self.record.get("training", {}).get("flips"))

    @property
    def sha256(self) -> str:
        """Of the tensors: names, types, shapes and bytes, in the order of their names."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(
                tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            )
        return digest.hexdigest()


def read_weights(path: str | Path | None = None) -> Weights:
    """The network of a checkpoint of ``mpunet fit`` or of a weights file (``.safetensors``); without a path, the packaged one.

    Args:
        path: a file, or a name that :func:`packaged` gives, such as "packaged_r3".

    Raises:
        ValueError: if there is no such file, it is damaged, it holds more than tensors and plain values, or another program made it.
    """
    name = "packaged" if path is None else str(path)
    path = packaged().get(name, Path(name))
    if name.startswith("packaged") and not path.exists():
        raise ValueError(
            f"Expected a file or the name of weights that come with mpunet ({', '.join(packaged())}), got {name}."
        )
    if path.suffix == SUFFIX:
        return _read_safetensors(path)
    checkpoint = read_checkpoint(path)
    prefix = "net."
    hparams = checkpoint["hyper_parameters"]
    record = Record(steps=checkpoint.get("global_step", 0))
    if isinstance(consistency := checkpoint.get("consistency"), dict):
        record["consistency"] = consistency
    if isinstance(training := checkpoint.get("training"), dict):
        record["training"] = training
    if isinstance(objective := hparams.get("objective"), dict):
        record["objective"] = objective
    tensors = {
        key[len(prefix) :]: value
        for key, value in checkpoint["state_dict"].items()
        if key.startswith(prefix)
    }
    return Weights(path, hparams["net"], tensors, record)


def packaged() -> dict[str, Path]:
    """Names and files of the weights that come with mpunet: "packaged", and by ratio "packaged_r3", "packaged_r5"."""
    files = sorted(PACKAGED.parent.glob(f"mpunet_r*{SUFFIX}"))
    return {
        "packaged": PACKAGED,
        **{file.stem.replace("mpunet", "packaged"): file for file in files},
    }


def write_weights(
    path: str | Path, weights: Weights, *, dtype: torch.dtype = torch.float16
) -> None:
    """Write a weights file; its floating-point tensors as ``dtype``. The file is at any time absent, as before, or whole.

    Raises:
        ValueError: if the suffix is not .safetensors, or a weight is not finite or too large for ``dtype``.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ValueError(f"Expected a weights file ending in {SUFFIX}, got {path}.")
    # In the ordinary order: safetensors writes no channels-last tensors.
    tensors = {
        name: tensor.to(dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in weights.tensors.items()
    }
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(
                f"{weights.source}: {name} has values that are not finite in {str(dtype).removeprefix('torch.')}; the file is not written."
            )
    table = {
        "format": FORMAT,
        "net": json.dumps(weights.net),
        "sha256": Weights(path, weights.net, tensors, {}).sha256,
        "record": json.dumps({**weights.record, "version": __version__}),
    }
    with whole_file(path) as unfinished:
        unfinished.write_bytes(
            save(tensors, metadata=table)
        )  # safetensors' own would make a file for the owner alone


def load_network(path: str | Path | None = None) -> nn.Module:
    """The network of :func:`read_weights`, with its weights, on the CPU and in evaluation mode.

    Raises:
        ValueError: as :func:`read_weights`, or if weights and configuration do not fit.
    """
    return read_weights(path).network()


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The contents of a checkpoint that ``MPUNetModule`` wrote; no code in it is ever run.

    Raises:
        ValueError: if there is no such file, it holds more than tensors and plain values, or another program made it.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"No checkpoint at {path}.")
    try:
        checkpoint: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{path} cannot be read as a checkpoint of tensors and plain values ({reason}). "
            "Files that need more are refused, as loading them could run any code."
        ) from error
    hparams = checkpoint.get("hyper_parameters") if isinstance(checkpoint, dict) else None
    if not isinstance(hparams, dict) or "net" not in hparams or "state_dict" not in checkpoint:
        found = (
            sorted(map(str, checkpoint))[:6]
            if isinstance(checkpoint, dict)
            else type(checkpoint).__name__
        )
        raise ValueError(
            f"{path} is no checkpoint of mpunet: expected hyper_parameters with 'net' and a state_dict, got {found}."
        )
    return dict(checkpoint)


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read_safetensors(path: Path) -> Weights:
    if not path.is_file():
        raise ValueError(f"No weights at {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            table: Mapping[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read as safetensors ({error}): it is damaged or another kind of file."
        ) from error
    if table.get("format") != FORMAT:
        raise ValueError(
            f"{path} is no weights file of mpunet: expected the format {FORMAT!r}, got {table.get('format')!r}. "
            "`mpunet export CHECKPOINT FILE.safetensors` makes one."
        )
    try:
        net, record = json.loads(table["net"]), json.loads(table["record"])
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged: its description cannot be read ({error}).") from error
    weights = Weights(path, net, tensors, record)
    if weights.sha256 != table.get("sha256"):
        raise ValueError(
            f"{path} is damaged: its weights have the SHA-256 {weights.sha256}, and it was written with {table.get('sha256')}."
        )
    return weights
