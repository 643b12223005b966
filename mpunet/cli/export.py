"""The command ``mpunet export``: writes the network of a checkpoint as a weights file."""

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
    """Write the network of a checkpoint as a weights file, without optimiser state or pickle.

    The file is meant for other users and for later versions of mpunet.

    Args:
        checkpoint: checkpoint of `mpunet fit`, or a weights file.
        output: file to write; its name must end in .safetensors.
        net: arguments of the network to change, such as ``{consistency: 0.9}``; only arguments that
            do not change the shapes of the weights.
        notes: YAML file with text to add to the record: title, sources and licences, commands,
            figures, limits.
        dtype: type of the weights in the file; float16 halves its size and changes results by
            hundredths of a HU.

    Raises:
        ValueError: if the network does not accept ``net``, or ``notes`` is not a YAML mapping.
    """
    weights = read_weights(checkpoint)
    if net:
        init_args = {**(weights.net.get("init_args") or {}), **net}
        weights = replace(weights, net={**weights.net, "init_args": init_args})
    try:
        weights.network()  # raises if the weights do not fit the arguments
    except TypeError as error:
        raise ValueError(
            f"Expected arguments of {weights.net['class_path']} in net, got {net}: {error}"
        ) from error
    record = Record(**weights.record)
    if notes is not None:
        added: Any = yaml.safe_load(Path(notes).read_text(encoding="utf-8"))
        if not isinstance(added, dict):
            raise ValueError(
                f"Expected names and texts (a YAML mapping) in {notes}, got {type(added).__name__}."
            )
        record["notes"] = added
    write_weights(output, replace(weights, record=record), dtype=getattr(torch, dtype))
    print("\n".join(describe(read_weights(output))))


def run(args: Sequence[str]) -> int:
    """Run :func:`export` with command line arguments."""
    parser = ArgumentParser(
        prog="mpunet export", description=(export.__doc__ or "").partition("\n")[0]
    )
    parser.add_function_arguments(export, as_positional=True)
    export(**vars(parser.parse_args(list(args))))
    return 0
