"""ECLARE (Remedios et al., 2025) on a folder: package eclare 1.0.1, GPL 3.

    python examples/peers/eclare.py THICK THIN --ratio 5 --program eclare/bin/run-eclare

It wants an old SciPy, so it has an environment of its own:

    python3 -m venv eclare && eclare/bin/pip install eclare==1.0.1

It trains a network on each scan alone, with a million patches by default: a GPU, or fewer patches.
The slice profile is given as a Gaussian with the width of our simulation, 0.9 thick spacings,
instead of estimated.

Grid: it makes isotropic voxels, so that the slice spacing becomes the in-plane spacing, and keeps
the field of view. Its slices are interpolated (cubic) at the positions of our thin slices.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.interpolate import make_interp_spline

WIDTH = 0.9  # full width at half maximum of the Gaussian in thick spacings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("thick", type=Path)
    parser.add_argument("thin", type=Path)
    parser.add_argument("--ratio", type=int, default=5)
    parser.add_argument("--program", default="run-eclare")
    parser.add_argument("--n-patches", default="1000000")
    parser.add_argument("--gpu-id", default="0", help="-1 for the CPU")
    args = parser.parse_args()
    for file in sorted(args.thick.rglob("*.nii.gz")):
        thick = nib.load(file)
        with tempfile.TemporaryDirectory() as folder:
            width = WIDTH * float(thick.header.get_zooms()[2])
            words = [args.program, "--in-fpath", file, "--out-dir", folder, "--suffix", ""]
            words += ["--relative-slice-thickness", f"{width / min(thick.header.get_zooms()):.4f}"]
            words += ["--n-patches", args.n_patches, "--gpu-id", args.gpu_id]
            subprocess.run([str(word) for word in words], check=True)
            found = nib.load(next(Path(folder).glob("*.nii.gz")))
            voxels = found.get_fdata(dtype=np.float32)
        # Positions of its slices and of ours, in thick slices along the last axis.
        to_thick = (np.linalg.inv(thick.affine) @ found.affine)[2]
        theirs = to_thick[2] * np.arange(voxels.shape[2]) + to_thick[3]
        ours = np.arange((thick.shape[2] - 1) * args.ratio + 1) / args.ratio
        thin = make_interp_spline(theirs, voxels, k=3, axis=2)(ours).astype(np.float32)
        affine = thick.affine @ np.diag([1, 1, 1 / args.ratio, 1])
        target = args.thin / file.relative_to(args.thick)
        target.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(thin, affine), target)


if __name__ == "__main__":
    main()
