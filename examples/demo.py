"""Run mpunet on a synthetic chest and on a real lung, and draw a picture (`make demo`).

Thick slices are simulated from two thin volumes, reconstructed with the packaged network and
compared with the truth:

- a phantom: a whole chest, but an invented one;
- a crop of a real chest CT, with a lesion of the lung (examples/data).

This shows that everything works and what kind of detail is lost in thick slices. It is not a
clinical result: the network was trained on real chests, never on a phantom, and the crop is a small
part of one patient's lung. docs/model_card.md has the results on a whole chest CT.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

from mpunet.__main__ import main as mpunet
from mpunet.geometry import grid_spacing
from mpunet.io.scan_file import read_volume
from mpunet.phantom.chest import phantom_image
from mpunet.report.pictures import coronal, pyplot

__all__ = ["coronals", "main", "reconstruct"]

RATIO = 5
CROP = Path(__file__).parent / "data" / "lesion_1.25mm.nii.gz"
COLUMNS = 4


def main(words: Sequence[str] | None = None) -> int:
    """Run the demo."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("build/demo"))
    folder: Path = parser.parse_args(words).output
    phantom = folder / "truth" / "phantom.nii.gz"
    phantom.parent.mkdir(parents=True, exist_ok=True)
    nib.save(phantom_image(3), phantom)
    files = {
        "phantom": reconstruct(phantom, folder, RATIO),
        "real lung": reconstruct(CROP, folder, RATIO),
    }
    picture = folder / "coronal.png"
    _draw({subject: coronals(case) for subject, case in files.items()}, picture)
    print(
        "\nNot a clinical result: the phantom is synthetic, the real lung is one small crop of one "
        "patient,\nand the thick slices of both are simulated.\n"
        f"Thin slices: {folder / 'thin'}\n"
        f"Reports:     {folder / 'evaluation'}/*/report.html\n"
        f"Picture:     {picture}"
    )
    return 0


def reconstruct(
    truth: Path, folder: Path, ratio: int, options: Sequence[str] = ()
) -> dict[str, Path]:
    """Simulate thick slices of a thin scan, reconstruct and evaluate them by mpunet's commands.

    Args:
        truth: thin scan, ``.nii.gz``.
        folder: output folder; existing files of the same names are overwritten.
        ratio: thick spacing / thin spacing.
        options: further options of ``mpunet predict``.

    Returns:
        Files by name: "thick (simulated)", "cubic interpolation", "mpunet" and "truth".
    """
    name = truth.name
    thick, thin = (folder / part / name for part in ("scans", "thin"))
    evaluation = folder / "evaluation" / name.removesuffix(".nii.gz")
    again = ["--existing", "overwrite"]
    _run("simulate", truth, thick, "--ratio", ratio, *again)
    _run("predict", thick, thin.parent, *again, *options)
    measured = [thin, truth, "--name", "mpunet", "--inputs", thick, "--baselines", "cubic"]
    _run("evaluate", *measured, "--output", evaluation)
    cubic = evaluation / "baselines" / "cubic" / name
    return {
        "thick (simulated)": thick,
        "cubic interpolation": cubic,
        "mpunet": thin,
        "truth": truth,
    }


def coronals(
    files: Mapping[str, Path], *, row: float = 0.5, columns: slice = slice(None)
) -> dict[str, npt.NDArray[np.uint8]]:
    """Return coronal pictures of the same part of several volumes, with their spacing as title.

    Args:
        files: files by name, as returned by :func:`reconstruct`.
        row: position of the plane from front to back, from 0 to 1.
        columns: part of the width in voxels.
    """
    volumes = {name: read_volume(path) for name, path in files.items()}
    # The true slices above the last thick slice were not reconstructed.
    depth = volumes["mpunet"].shape[0]
    pictures = {}
    for name, volume in volumes.items():
        spacing = grid_spacing(volume.slab_affine)
        title = f"{name}, {spacing[0]:.3g} mm"
        pictures[title] = coronal(volume.slab[:depth, :, columns], spacing, row=row)
    return pictures


def _run(*words: object) -> None:
    """Run a command of mpunet; end this script if it fails."""
    arguments = [str(word) for word in words]
    print(f"\n$ mpunet {' '.join(arguments)}", flush=True)
    if status := mpunet(arguments):
        sys.exit(status)


def _draw(rows: Mapping[str, Mapping[str, npt.NDArray[np.uint8]]], path: Path) -> None:
    """Draw a row of pictures for each subject."""
    plt = pyplot()
    sizes = [next(iter(pictures.values())).shape for pictures in rows.values()]
    ratios = [height / width for height, width in sizes]
    figure, axes = plt.subplots(
        len(rows),
        COLUMNS,
        figsize=(3 * COLUMNS, sum(3 * ratio + 0.25 for ratio in ratios)),
        height_ratios=ratios,
        layout="constrained",
    )
    for line, (subject, pictures) in zip(axes, rows.items(), strict=True):
        for axis, (name, image) in zip(line, pictures.items(), strict=True):
            axis.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axis.set_title(f"{subject}: {name}", fontsize="small")
            axis.axis("off")
    figure.savefig(path, dpi=130, facecolor="white")
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
