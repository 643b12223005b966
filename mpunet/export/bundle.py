"""MONAI bundles: a network, its description and its inference as a folder that MONAI runs.

The layout is that of MONAI's bundle specification. The configuration builds the objects of mpunet:
:class:`mpunet.Reconstructor` computes whole scans from the network.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from mpunet import __version__
from mpunet.export.image_network import ImageNetwork
from mpunet.export.readme import bundle_readme
from mpunet.geometry import thin_depth
from mpunet.intensity import HU_MAX, HU_MIN
from mpunet.io.partial_file import partial_folder
from mpunet.io.scans import Scan, output_path
from mpunet.weights import Weights

__all__ = ["FolderReconstruction", "load_bundle_weights", "write_bundle"]

SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
    "meta_schema_20240725.json"
)
MODEL = "models/model.pt"


class Reconstructs(Protocol):
    """What :class:`FolderReconstruction` needs of :class:`mpunet.Reconstructor`."""

    def file(self, source: Scan, target: str | Path) -> None:
        """Reconstruct a scan and write the result to a NIfTI file."""


class FolderReconstruction:
    """Reconstruct scans to NIfTI files; the ``evaluator`` of a bundle.

    Args:
        scans: the scans, as :func:`mpunet.io.scans.find_scans` lists them.
        reconstructor: computes the thin slices.
        output_dir: folder for the results, which have the relative paths of the scans.
    """

    def __init__(
        self, scans: Sequence[Scan], reconstructor: Reconstructs, output_dir: str | Path
    ) -> None:
        self.scans = scans
        self.reconstructor = reconstructor
        self.output_dir = Path(output_dir)

    def run(self) -> list[Path]:
        """Reconstruct all scans.

        Returns:
            The files.

        Raises:
            ValueError: if a scan cannot be read or is not a valid volume in HU.
        """
        written = []
        for scan in self.scans:
            if scan.problem is not None:
                raise ValueError(f"{scan.path}: {scan.problem}")
            target = output_path(self.output_dir, scan, "nifti")
            target.parent.mkdir(parents=True, exist_ok=True)
            self.reconstructor.file(scan, target)
            written.append(target)
        return written


def load_bundle_weights(network: nn.Module, file: str | Path) -> nn.Module:
    """Load ``models/model.pt`` of a bundle into its network; return it in evaluation mode."""
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return network.eval()


def write_bundle(folder: str | Path, weights: Weights) -> None:
    """Write a network as a MONAI bundle. The folder appears only when it is complete.

    Args:
        folder: folder to write; an existing bundle is replaced.
        weights: the network.

    Raises:
        ValueError: if ``folder`` exists and is not a bundle, or the weights do not fit.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / "configs" / "metadata.json").is_file():
        raise ValueError(
            f"Expected a new folder or an existing bundle to replace, got {folder}, which has no "
            "configs/metadata.json; name another folder."
        )
    network = ImageNetwork(weights.network())
    files = {
        "configs/inference.json": json.dumps(_inference(weights), indent=4),
        "configs/metadata.json": json.dumps(_metadata(weights, network), indent=4),
        "docs/README.md": bundle_readme(weights, folder.name),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with partial_folder(folder) as partial:
        for name, text in files.items():
            (partial / name).parent.mkdir(exist_ok=True)
            (partial / name).write_text(text + "\n", encoding="utf-8")
        (partial / MODEL).parent.mkdir()
        state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
        torch.save(state, partial / MODEL)


def _inference(weights: Weights) -> dict[str, Any]:
    """Return ``inference.json``; names are those of MONAI's properties of inference workflows."""
    spacing = weights.record.get("training", {}).get("thick_spacing")
    return {
        "imports": ["$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/scans'",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": {
            "_target_": "mpunet.export.ImageNetwork",
            "network": {
                "_target_": weights.net["class_path"],
                **(weights.net.get("init_args") or {}),
            },
        },
        "network": {
            "_target_": "mpunet.export.load_bundle_weights",
            "network": "@network_def",
            "file": f"$@bundle_root + '/{MODEL}'",
        },
        "dataset": {"_target_": "mpunet.io.scans.find_scans", "folder": "@dataset_dir"},
        "inferer": {
            "_target_": "mpunet.Reconstructor.from_network",
            "network": "@network",
            "device": "@device",
            "stride": "best",
            "flips": weights.flips,
            "spacing": None if not spacing else [float(mm) for mm in spacing],
        },
        "evaluator": {
            "_target_": "mpunet.export.FolderReconstruction",
            "scans": "@dataset",
            "reconstructor": "@inferer",
            "output_dir": "@output_dir",
        },
        "run": ["$@evaluator.run()"],
    }


def _metadata(weights: Weights, network: ImageNetwork) -> dict[str, Any]:
    """Return ``metadata.json`` according to MONAI's schema."""
    notes = weights.record.get("notes") or {}
    n_thin = thin_depth(network.n_thick, network.ratio)

    def windows(depth: int, value_range: list[float], what: str) -> dict[str, Any]:
        side = f"{network.multiple}*n" if network.multiple > 1 else "*"
        return {
            "type": "image",
            "format": "magnitude",
            "modality": "CT",
            "num_channels": 1,
            "spatial_shape": [depth, side, side],
            "dtype": "float32",
            "value_range": value_range,
            "is_patch_data": True,
            "channel_def": {"0": what},
        }

    unit = f"0 for {HU_MIN:g} HU to 1 for {HU_MAX:g} HU"
    return {
        "schema": SCHEMA,
        "version": __version__,
        "changelog": {__version__: f"exported by mpunet {__version__}"},
        "monai_version": version("monai"),
        "pytorch_version": str(torch.__version__).partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {"mpunet": __version__, "nibabel": version("nibabel")},
        "name": str(notes.get("title", weights.source.stem)),
        "task": "Reconstruction of thin CT slices from thick ones",
        "description": (
            f"{weights.net['class_path']}: from {network.n_thick} thick slices to {n_thin} thin "
            f"ones, slice spacing divided by {network.ratio}. Research software, not a medical "
            "device."
        ),
        "authors": str(notes.get("authors", "not recorded")),
        "copyright": str(notes.get("licence", notes.get("license", "not recorded"))),
        "data_source": "; ".join(_lines(notes.get("data", "not recorded"))),
        "data_type": "nibabel",
        "intended_use": str(notes.get("use", "research; not for diagnosis")),
        "references": [
            "Liu et al., 'Multi-stream Progressive Up-sampling Network for Dense CT Image "
            "Reconstruction', MICCAI 2020"
        ],
        "weights_sha256": weights.sha256,
        "mpunet_record": dict(weights.record),
        "network_data_format": {
            "inputs": {"image": windows(network.n_thick, [0, 1], f"thick slices, {unit}")},
            "outputs": {"pred": windows(n_thin, [], f"thin slices, {unit}, not clipped")},
        },
    }


def _lines(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]
