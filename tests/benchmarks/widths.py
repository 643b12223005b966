"""Error of the packaged networks for slice profiles of several widths, on a crop of a thin scan.

    python tests/benchmarks/widths.py $MPUNET_CT/val/MIDRC-RICORD-1A-001012.nii.gz

Prints the RMSE in HU of cubic interpolation, of the default network without and with the profile
(`predict --profile`), and of packaged_r5_wide. Two minutes on two CPU cores.
"""

from __future__ import annotations

import sys

import nibabel as nib
import numpy as np
from scipy.interpolate import CubicSpline

from mpunet.inference.reconstruct import Reconstructor
from mpunet.io.scan_file import read_volume
from mpunet.slices.sampled_profile import SampledProfile
from mpunet.slices.simulate import profile_density, thicken

SPACING = 5.0  # mm
MM = np.linspace(-20, 20, 161)
SIZE = (71, 128, 128)


def main(path: str) -> None:
    """Measure and print."""
    slab = read_volume(path).slab
    first = [(size - wanted) // 2 for size, wanted in zip(slab.shape, SIZE, strict=True)]
    first[2] = slab.shape[2] // 2 - 148  # right lung
    thin = slab[tuple(slice(a, a + size) for a, size in zip(first, SIZE, strict=True))]
    for width in (0.9, 1.1, 1.3):
        thick = thicken(thin, 5, fwhm=width).round().astype(np.int16)
        at = np.arange(len(thin)) / 5
        cubic = CubicSpline(np.arange(len(thick)), thick, axis=0, bc_type="natural")(at)
        profile = SampledProfile(MM, profile_density(MM, "gaussian", width * SPACING))
        results = {"cubic": rmse(cubic, thin)}
        for name, options in (
            ("packaged", {}),
            ("packaged", {"profile": profile}),
            ("packaged_r5_wide", {}),
        ):
            network = Reconstructor.from_checkpoint(name, device="cpu", **options)
            image = nib.Nifti1Image(thick.transpose(2, 1, 0), np.diag([0.7, 0.7, SPACING, 1]))
            result = np.asarray(network(image).dataobj).transpose(2, 1, 0)
            results[name + (", --profile" if options else "")] = rmse(result, thin)
        print(width, {key: round(value, 2) for key, value in results.items()}, flush=True)


def rmse(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square difference."""
    return float(np.sqrt(((a.astype(float) - b) ** 2).mean()))


if __name__ == "__main__":
    main(sys.argv[1])
