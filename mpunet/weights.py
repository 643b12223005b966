"""Checkpoints: reading them safely, and the network inside."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mpunet.config import from_config
from mpunet.models.base import geometry_of

__all__ = ["file_sha256", "load_network", "read_checkpoint"]


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
        found = sorted(map(str, checkpoint))[:6] if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise ValueError(
            f"{path} is no checkpoint of mpunet: expected hyper_parameters with 'net' and a state_dict, got {found}."
        )
    return dict(checkpoint)


def load_network(path: str | Path | None = None) -> nn.Module:
    """The network of a checkpoint, with its weights, on the CPU and in evaluation mode.

    Raises:
        ValueError: as :func:`read_checkpoint`, or if weights and configuration do not fit.
    """
    if path is None:
        raise ValueError("This version ships no weights: give the path of a checkpoint that `mpunet fit` wrote.")
    checkpoint = read_checkpoint(path)
    network = from_config(checkpoint["hyper_parameters"]["net"])
    geometry_of(network)  # raises for a module that is no such network
    prefix = "net."
    state = {key[len(prefix) :]: value for key, value in checkpoint["state_dict"].items() if key.startswith(prefix)}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"The weights in {path} do not fit the network that it describes: {error}") from error
    return network.eval().to(memory_format=torch.channels_last_3d)


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
