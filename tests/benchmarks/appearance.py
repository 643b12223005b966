"""Error and appearance of networks on a part of a thin scan: what feature matching changes.

    python tests/benchmarks/appearance.py $MPUNET_CT/val/MIDRC-RICORD-1A-001012.nii.gz vgg16.safetensors \
        packaged runs/X/last.ckpt

Prints MAE and RMSE (lungs, all), bias, sharpness, noise and LAA-950 in the lungs, and the perceptual
distance by layers of VGG-16 that feature matching does not use and by those that it uses. Stride
"fast". A minute for each network on a CPU core.
"""

from __future__ import annotations

import sys

import numpy as np

from mpunet.benchmark.measure import PERCEPTUAL_LAYERS
from mpunet.inference.reconstruct import Reconstructor
from mpunet.io.scan_file import read_volume
from mpunet.losses import VGG16Features
from mpunet.lungs import lung_mask
from mpunet.metrics.fidelity import lung_density
from mpunet.metrics.perceptual import perceptual_distance
from mpunet.metrics.texture import noise, sharpness
from mpunet.slices.interpolate import interpolated
from mpunet.slices.simulate import thicken

PART = np.s_[50:181, 70:230, 30:190]  # of the validation scan: half right lung, half around it


def main(path: str, vgg: str, *networks: str) -> None:
    """Measure and print."""
    scan = read_volume(path)
    lung = lung_mask(scan.slab, scan.spacing)[PART]
    truth = scan.slab[PART].astype(np.float32)
    thick = thicken(truth, 5)
    features = [
        VGG16Features(layers, vgg) for layers in (PERCEPTUAL_LAYERS, ("relu2_2", "relu3_3"))
    ]
    results = {"truth": truth, "cubic": np.concatenate(list(interpolated(thick, 5)))}
    for name in (*results, *networks):
        if name not in results:
            results[name] = Reconstructor.from_checkpoint(name, stride="fast", device="cpu")(thick)
        image, inside = results[name], lung[: len(results[name])]
        error = image - truth[: len(image)]
        values = [f(np.abs(error)[region]) for region in (inside, ...) for f in (np.mean, rms)]
        values += [
            error[inside].mean(),
            sharpness(image, scan.spacing, inside).ratio,
            noise(image, inside, scan.spacing).lung,
            lung_density(image, inside).laa950,
            *(perceptual_distance(image, truth[: len(image)], layers) for layers in features),
        ]
        print(name, *(f"{value:.3f}" for value in values), flush=True)


def rms(errors: np.ndarray) -> float:
    """Return the root of the mean square."""
    return float(np.sqrt(np.square(errors, dtype=np.float64).mean()))


if __name__ == "__main__":
    main(*sys.argv[1:])
