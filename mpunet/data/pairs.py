"""Split cases by patient, and align thick series with thin ones by position."""

from __future__ import annotations

import filecmp
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mpunet.data.case import PARTS, Case, Part
from mpunet.io.scan_file import read_info
from mpunet.io.volume import VolumeInfo

__all__ = ["align_pair", "check_alignment", "check_apart", "split_by_patient", "split_cases"]


def split_cases(
    cases: Sequence[Case], fractions: Sequence[float], *, seed: int = 0
) -> dict[Part, list[Case]]:
    """Split cases into training, validation and test.

    If the cases come with a split, use it; otherwise use :func:`split_by_patient`.

    Args:
        cases: the cases.
        fractions: fractions of the patients for training, validation and test, with sum 1.
        seed: seed of the split.

    Raises:
        ValueError: if :func:`split_by_patient` raises it, or if the split that comes with the cases
            has a patient in two parts.
    """
    if not any(case.part for case in cases):
        return dict(zip(PARTS, split_by_patient(cases, fractions, seed=seed), strict=True))
    parts = {part: [case for case in cases if case.part == part] for part in PARTS}
    check_apart(parts)
    return parts


def check_apart(parts: Mapping[Part, Sequence[Case]]) -> None:
    """Check that no patient and no thin volume is in two parts.

    Where patients are named after their files, the same name in two parts can be two patients (as
    where each part is numbered anew). It is one if the files are the same (our choice).

    Raises:
        ValueError: for the first patient or volume that is.
    """
    seen: dict[str | Path, tuple[Part, Case]] = {}
    for part, cases in parts.items():
        for case in cases:
            for key in (case.patient, case.thin.absolute()):
                other, first = seen.setdefault(key, (part, case))
                if other != part and (
                    case.patient != case.name_in_part or _same_file(first.thin, case.thin)
                ):
                    raise ValueError(
                        f"The patient {case.patient!r} is both in {other} ({first.thin}) and in "
                        f"{part} ({case.thin}); a patient in two parts makes results look better "
                        "than they are. Remove one of the two."
                    )


def _same_file(one: Path, other: Path) -> bool:
    """Return whether two paths are the same scan, or NIfTI files with the same bytes."""
    if one.absolute() == other.absolute():
        return True
    return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)


def split_by_patient(
    cases: Sequence[Case], fractions: Sequence[float], *, seed: int = 0
) -> list[list[Case]]:
    """Split cases at random into parts, so that no patient is in two parts.

    The result depends only on the patients and the seed, not on the order of the cases. Each part
    with a fraction above 0 gets at least one patient.

    Args:
        cases: the cases.
        fractions: fraction of the patients in each part, with sum 1.
        seed: seed of the split.

    Raises:
        ValueError: if a fraction is negative, their sum is not 1, or there are fewer patients than
            parts with a fraction above 0.
    """
    if any(f < 0 for f in fractions) or not np.isclose(sum(fractions), 1):
        raise ValueError(f"Expected fractions of at least 0 with sum 1, got {list(fractions)}.")
    patients = sorted(
        {c.patient for c in cases}, key=lambda p: hashlib.sha256(f"{seed}/{p}".encode()).digest()
    )
    wanted = [i for i, f in enumerate(fractions) if f > 0]
    if len(patients) < len(wanted):
        raise ValueError(
            f"Expected at least {len(wanted)} patients to split into {len(wanted)} parts, "
            f"got {len(patients)}. Give separate folders (train_dir, val_dir, test_dir), "
            "or set the fraction of a part to 0."
        )
    bounds = np.rint(np.cumsum(fractions) * len(patients)).astype(int)
    for rank, part in enumerate(wanted):
        first = bounds[wanted[rank - 1]] if rank else 0
        bounds[part] = min(max(bounds[part], first + 1), len(patients) - (len(wanted) - 1 - rank))
    part_of = {}
    for part, start in zip(wanted, [0, *(bounds[p] for p in wanted)], strict=False):
        part_of.update(dict.fromkeys(patients[start : bounds[part]], part))
    return [[c for c in cases if part_of[c.patient] == part] for part in range(len(fractions))]


