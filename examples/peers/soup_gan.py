"""SOUP-GAN (Zhang et al., Tomography 2022) on a folder: package KevinSR 0.1.20, MIT.

    python examples/peers/soup_gan.py THICK THIN --ratio 5 --model KevinSR/Thin-to-thin

It needs TensorFlow below 2.16, so it has an environment of its own:

    python3 -m venv soup && soup/bin/pip install "tensorflow-cpu<2.16" nibabel scipy
    soup/bin/pip install --no-deps KevinSR==0.1.20
    soup/bin/pip download --no-deps --no-binary :all: KevinSR==0.1.20 && tar xf KevinSR-0.1.20.tar.gz

The weights ``Thin-to-thin`` are in the source archive, but pip does not install them. The package
downloads other weights, ``Thick-to-thin``, which are not used here.

Grid: ``scipy.ndimage.zoom`` keeps the first and the last slice, so with the factor N / n the n thick
slices become N = (n - 1) * r + 1 thin ones, thick k at thin r * k. The package loses the scale of HU
when it rescales each volume to 0 to 10000; it is put back.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
from KevinSR import SOUP, SOUP_GAN

HIGHEST = 10000.0  # that of the package
MARGIN = 16  # voxels that tiles overlap on each side


def thin_slices(thick, ratio: int, tile: int):
    """Interpolate (W, H, D) in HU along its last axis, one tile of the plane at a time."""
    low, high = float(thick.min()), float(thick.max())
    scaled = (thick - low) / max(high - low, 1.0) * HIGHEST
    depth = thick.shape[2]
    thin = np.empty((*thick.shape[:2], (depth - 1) * ratio + 1), np.float32)
    for x in range(0, thick.shape[0], tile):
        for y in range(0, thick.shape[1], tile):
            left, top = max(0, x - MARGIN), max(0, y - MARGIN)
            part = scaled[left : x + tile + MARGIN, top : y + tile + MARGIN]
            found = SOUP_GAN(part, thin.shape[2] / depth, 1)[x - left :, y - top :]
            thin[x : x + tile, y : y + tile] = found[:tile, :tile]
    return thin / HIGHEST * (high - low) + low


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("thick", type=Path)
    parser.add_argument("thin", type=Path)
    parser.add_argument("--ratio", type=int, default=5)
    parser.add_argument("--model", type=Path, required=True, help="the folder Thin-to-thin")
    parser.add_argument("--tile", type=int, default=160, help="in-plane size in voxels")
    args = parser.parse_args()
    if not (args.model / "saved_model.pb").is_file():
        parser.error(f"expected the folder Thin-to-thin with saved_model.pb, got {args.model}")
    args.thick, args.thin, model = (p.absolute() for p in (args.thick, args.thin, args.model))
    # The whole volume is scaled once, not each tile; and the weights are read once.
    SOUP.rescale_img = lambda image, max_val: image
    SOUP.keras.models.load_model = lru_cache(SOUP.keras.models.load_model)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # the package looks for its weights in the current folder
        Path("Thin-to-thin").symlink_to(model)
        Path("Thick-to-thin").mkdir()
        for file in sorted(args.thick.rglob("*.nii.gz")):
            image = nib.load(file)
            thin = thin_slices(image.get_fdata(dtype=np.float32), args.ratio, args.tile)
            affine = image.affine @ np.diag([1, 1, 1 / args.ratio, 1])
            target = args.thin / file.relative_to(args.thick)
            target.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(thin, affine), target)


if __name__ == "__main__":
    main()
