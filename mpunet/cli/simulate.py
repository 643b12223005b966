"""The command ``mpunet simulate``."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from jsonargparse import ArgumentParser

from mpunet.geometry import grid_spacing
from mpunet.io.scan_file import open_scan
from mpunet.io.scans import Scan, find_scans
from mpunet.io.thick_file import write_thick
from mpunet.io.volume import VolumeInfo, nifti_suffix
from mpunet.slices.sampled_profile import SampledProfile, read_profile
from mpunet.slices.simulate import Profile, profile_weights

__all__ = ["run", "simulate"]


def simulate(
    thin: str,
    thick: str,
    *,
    ratio: int,
    profile: str = "gaussian",
    fwhm: float | None = None,
    offset: int = 0,
    existing: Literal["skip", "overwrite", "error"] = "skip",
    slice_axis: int | None = None,
) -> int:
    """Make thick series out of thin ones: files of the same names, int16 HU, at the right positions.

    Args:
        thin: a folder of thin NIfTI volumes, searched recursively, or one file.
        thick: folder for the thick ones; or, for one file, the file to write.
        ratio: thick spacing / thin spacing, at least 2.
        profile: slice profile, "gaussian", "box" or "triangle"; or a CSV file with the columns mm,weight, as fit-profile writes it.
        fwhm: full width at half maximum in thick spacings; 0.9 for the Gaussian by default, else 1.
        offset: thin slice that the first thick one is centred on.
        existing: what to do where the thick file is there already; "error" refuses before anything is written.
        slice_axis: stored axis along which slices are stacked, where spacings do not tell.

    Returns:
        1 if a file could not be used, else 0.
    """
    kind = _profile(profile, fwhm)
    jobs = [(scan, _target(scan, thin, thick)) for scan in find_scans(thin)]
    if existing == "error" and (there := [path for _, path in jobs if path.exists()]):
        raise ValueError(
            f"{len(there)} of {len(jobs)} files exist, the first of them {there[0]}; --existing skip or overwrite."
        )
    failed = skipped = 0
    for scan, path in jobs:
        if path.exists() and existing == "skip":
            skipped += 1
            continue
        start = time.monotonic()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            source = open_scan(scan.path, slice_axis=slice_axis)
            write_thick(
                path, source, ratio, weights=_weights(kind, fwhm, ratio, source), start=offset
            )
            print(f"{scan.relative}: {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)
        except ValueError as error:
            failed += 1
            print(f"{scan.relative}: {error}", file=sys.stderr, flush=True)
    parts = [
        f"{len(jobs) - failed - skipped} written to {thick}",
        f"{skipped} were there",
        f"{failed} failed",
    ]
    print(
        ", ".join(part for part, number in zip(parts, (1, skipped, failed), strict=True) if number)
    )
    return int(failed > 0)


def _profile(profile: str, fwhm: float | None) -> Profile | SampledProfile:
    """A kind by its name, or what the file holds; raises before any volume is read."""
    for kind in get_args(Profile):
        if profile == kind:
            profile_weights(2, profile=kind, fwhm=fwhm)
            return kind  # type: ignore[no-any-return]  # one of the literals
    if not Path(profile).is_file():
        raise ValueError(
            f"Expected a profile among {', '.join(get_args(Profile))}, or a CSV file of one, got {profile}."
        )
    if fwhm is not None:
        raise ValueError(
            f"The width of a profile from a file is the file's: leave out fwhm, or name a profile instead of {profile}."
        )
    return read_profile(profile)


def _weights(
    kind: Profile | SampledProfile, fwhm: float | None, ratio: int, source: VolumeInfo
) -> npt.NDArray[np.float64]:
    if isinstance(kind, SampledProfile):
        return kind.weights(float(grid_spacing(source.slab_affine)[0]))
    return profile_weights(ratio, profile=kind, fwhm=fwhm)


def _target(scan: Scan, thin: str, thick: str) -> Path:
    single = Path(thin).is_file() and nifti_suffix(Path(thick)) is not None
    path = Path(thick) if single else Path(thick) / scan.relative
    if path.resolve() == scan.path.resolve():
        raise ValueError(
            f"{scan.path} would be overwritten by its thick slices; name another folder."
        )
    return path


def run(args: Sequence[str]) -> int:
    """The command line of :func:`simulate`."""
    parser = ArgumentParser(
        prog="mpunet simulate", description=(simulate.__doc__ or "").split("\n\n    Args:")[0]
    )
    parser.add_function_arguments(simulate, as_positional=True)
    return simulate(**vars(parser.parse_args(list(args))))
