"""Cases in a folder: finding them, pairing thick with thin by name and by position, splitting them by patient."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mpunet.data.scans import find_scans
from mpunet.data.volume import Volume
from mpunet.geometry import grid_spacing

__all__ = ["Case", "align_pair", "files_by_name", "find_cases", "split_by_patient"]


class Case(NamedTuple):
    """One examination.

    Attributes:
        name: path below its folder, without ``.nii`` or ``.nii.gz``.
        patient: what the split keeps together.
        thin: thin-slice file.
        thick: thick-slice file of the same examination; None if it is to be simulated.
        lung: lung mask on the thin grid; None if it is to be computed.
    """

    name: str
    patient: str
    thin: Path
    thick: Path | None = None
    lung: Path | None = None


def find_cases(folder: str | Path, *, patient_pattern: str | None = None) -> list[Case]:
    """Cases in a folder, sorted by name.

    Two layouts: subfolders ``thin`` and, if pairs exist, ``thick`` and ``lung`` with files of the same names; or thin volumes
    right in the folder (and below it).

    Args:
        patient_pattern: regular expression whose first group (or whole match) in a case's name is the patient; by default the
            name itself.

    Raises:
        ValueError: if the folder is missing or empty, a file lacks its counterpart, or the pattern matches nothing.
    """
    root = Path(folder)
    if not (root / "thin").is_dir():
        if (root / "thick").is_dir():
            raise ValueError(
                f"{root} has a subfolder 'thick' but none named 'thin'; put the thin volumes there under the same names."
            )
        return [Case(name, _patient(name, patient_pattern), path) for name, path in files_by_name(root).items()]
    thin = files_by_name(root / "thin")
    thick = files_by_name(root / "thick") if (root / "thick").is_dir() else {}
    lung = files_by_name(root / "lung") if (root / "lung").is_dir() else {}
    for kind, files in (("thick", thick), ("lung", lung)):
        if files and (odd := sorted(files.keys() ^ thin.keys())):
            raise ValueError(
                f"{root}: {len(odd)} cases are not both in 'thin' and in '{kind}', the first of them {odd[0]!r}. "
                "Files of one case have the same name in every subfolder."
            )
    return [Case(name, _patient(name, patient_pattern), path, thick.get(name), lung.get(name)) for name, path in thin.items()]


def split_by_patient(cases: Sequence[Case], fractions: Sequence[float], *, seed: int = 0) -> list[list[Case]]:
    """Parts of the cases in the given fractions, no patient in two of them; the same for the same patients and seed, in any order.

    Each part with a fraction above 0 gets at least one patient, so there must be as many.
    """
    if any(f < 0 for f in fractions) or not np.isclose(sum(fractions), 1):
        raise ValueError(f"Expected fractions of at least 0 with sum 1, got {list(fractions)}.")
    patients = sorted({c.patient for c in cases}, key=lambda p: hashlib.sha256(f"{seed}/{p}".encode()).digest())
    wanted = [i for i, f in enumerate(fractions) if f > 0]
    if len(patients) < len(wanted):
        raise ValueError(
            f"Expected at least {len(wanted)} patients to split into {len(wanted)} parts, got {len(patients)}. "
            "Give separate folders (train_dir, val_dir, test_dir), or set the fraction of a part to 0."
        )
    bounds = np.rint(np.cumsum(fractions) * len(patients)).astype(int)
    for rank, part in enumerate(wanted):
        first = bounds[wanted[rank - 1]] if rank else 0
        bounds[part] = min(max(bounds[part], first + 1), len(patients) - (len(wanted) - 1 - rank))
    part_of = {}
    for part, start in zip(wanted, [0, *(bounds[p] for p in wanted)], strict=False):
        part_of.update(dict.fromkeys(patients[start : bounds[part]], part))
    return [[c for c in cases if part_of[c.patient] == part] for part in range(len(fractions))]


def align_pair(thick: Volume, thin: Volume, ratio: int) -> tuple[slice, slice]:
    """Slices of a thick and a thin slab that cover the same range, thick slice k on thin slice ``ratio`` * k of it.

    Positions are read from the affines; a thick series that starts some thin slices after the thin one is cut to what both have.

    Raises:
        ValueError: if grids differ in plane, the ratio is another one, or thick slices do not stand on thin ones.
    """
    names = f"{thick.path} and {thin.path}"
    a, b = thick.slab_affine, thin.slab_affine
    if thick.slab.shape[1:] != thin.slab.shape[1:]:
        raise ValueError(
            f"{names} do not match: {thick.slab.shape[1:]} against {thin.slab.shape[1:]} voxels in plane. "
            "A pair must be one examination with one field of view; resample one onto the other."
        )
    spacing = grid_spacing(b)
    measured = grid_spacing(a)[0] / spacing[0]
    if abs(measured - ratio) > 0.01 * ratio:
        raise ValueError(f"{names} do not match: slice spacings have the ratio {measured:.3f}, expected {ratio}.")
    if not np.allclose(a[:3, :3] / [ratio, 1, 1], b[:3, :3], rtol=0, atol=0.01 * spacing.min()):
        raise ValueError(f"{names} do not match: their voxel axes differ in direction or in-plane spacing.")
    offset = np.linalg.solve(b[:3, :3], a[:3, 3] - b[:3, 3])
    start = round(offset[0])
    if abs(offset[0] - start) > 0.1 or np.abs(offset[1:]).max() > 0.1:
        raise ValueError(
            f"{names} do not match: the first thick slice stands at thin voxel ({offset[0]:.2f}, {offset[1]:.2f}, {offset[2]:.2f}), "
            "expected a whole thin slice and (0, 0) in plane. Resample the thin volume onto the thick one's positions."
        )
    first = max(0, -(start // ratio))
    last = min(len(thick.slab) - 1, (len(thin.slab) - 1 - start) // ratio)
    if last - first < 1:
        raise ValueError(
            f"{names} do not match: they share {max(0, last - first + 1)} thick slice positions, expected at least 2."
        )
    # Each check above allows for rounded headers; over hundreds of voxels that would add up.
    per_voxel = np.abs(np.linalg.solve(b[:3, :3], a[:3, :3]) - np.diag([ratio, 1, 1]))
    drift = (per_voxel @ (last, *np.subtract(thick.slab.shape[1:], 1))).max()
    if drift > 0.5:
        raise ValueError(
            f"{names} do not match: their grids drift apart by up to {drift:.1f} thin voxels from the first slice to the last. "
            "Resample one onto the other."
        )
    return slice(first, last + 1), slice(start + first * ratio, start + last * ratio + 1)


def files_by_name(folder: str | Path) -> dict[str, Path]:
    """The volumes of :func:`mpunet.data.scans.find_scans` by their path below the folder without ``.nii`` and ``.nii.gz``, sorted."""
    out: dict[str, Path] = {}
    for scan in find_scans(folder):
        name = re.sub(r"\.nii(\.gz)?$", "", scan.relative.as_posix(), flags=re.IGNORECASE)
        if name in out:
            raise ValueError(f"Two files have the name {name!r}: {out[name]} and {scan.path}. Remove one of them.")
        out[name] = scan.path
    return out


def _patient(name: str, pattern: str | None) -> str:
    if pattern is None:
        return name
    match = re.search(pattern, name)
    if match is None:
        raise ValueError(f"patient_pattern {pattern!r} does not match the case {name!r}.")
    return match.group(1) if match.groups() else match.group(0)
