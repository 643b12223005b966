"""The command ``mpunet fit-profile``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from jsonargparse import ArgumentParser

from mpunet.data.checks.survey import block_means
from mpunet.geometry import grid_spacing
from mpunet.io.scan_file import read_volume
from mpunet.io.volume import Volume
from mpunet.slices.profile_fit import EDGE, ProfileFit, fit_free, fit_profile, gather
from mpunet.slices.registration import AGREES, Registration, register
from mpunet.slices.sampled_profile import write_profile
from mpunet.slices.simulate import DEFAULT_FWHM, Profile

__all__ = ["PairFit", "fit_pair", "fit_profile_of", "run"]

FINE = 200  # voxels along height and width that are enough to fit three numbers


class PairFit(NamedTuple):
    """What a pair tells of its scanner.

    Attributes:
        ratio: thick spacing / thin spacing.
        by_header: thin slice, with fraction, on which the affines put thick slice 0.
        by_voxels: where the voxels put it.
        fits: each profile at its best width, the named ones also at the default width, and the free one last.
        slices: thick slices that were compared.
    """

    ratio: int
    by_header: float
    by_voxels: Registration
    fits: list[ProfileFit]
    slices: int


def fit_pair(thin: Volume, thick: Volume, *, ratio: int | None = None) -> PairFit:
    """Fit offset and slice profile to a genuine pair; by the voxels alone but for the ratio, where it is not given.

    Raises:
        ValueError: if the ratio cannot be told, or the volumes show no common anatomy.
    """
    spacing = grid_spacing(thin.slab_affine)
    measured = float(grid_spacing(thick.slab_affine)[0] / spacing[0])
    ratio = ratio or round(measured)
    if ratio < 2:
        raise ValueError(
            f"Expected thick slices at least twice as far apart as thin ones, got {measured:.3f} by the headers; give --ratio."
        )
    planes = [np.stack([block_means(plane) for plane in volume.slab]) for volume in (thick, thin)]
    by_voxels = register(planes[0], planes[1], ratio)
    if by_voxels.turned or by_voxels.agreement < AGREES:
        how = f"only turned {by_voxels.turned}" if by_voxels.turned else "nowhere"
        raise ValueError(
            f"{thick.name} and {thin.name} agree {how} (correlation {by_voxels.agreement:.2f}); expected two reconstructions of one scan."
        )
    start, step = round(by_voxels.offset), max(1, min(thin.shape[1:]) // FINE)
    moments = gather(thick.slab, thin.slab, ratio, start=start, step=step)
    fits = []
    for kind in get_args(Profile):
        for fwhm in (None, DEFAULT_FWHM if kind == "gaussian" else 1.0):
            fits.append(
                fit_profile(kind, moments, ratio, float(spacing[0]), start=start, fwhm=fwhm)
            )
    fits.append(fit_free(moments, ratio, float(spacing[0]), start=start))
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
    """Estimate a scanner's slice profile from thick and thin slices of one scan with one field of view and kernel.

    Prints the offset by the headers and by the voxels, and for each profile the width that fits best with its RMSE in HU.

    Args:
        thin: thin NIfTI volume.
        thick: thick one.
        ratio: thick spacing / thin spacing; by default the headers tell.
        output: CSV file for the profile, to be read by `mpunet simulate --profile FILE`.
        kind: which profile to write; the one with the smallest RMSE by default.
    """
    found = fit_pair(read_volume(thin), read_volume(thick), ratio=ratio)
    where = found.by_voxels
    print(
        f"Thick slice k stands on thin slice {found.ratio} k + {found.by_header:.2f} by the headers, {found.ratio} k + {where.offset:.2f} by the "
        f"voxels alone (correlation {where.agreement:.4f}).\n"
    )
    print("profile    FWHM in thick spacings    offset    RMSE, HU    at edges, HU")
    for fit in found.fits:
        print(
            f"{fit.kind:9s}{fit.fwhm:24.3f} {fit.offset:12.2f} {fit.rmse:11.1f} {fit.edges:15.1f}"
        )
    print(
        f"\n{found.slices} thick slices that have {2 * found.ratio} thin ones on each side. Named profiles with the best width, then with "
        f"the default one.\nEdges: where neighbours of a thick slice differ by {2 * EDGE:g} HU or more."
    )
    if output is not None:
        best = min(
            (fit for fit in found.fits if kind in ("best", fit.kind)), key=lambda fit: fit.rmse
        )
        comment = f"{best.kind} slice profile, FWHM {best.fwhm:.3f} thick spacings, fitted by mpunet to {thick}: RMSE {best.rmse:.1f} HU"
        write_profile(output, best.profile, comment)
        print(f"Profile ({best.kind}): {output}")
    return 0


def run(args: Sequence[str]) -> int:
    """The command line of :func:`fit_profile_of`."""
    parser = ArgumentParser(
        prog="mpunet fit-profile",
        description=(fit_profile_of.__doc__ or "").split("\n\n    Args:")[0],
    )
    parser.add_function_arguments(fit_profile_of, as_positional=True)
    return fit_profile_of(**vars(parser.parse_args(list(args))))
