"""The command ``mpunet info``: describes a checkpoint or weights file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from json import dumps
from typing import Any

from jsonargparse import ArgumentParser

from mpunet.inference.spacing import SliceSpacing
from mpunet.models.base import geometry_of
from mpunet.weights import PACKAGED, Weights, file_sha256, read_weights

__all__ = ["describe", "info", "run"]


def describe(weights: Weights) -> Iterator[str]:
    """Describe weights in lines of text.

    The lines give the network, the slice spacings of the training data, the data with their
    licences, figures and limits.
    """
    network = weights.network()
    geometry = geometry_of(network)
    record = weights.record
    training = record.get("training") or {}
    notes = record.get("notes") or {}
    parameters = sum(tensor.numel() for tensor in weights.tensors.values())
    yield f"{notes.get('title', weights.source.name)}"
    yield (
        f"  file          {weights.source} ({weights.source.stat().st_size / 1e6:.1f} MB), "
        f"SHA-256 {file_sha256(weights.source)}"
    )
    arguments = ", ".join(
        f"{key}={value!r}" for key, value in (weights.net.get("init_args") or {}).items()
    )
    yield (
        f"  network       {weights.net['class_path']}({arguments}), "
        f"{parameters / 1e6:.2f} M parameters"
    )
    yield (
        f"  geometry      {geometry.n_thick} thick slices to "
        f"{(geometry.n_thick - 1) * geometry.ratio + 1} thin ones, ratio {geometry.ratio}"
    )
    spacing = SliceSpacing.from_record(training)
    if spacing is None:
        yield (
            "  slices        spacing of the training data not recorded: "
            "written by an older version of mpunet, or from Python"
        )
    else:
        thin = SliceSpacing(*training["thin_spacing"])
        yield f"  slices        trained on {spacing} apart, to {thin}"
        kinds = ", ".join(training["profile"])
        width = (
            ""
            if training.get("fwhm") is None
            else f", FWHM {' to '.join(f'{w:g}' for w in training['fwhm'])} spacings"
        )
        yield (
            f"  trained on    {training['number']} volumes "
            f"({training['pairs']} with genuine thick slices; else profile {kinds}{width})"
        )
        yield f"                {', '.join(training['cases'])}"
        flips = "crops flipped in training, so windows are flipped in prediction"
        yield f"  flips         {flips if weights.flips else 'none'}"
    if before := training.get("began_with"):
        yield f"  began with    {before['file']}, SHA-256 of its weights {before['sha256']}"
    for number, sha256 in enumerate(record.get("mean_of", [])):
        yield f"  {'' if number else 'mean of':13s} weights with SHA-256 {sha256}"
    if record.get("steps"):
        yield f"  steps         {record['steps']}"
    if record.get("version"):
        yield f"  written by    mpunet {record['version']}, SHA-256 of the weights {weights.sha256}"
    for key, value in notes.items():
        if key != "title":
            yield from _note(key, value)


def info(checkpoint: str = str(PACKAGED), *, json: bool = False) -> None:
    """Describe a network: its architecture, the slices it is for, its training data and figures.

    Args:
        checkpoint: checkpoint or weights file; default: the network that comes with mpunet.
        json: print everything that is recorded, as JSON.
    """
    weights = read_weights(checkpoint)
    if json:
        known = {
            "file": str(weights.source),
            "sha256": weights.sha256,
            "net": weights.net,
            "record": weights.record,
        }
        print(dumps(known, indent=2))
    else:
        print("\n".join(describe(weights)))


def run(args: Sequence[str]) -> int:
    """Run :func:`info` with command line arguments."""
    parser = ArgumentParser(prog="mpunet info", description=(info.__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", type=str, nargs="?", default=str(PACKAGED))
    parser.add_argument("--json", type=bool, nargs="?", const=True, default=False)
    info(**vars(parser.parse_args(list(args))))
    return 0


def _note(key: str, value: Any) -> Iterator[str]:
    lines = [str(item) for item in value] if isinstance(value, list) else str(value).splitlines()
    for number, line in enumerate(lines or [""]):
        yield f"  {key.replace('_', ' ') if number == 0 else '':13s} {line}"
