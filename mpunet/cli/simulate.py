"""The command ``mpunet simulate``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from jsonargparse import ArgumentParser

from mpunet.inference.manifest import one_line
from mpunet.io.dicom.scan import DicomScan
from mpunet.io.dicom.writer import write_thick_series
from mpunet.io.scans import Scan, find_scans, has_result, input_places, opened, output_path
from mpunet.io.thick_file import write_thick
from mpunet.io.volume import VolumeInfo, nifti_suffix
from mpunet.progress import Progress
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
    format: Literal["auto", "nifti"] = "auto",  # noqa: A002 - the name of the option
    slice_axis: int | None = None,
) -> int:
    """Simulate thick-slice volumes from thin-slice volumes.

    Writes int16 HU to files with the same names, and DICOM series to folders with the same names.
    Their affines give the positions of the thick slices.

    Args:
        thin: folder of thin NIfTI volumes or DICOM series, searched recursively, or one file.
        thick: folder to write the thick volumes to; for one thin file, also the file to write.
        ratio: thick spacing / thin spacing, at least 2.
        profile: slice profile: "gaussian", "box" or "triangle"; or a CSV file with the columns
            mm,weight, as written by `mpunet fit-profile`.
        fwhm: full width at half maximum of the profile in thick spacings; default 0.9 for the
            Gaussian, else 1.
        offset: index of the thin slice at the centre of the first thick slice.
        existing: what to do if a thick file exists; "error" stops before any file is written.
        format: "auto" writes a DICOM series if the thin volume is one; "nifti" writes NIfTI files.
        slice_axis: stored axis along which slices are stacked; needed only if the voxel spacings do
            not identify it.

    Returns:
        1 if a file could not be used, else 0.
    """
    kind = _profile(profile, fwhm)
    scans = find_scans(thin)
    jobs = [(scan, _target(scan, thin, thick, format)) for scan in scans]
    inputs = input_places(scans)
    if lost := [inputs[place] for _, path in jobs if (place := path.resolve()) in inputs]:
        raise ValueError(
            f"{lost[0].path} would be overwritten by thick slices; name another folder."
        )
    if existing == "error" and (present := [path for _, path in jobs if has_result(path)]):
        raise ValueError(
            f"{len(present)} of {len(jobs)} files exist, the first of them {present[0]}; "
            "use --existing skip or overwrite."
        )
    todo = [job for job in jobs if existing != "skip" or not has_result(job[1])]
    skipped, failed = len(jobs) - len(todo), 0
    progress = Progress(len(todo), "scan")
    for scan, path in todo:
        with progress.item(scan.relative.as_posix()):
            try:
                source = opened(scan, slice_axis=slice_axis)
                weights = _weights(kind, fwhm, ratio, source)
                path.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(source, DicomScan) and format == "auto":
                    write_thick_series(path, source, ratio, weights=weights, start=offset)
                else:
                    write_thick(path, source, ratio, weights=weights, start=offset)
            except Exception as error:  # other scans may succeed, whatever the error is
                failed += 1
                progress.fail(one_line(error).removeprefix(f"{scan.path.name}: "))
    progress.close()
    parts = [
        f"{len(jobs) - failed - skipped} written to {thick}",
        f"{skipped} skipped (file exists)",
        f"{failed} failed",
    ]
    print(
        ", ".join(part for part, number in zip(parts, (1, skipped, failed), strict=True) if number)
    )
    return int(failed > 0)


def _profile(profile: str, fwhm: float | None) -> Profile | SampledProfile:
    """Return the named profile or read it from a file; raise before any volume is read."""
    for kind in get_args(Profile):
        if profile == kind:
            profile_weights(2, profile=kind, fwhm=fwhm)
            return kind  # type: ignore[no-any-return]  # one of the literals
    if not Path(profile).is_file():
        raise ValueError(
            f"Expected a profile among {', '.join(get_args(Profile))}, or a CSV file of one, "
            f"got {profile}."
        )
    if fwhm is not None:
        raise ValueError(
            f"The file {profile} sets the width of the profile: "
            "leave out fwhm, or give a named profile instead of the file."
        )
    return read_profile(profile)


def _weights(
    kind: Profile | SampledProfile, fwhm: float | None, ratio: int, source: VolumeInfo
) -> npt.NDArray[np.float64]:
    if isinstance(kind, SampledProfile):
        return kind.weights(float(source.spacing[0]))
    return profile_weights(ratio, profile=kind, fwhm=fwhm)


def _target(scan: Scan, thin: str, thick: str, file_format: Literal["auto", "nifti"]) -> Path:
    if Path(thin).is_file() and nifti_suffix(Path(thick)) is not None:
        return Path(thick)
    return output_path(Path(thick), scan, file_format)


def run(args: Sequence[str]) -> int:
    """Run :func:`simulate` with command line arguments."""
    parser = ArgumentParser(
        prog="mpunet simulate", description=(simulate.__doc__ or "").split("\n\n    Args:")[0]
    )
    parser.add_function_arguments(simulate, as_positional=True)
    return simulate(**vars(parser.parse_args(list(args))))
