"""The whole way on an invented chest: phantom → thick slices → fit → predict → picture and figures. What `make demo` runs.

The network is trained on other phantoms for a few minutes. That shows that everything works, and what kind of detail thick slices
lose; it says nothing about patients. docs/results.md has figures on real CT.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import matplotlib
import nibabel as nib
import numpy as np

from mpunet.__main__ import main as mpunet
from mpunet.data.lung_mask import lung_mask
from mpunet.data.phantom import phantom_image
from mpunet.data.scan_file import read_volume
from mpunet.data.thick_file import write_thick
from mpunet.geometry import grid_spacing
from mpunet.metrics import hu_metrics
from mpunet.models import interpolation_matrix
from mpunet.pictures import coronal

RATIO = 5


def draw(volumes: dict[str, np.ndarray], spacings: dict[str, np.ndarray], picture: Path) -> None:
    """Coronal slices side by side, with an enlarged part below each."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, len(volumes), figsize=(3.2 * len(volumes), 3.6), layout="constrained")
    for column, (name, slab) in enumerate(volumes.items()):
        image = coronal(slab, spacings[name], row=0.5, pixel=0.8)
        height, width = image.shape
        part = image[int(0.30 * height) : int(0.62 * height), int(0.10 * width) : int(0.48 * width)]
        for axis, pixels in zip(axes[:, column], (image, part), strict=True):
            axis.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axis.axis("off")
        axes[0, column].set_title(name)
    figure.savefig(picture, dpi=110, facecolor="white")
    plt.close(figure)


def main() -> int:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("build/demo"))
    parser.add_argument("--steps", type=int, default=600, help="training steps")
    args = parser.parse_args()
    folder: Path = args.output
    for part in ("train", "truth", "scans"):
        (folder / part).mkdir(parents=True, exist_ok=True)

    print("1. Phantoms: four to train on, one to test on", flush=True)
    for seed in (1, 2, 4, 5):
        nib.save(phantom_image(seed), folder / "train" / f"phantom{seed}.nii.gz")
    truth_file, thick_file = folder / "truth" / "phantom3.nii.gz", folder / "scans" / "phantom3.nii.gz"
    nib.save(phantom_image(3), truth_file)
    write_thick(thick_file, truth_file, RATIO)

    print(f"2. mpunet fit: {args.steps} steps", flush=True)
    config = Path(__file__).with_name("mpunet_cpu.yaml")
    status = mpunet(
        ["fit", "--config", str(config), "--data.train_dir", str(folder / "train"), "--data.cache_dir", str(folder / "cache")]
        + ["--trainer.default_root_dir", str(folder), "--trainer.logger", "false", "--trainer.max_steps", str(args.steps)]
        + ["--trainer.val_check_interval", "null", "--checkpoint.dirpath", str(folder)]
        + ["--checkpoint.enable_version_counter", "false", "--trainer.callbacks", "[]"]
    )
    if status:
        return status

    print("3. mpunet predict", flush=True)
    thin_dir = folder / "thin"
    status = mpunet(
        ["predict", "--ckpt_path", str(folder / "last.ckpt"), "--data.predict_dir", str(folder / "scans")]
        + ["--writer.output_dir", str(thin_dir), "--writer.existing", "overwrite"]
    )
    if status:
        return status

    thick, truth = read_volume(thick_file), read_volume(truth_file)
    cubic = np.einsum("Nn,nhw->Nhw", interpolation_matrix(len(thick.slab), RATIO, "cubic"), thick.slab)
    volumes = {
        "thick, 5 mm": thick.slab,
        "cubic interpolation": cubic,
        "mpunet, 1 mm": read_volume(thin_dir / thick_file.name).slab,
        "truth, 1 mm": truth.slab,
    }
    spacing = grid_spacing(truth.slab_affine)
    spacings = {name: spacing * ([RATIO, 1, 1] if name.startswith("thick") else 1) for name in volumes}
    lung = lung_mask(truth.slab, spacing)
    figures = {name: hu_metrics(volumes[name], truth.slab, lung) for name in ("cubic interpolation", "mpunet, 1 mm")}
    (folder / "figures.json").write_text(json.dumps(figures, indent=2))
    picture = folder / "coronal.png"
    draw(volumes, spacings, picture)

    print("\nIn the lungs of a phantom that was not trained on (an invented object: no clinical result):")
    for name, values in figures.items():
        print(
            f"  {name:20s} MAE {values['lung_mae']:5.1f} HU   RMSE {values['lung_rmse']:5.1f} HU   SSIM {values['lung_ssim']:.3f}"
        )
    print(f"Thin slices: {thin_dir / thick_file.name}\nPicture:     {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
