"""Check that the volumes of a case are valid CT and that thick and thin show the same slices.

`mpunet check` reports the findings for each case. Every volume is read once. The header,
intensities and slices of each volume are checked first. Then thick and thin are compared: by their
affines, and independently by their voxels, because voxels can be wrong under a correct header.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import nibabel as nib
import numpy as np
import numpy.typing as npt

from mpunet.data.case import Case
from mpunet.data.checks.survey import Survey, survey
from mpunet.data.checks.volume import (
    Finding,
    Verdict,
    check_intensities,
    check_slices,
    check_spacing,
)
from mpunet.data.pairs import align_pair
from mpunet.io.scan_file import read_volume
from mpunet.io.volume import Volume, VolumeInfo
from mpunet.slices.registration import AGREES, find_steps, register

__all__ = ["check_mask", "examine", "examine_volumes", "refuse", "verdict"]

# Smallest correlation of a pair with missing or doubled slices. It is below AGREES because only the
# slices on one side of the gap are aligned.
AGREES_WITH_STEPS = 0.85
MISPLACED = 0.5  # smallest distance, in thin slices, between the positions by affine and by voxels
# Smallest deviation of the gain from 1 (HU per HU) and bias (HU) to refuse: kernels differ by less.
OTHER_GAIN, OTHER_BIAS = 0.1, 25.0


def examine(
    case: Case, *, ratio: int | None = None, slice_axis: int | None = None
) -> list[Finding]:
    """Examine a case and return all findings; problems with its files never raise an exception.

    Args:
        case: a case, for example from :func:`mpunet.data.layouts.find_cases`.
        ratio: expected thick spacing / thin spacing; by default any whole ratio is accepted.
        slice_axis: stored axis along which slices are stacked; detected from the spacings if None.
    """
    volumes: dict[str, Volume] = {}
    findings = []
    for kind, path in (("thin", case.thin), ("thick", case.thick), ("lung", case.lung)):
        if path is None:
            continue
        try:
            volumes[kind] = read_volume(
                path, slice_axis=slice_axis, check_hu=False, intensity=case.intensity
            )
        except Exception as error:  # one bad file of an archive must not stop the others
            text = (
                str(error)
                if isinstance(error, ValueError)
                else f"{path.name}: {type(error).__name__}: {error}"
            )
            findings.append(
                Finding("unreadable", "refused", text, kind)  # type: ignore[arg-type]  # a literal
            )
    thin = volumes.get("thin")
    if thin is None:
        return findings
    return findings + examine_volumes(thin, volumes.get("thick"), volumes.get("lung"), ratio=ratio)


def examine_volumes(
    thin: Volume,
    thick: Volume | None = None,
    lung: Volume | None = None,
    *,
    ratio: int | None = None,
) -> list[Finding]:
    """Examine the volumes of a case, which must have been read with ``check_hu=False``.

    Args:
        thin: thin volume.
        thick: thick volume, if any.
        lung: lung mask, if any.
        ratio: expected thick spacing / thin spacing; by default any whole ratio is accepted.
    """
    seen = survey(thin)
    findings = [*_of("thin", check_spacing(thin), check_intensities(seen), check_slices(seen))]
    if thick is not None:
        other = survey(thick)
        findings += _of(
            "thick", check_spacing(thick), check_intensities(other), check_slices(other)
        )
        findings += _check_pair(thick, other, thin, seen, ratio)
    if lung is not None:
        findings += _check_lung(lung, thin)
    return findings


def verdict(findings: Iterable[Finding]) -> Verdict:
    """Return the worst verdict of all findings; "fine" if there are none.

    >>> verdict([Finding("padding", "repaired", ""), Finding("no position", "fine", "")])
    'repaired'
    """
    found = {finding.verdict for finding in findings}
    return "refused" if "refused" in found else "repaired" if "repaired" in found else "fine"


def refuse(findings: Iterable[Finding], *, name: str) -> None:
    """Raise a ValueError with a one-line message if a finding refuses the case ``name``."""
    refused = [
        f"{finding.volume}: {finding.text}" for finding in findings if finding.verdict == "refused"
    ]
    if refused:
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        raise ValueError(
            f"{name}: {refused[0]}{more}. `mpunet check` lists all problems; "
            "remove the case or correct it."
        )


def _of(kind: str, *parts: Iterable[Finding]) -> Iterator[Finding]:
    for part in parts:
        yield from (
            finding._replace(volume=kind)  # type: ignore[arg-type]  # one of the literals
            for finding in part
        )


def _check_pair(
    thick: VolumeInfo, thick_seen: Survey, thin: VolumeInfo, thin_seen: Survey, ratio: int | None
) -> Iterator[Finding]:
    measured = float(thick.spacing[0] / thin.spacing[0])
    if ratio is None:
        ratio = max(1, round(measured))
    if abs(measured - ratio) > 0.01 * ratio or ratio < 2:
        spacings = " and ".join(f"{v.spacing[0]:.4g}" for v in (thick, thin))
        yield Finding(
            "ratio",
            "refused",
            f"slices are {spacings} mm apart, a ratio of {measured:.3f}; expected {max(ratio, 2)}",
        )
        return
    if thick.shape[1:] != thin.shape[1:]:
        sizes = " and ".join(" x ".join(map(str, v.shape[1:])) for v in (thick, thin))
        yield Finding(
            "grid",
            "refused",
            f"thick and thin slices have {sizes} voxels: another field of view or matrix",
        )
        return
    codes = ["".join(nib.aff2axcodes(v.affine)) for v in (thick, thin)]
    if codes[0] != codes[1]:
        yield Finding(
            "orientation",
            "repaired",
            f"stored along {codes[0]} and {codes[1]}; both are turned to one orientation",
        )
    by_header = float(np.linalg.solve(thin.slab_affine, thick.slab_affine[:, 3])[0])
    try:
        used_thick, used_thin = align_pair(thick, thin, ratio)
    except ValueError as error:
        yield Finding("grid", "refused", str(error).split(" do not match: ")[-1])
    else:
        lost = thick.shape[0] - (used_thick.stop - used_thick.start)
        if used_thin.start or lost:
            text = (
                f"thick slice {used_thick.start} is at thin slice {used_thin.start}; both are cut "
                f"to the common {used_thick.stop - used_thick.start} thick slices"
            )
            yield Finding("offset", "repaired", text)
    yield from _check_registration(thick_seen, thin_seen, ratio, by_header)


def _check_registration(
    thick: Survey, thin: Survey, ratio: int, by_header: float
) -> Iterator[Finding]:
    try:
        found = register(thick.planes, thin.planes, ratio, expected=by_header)
    except ValueError as error:
        yield Finding("registration", "refused", str(error))
        return
    position = (
        f"thick slice 0 on thin slice {found.offset:.2f} by the voxels, "
        f"{by_header:.2f} by the headers"
    )
    steps = [] if found.turned else find_steps(thick.planes, thin.planes, ratio, found.offset)
    if found.agreement < (AGREES_WITH_STEPS if steps else AGREES):
        text = (
            f"thick and thin agree at no position (correlation {found.agreement:.2f} at best, "
            f"expected {AGREES} or more): two patients, or two scans"
        )
        yield Finding("another patient", "refused", text)
        return
    if found.turned:
        yield Finding(
            "turned",
            "refused",
            f"the thick voxels fit only if they are turned {found.turned}: "
            "one of the headers is wrong",
        )
        return
    if abs(found.gain - 1) > OTHER_GAIN or abs(found.bias) > OTHER_BIAS:
        text = (
            f"thick = {found.gain:.2f} thin {found.bias:+.0f} HU on average: "
            "intensities are not on one scale"
        )
        yield Finding("other scale", "refused", text)
    if steps:
        step = steps[0]
        what = (
            "thick slices are missing, or thin ones doubled"
            if step.by > 0
            else "thin slices are missing, or thick ones doubled"
        )
        more = f" ({len(steps)} such places)" if len(steps) > 1 else ""
        yield Finding(
            "steps",
            "refused",
            f"near thick slice {step.thick} the position changes by {step.by:+.1f} thin slices: "
            f"{what}{more}",
        )
    elif abs(found.offset - by_header) >= MISPLACED:
        yield Finding(
            "registration",
            "refused",
            f"{position}: {abs(found.offset - by_header):.1f} thin slices apart; "
            "one of the headers is wrong",
        )
    else:
        yield Finding("registration", "fine", f"{position}, correlation {found.agreement:.4f}")


def _check_lung(lung: Volume, thin: VolumeInfo) -> Iterator[Finding]:
    if lung.shape != thin.shape or not np.allclose(lung.slab_affine, thin.slab_affine, atol=0.05):
        yield Finding(
            "lung mask",
            "refused",
            f"the mask of {lung.shape} voxels is not on the thin grid of {thin.shape}",
            "lung",
        )
    else:
        yield from check_mask(lung.slab > 0)


def check_mask(mask: npt.NDArray[np.bool_]) -> Iterator[Finding]:
    """Check that a lung mask, true in the lungs, is not empty."""
    if not mask.any():
        yield Finding("lung mask", "refused", "the mask is empty", "lung")