def align_pair(thick: VolumeInfo, thin: VolumeInfo, ratio: int) -> tuple[slice, slice]:
    """Return the slices of a thick and of a thin slab that cover the same range.

    Within this range, thick slice k is at the position of thin slice ``ratio`` * k. Positions are
    computed from the affines. If one series starts before or ends after the other, both are cut to
    the common range.

    Args:
        thick: the thick volume.
        thin: the thin volume.
        ratio: expected thick spacing / thin spacing.

    Returns:
        The range of thick slices and the range of thin slices.

    Raises:
        ValueError: if the in-plane grids differ, the spacings have another ratio, thick slices lie
            between thin ones, or the series share fewer than 2 thick slice positions.
    """
    names = f"{thick.path} and {thin.path}"
    a, b = thick.slab_affine, thin.slab_affine
    if thick.shape[1:] != thin.shape[1:]:
        raise ValueError(
            f"{names} do not match: {thick.shape[1:]} against {thin.shape[1:]} voxels in plane. "
            "A pair must be one examination with one field of view; resample one onto the other."
        )
    spacing = thin.spacing
    measured = thick.spacing[0] / spacing[0]
    if abs(measured - ratio) > 0.01 * ratio:
        raise ValueError(
            f"{names} do not match: slices {thick.spacing[0]:.4g} and {spacing[0]:.4g} mm apart "
            f"have the ratio {measured:.3f}, expected {ratio}, the network's (--model.net.ratio)."
        )
    if not np.allclose(a[:3, :3] / [ratio, 1, 1], b[:3, :3], rtol=0, atol=0.01 * spacing.min()):
        raise ValueError(
            f"{names} do not match: their voxel axes differ in direction or in-plane spacing."
        )
    offset = np.linalg.solve(b[:3, :3], a[:3, 3] - b[:3, 3])
    start = round(offset[0])
    if abs(offset[0] - start) > 0.1 or np.abs(offset[1:]).max() > 0.1:
        raise ValueError(
            f"{names} do not match: the first thick slice is at thin voxel "
            f"({offset[0]:.2f}, {offset[1]:.2f}, {offset[2]:.2f}), expected a whole thin slice and "
            "(0, 0) in plane. Resample the thin volume to the positions of the thick one."
        )
    first = max(0, -(start // ratio))
    last = min(thick.shape[0] - 1, (thin.shape[0] - 1 - start) // ratio)
    if last - first < 1:
        raise ValueError(
            f"{names} do not match: they share {max(0, last - first + 1)} thick slice positions, "
            "expected at least 2."
        )
    # The checks above tolerate rounding in headers. Over hundreds of voxels it could add up.
    per_voxel = np.abs(np.linalg.solve(b[:3, :3], a[:3, :3]) - np.diag([ratio, 1, 1]))
    drift = (per_voxel @ (last, *np.subtract(thick.shape[1:], 1))).max()
    if drift > 0.5:
        raise ValueError(
            f"{names} do not match: their grids drift apart by up to {drift:.1f} thin voxels "
            "from the first slice to the last. Resample one onto the other."
        )
    return slice(first, last + 1), slice(start + first * ratio, start + last * ratio + 1)


def check_alignment(cases: Sequence[Case], *, ratio: int, slice_axis: int | None = None) -> None:
    """Check the headers of all pairs, so that a mismatch is found before hours of reading volumes.

    Args:
        cases: the cases; those without a thick file are skipped.
        ratio: expected thick spacing / thin spacing.
        slice_axis: stored axis along which slices are stacked; detected per file if None.

    Raises:
        ValueError: for the first pair that does not match, see :func:`align_pair`.
    """
    for case in cases:
        if case.thick is not None:
            align_pair(
                read_info(case.thick, slice_axis=slice_axis),
                read_info(case.thin, slice_axis=slice_axis),
                ratio,
            )
