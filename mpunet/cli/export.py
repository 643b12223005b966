"""The command ``mpunet export``: weights to hand on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from jsonargparse import ArgumentParser

from mpunet.cli.info import describe
from mpunet.weights import Record, read_weights, write_weights

__all__ = ["export", "run"]


def export(
    checkpoint: str,
    output: str,
    *,
    net: dict[str, Any] | None = None,
    notes: str | None = None,
    dtype: Literal["float16", "float32"] = "float16",
) -> None:
    """Write the network of a checkpoint as a weights file, for others or for a later mpunet: no optimiser, no pickle.

    Args:
        checkpoint: what `mpunet fit` wrote, or another weights file.
        output: the file to write, ending in .safetensors.
        net: arguments of the network to change, such as ``{consistency: 0.9}``; only such as leave its weights as they are.
        notes: YAML file with what the record is to tell beside what mpunet knows: title, sources and licences, commands, figures, limits.
        dtype: type of the weights in the file; float16 takes half the room, and results differ by hundredths of a HU.
    """
    weights = read_weights(checkpoint)
    if net:
        init_args = {**(weights.net.get("init_args") or {}), **net}
        weights = replace(weights, net={**weights.net, "init_args": init_args})
    try:
        weights.network()  # raises where weights and description do not fit
    except TypeError as error:
        raise ValueError(
            f"Expected arguments of {weights.net['class_path']} in net, got {net}: {error}"
        ) from error
    record = Record(**weights.record)
    if notes is not None:
        told: Any = yaml.safe_load(Path(notes).read_text(encoding="utf-8"))
        if not isinstance(told, dict):
            raise ValueError(
                f"Expected names and texts (a YAML mapping) in {notes}, got {type(told).__name__}."
            )
        record["notes"] = told
    write_weights(output, replace(weights, record=record), dtype=getattr(torch, dtype))
    print("\n".join(describe(read_weights(output))))


def run(args: Sequence[str]) -> int:
    """The command line of :func:`export`."""
    parser = ArgumentParser(
        prog="mpunet export", description=(export.__doc__ or "").partition("\n")[0]
    )
    parser.add_function_arguments(export, as_positional=True)
    export(**vars(parser.parse_args(list(args))))
    return 0
