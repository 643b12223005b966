"""Scores of one case: quality against the reference, fidelity, and consistency with the thick scan.

Volumes are arrays (D, H, W) in HU. Lung masks have the same shape and are nonzero in the lungs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from mpunet.data.pairs import align_pair
from mpunet.evaluation.densitometry import densities
from mpunet.evaluation.scores import Measure
from mpunet.intensity import HU_MAX, HU_MIN
from mpunet.io.volume import Volume
from mpunet.metrics.consistency import consistency
from mpunet.metrics.fidelity import hu_bias
from mpunet.metrics.quality import Protocol, quality
from mpunet.metrics.texture import BAND, noise, sharpness
from mpunet.slices.simulate import Profile

__all__ = ["Measured", "against_reference", "against_thick", "alone", "bias"]

Slab = npt.NDArray[Any]
Measured = Iterator[tuple[Measure, float]]

CLIPPED = (HU_MIN, HU_MAX)  # window of the fidelity measures, independent of the protocol
SSIM_KIND = "Gaussian 11 x 11, sigma 1.5, K1 0.01, K2 0.03, of HU minus the window's lower end, "
PLANES_KIND = {"axial": "2D axial, ", "all": "2D, mean of axial, coronal and sagittal slices, "}
BORDER_KIND = {
    "exclude": "without the 5 voxels at each slice's border in the whole volume",
    "zeros": "padded with zeros",
}


def against_reference(
    prediction: Slab, reference: Slab, lung: Slab | None, protocol: Protocol
) -> Measured:
    """Yield MAE, RMSE, PSNR and SSIM by region; without a lung mask only for the whole volume."""
    window, full = (protocol.low, protocol.high), protocol.high - protocol.low
    trimmed = f", {protocol.trim} slices left out at each end" if protocol.trim else ""
    ssim_kind = PLANES_KIND[protocol.planes] + SSIM_KIND + BORDER_KIND[protocol.border] + trimmed
    for region, found in quality(prediction, reference, lung, protocol=protocol).items():
        yield Measure("mae", region, "HU", window, None, "mean absolute error" + trimmed), found.mae
        yield (
            Measure("rmse", region, "HU", window, None, "root of the mean squared error" + trimmed),
            found.rmse,
        )
        yield (
            Measure("psnr", region, "dB", window, full, "20 log10(range / RMSE)" + trimmed),
            found.psnr,
        )
        yield Measure("ssim", region, "", window, full, ssim_kind), found.ssim


def bias(prediction: Slab, reference: Slab, lung: Slab | None) -> Measured:
    """Yield the signed bias by region and by HU of the reference."""
    found = hu_bias(prediction, reference, lung)
    for region, value in (
        ("whole", found.whole),
        ("lungs", found.lungs),
        ("outside", found.outside),
    ):
        if region == "whole" or lung is not None:
            yield (
                Measure("bias", region, "HU", CLIPPED, None, "mean of prediction - reference"),
                value,
            )
    for part in found.bins:
        region = f"{part.low:g} to {part.high:g} HU"
        yield (
            Measure(
                "bias",
                region,
                "HU",
                CLIPPED,
                None,
                "mean of prediction - reference, by HU of the reference",
            ),
            part.bias,
        )


def alone(volume: Slab, lung: Slab | None, spacing: npt.NDArray[np.float64]) -> Measured:
    """Yield the measures of a single volume: lung density, noise, sharpness across slices.

    Lung density and noise require a lung mask. ``spacing`` is in mm, along depth, height and width.
    """
    if lung is not None:
        yield from densities(volume, lung)
        found = noise(volume, lung, spacing)
        yield (
            Measure(
                "noise",
                "lungs",
                "HU",
                None,
                None,
                "standard deviation in homogeneous lung",
            ),
            found.lung,
        )
        yield Measure("noise", "air", "HU", None, None, "standard deviation in air"), found.air
    sharp = sharpness(volume, spacing, lung)
    kind = (
        f"power along depth / in plane, from {BAND[0]:g} to {BAND[1]:g} cycles/mm "
        "or the highest frequency that the voxels allow"
    )
    yield (
        Measure("sharpness", "whole" if lung is None else "lungs", "", None, None, kind),
        sharp.ratio,
    )


def against_thick(
    thin: Volume, thick: Volume, lung: Slab | None, *, profile: Profile, fwhm: float | None
) -> Measured:
    """Yield the consistency with the thick scan from which the thin slices were made.

    The thin slices are thickened again with the slice profile and compared with the thick scan.

    Args:
        thin: reconstructed thin slices.
        thick: thick scan.
        lung: mask on the grid of ``thin``, or None.
        profile: slice profile.
        fwhm: full width at half maximum of the profile in thick spacings; None for its default.

    Raises:
        ValueError: if the two volumes have no common range of slices at a whole spacing ratio.
    """
    ratio = round(thick.spacing[0] / thin.spacing[0])
    thick_used, thin_used = align_pair(thick, thin, ratio)
    mask = None if lung is None else lung[thin_used]
    found = consistency(
        thin.slab[thin_used], thick.slab[thick_used], profile=profile, fwhm=fwhm, lung=mask
    )
    kind = f"(output thickened with the {profile} profile) - thick scan"
    for region, part in (("whole", found), ("lungs", found.lungs)):
        if part is not None:
            yield (
                Measure(
                    "consistency", region, "HU", CLIPPED, None, f"mean absolute value of {kind}"
                ),
                part.mae,
            )
            yield (
                Measure("consistency_bias", region, "HU", CLIPPED, None, f"mean of {kind}"),
                part.bias,
            )
