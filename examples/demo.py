"""Run mpunet on a synthetic chest: simulate, predict, evaluate, draw a picture (`make demo`).

A phantom is thickened, reconstructed with the packaged network and compared with the truth. This
shows that everything works and what kind of detail is lost in thick slices. It says nothing about
patients: the network was trained on real chests, never on a phantom. docs/model_card.md has its
results on real CT.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import nibabel as nib
import numpy as np

from mpunet.__main__ import main as mpunet
from mpunet.geometry import grid_spacing
from mpunet.io.scan_file import read_volume
from mpunet.models import interpolation_matrix
from mpunet.phantom.chest import phantom_image
from mpunet.report.pictures import coronal, draw_with_details

RATIO = 5


def main() -> int:
    """Run the demo."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("build/demo"))
    folder: Path = parser.parse_args().output
    truth, scans, thin, report = (
        folder / name for name in ("truth", "scans", "thin", "evaluation")
    )
    truth.mkdir(parents=True, exist_ok=True)
    nib.save(phantom_image(3), truth / "phantom.nii.gz")
    for words in (
        ["simulate", str(truth), str(scans), "--ratio", str(RATIO), "--existing", "overwrite"],
        [
            "predict",
            "--data.predict_dir",
            str(scans),
            "--writer.output_dir",
            str(thin),
            "--writer.existing",
            "overwrite",
        ],
        [
            "evaluate",
            str(thin),
            str(truth),
            "--inputs",
            str(scans),
            "--baselines",
            "cubic",
            "--output",
            str(report),
        ],
    ):
        print(f"\n$ mpunet {' '.join(words)}", flush=True)
        if status := mpunet(words):
            return status

    files = [directory / "phantom.nii.gz" for directory in (scans, thin, truth)]
    thick, ours, true = (read_volume(file) for file in files)
    cubic = np.einsum(
        "Nn,nhw->Nhw", interpolation_matrix(len(thick.slab), RATIO, "cubic"), thick.slab
    )
    volumes = {
        "thick, 5 mm": thick.slab,
        "cubic interpolation": cubic,
        "mpunet, 1 mm": ours.slab,
        "truth, 1 mm": true.slab,
    }
    spacing = grid_spacing(true.slab_affine)
    picture = folder / "coronal.png"
    pictures = {
        name: coronal(slab, spacing * ([RATIO, 1, 1] if name.startswith("thick") else 1), pixel=0.8)
        for name, slab in volumes.items()
    }
    draw_with_details(pictures, picture)
    print(
        "\nA synthetic phantom: not a clinical result.\n"
        f"Thin slices: {files[1]}\n"
        f"Report:      {report / 'report.html'}\n"
        f"Picture:     {picture}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
