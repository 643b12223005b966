"""The command ``mpunet fit-profile``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from jsonargparse import ArgumentParser

from mpunet.data.checks.survey import block_means
from mpunet.io.scan_file import read_volume
from mpunet.io.volume import Volume
from mpunet.slices.profile_fit import EDGE, ProfileFit, fit_free, fit_profile, gather
from mpunet.slices.registration import AGREES, Registration, register
from mpunet.slices.sampled_profile import write_profile
from mpunet.slices.simulate import DEFAULT_FWHM, Profile

__all__ = ["PairFit", "fit_pair", "fit_profile_of", "run"]

FINE = 200  # voxels along height and width; enough to fit three parameters


class PairFit(NamedTuple):
    """Offset and slice profiles fitted to a pair of thick and thin volumes.

    Attributes:
        ratio: thick spacing / thin spacing.
        by_header: position of thick slice 0 in thin slices (with a fraction), by the affines.
        by_voxels: the same position, by the voxels.
        fits: each named profile at its best width and at its default width; the free profile last.
        slices: number of thick slices that were compared.
    """

    ratio: int
    by_header: float
    by_voxels: Registration
    fits: list[ProfileFit]
    slices: int


def fit_pair(thin: Volume, thick: Volume, *, ratio: int | None = None) -> PairFit:
    """Fit the offset and slice profiles to a genuine pair, from its voxels alone.

    Args:
        thin: thin volume.
        thick: thick volume of the same scan.
        ratio: thick spacing / thin spacing; by default from the headers.

    Raises:
        ValueError: if the ratio is below 2, or the volumes show no common anatomy.
    """
    spacing = float(thin.spacing[0])
    measured = float(thick.spacing[0]) / spacing
    ratio = ratio or round(measured)
    if ratio < 2:
        raise ValueError(
            "Expected thick slices at least twice as far apart as thin ones, "
            f"got {measured:.3f} by the headers; give --ratio."
        )
    planes = [np.stack([block_means(plane) for plane in volume.slab]) for volume in (thick, thin)]
    by_voxels = register(planes[0], planes[1], ratio)
    if by_voxels.turned or by_voxels.agreement < AGREES:
        how = f"only turned {by_voxels.turned}" if by_voxels.turned else "nowhere"
        raise ValueError(
            f"{thick.name} and {thin.name} agree {how} (correlation {by_voxels.agreement:.2f}); "
            "expected two reconstructions of one scan."
        )
    start, step = round(by_voxels.offset), max(1, min(thin.shape[1:]) // FINE)
    moments = gather(thick.slab, thin.slab, ratio, start=start, step=step)
    fits = []
    for kind in get_args(Profile):
        for fwhm in (None, DEFAULT_FWHM if kind == "gaussian" else 1.0):
            fits.append(fit_profile(kind, moments, ratio, spacing, start=start, fwhm=fwhm))
    fits.append(fit_free(moments, ratio, spacing, start=start))
    by_header = np.linalg.solve(thin.slab_affine, thick.slab_affine[:, 3])[0]
    return PairFit(ratio, float(by_header), by_voxels, fits, moments[0].slices)


def fit_profile_of(
    thin: str,
    thick: str,
    *,
    ratio: int | None = None,
    output: str | None = None,
    kind: Literal["best", "gaussian", "box", "triangle", "free"] = "best",
) -> int:
    """Estimate a scanner's slice profile from thick and thin slices of one scan.

    Both volumes must have the same field of view and kernel. Prints the offset by the headers and
    by the voxels, and for each profile the best width with its RMSE in HU.

    Args:
        thin: thin NIfTI volume.
        thick: thick NIfTI volume of the same scan.
        ratio: thick spacing / thin spacing; by default from the headers.
        output: CSV file to write the profile to, for `mpunet simulate --profile FILE`; by default
            none is written.
        kind: profile to write; "best" is the one with the smallest RMSE.

    Returns:
        Exit status 0.
    """
    found = fit_pair(read_volume(thin), read_volume(thick), ratio=ratio)
    where = found.by_voxels
    print(
        f"Thick slice k is at thin slice {found.ratio} k + {found.by_header:.2f} by the headers, "
        f"{found.ratio} k + {where.offset:.2f} by the voxels alone "
        f"(correlation {where.agreement:.4f}).\n"
    )
    print("profile    FWHM in thick spacings    offset    RMSE, HU    at edges, HU")
    for fit in found.fits:
        print(
            f"{fit.kind:9s}{fit.fwhm:24.3f} {fit.offset:12.2f} {fit.rmse:11.1f} {fit.edges:15.1f}"
        )
    print(
        f"\nFitted to {found.slices} thick slices with {2 * found.ratio} thin slices on each side. "
        "Each named profile: best width, then default width.\n"
        f"Edges: voxels whose two neighbouring thick slices differ by {2 * EDGE:g} HU or more."
    )
    if output is not None:
        best = min(
            (fit for fit in found.fits if kind in ("best", fit.kind)), key=lambda fit: fit.rmse
        )
        comment = (
            f"{best.kind} slice profile, FWHM {best.fwhm:.3f} thick spacings, "
            f"fitted by mpunet to {thick}: RMSE {best.rmse:.1f} HU"
        )
        write_profile(output, best.profile, comment)
        print(f"Profile ({best.kind}): {output}")
    return 0


def run(args: Sequence[str]) -> int:
    """Run :func:`fit_profile_of` with command line arguments."""
    parser = ArgumentParser(
        prog="mpunet fit-profile",
        description=(fit_profile_of.__doc__ or "").split("\n\n    Args:")[0],
    )
    parser.add_function_arguments(fit_profile_of, as_positional=True)
    return fit_profile_of(**vars(parser.parse_args(list(args))))
