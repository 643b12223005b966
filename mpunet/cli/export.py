"""The command ``mpunet export``: writes a network as a weights file, ONNX file or folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from jsonargparse import ArgumentParser

from mpunet.cli.info import describe
from mpunet.export import write_bundle, write_onnx
from mpunet.models.base import geometry_of
from mpunet.pretrained import Pretrained
from mpunet.slices.sampled_profile import read_profile
from mpunet.weights import SUFFIX, Record, Weights, mean_weights, read_weights, write_weights

__all__ = ["Format", "export", "run"]

Format = Literal["auto", "weights", "onnx", "bundle", "pretrained"]


def export(
    checkpoint: str,
    output: str,
    *,
    mean_with: list[str] | None = None,
    net: dict[str, Any] | None = None,
    profile: str | None = None,
    spacing: float | None = None,
    notes: str | None = None,
    dtype: Literal["float16", "float32"] = "float16",
    format: Format = "auto",  # noqa: A002 - the usual word
    size: int | None = None,
) -> None:
    """Write a network as a weights file, an ONNX file, a MONAI bundle or a folder for the Hub.

    None of them contains optimiser state. docs/export.md describes the formats.

    Args:
        checkpoint: checkpoint of `mpunet fit`, weights file, folder of ``save_pretrained``, or the
            name of weights that come with mpunet, such as packaged_r3.
        output: file or folder to write.
        mean_with: further checkpoints or weights: the mean of the weights of all is written, see
            :func:`mpunet.weights.mean_weights`.
        net: arguments of the network to change, such as ``{consistency: 0.9}``; only arguments that
            do not change the shapes of the weights.
        profile: CSV file with a scanner's slice profile, as `mpunet fit-profile` writes it, for the
            network's data consistency (its argument ``consistency``).
        spacing: slice spacing in mm of the thick scans that the network is for; required with
            profile.
        notes: YAML file with text to add to the record: title, sources and licences, commands,
            figures, limits.
        dtype: type of the weights in a weights file; float16 halves its size and changes results by
            hundredths of a HU. The other formats have float32.
        format: "weights" (file ending in .safetensors), "onnx" (file ending in .onnx), "bundle"
            (folder, MONAI bundle) or "pretrained" (folder with config.json and model.safetensors,
            as on the Hugging Face Hub). Default: by the ending of the file.
        size: only in-plane size in pixels that the ONNX file accepts. Default: any multiple of the
            network's, if torch can export that.

    Raises:
        ValueError: if the format is unknown, the networks of a mean do not match, the network does
            not accept ``net`` or cannot be written in this format, ``profile`` comes without
            ``spacing`` or does not fit, or ``notes`` is not a YAML mapping.
    """
    weights = read_weights(checkpoint)
    if mean_with:
        weights = mean_weights([weights, *map(read_weights, mean_with)])
    if profile is not None:
        if spacing is None:
            raise ValueError(
                "Expected --spacing MM, the slice spacing of the scans, with --profile."
            )
        thin_spacing = spacing / geometry_of(weights.network()).ratio
        net = {**(net or {}), "consistency": read_profile(profile).weights(thin_spacing).tolist()}
    if net:
        init_args = {**(weights.net.get("init_args") or {}), **net}
        weights = replace(weights, net={**weights.net, "init_args": init_args})
    weights.network()  # raises if there are no such arguments, or the weights do not fit them
    record = Record(**weights.record)
    if notes is not None:
        added: Any = yaml.safe_load(Path(notes).read_text(encoding="utf-8"))
        if not isinstance(added, dict):
            raise ValueError(
                f"Expected names and texts (a YAML mapping) in {notes}, got {type(added).__name__}."
            )
        record["notes"] = added
    weights = replace(weights, record=record)
    chosen = _by_name(output) if format == "auto" else format
    if size is not None and chosen != "onnx":
        raise ValueError(f"--size is for ONNX files only, got it with the format {chosen}.")
    if chosen == "onnx":
        _onnx(output, weights, size)
    elif chosen == "bundle":
        write_bundle(output, weights)
        print(f"{output}: MONAI bundle; docs/README.md in it says how to run it")
    elif chosen == "pretrained":
        _pretrained(output, weights)
    else:
        write_weights(output, weights, dtype=getattr(torch, dtype))
        print("\n".join(describe(read_weights(output))))


def run(args: Sequence[str]) -> int:
    """Run :func:`export` with command line arguments."""
    parser = ArgumentParser(
        prog="mpunet export", description=(export.__doc__ or "").partition("\n")[0]
    )
    parser.add_function_arguments(export, as_positional=True)
    export(**vars(parser.parse_args(list(args))))
    return 0


def _by_name(output: str) -> Format:
    """Return the format that the ending of a file means."""
    formats: dict[str, Format] = {SUFFIX: "weights", ".onnx": "onnx"}
    if (suffix := Path(output).suffix) not in formats:
        raise ValueError(
            f"Expected a file ending in {SUFFIX} or .onnx, or --format bundle or pretrained for a "
            f"folder, got {output}."
        )
    return formats[suffix]


def _onnx(output: str, weights: Weights, size: int | None) -> None:
    written = write_onnx(output, weights, size=size)
    if written.size is None:
        planes = f"any batch, planes of multiples of {geometry_of(weights.network()).multiple}"
    else:
        planes = f"one window at a time, planes of {written.size} x {written.size} pixels"
    print(f"{output}: {planes}; largest difference from torch {written.difference:.4f} HU")
    if written.reason is not None:
        print(f"The in-plane size is fixed: {written.reason}.")


def _pretrained(output: str, weights: Weights) -> None:
    network = weights.network()
    if not isinstance(network, Pretrained):
        raise ValueError(
            f"Expected a network derived from mpunet.models.ThickToThin for --format pretrained, "
            f"got {weights.net['class_path']}; use the format weights."
        )
    network.save_pretrained(output, record=weights.record)
    print(f"{output}: config.json and model.safetensors, for from_pretrained of its class")
