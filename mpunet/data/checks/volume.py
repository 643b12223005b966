"""Check one volume by its header and its :class:`mpunet.data.checks.survey.Survey`.

All limits are our choice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np

from mpunet.data.checks.order import order_faults, slices_text
from mpunet.data.checks.survey import Survey
from mpunet.geometry import grid_spacing
from mpunet.io.nifti.sidecar import thickness_note
from mpunet.io.volume import TILTED, VolumeInfo

__all__ = ["Code", "Finding", "Verdict", "check_intensities", "check_slices", "check_spacing"]

Verdict = Literal["refused", "repaired", "fine"]
Code = Literal[
    # of one volume
    "unreadable", "scale", "8-bit", "shifted", "clipped", "padding", "blank", "doubled", "jump",
    "repeated", "exchanged", "foreign", "disorder",
    "spacing", "no position", "tilt", "thickness",
    # of a pair
    "grid", "ratio", "offset", "orientation", "turned", "another patient", "steps", "other scale",
    "registration", "lung mask",
]  # fmt: skip

# A difference between two slices this many times the usual one means two or more missing slices.
JUMP = 2.2
SPACING = (0.1, 20.0)  # valid voxel spacings in mm


class Finding(NamedTuple):
    """One finding about a case.

    Attributes:
        code: short identifier of the kind of finding, stable across versions.
        verdict: "refused" if the case must not be used for training or evaluation, "repaired" if
            the library corrects the problem when it reads the case, "fine" if it is for information
            only.
        text: description for the user, with the numbers.
        volume: volume that it concerns: "thin", "thick", "lung", or "pair" for thick and thin.
    """

    code: Code
    verdict: Verdict
    text: str
    volume: Literal["thin", "thick", "lung", "pair"] = "pair"


def check_spacing(info: VolumeInfo) -> Iterator[Finding]:
    """Check voxel spacing, position, gantry tilt and slice thickness, without reading voxels."""
    spacing = grid_spacing(info.affine, info.slice_axis)
    text = " x ".join(f"{mm:.4g}" for mm in spacing)
    if spacing.min() < SPACING[0] or spacing.max() > SPACING[1]:
        yield Finding(
            "spacing",
            "refused",
            f"voxels of {text} mm are not plausible for CT; is the header in cm or m, "
            "or has it lost its spacing?",
        )
    if not any(int(form(coded=True)[1]) for form in (info.header.get_sform, info.header.get_qform)):
        yield Finding(
            "no position",
            "fine",
            "the header has no position (sform and qform code 0): orientation is a guess",
        )
    if info.tilt > TILTED:
        yield Finding(
            "tilt",
            "fine",
            f"gantry tilt of {info.tilt:.1f} degrees: slices are {info.spacing[0]:.4g} mm apart "
            "along their normal",
        )
    if (note := thickness_note(info)) is not None:
        yield Finding("thickness", "fine", note)


def check_intensities(seen: Survey) -> Iterator[Finding]:
    """Check that intensities can be HU of a CT, in which air is -1000 HU and tissue about 0 HU."""
    span = f"intensities of {seen.low:g} to {seen.high:g}"
    if seen.high - seen.low < 100:
        way = (
            "; if they represent [-1024, 2048] HU as in RPLHR-CT, set intensity to 'rplhr'"
            if seen.high <= 1.5
            else ""
        )
        yield Finding("scale", "refused", f"{span} are not HU{way}")
        return
    levels = int(np.count_nonzero(seen.counts))
    if (seen.low >= 0 and seen.high <= 255) or (levels <= 256 and seen.counts.sum() > 1 << 16):
        yield Finding(
            "8-bit",
            "refused",
            f"{span} in {levels} steps are 8 bit grey values, not HU; "
            "convert the DICOM files again",
        )
        return
    below, padding = seen.share(-32768, -1100), seen.mode(-32768, -1100)
    if below and padding[1] > 0.95 * below:
        yield Finding(
            "padding",
            "repaired",
            f"padding of {padding[0]} HU outside the field of view is read as -1024 HU",
        )
        below = 0.0
    if below > 0.05:
        yield Finding(
            "shifted",
            "refused",
            f"{100 * below:.0f} % of the voxels are below -1100 HU, "
            "as if 1024 had been subtracted twice",
        )
    # Fraction of air: all voxels below -300 HU, except if nearly all of them have one value, which
    # is then padding unless it is the HU of air.
    air = seen.share(-32768, -300)
    if (fill := seen.mode(-32768, -300))[1] > 0.95 * air:
        air = 0.0 if fill[0] not in range(-1030, -990) else air
    if air < 1e-3 and seen.share(824, 1224) > 0.05:
        yield Finding(
            "shifted",
            "refused",
            f"{span}, soft tissue at {seen.mode(824, 1224)[0]} and air near 0: subtract 1024",
        )
    elif seen.low > -900 and _piled(seen, int(seen.low), 1):
        yield Finding(
            "clipped",
            "refused",
            f"{100 * seen.share(seen.low, seen.low):.0f} % of the voxels have the lowest HU, "
            f"{seen.low:g}",
        )
    elif seen.low > -200:
        yield Finding("scale", "refused", f"{span} are not HU, where air is -1000")
    if seen.high < 2000 and _piled(seen, int(seen.high), -1):
        share = 100 * seen.share(seen.high, seen.high)
        yield Finding(
            "clipped",
            "refused",
            f"{share:.2g} % of the voxels have the highest HU, {seen.high:g}: "
            "clipped to a display window",
        )


def check_slices(seen: Survey) -> Iterator[Finding]:
    """Check for slices that are blank, doubled (equal to the one before), misplaced or missing."""
    depth = len(seen.digests)
    blank = set(seen.blank)
    if blank:
        yield Finding(
            "blank",
            "refused",
            f"{slices_text(seen.blank)} of {depth} {'is' if len(blank) == 1 else 'are'} blank; "
            "cut off or restore",
        )
    doubled = [
        k for k in range(1, depth) if seen.digests[k] == seen.digests[k - 1] and k not in blank
    ]
    if doubled:
        yield Finding(
            "doubled",
            "refused",
            f"{slices_text(doubled)} of {depth} "
            f"repeat{'s' if len(doubled) == 1 else ''} the one before",
        )
    told = {*blank, *doubled, *(k - 1 for k in doubled)}
    digests = [None if k in blank else digest for k, digest in enumerate(seen.digests)]
    faults = order_faults(list(seen.planes), digests)
    for fault in faults:
        if not fault.slices or not told.issuperset(fault.slices):
            yield Finding(fault.code, "refused", fault.text)
    if any(fault.code == "disorder" for fault in faults):
        return  # jumps are everywhere
    told = blank.union(*(fault.slices for fault in faults))
    steps = np.abs(np.diff(seen.planes, axis=0)).mean(axis=(1, 2))
    for k, step in enumerate(steps):
        near = np.concatenate([steps[max(0, k - 4) : k], steps[k + 1 : k + 5]])
        usual = float(np.median(near)) if len(near) >= 4 else 0.0
        if usual > 0.5 and step > JUMP * usual and not {k, k + 1} & told:
            text = (
                f"slices {k} and {k + 1} of {depth} differ {step / usual:.1f} times as much as "
                "neighbouring slices; slices between them are missing"
            )
            yield Finding("jump", "refused", text)


def _piled(seen: Survey, hu: int, inward: int) -> bool:
    """Return whether far more voxels have the HU ``hu`` than the average of the 20 HU next to it.

    ``inward`` is 1 to compare with higher HU and -1 to compare with lower HU.
    """
    counts = seen.counts
    at = hu + len(counts) // 2
    next_to = counts[min(at + inward, at + 20 * inward) : max(at + inward, at + 20 * inward) + 1]
    return bool(counts[at] > 1e-4 * counts.sum() and counts[at] > 20 * max(1.0, next_to.mean()))
