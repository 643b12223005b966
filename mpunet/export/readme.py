"""The README of a MONAI bundle."""

from __future__ import annotations

import json
from typing import Any

from mpunet import __version__
from mpunet.geometry import thin_depth
from mpunet.intensity import HU_MAX, HU_MIN
from mpunet.models.base import geometry_of
from mpunet.weights import Weights

__all__ = ["bundle_readme"]


def bundle_readme(weights: Weights, name: str) -> str:
    """Return the text: what the network does, how to run it, and its notes with licences.

    Args:
        weights: the network.
        name: name of the bundle's folder.
    """
    geometry = geometry_of(weights.network())
    notes = weights.record.get("notes") or {}
    n_thin = thin_depth(geometry.n_thick, geometry.ratio)
    described = [
        line for key, value in notes.items() if key != "title" for line in _note(key, value)
    ]
    return "\n".join(
        [
            f"# {notes.get('title', name)}",
            "",
            "Reconstructs thin CT slices from thick ones. Research software, not a medical device.",
            "",
            f"Needs mpunet {__version__} or later, installed from its repository (on PyPI another "
            "project has this name), and `fire` for MONAI's command line:",
            "",
            "```bash",
            f"cd {name}",
            "python -m monai.bundle run --config_file configs/inference.json "
            "--dataset_dir SCANS --output_dir THIN",
            "```",
            "",
            "`SCANS` is a NIfTI file, or a folder of NIfTI files or DICOM series in HU; results "
            "are NIfTI files. Every option of `mpunet.Reconstructor` is an item of `inferer`, for "
            "example `--inferer#stride fast`.",
            "",
            f"The network (`network_def`) maps windows of {geometry.n_thick} thick slices, (B, 1, "
            f"{geometry.n_thick}, H, W), to (B, 1, {n_thin}, H, W). Height and width are multiples "
            f"of {geometry.multiple}. Intensities 0 to 1 are {HU_MIN:g} to {HU_MAX:g} HU. "
            f"`{weights.net['class_path']}` has the arguments",
            "",
            "```json",
            json.dumps(weights.net.get("init_args") or {}),
            "```",
            "",
            f"SHA-256 of the weights: `{weights.sha256}`.",
            "",
            "## Notes",
            "",
            *(described or ["None were recorded: ask the authors for licence, data and limits."]),
        ]
    )


def _note(key: str, value: Any) -> list[str]:
    if isinstance(value, list):
        return [f"- {key}:", *(f"  - {item}" for item in value)]
    return [f"- {key}: {value}"]
