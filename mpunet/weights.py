"""Files with trained networks: safe reading of Lightning's checkpoints, and weights files.

Weights files are the format for sharing networks; mpunet includes some. They are safetensors files
with tensors and a table of text, so reading one never runs code from it. The table contains the
class and arguments of the network, the SHA-256 of the tensors, and the record of the training
(:class:`Record`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict, cast

import torch
from safetensors.torch import save
from torch import Tensor, nn

from mpunet import __version__
from mpunet.config import from_config
from mpunet.io.content import file_sha256
from mpunet.io.partial_file import whole_file
from mpunet.models.base import geometry_of
from mpunet.pretrained import (
    FORMAT,
    PACKAGED,
    load_tensors,
    packaged,
    read_stored,
    tensors_sha256,
)

__all__ = [
    "PACKAGED",
    "Record",
    "Weights",
    "file_sha256",
    "load_network",
    "mean_weights",
    "packaged",
    "read_checkpoint",
    "read_weights",
    "write_weights",
]

SUFFIX = ".safetensors"


class Record(TypedDict, total=False):
    """Record of how weights were trained, in plain values.

    Attributes:
        version: version of mpunet that wrote the file.
        steps: number of training steps.
        training: training data, as in :meth:`mpunet.ThickThinDataModule.training_record`.
        objective: losses, as ``{"class_path": ..., "init_args": ...}``.
        consistency: consistency range of the last validation, see
            :class:`mpunet.metrics.consistency.ConsistencyRange`.
        mean_of: SHA-256 of the tensors of each network of a mean, see :func:`mean_weights`.
        error: model that estimates the error of each voxel, see
            :class:`mpunet.inference.errors.ErrorModel`.
        notes: notes of the authors, such as title, data sources with licences, commands, results
            and limits.
    """

    version: str
    steps: int
    training: dict[str, Any]
    objective: dict[str, Any]
    consistency: dict[str, Any]
    mean_of: list[str]
    error: dict[str, Any]
    notes: dict[str, Any]


@dataclass(frozen=True)
class Weights:
    """Class, arguments and tensors of a network, and the record of its training.

    Attributes:
        source: file that contains them.
        net: class and arguments, ``{"class_path": ..., "init_args": {...}}``.
        tensors: ``state_dict`` of the network.
        record: record of the training.
    """

    source: Path
    net: dict[str, Any]
    tensors: dict[str, Tensor]
    record: Record

    def network(self) -> nn.Module:
        """Create the network with its weights, in float32, on the CPU and in evaluation mode.

        Raises:
            ValueError: if the class cannot be imported or is not a thick-to-thin network, or the
                weights do not fit.
        """
        network = from_config(self.net)
        geometry_of(network)  # raises if the module is not a thick-to-thin network
        return load_tensors(network, self.tensors, self.source)

    @property
    def flips(self) -> bool:
        """Whether the record says that the network was trained on flipped crops."""
        return bool(self.record.get("training", {}).get("flips"))

    @property
    def sha256(self) -> str:
        """SHA-256 of names, types, shapes and bytes of the tensors, ordered by name."""
        return tensors_sha256(self.tensors)


def read_weights(path: str | Path | None = None) -> Weights:
    """Read the network of a checkpoint of ``mpunet fit`` or of a weights file.

    Args:
        path: checkpoint, weights file (``.safetensors``), folder of
            :meth:`mpunet.MPUNet.save_pretrained`, or a name from :func:`packaged`, such as
            "packaged_r3". Default: "packaged".

    Raises:
        ValueError: if the file does not exist, is damaged, contains more than tensors and plain
            values, or was not written by mpunet.
    """
    name = "packaged" if path is None else str(path)
    path = packaged().get(name, Path(name))
    if name.startswith("packaged") and not path.exists():
        raise ValueError(
            "Expected a file or the name of weights that come with mpunet "
            f"({', '.join(packaged())}), got {name}."
        )
    if path.suffix == SUFFIX or path.is_dir():
        stored = read_stored(path)
        if "class_path" not in stored.net:
            raise ValueError(
                f"config.json in {path} does not name the class of the network: load it by "
                "from_pretrained of that class, and save it by its save_pretrained."
            )
        return Weights(stored.source, stored.net, stored.tensors, cast(Record, stored.record))
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


def write_weights(
    path: str | Path, weights: Weights, *, dtype: torch.dtype = torch.float16
) -> None:
    """Write a weights file. An existing file is replaced only when the new one is complete.

    Args:
        path: file to write, ``.safetensors``.
        weights: the network.
        dtype: data type of the floating-point tensors in the file.

    Raises:
        ValueError: if the suffix is not .safetensors, or a weight is not finite in ``dtype``.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ValueError(f"Expected a weights file ending in {SUFFIX}, got {path}.")
    # safetensors cannot write tensors in the memory layout channels_last.
    tensors = {
        name: tensor.to(dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in weights.tensors.items()
    }
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(
                f"{weights.source}: {name} has values that are not finite in "
                f"{str(dtype).removeprefix('torch.')}; the file is not written."
            )
    table = {
        "format": FORMAT,
        "net": json.dumps(weights.net),
        "sha256": tensors_sha256(tensors),
        "record": json.dumps({**weights.record, "version": __version__}),
    }
    with whole_file(path) as unfinished:
        # Not save_file of safetensors, which creates a file that only its owner can read.
        unfinished.write_bytes(save(tensors, metadata=table))


def mean_weights(networks: Sequence[Weights]) -> Weights:
    """Average the weights of networks that began with the same weights, tensor by tensor.

    Their mean often has less error than each of them (Wortsman et al. 2022, "Model soups"), at the
    cost of one. A network that is named twice counts twice.

    Args:
        networks: at least one. The result has the arguments and the record of the first, without
            what was measured on it (its consistency range and error model).

    Raises:
        ValueError: if the networks' tensors have other names or shapes.
    """
    first = networks[0]
    shapes = {name: tensor.shape for name, tensor in first.tensors.items()}
    for other in networks[1:]:
        if {name: tensor.shape for name, tensor in other.tensors.items()} != shapes:
            raise ValueError(
                f"Expected networks with the same tensors for a mean, but those of {other.source} "
                f"differ from those of {first.source}."
            )
    tensors = {
        name: torch.stack([one.tensors[name].double() for one in networks]).mean(0).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in first.tensors.items()
    }
    record = Record(**first.record)
    record.pop("consistency", None)
    record.pop("error", None)
    record["mean_of"] = [one.sha256 for one in networks]
    return replace(first, tensors=tensors, record=record)


def load_network(path: str | Path | None = None) -> nn.Module:
    """Load a network with its weights, in float32, on the CPU and in evaluation mode.

    Args:
        path: as in :func:`read_weights`.

    Raises:
        ValueError: as :func:`read_weights` and :meth:`Weights.network`.
    """
    return read_weights(path).network()


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of ``MPUNetModule`` without running code from it.

    Raises:
        ValueError: if the file does not exist, contains more than tensors and plain values, or was
            not written by mpunet.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"No checkpoint at {path}.")
    try:
        checkpoint: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file of another kind can raise anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{path} cannot be read as a checkpoint of tensors and plain values ({reason}). "
            "Files with other contents are refused, as loading them could run any code."
        ) from error
    hparams = checkpoint.get("hyper_parameters") if isinstance(checkpoint, dict) else None
    if not isinstance(hparams, dict) or "net" not in hparams or "state_dict" not in checkpoint:
        found = (
            sorted(map(str, checkpoint))[:6]
            if isinstance(checkpoint, dict)
            else type(checkpoint).__name__
        )
        raise ValueError(
            f"{path} is no checkpoint of mpunet: expected hyper_parameters with 'net' and a "
            f"state_dict, got {found}."
        )
    return dict(checkpoint)
